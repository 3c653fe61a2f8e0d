/* Every parameter of every function gets what it must not get: the answer is a status, and nothing
 * is written where nothing was asked for. */
#include "check.h"

/* Not UTF-8, whichever way it is cut. */
static const char *const BAD = "\xff\xfe\xc3";

/* An out-parameter that must stay as it is. */
#define UNTOUCHED ((uint64_t)0x5afe5afe5afe5afe)

/* The call fails with this status, and says why in words. */
#define REFUSES(wanted, call)                                              \
    do {                                                                   \
        mol_error *error = NULL;                                           \
        CHECK((call) == (wanted));                                         \
        CHECK(error != NULL && error->code == (wanted));                   \
        CHECK(error->message[0] != '\0');                                  \
        CHECK(error->hint && error->runtime && error->url && error->step); \
        CHECK(error->log_tail);                                            \
        mol_error_free(error);                                             \
    } while (0)

static void resolve(void)
{
    mol_registry *registry = NULL;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_resolve("x", NULL, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_resolve(BAD, &registry, &error));
    CHECK(registry == NULL);
    CHECK(mol_resolve(NULL, &registry, NULL) == MOL_OK);
    CHECK(registry->mode == MOL_REGISTRY_MODE_LOCAL && strcmp(registry->prefix, "molecule-local") == 0);
    mol_registry_free(registry);
    CHECK(mol_resolve("   ", &registry, NULL) == MOL_OK);
    CHECK(registry->mode == MOL_REGISTRY_MODE_SAAS && strcmp(registry->prefix, "   ") == 0);
    mol_registry_free(registry);
}

static void mask(void)
{
    char *masked = NULL;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token(NULL, "t", &masked, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token(BAD, "t", &masked, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token("text", BAD, &masked, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token("text", "t", NULL, &error));
    CHECK(masked == NULL);
    CHECK(mol_mask_token("https://u@h a", NULL, &masked, NULL) == MOL_OK);
    CHECK(strcmp(masked, "https://***@h a") == 0);
    mol_string_free(masked);
}

static void options(void)
{
    mol_options all = 0, stale = 0;
    mol_client client = UNTOUCHED;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_new(NULL, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_from_env(NULL, &error));
    CHECK(mol_options_new(&all, NULL) == MOL_OK && all != 0);
    CHECK(mol_options_new(&stale, NULL) == MOL_OK && stale != all);
    mol_options_free(stale);

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(all, MOL_OPTION_BRANCH, NULL, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(all, MOL_OPTION_BRANCH, BAD, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(all, 0, "x", &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(all, -1, "x", &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(all, MOL_OPTION_SEARCH_PATH + 1, "x", &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_options_set(stale, MOL_OPTION_BRANCH, "x", &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_options_set(0, MOL_OPTION_BRANCH, "x", &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_options_set(UINT64_MAX, MOL_OPTION_BRANCH, "x", &error));

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_new(all, false, NULL, &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_new(stale, false, &client, &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_new(0, false, &client, &error));
    CHECK(mol_options_set(all, MOL_OPTION_REPO_PREFIX, "https://host/", NULL) == MOL_OK);
    REFUSES(MOL_ERR_INVALID_OPTION, mol_client_new(all, false, &client, &error));
    CHECK(client == UNTOUCHED);

    mol_options_free(all);
    mol_options_free(all);
    mol_options_free(0);
    mol_options_free(UINT64_MAX);
}

static void client(void)
{
    mol_options all = 0;
    mol_client client = 0, stale = 0;
    mol_image *image = NULL;
    mol_event *event = NULL;
    mol_call call = UNTOUCHED;

    /* Nothing listens on this port, so whatever gets past the arguments fails there. */
    CHECK(mol_options_new(&all, NULL) == MOL_OK);
    CHECK(mol_options_set(all, MOL_OPTION_REPO_PREFIX, "http://127.0.0.1:1/o/t-", NULL) == MOL_OK);
    CHECK(mol_client_new(all, true, &client, NULL) == MOL_OK);
    CHECK(mol_client_new(all, true, &stale, NULL) == MOL_OK);
    CHECK(client != 0 && stale != 0 && client != stale);
    mol_client_free(stale);

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, NULL, 0, &image, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, BAD, 0, &image, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, "hermes", 0, NULL, &error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_ensure_local_image(client, "unknown", 0, &image, &error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_ensure_local_image(client, "", 0, &image, &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_ensure_local_image(stale, "hermes", 0, &image, &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_ensure_local_image(0, "hermes", 0, &image, &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_ensure_local_image(all, "hermes", 0, &image, &error));
    CHECK(image == NULL);

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit(client, NULL, 0, &call, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit(client, BAD, 0, &call, &error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit(client, "hermes", 0, NULL, &error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_client_submit(client, "HERMES", 0, &call, &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_submit(stale, "hermes", 0, &call, &error));
    CHECK(call == UNTOUCHED);

    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_cancel(stale, 1, &error));
    CHECK(mol_client_cancel(client, UINT64_MAX, NULL) == MOL_OK);

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_next_event(client, 0, NULL, &error));
    REFUSES(MOL_ERR_NO_EVENT, mol_client_next_event(client, 0, &event, &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_next_event(stale, 0, &event, &error));
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_next_event(all, 0, &event, &error));
    CHECK(event == NULL);

    /* No answer and no details wanted: still a status, and no crash. */
    CHECK(mol_ensure_local_image(client, NULL, 0, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);

    mol_options_free(all);
    mol_client_free(client);
    mol_client_free(client);
    mol_client_free(0);
    REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_ensure_local_image(client, "hermes", 0, &image, &error));
}

static void the_rest(void)
{
    int32_t status;

    CHECK(!mol_is_known_runtime(NULL) && !mol_is_known_runtime(BAD) && !mol_is_known_runtime("Hermes"));
    CHECK(mol_is_known_runtime("hermes"));
    CHECK(mol_version()[0] != '\0');
    CHECK(strcmp(mol_status_name(MOL_OK), "ok") == 0);
    CHECK(strcmp(mol_status_name(MOL_ERR_REPO_NOT_FOUND), "repo_not_found") == 0);
    for (status = MOL_OK; status <= MOL_ERR_NO_LOCAL_IMAGE; status++)
        CHECK(strcmp(mol_status_name(status), "unknown_status") != 0);
    CHECK(strcmp(mol_status_name(-1), "unknown_status") == 0);
    CHECK(strcmp(mol_status_name(INT32_MAX), "unknown_status") == 0);
    mol_string_free(NULL);
    mol_error_free(NULL);
    mol_image_free(NULL);
    mol_registry_free(NULL);
    mol_event_free(NULL);
}

int main(void)
{
    resolve();
    mask();
    options();
    client();
    the_rest();
    puts("all refused");
    return 0;
}
