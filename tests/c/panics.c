/* Calls every function of the header, in a library that panics in every function: each returns an error or nothing,
 * and the process continues.
 *
 * Prints the name of each function, with its status and its message if it has them. */
#include "check.h"

static void *never; /* must not be written to */

#define FAILS(name, ...)                                                                \
    do {                                                                                \
        mol_error *error = NULL;                                                        \
        mol_status status = name(__VA_ARGS__, &error);                                  \
        CHECK(error != NULL && error->code == status);                                  \
        CHECK(never == NULL);                                                           \
        printf(#name " %s %s\n", mol_status_name(status), error->message);              \
        /* This panics too, and so does not free the error. */                          \
        mol_error_free(error);                                                          \
    } while (0)

#define RETURNS(name, ...)    \
    do {                      \
        name(__VA_ARGS__);    \
        printf(#name "\n");   \
    } while (0)

int main(void)
{
    const mol_request request = {.size = sizeof request, .kind = MOL_REQUEST_LIST};
    mol_options options = {0};
    mol_client client = {0};
    mol_call call = {0};
    mol_registry registry = {MOL_REGISTRY_MODE_LOCAL, NULL};
    int fd = -1;

    /* These have no code that can panic. */
    CHECK(mol_abi_version() == MOL_ABI_VERSION);
    printf("mol_abi_version\n");
    CHECK(strcmp(mol_version(), MOL_VERSION) == 0);
    printf("mol_version\n");
    CHECK(strcmp(mol_status_name(0), "ok") == 0);
    printf("mol_status_name\n");

    CHECK(!mol_is_known_runtime("hermes"));
    printf("mol_is_known_runtime\n");
    FAILS(mol_resolve, "", &registry);
    FAILS(mol_mask_token, "text", "token", (char **)&never);
    FAILS(mol_options_new, &options);
    FAILS(mol_options_from_env, &options);
    FAILS(mol_options_set, options, "MOLECULE_GITEA_TOKEN", "token");
    FAILS(mol_client_new, options, true, &client);
    FAILS(mol_client_next_event, client, 0, (mol_event **)&never);
    FAILS(mol_client_fd, client, &fd);
    FAILS(mol_client_metrics, client, (char **)&never);
    FAILS(mol_ensure_local_image, client, "hermes", 0, (mol_image **)&never);
    FAILS(mol_call_start, client, &request, 0, &call);
    FAILS(mol_call_wait, client, call, 0, (mol_result **)&never);
    FAILS(mol_call_cancel, client, call);
    CHECK(options.id == 0 && client.id == 0 && call.id == 0 && registry.prefix == NULL && fd == -1);
    RETURNS(mol_options_free, options);
    RETURNS(mol_client_free, client);
    RETURNS(mol_string_free, NULL);
    RETURNS(mol_error_free, NULL);
    RETURNS(mol_image_free, NULL);
    RETURNS(mol_result_free, NULL);
    RETURNS(mol_event_free, NULL);
    return 0;
}
