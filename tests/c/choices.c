/* What a server sets in its code: runtimes, tags and commits. The other options come from the environment.
 *
 *     choices RUNTIME COMMIT
 *
 * Prints the reference of the image for the commit, first for a request with the commit and then for a pinned
 * commit, and the address of the engine. */
#include "check.h"

static mol_client client_with(const char *runtime, const char *pins)
{
    mol_options options = {0};
    mol_client client = {0};

    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_options_set(options, "runtimes", runtime, NULL) == MOL_OK);
    CHECK(mol_options_set(options, "tag_arch", "always", NULL) == MOL_OK);
    CHECK(mol_options_set(options, "pins", pins, NULL) == MOL_OK);
    CHECK(mol_client_new(options, false, &client, NULL) == MOL_OK);
    mol_options_free(options);
    return client;
}

int main(int argc, char **argv)
{
    mol_request request = {.size = sizeof request, .kind = MOL_REQUEST_IMAGE, .runtime = "hermes"};
    char pins[256];
    mol_client client;
    mol_call call = {0};
    mol_result *result;
    mol_image *image = NULL;

    CHECK(argc == 3);
    CHECK(!mol_is_known_runtime(argv[1]));
    client = client_with(argv[1], "");
    CHECK(mol_call_start(client, &request, MOL_TIMEOUT_CEILING, &call, NULL) == MOL_ERR_UNKNOWN_RUNTIME);
    request.runtime = argv[1];
    request.commit = argv[2];
    result = result_of(client, start(client, request, MOL_TIMEOUT_CEILING));
    CHECK(result->image != NULL);
    printf("commit %s\n", result->image->reference);
    mol_result_free(result);
    request = (mol_request){.kind = MOL_REQUEST_ENGINE_HOST};
    result = result_of(client, start(client, request, MOL_TIMEOUT_CEILING));
    CHECK(result->report != NULL);
    printf("engine %s\n", result->report);
    mol_result_free(result);
    mol_client_free(client);

    snprintf(pins, sizeof pins, "%s=%s", argv[1], argv[2]);
    client = client_with(argv[1], pins);
    CHECK(mol_ensure_local_image(client, argv[1], MOL_TIMEOUT_CEILING, &image, NULL) == MOL_OK);
    CHECK(image->cache_hit);
    printf("pinned %s\n", image->reference);
    mol_image_free(image);
    mol_client_free(client);
    return 0;
}
