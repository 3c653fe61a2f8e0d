/* What keeps a server well: blocking, and through the queue, with the options in the environment.
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

int main(void)
{
    mol_options options = 0;
    mol_client client = 0;
    mol_call call = 0;
    mol_error *error = NULL;
    char *json = NULL;

    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_client_new(options, false, &client, NULL) == MOL_OK);
    mol_options_free(options);

    CHECK(mol_list(client, 0, NULL, &error) == MOL_ERR_INVALID_ARGUMENT);
    mol_error_free(error);
    CHECK(mol_prune(client + 1, 2, true, 0, &json, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(json == NULL);

    CHECK(mol_list(client, 0, &json, NULL) == MOL_OK);
    show("list", json);
    CHECK(mol_prune(client, 0, true, 0, &json, NULL) == MOL_OK);
    show("dry", json);
    CHECK(mol_client_submit_prune(client, 0, false, 0, &call, NULL) == MOL_OK);
    show_end("prune", client, call);
    CHECK(mol_client_submit_list(client, 0, &call, NULL) == MOL_OK);
    show_end("listed", client, call);

    mol_client_free(client);
    return 0;
}
