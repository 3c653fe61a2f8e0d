/* The calls with a report, with the options in the environment.
 *
 *     upkeep              lists, prunes without and with recent images, and lists again
 *     upkeep prune MS     prunes everything that was not used within MS; MS as in mol_request.keep_recent_ms
 *     upkeep diagnose     checks what a build depends on
 *     upkeep metrics      builds an image of hermes, and shows the metrics and the build log
 *
 * Prints each report on a line: "NAME JSON". */
#include "check.h"

/* Makes a call, and prints its report. */
static void show(mol_client client, const char *name, mol_request request)
{
    mol_result *result = result_of(client, start(client, request, MOL_TIMEOUT_CEILING));

    CHECK(result->status == MOL_OK && result->report != NULL);
    printf("%s %s\n", name, result->report);
    mol_result_free(result);
}

static void metrics(mol_client client)
{
    const mol_request log = {.kind = MOL_REQUEST_BUILD_LOG, .runtime = "hermes"};
    mol_result *result = result_of(client, start(client, log, MOL_TIMEOUT_CEILING));
    mol_image *image = NULL;
    char *json = NULL;

    CHECK(result->status == MOL_ERR_CACHE); /* nothing was built yet */
    mol_result_free(result);
    CHECK(mol_ensure_local_image(client, "hermes", MOL_TIMEOUT_CEILING, &image, NULL) == MOL_OK);
    mol_image_free(image);
    CHECK(mol_client_metrics(client, &json, NULL) == MOL_OK);
    printf("metrics %s\n", json);
    mol_string_free(json);
    show(client, "log", log);
}

static void list_and_prune(mol_client client)
{
    const mol_request list = {.kind = MOL_REQUEST_LIST};

    show(client, "list", list);
    show(client, "recent", (mol_request){.kind = MOL_REQUEST_PRUNE});
    show(client, "dry", (mol_request){.kind = MOL_REQUEST_PRUNE, .keep_recent_ms = -1, .dry_run = true});
    show(client, "prune", (mol_request){.kind = MOL_REQUEST_PRUNE, .keep_recent_ms = -1});
    show(client, "listed", list);
}

int main(int argc, char **argv)
{
    mol_client client = client_from_env(false);
    const char *what = argc > 1 ? argv[1] : "";

    if (strcmp(what, "diagnose") == 0)
        show(client, "diagnosis", (mol_request){.kind = MOL_REQUEST_DIAGNOSE});
    else if (strcmp(what, "metrics") == 0)
        metrics(client);
    else if (strcmp(what, "prune") == 0 && argc > 2)
        show(client, "pruned", (mol_request){.kind = MOL_REQUEST_PRUNE, .keep_recent_ms = atoll(argv[2])});
    else
        list_and_prune(client);
    mol_client_free(client);
    return 0;
}
