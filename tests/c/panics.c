/* Calls every function of the header, in a library whose every entry point panics: what comes back is
 * an error, and the process goes on.
 *
 * Prints each function's name, with its status and its message where it has them. */
#include "check.h"

static void *never; /* what no function may write to */

#define FAILS(name, ...)                                                                \
    do {                                                                                \
        mol_error *error = NULL;                                                        \
        mol_status status = name(__VA_ARGS__, &error);                                  \
        CHECK(error != NULL && error->code == status);                                  \
        CHECK(never == NULL);                                                           \
        printf(#name " %s %s\n", mol_status_name(status), error->message);              \
        /* The library does not take it back, since this panics too; nor does it fall. */ \
        mol_error_free(error);                                                          \
    } while (0)

#define ENDS(name, ...)       \
    do {                      \
        name(__VA_ARGS__);    \
        printf(#name "\n");   \
    } while (0)

int main(void)
{
    uint64_t id = 0;

    /* These cannot fail, and have nothing in them that could. */
    CHECK(mol_abi_version() == MOL_ABI_VERSION);
    printf("mol_abi_version\n");
    CHECK(strlen(mol_version()) > 0);
    printf("mol_version\n");
    CHECK(strcmp(mol_status_name(0), "ok") == 0);
    printf("mol_status_name\n");

    CHECK(!mol_is_known_runtime("hermes"));
    printf("mol_is_known_runtime\n");
    FAILS(mol_resolve, "", (mol_registry **)&never);
    FAILS(mol_mask_token, "text", "token", (char **)&never);
    FAILS(mol_options_new, &id);
    FAILS(mol_options_from_env, &id);
    FAILS(mol_options_set, 1, MOL_OPTION_TOKEN, "token");
    FAILS(mol_client_new, 1, true, &id);
    FAILS(mol_ensure_local_image, 1, "hermes", 0, (mol_image **)&never);
    FAILS(mol_client_submit, 1, "hermes", 0, &id);
    FAILS(mol_client_submit_commit, 1, "hermes", "0123", 0, &id);
    FAILS(mol_list, 1, 0, (char **)&never);
    FAILS(mol_client_submit_list, 1, 0, &id);
    FAILS(mol_prune, 1, 2, 0, true, 0, (char **)&never);
    FAILS(mol_client_submit_prune, 1, 2, 0, true, 0, &id);
    FAILS(mol_diagnose, 1, 0, (char **)&never);
    FAILS(mol_client_submit_diagnose, 1, 0, &id);
    FAILS(mol_client_submit_engine_host, 1, 0, &id);
    FAILS(mol_build_log, 1, "hermes", 0, (char **)&never);
    FAILS(mol_client_submit_build_log, 1, "hermes", 0, &id);
    FAILS(mol_client_metrics, 1, (char **)&never);
    FAILS(mol_client_cancel, 1, 1);
    FAILS(mol_client_next_event, 1, 0, (mol_event **)&never);
    CHECK(id == 0);
    ENDS(mol_options_free, 1);
    ENDS(mol_client_free, 1);
    ENDS(mol_string_free, NULL);
    ENDS(mol_error_free, NULL);
    ENDS(mol_image_free, NULL);
    ENDS(mol_registry_free, NULL);
    ENDS(mol_event_free, NULL);
    return 0;
}
