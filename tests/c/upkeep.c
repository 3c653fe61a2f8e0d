/* What keeps a server well: blocking, and through the queue, with the options in the environment.
 *
 *     upkeep              lists, and prunes all that may go, and all but what was used lately
 *     upkeep prune MS     prunes all that may go but what was used within MS; MS is as for mol_prune
 *     upkeep diagnose     looks at what a build depends on
 *     upkeep numbers      makes an image of hermes, and shows the numbers and the log
 *
 * Prints each report, one a line. */
#include "check.h"

static void show(const char *name, char *json)
{
    printf("%s %s\n", name, json);
    mol_string_free(json);
}

/* Takes events up to the end of the call, which is a report. */
static void show_end(const char *name, mol_client client, mol_call call)
{
    mol_event *event = NULL;

    CHECK(call != 0);
    CHECK(mol_client_next_event(client, 120000, &event, NULL) == MOL_OK);
    CHECK(event->call == call);
    CHECK(event->json != NULL && event->image == NULL && event->error == NULL);
    CHECK(strncmp(event->json, "{\"kind\":\"result\",", 17) == 0);
    printf("%s %s\n", name, event->json);
    mol_event_free(event);
}

static void diagnose(mol_client client)
{
    mol_call call = 0;
    char *json = NULL;

    CHECK(mol_diagnose(client, 0, &json, NULL) == MOL_OK);
    show("diagnosis", json);
    CHECK(mol_client_submit_diagnose(client, 0, &call, NULL) == MOL_OK);
    show_end("result", client, call);
}

static void numbers(mol_client client)
{
    mol_call call = 0;
    mol_image *image = NULL;
    char *json = NULL;

    CHECK(mol_build_log(client, "hermes", 0, &json, NULL) == MOL_ERR_CACHE);
    CHECK(mol_build_log(client, NULL, 0, &json, NULL) == MOL_ERR_INVALID_ARGUMENT);
    CHECK(mol_ensure_local_image(client, "hermes", 0, &image, NULL) == MOL_OK);
    mol_image_free(image);
    CHECK(mol_client_metrics(client, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);
    CHECK(mol_client_metrics(client, &json, NULL) == MOL_OK);
    show("metrics", json);
    CHECK(mol_build_log(client, "hermes", 0, &json, NULL) == MOL_OK);
    show("log", json);
    CHECK(mol_client_submit_build_log(client, "hermes", 0, &call, NULL) == MOL_OK);
    show_end("submitted", client, call);
}

static void prune(mol_client client)
{
    mol_call call = 0;
    mol_error *error = NULL;
    char *json = NULL;

    CHECK(mol_list(client, 0, NULL, &error) == MOL_ERR_INVALID_ARGUMENT);
    mol_error_free(error);
    CHECK(mol_prune(client + 1, 2, 0, true, 0, &json, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(json == NULL);

    CHECK(mol_list(client, 0, &json, NULL) == MOL_OK);
    show("list", json);
    CHECK(mol_prune(client, 0, 0, false, 0, &json, NULL) == MOL_OK);
    show("recent", json);
    CHECK(mol_prune(client, 0, -1, true, 0, &json, NULL) == MOL_OK);
    show("dry", json);
    CHECK(mol_client_submit_prune(client, 0, -1, false, 0, &call, NULL) == MOL_OK);
    show_end("prune", client, call);
    CHECK(mol_client_submit_list(client, 0, &call, NULL) == MOL_OK);
    show_end("listed", client, call);
}

int main(int argc, char **argv)
{
    mol_options options = 0;
    mol_client client = 0;

    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_client_new(options, false, &client, NULL) == MOL_OK);
    mol_options_free(options);

    if (argc > 1 && strcmp(argv[1], "diagnose") == 0)
        diagnose(client);
    else if (argc > 1 && strcmp(argv[1], "numbers") == 0)
        numbers(client);
    else if (argc > 1 && strcmp(argv[1], "prune") == 0 && argc > 2) {
        char *json = NULL;

        CHECK(mol_prune(client, 0, atoll(argv[2]), false, 0, &json, NULL) == MOL_OK);
        show("pruned", json);
    } else
        prune(client);

    mol_client_free(client);
    return 0;
}
