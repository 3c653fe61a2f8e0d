/* What a server chooses in its code: runtimes, tags and commits. The other options are in the environment.
 *
 *     choices RUNTIME COMMIT
 *
 * Prints the reference for the commit, asked for by name and pinned, and where the engine is. */
#include "check.h"

static mol_client client_with(const char *runtime, const char *pins)
{
    mol_options options = 0;
    mol_client client = 0;

    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_options_set(options, MOL_OPTION_RUNTIMES, runtime, NULL) == MOL_OK);
    CHECK(mol_options_set(options, MOL_OPTION_TAG_ARCH, "always", NULL) == MOL_OK);
    CHECK(mol_options_set(options, MOL_OPTION_PINS, pins, NULL) == MOL_OK);
    CHECK(mol_client_new(options, false, &client, NULL) == MOL_OK);
    mol_options_free(options);
    return client;
}

static mol_event *end_of(mol_client client, mol_call call)
{
    mol_event *event = NULL;

    CHECK(mol_client_next_event(client, 120000, &event, NULL) == MOL_OK);
    CHECK(event->call == call);
    return event;
}

int main(int argc, char **argv)
{
    char pins[256];
    mol_client client;
    mol_call call = 0;
    mol_event *event;
    mol_image *image = NULL;

    CHECK(argc == 3);
    CHECK(!mol_is_known_runtime(argv[1]));
    client = client_with(argv[1], "");
    CHECK(mol_client_submit(client, "hermes", 0, &call, NULL) == MOL_ERR_UNKNOWN_RUNTIME);
    CHECK(mol_client_submit_commit(client, argv[1], argv[2], 0, &call, NULL) == MOL_OK);
    event = end_of(client, call);
    CHECK(event->image != NULL);
    printf("submitted %s\n", event->image->reference);
    mol_event_free(event);
    CHECK(mol_client_submit_engine_host(client, 0, &call, NULL) == MOL_OK);
    event = end_of(client, call);
    CHECK(event->json != NULL);
    printf("%s\n", event->json);
    mol_event_free(event);
    mol_client_free(client);

    snprintf(pins, sizeof pins, "%s=%s", argv[1], argv[2]);
    client = client_with(argv[1], pins);
    CHECK(mol_ensure_local_image(client, argv[1], 0, &image, NULL) == MOL_OK);
    CHECK(image->cache_hit);
    printf("pinned %s\n", image->reference);
    mol_image_free(image);
    mol_client_free(client);
    return 0;
}
