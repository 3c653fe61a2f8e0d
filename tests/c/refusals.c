/* Every parameter of every function gets what it must not get: the answer is a status, and nothing
 * is written where nothing was asked for.
 *
 *     refusals            tries all
 *     refusals --list     says which, as "function parameter"; a test compares that with the header */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include "check.h"

/* Not UTF-8, whichever way it is cut: a lone byte, an overlong form, a surrogate, a cut character. */
static const char *const BAD[] = {"\xff", "\xc0\xaf", "\xed\xa0\x80", "text \xe6\x97", "\x80text"};
#define BADS (sizeof BAD / sizeof *BAD)

/* An out-parameter that must stay as it is. */
#define UNTOUCHED ((uint64_t)0x5afe5afe5afe5afe)
static void *const untouched = (void *)(uintptr_t)UNTOUCHED;

/* The call fails with this status, and says why in words; or not, if nobody wants to know. */
#define REFUSES(wanted, call)                                              \
    do {                                                                   \
        mol_error *failure = NULL;                                         \
        mol_error **error = &failure;                                      \
        CHECK((call) == (wanted));                                         \
        CHECK(failure != NULL && failure->code == (wanted));               \
        CHECK(failure->message[0] != '\0');                                \
        CHECK(failure->hint && failure->runtime && failure->url);          \
        CHECK(failure->step && failure->log_tail);                         \
        mol_error_free(failure);                                           \
        error = NULL;                                                      \
        CHECK((call) == (wanted));                                         \
    } while (0)

/* The call works, and leaves the place for an error alone; there may be none. */
#define WORKS(call)                                                        \
    do {                                                                   \
        mol_error *failure = untouched;                                    \
        mol_error **error = &failure;                                      \
        CHECK((call) == MOL_OK && failure == untouched);                   \
        error = NULL;                                                      \
        CHECK((call) == MOL_OK);                                           \
    } while (0)

/* Ids that are none: never made, freed already (twice), of another kind. */
static mol_options options, stale_options;
static mol_client client, closed_client;

#define NO_OPTIONS {0, UINT64_MAX, UNTOUCHED, stale_options, client, closed_client}
#define NO_CLIENT {0, UINT64_MAX, UNTOUCHED, options, stale_options, closed_client}
#define EACH(id, ids) for (id = (ids); id < (ids) + sizeof(ids) / sizeof *(ids); id++)

static void set_up(void)
{
    int i;

    /* Nothing listens on this port, so whatever gets past the arguments fails there. */
    CHECK(mol_options_new(&options, NULL) == MOL_OK && options != 0);
    CHECK(mol_options_set(options, MOL_OPTION_REPO_PREFIX, "http://127.0.0.1:1/o/t-", NULL) == MOL_OK);
    CHECK(mol_options_set(options, MOL_OPTION_DOCKER_HOST, "unix:///nowhere/engine", NULL) == MOL_OK);
    CHECK(mol_options_set(options, MOL_OPTION_CACHE_DIR, "/proc/nowhere/cache", NULL) == MOL_OK);
    CHECK(mol_options_new(&stale_options, NULL) == MOL_OK && stale_options != options);
    CHECK(mol_client_new(options, true, &client, NULL) == MOL_OK && client != 0);
    CHECK(mol_client_new(options, true, &closed_client, NULL) == MOL_OK && closed_client != client);
    for (i = 0; i < 2; i++) {
        mol_options_free(stale_options);
        mol_client_free(closed_client);
    }
}

static void mol_abi_version__nothing(void)
{
    CHECK(mol_abi_version() == MOL_ABI_VERSION);
}

static void mol_version__nothing(void)
{
    CHECK(mol_version()[0] != '\0');
}

static void mol_status_name__status(void)
{
    int32_t status;

    CHECK(strcmp(mol_status_name(MOL_OK), "ok") == 0);
    CHECK(strcmp(mol_status_name(MOL_ERR_REPO_NOT_FOUND), "repo_not_found") == 0);
    for (status = MOL_OK; status <= MOL_ERR_PROCESS_LIMIT; status++)
        CHECK(strcmp(mol_status_name(status), "unknown_status") != 0);
    CHECK(strcmp(mol_status_name(status), "unknown_status") == 0);
    CHECK(strcmp(mol_status_name(-1), "unknown_status") == 0);
    CHECK(strcmp(mol_status_name(INT32_MAX), "unknown_status") == 0);
    CHECK(strcmp(mol_status_name(INT32_MIN), "unknown_status") == 0);
}

static void mol_is_known_runtime__runtime(void)
{
    size_t i;

    CHECK(mol_is_known_runtime("hermes"));
    CHECK(!mol_is_known_runtime(NULL) && !mol_is_known_runtime("") && !mol_is_known_runtime("Hermes"));
    for (i = 0; i < BADS; i++)
        CHECK(!mol_is_known_runtime(BAD[i]));
}

static void mol_resolve__image_registry(void)
{
    mol_registry *registry = untouched;
    size_t i;

    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_resolve(BAD[i], &registry, error));
    CHECK(registry == untouched);
    CHECK(mol_resolve(NULL, &registry, NULL) == MOL_OK);
    CHECK(registry->mode == MOL_REGISTRY_MODE_LOCAL && strcmp(registry->prefix, "molecule-local") == 0);
    mol_registry_free(registry);
    CHECK(mol_resolve("   ", &registry, NULL) == MOL_OK);
    CHECK(registry->mode == MOL_REGISTRY_MODE_SAAS && strcmp(registry->prefix, "   ") == 0);
    mol_registry_free(registry);
}

static void mol_resolve__registry(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_resolve("x", NULL, error));
}

static void mol_resolve__error(void)
{
    mol_registry *registry = NULL;
    mol_error *error = untouched;

    CHECK(mol_resolve("x", &registry, &error) == MOL_OK && error == untouched);
    mol_registry_free(registry);
    CHECK(mol_resolve("x", &registry, NULL) == MOL_OK);
    mol_registry_free(registry);
}

static void mol_mask_token__text(void)
{
    char *masked = untouched;
    size_t i;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token(NULL, "t", &masked, error));
    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token(BAD[i], "t", &masked, error));
    CHECK(masked == untouched);
}

static void mol_mask_token__token(void)
{
    char *masked = untouched;
    size_t i;

    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token("text", BAD[i], &masked, error));
    CHECK(masked == untouched);
    CHECK(mol_mask_token("https://u@h a", NULL, &masked, NULL) == MOL_OK);
    CHECK(strcmp(masked, "https://***@h a") == 0);
    mol_string_free(masked);
}

static void mol_mask_token__masked(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token("text", "t", NULL, error));
}

static void mol_mask_token__error(void)
{
    char *masked = NULL;
    mol_error *error = untouched;

    CHECK(mol_mask_token("a", "b", &masked, &error) == MOL_OK && error == untouched);
    mol_string_free(masked);
}

static void mol_options_new__options(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_new(NULL, error));
}

static void mol_options_new__error(void)
{
    mol_options made = 0;
    mol_error *error = untouched;

    CHECK(mol_options_new(&made, &error) == MOL_OK && error == untouched);
    mol_options_free(made);
}

static void mol_options_from_env__options(void)
{
    mol_options made = UNTOUCHED;
    size_t i;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_from_env(NULL, error));
    for (i = 0; i < BADS; i++) {
        CHECK(setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", BAD[i], 1) == 0);
        REFUSES(MOL_ERR_INVALID_OPTION, mol_options_from_env(&made, error));
    }
    CHECK(unsetenv("MOLECULE_LOCAL_TEMPLATE_BRANCH") == 0);
    CHECK(made == UNTOUCHED);
}

static void mol_options_from_env__error(void)
{
    mol_options made = 0;
    mol_error *error = untouched;

    CHECK(mol_options_from_env(&made, &error) == MOL_OK && error == untouched);
    mol_options_free(made);
}

static void mol_options_set__options(void)
{
    uint64_t none[] = NO_OPTIONS, *id;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_options_set(*id, MOL_OPTION_BRANCH, "x", error));
}

static void mol_options_set__option(void)
{
    static const int32_t none[] = {0, -1, MOL_OPTION_PINS + 1, INT32_MAX, INT32_MIN};
    size_t i;

    for (i = 0; i < sizeof none / sizeof *none; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(options, none[i], "x", error));
}

static void mol_options_set__value(void)
{
    size_t i;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(options, MOL_OPTION_BRANCH, NULL, error));
    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(options, MOL_OPTION_BRANCH, BAD[i], error));
    WORKS(mol_options_set(options, MOL_OPTION_BRANCH, "", error));
}

static void mol_options_set__error(void)
{
    WORKS(mol_options_set(options, MOL_OPTION_BRANCH, "", error));
}

static void mol_options_free__options(void)
{
    uint64_t none[] = NO_OPTIONS, *id;

    EACH(id, none)
        mol_options_free(*id);
    WORKS(mol_options_set(options, MOL_OPTION_BRANCH, "", error));
}

static void mol_client_new__options(void)
{
    uint64_t none[] = NO_OPTIONS, *id;
    mol_options wrong = 0;
    mol_client made = UNTOUCHED;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_new(*id, false, &made, error));
    CHECK(mol_options_new(&wrong, NULL) == MOL_OK);
    CHECK(mol_options_set(wrong, MOL_OPTION_REPO_PREFIX, "https://host/", NULL) == MOL_OK);
    REFUSES(MOL_ERR_INVALID_OPTION, mol_client_new(wrong, false, &made, error));
    CHECK(made == UNTOUCHED);
    mol_options_free(wrong);
}

static void mol_client_new__events(void)
{
    mol_client one = 0, two = 0;

    CHECK(mol_client_new(options, true, &one, NULL) == MOL_OK);
    CHECK(mol_client_new(options, false, &two, NULL) == MOL_OK);
    CHECK(one != two);
    mol_client_free(one);
    mol_client_free(two);
}

static void mol_client_new__client(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_new(options, false, NULL, error));
}

static void mol_client_new__error(void)
{
    mol_client made = 0;
    mol_error *error = untouched;

    CHECK(mol_client_new(options, false, &made, &error) == MOL_OK && error == untouched);
    mol_client_free(made);
}

static void mol_client_free__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;

    EACH(id, none)
        mol_client_free(*id);
    WORKS(mol_client_cancel(client, 1, error));
}

static void mol_ensure_local_image__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    mol_image *image = untouched;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_ensure_local_image(*id, "hermes", 0, &image, error));
    CHECK(image == untouched);
}

static void mol_ensure_local_image__runtime(void)
{
    size_t i;
    mol_image *image = untouched;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, NULL, 0, &image, error));
    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, BAD[i], 0, &image, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_ensure_local_image(client, "HERMES", 0, &image, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_ensure_local_image(client, "", 0, &image, error));
    CHECK(image == untouched);
}

static void mol_ensure_local_image__image(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, "hermes", 0, NULL, error));
}

static void mol_client_submit__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    mol_call call = UNTOUCHED;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_submit(*id, "hermes", 0, &call, error));
    CHECK(call == UNTOUCHED);
}

static void mol_client_submit__runtime(void)
{
    size_t i;
    mol_call call = UNTOUCHED;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit(client, NULL, 0, &call, error));
    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit(client, BAD[i], 0, &call, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_client_submit(client, "HERMES", 0, &call, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_client_submit(client, "", 0, &call, error));
    CHECK(call == UNTOUCHED);
}

static void mol_client_submit__call(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit(client, "hermes", 0, NULL, error));
}

static void mol_ensure_local_image__timeout_ms(void)
{
    /* Below 0 means what 0 means: the ceiling, which nobody waits for here, for the port refuses. */
    static const int64_t some[] = {1, INT64_MAX};
    size_t i;
    mol_image *image = untouched;

    for (i = 0; i < sizeof some / sizeof *some; i++) {
        mol_status status = mol_ensure_local_image(client, "hermes", some[i], &image, NULL);

        CHECK(status == MOL_ERR_GITEA_UNREACHABLE || status == MOL_ERR_DEADLINE_EXCEEDED);
    }
    CHECK(image == untouched);
}

static void mol_ensure_local_image__error(void)
{
    CHECK(mol_ensure_local_image(client, NULL, 0, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);
}

static void mol_client_submit__timeout_ms(void)
{
    static const int64_t some[] = {INT64_MIN, -1, 0, 1, INT64_MAX};
    size_t i;
    mol_client own = 0;

    CHECK(mol_client_new(options, false, &own, NULL) == MOL_OK);
    for (i = 0; i < sizeof some / sizeof *some; i++) {
        mol_call call = 0;
        mol_event *event = NULL;

        CHECK(mol_client_submit(own, "hermes", some[i], &call, NULL) == MOL_OK && call != 0);
        CHECK(mol_client_cancel(own, call, NULL) == MOL_OK);
        CHECK(mol_client_next_event(own, 60000, &event, NULL) == MOL_OK);
        CHECK(event->call == call && event->error != NULL);
        mol_event_free(event);
    }
    mol_client_free(own);
}

static void mol_client_submit__error(void)
{
    CHECK(mol_client_submit(client, NULL, 0, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);
}

/* The calls that wait for a report. What comes between the client and the time is last. */
#define WAITS(waits, out, ...)                                                                  \
    static void waits##__client(void)                                                           \
    {                                                                                           \
        uint64_t none[] = NO_CLIENT, *id;                                                       \
        char *report = untouched;                                                               \
                                                                                                \
        EACH(id, none)                                                                          \
            REFUSES(MOL_ERR_NO_SUCH_HANDLE, waits(*id, __VA_ARGS__ 0, &report, error));         \
        CHECK(report == untouched);                                                             \
    }                                                                                           \
                                                                                                \
    static void waits##__timeout_ms(void)                                                       \
    {                                                                                           \
        size_t i;                                                                               \
                                                                                                \
        for (i = 0; i < TIMES; i++) {                                                           \
            char *report = untouched;                                                           \
            mol_status status = waits(client, __VA_ARGS__ SOME_TIMES[i], &report, NULL);        \
                                                                                                \
            CHECK((status == MOL_OK) == (report != untouched));                                 \
            if (status == MOL_OK)                                                               \
                mol_string_free(report);                                                        \
        }                                                                                       \
    }                                                                                           \
                                                                                                \
    static void waits##__##out(void)                                                            \
    {                                                                                           \
        REFUSES(MOL_ERR_INVALID_ARGUMENT, waits(client, __VA_ARGS__ 0, NULL, error));           \
    }                                                                                           \
                                                                                                \
    static void waits##__error(void)                                                            \
    {                                                                                           \
        CHECK(waits(client, __VA_ARGS__ 0, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);            \
    }                                                                                           \

/* The calls that do not wait, in the same way. */
#define SUBMITS(submits, ...)                                                                   \
    static void submits##__client(void)                                                         \
    {                                                                                           \
        uint64_t none[] = NO_CLIENT, *id;                                                       \
        mol_call call = UNTOUCHED;                                                              \
                                                                                                \
        EACH(id, none)                                                                          \
            REFUSES(MOL_ERR_NO_SUCH_HANDLE, submits(*id, __VA_ARGS__ 0, &call, error));         \
        CHECK(call == UNTOUCHED);                                                               \
    }                                                                                           \
                                                                                                \
    static void submits##__timeout_ms(void)                                                     \
    {                                                                                           \
        size_t i;                                                                               \
        mol_client own = 0;                                                                     \
                                                                                                \
        CHECK(mol_client_new(options, false, &own, NULL) == MOL_OK);                            \
        for (i = 0; i < TIMES; i++) {                                                           \
            mol_call call = 0;                                                                  \
            mol_event *event = NULL;                                                            \
                                                                                                \
            CHECK(submits(own, __VA_ARGS__ SOME_TIMES[i], &call, NULL) == MOL_OK && call != 0); \
            CHECK(mol_client_cancel(own, call, NULL) == MOL_OK);                                \
            CHECK(mol_client_next_event(own, 60000, &event, NULL) == MOL_OK);                   \
            CHECK(event->call == call && (event->error != NULL) + (event->json != NULL) == 1);  \
            mol_event_free(event);                                                              \
        }                                                                                       \
        mol_client_free(own);                                                                   \
    }                                                                                           \
                                                                                                \
    static void submits##__call(void)                                                           \
    {                                                                                           \
        REFUSES(MOL_ERR_INVALID_ARGUMENT, submits(client, __VA_ARGS__ 0, NULL, error));         \
    }                                                                                           \
                                                                                                \
    static void submits##__error(void)                                                          \
    {                                                                                           \
        CHECK(submits(client, __VA_ARGS__ 0, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);          \
    }

#define COMMIT "0123456789abcdef0123456789abcdef01234567"
static const int64_t SOME_TIMES[] = {1, 60000, INT64_MAX};
#define TIMES (sizeof SOME_TIMES / sizeof *SOME_TIMES)

WAITS(mol_list, inventory, )
WAITS(mol_prune, report, 2, 0, true, )
WAITS(mol_diagnose, diagnosis, )
WAITS(mol_build_log, log, "hermes", )
SUBMITS(mol_client_submit_list, )
SUBMITS(mol_client_submit_prune, 2, 0, true, )
SUBMITS(mol_client_submit_diagnose, )
SUBMITS(mol_client_submit_engine_host, )
SUBMITS(mol_client_submit_build_log, "hermes", )
SUBMITS(mol_client_submit_commit, "hermes", COMMIT, )

static void mol_client_submit_commit__runtime(void)
{
    size_t i;
    mol_call call = UNTOUCHED;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit_commit(client, NULL, COMMIT, 0, &call, error));
    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT,
                mol_client_submit_commit(client, BAD[i], COMMIT, 0, &call, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_client_submit_commit(client, "HERMES", COMMIT, 0, &call, error));
    CHECK(call == UNTOUCHED);
}

static void mol_client_submit_commit__commit(void)
{
    static const char *const no_commit[] = {"", "main", "0123456789ab", COMMIT "0", " " COMMIT};
    size_t i;
    mol_call call = UNTOUCHED;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit_commit(client, "hermes", NULL, 0, &call, error));
    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT,
                mol_client_submit_commit(client, "hermes", BAD[i], 0, &call, error));
    for (i = 0; i < sizeof no_commit / sizeof *no_commit; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT,
                mol_client_submit_commit(client, "hermes", no_commit[i], 0, &call, error));
    CHECK(call == UNTOUCHED);
}

/* Any numbers and both truths are fine. There is no engine and no cache here, so nothing goes. */
static void mol_prune__keep_per_runtime(void)
{
    static const uint32_t some[] = {0, 1, UINT32_MAX};
    static const int64_t times[] = {0, INT64_MIN, INT64_MAX};
    size_t i;

    for (i = 0; i < sizeof some / sizeof *some; i++) {
        char *report = untouched;

        REFUSES(MOL_ERR_ENGINE_UNREACHABLE, mol_prune(client, some[i], times[i], i % 2, 0, &report, error));
        CHECK(report == untouched);
    }
}

static void mol_prune__keep_recent_ms(void)
{
    mol_prune__keep_per_runtime();
}

static void mol_prune__dry_run(void)
{
    mol_prune__keep_per_runtime();
}

static void mol_client_submit_prune__keep_per_runtime(void)
{
    static const uint32_t some[] = {0, 1, UINT32_MAX};
    static const int64_t times[] = {0, INT64_MIN, INT64_MAX};
    size_t i;
    mol_client own = 0;

    CHECK(mol_client_new(options, false, &own, NULL) == MOL_OK);
    for (i = 0; i < sizeof some / sizeof *some; i++) {
        mol_call call = 0;
        mol_event *event = NULL;

        CHECK(mol_client_submit_prune(own, some[i], times[i], i % 2, 0, &call, NULL) == MOL_OK);
        CHECK(mol_client_next_event(own, 60000, &event, NULL) == MOL_OK);
        CHECK(event->call == call && event->error->code == MOL_ERR_ENGINE_UNREACHABLE);
        mol_event_free(event);
    }
    mol_client_free(own);
}

static void mol_client_submit_prune__keep_recent_ms(void)
{
    mol_client_submit_prune__keep_per_runtime();
}

static void mol_client_submit_prune__dry_run(void)
{
    mol_client_submit_prune__keep_per_runtime();
}

static void mol_build_log__runtime(void)
{
    size_t i;
    char *log = untouched;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_build_log(client, NULL, 0, &log, error));
    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_build_log(client, BAD[i], 0, &log, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_build_log(client, "HERMES", 0, &log, error));
    CHECK(log == untouched);
}

static void mol_client_submit_build_log__runtime(void)
{
    size_t i;
    mol_call call = UNTOUCHED;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit_build_log(client, NULL, 0, &call, error));
    for (i = 0; i < BADS; i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_submit_build_log(client, BAD[i], 0, &call, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_client_submit_build_log(client, "HERMES", 0, &call, error));
    CHECK(call == UNTOUCHED);
}

static void mol_client_metrics__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    char *metrics = untouched;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_metrics(*id, &metrics, error));
    CHECK(metrics == untouched);
}

static void mol_client_metrics__metrics(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_metrics(client, NULL, error));
}

static void mol_client_metrics__error(void)
{
    char *metrics = NULL;

    CHECK(mol_client_metrics(client, &metrics, NULL) == MOL_OK && metrics[0] == '{');
    mol_string_free(metrics);
}

static void mol_client_cancel__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_cancel(*id, 1, error));
}

static void mol_client_cancel__call(void)
{
    /* A call that has ended is fine, and the library does not remember which have. */
    uint64_t none[] = {0, 1, UINT64_MAX, UNTOUCHED, options, client}, *id;

    EACH(id, none)
        WORKS(mol_client_cancel(client, *id, error));
}

static void mol_client_cancel__error(void)
{
    WORKS(mol_client_cancel(client, 1, error));
}

static void mol_client_next_event__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    mol_event *event = untouched;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_next_event(*id, -1, &event, error));
    CHECK(event == untouched);
}

static void mol_client_next_event__timeout_ms(void)
{
    /* For ever, which is below 0, is in close.c. */
    mol_event *event = untouched;
    mol_client quiet = 0;

    CHECK(mol_client_new(options, true, &quiet, NULL) == MOL_OK);
    REFUSES(MOL_ERR_NO_EVENT, mol_client_next_event(quiet, 0, &event, error));
    REFUSES(MOL_ERR_NO_EVENT, mol_client_next_event(quiet, 1, &event, error));
    CHECK(event == untouched);
    mol_client_free(quiet);
}

static void mol_client_next_event__event(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_next_event(client, 0, NULL, error));
}

static void mol_client_next_event__error(void)
{
    CHECK(mol_client_next_event(0, 0, NULL, NULL) != MOL_OK);
}

static void mol_string_free__text(void)
{
    mol_string_free(NULL);
}

static void mol_error_free__error(void)
{
    mol_error_free(NULL);
}

static void mol_image_free__image(void)
{
    mol_image_free(NULL);
}

static void mol_registry_free__registry(void)
{
    mol_registry_free(NULL);
}

static void mol_event_free__event(void)
{
    mol_event_free(NULL);
}

/* A function or a parameter that is missing here is found by the test that reads the list. */
#define TESTS(X) \
    X(mol_abi_version, nothing) \
    X(mol_version, nothing) \
    X(mol_status_name, status) \
    X(mol_is_known_runtime, runtime) \
    X(mol_resolve, image_registry) \
    X(mol_resolve, registry) \
    X(mol_resolve, error) \
    X(mol_mask_token, text) \
    X(mol_mask_token, token) \
    X(mol_mask_token, masked) \
    X(mol_mask_token, error) \
    X(mol_options_new, options) \
    X(mol_options_new, error) \
    X(mol_options_from_env, options) \
    X(mol_options_from_env, error) \
    X(mol_options_set, options) \
    X(mol_options_set, option) \
    X(mol_options_set, value) \
    X(mol_options_set, error) \
    X(mol_options_free, options) \
    X(mol_client_new, options) \
    X(mol_client_new, events) \
    X(mol_client_new, client) \
    X(mol_client_new, error) \
    X(mol_client_free, client) \
    X(mol_ensure_local_image, client) \
    X(mol_ensure_local_image, runtime) \
    X(mol_ensure_local_image, image) \
    X(mol_client_submit, client) \
    X(mol_client_submit, runtime) \
    X(mol_client_submit, call) \
    X(mol_ensure_local_image, timeout_ms) \
    X(mol_ensure_local_image, error) \
    X(mol_client_submit, timeout_ms) \
    X(mol_client_submit, error) \
    X(mol_client_submit_commit, client) \
    X(mol_client_submit_commit, runtime) \
    X(mol_client_submit_commit, commit) \
    X(mol_client_submit_commit, timeout_ms) \
    X(mol_client_submit_commit, call) \
    X(mol_client_submit_commit, error) \
    X(mol_list, client) \
    X(mol_list, timeout_ms) \
    X(mol_list, inventory) \
    X(mol_list, error) \
    X(mol_client_submit_list, client) \
    X(mol_client_submit_list, timeout_ms) \
    X(mol_client_submit_list, call) \
    X(mol_client_submit_list, error) \
    X(mol_prune, client) \
    X(mol_prune, keep_per_runtime) \
    X(mol_prune, keep_recent_ms) \
    X(mol_prune, dry_run) \
    X(mol_prune, timeout_ms) \
    X(mol_prune, report) \
    X(mol_prune, error) \
    X(mol_client_submit_prune, client) \
    X(mol_client_submit_prune, keep_per_runtime) \
    X(mol_client_submit_prune, keep_recent_ms) \
    X(mol_client_submit_prune, dry_run) \
    X(mol_client_submit_prune, timeout_ms) \
    X(mol_client_submit_prune, call) \
    X(mol_client_submit_prune, error) \
    X(mol_diagnose, client) \
    X(mol_diagnose, timeout_ms) \
    X(mol_diagnose, diagnosis) \
    X(mol_diagnose, error) \
    X(mol_client_submit_diagnose, client) \
    X(mol_client_submit_diagnose, timeout_ms) \
    X(mol_client_submit_diagnose, call) \
    X(mol_client_submit_diagnose, error) \
    X(mol_client_submit_engine_host, client) \
    X(mol_client_submit_engine_host, timeout_ms) \
    X(mol_client_submit_engine_host, call) \
    X(mol_client_submit_engine_host, error) \
    X(mol_build_log, client) \
    X(mol_build_log, runtime) \
    X(mol_build_log, timeout_ms) \
    X(mol_build_log, log) \
    X(mol_build_log, error) \
    X(mol_client_submit_build_log, client) \
    X(mol_client_submit_build_log, runtime) \
    X(mol_client_submit_build_log, timeout_ms) \
    X(mol_client_submit_build_log, call) \
    X(mol_client_submit_build_log, error) \
    X(mol_client_metrics, client) \
    X(mol_client_metrics, metrics) \
    X(mol_client_metrics, error) \
    X(mol_client_cancel, client) \
    X(mol_client_cancel, call) \
    X(mol_client_cancel, error) \
    X(mol_client_next_event, client) \
    X(mol_client_next_event, timeout_ms) \
    X(mol_client_next_event, event) \
    X(mol_client_next_event, error) \
    X(mol_string_free, text) \
    X(mol_error_free, error) \
    X(mol_image_free, image) \
    X(mol_registry_free, registry) \
    X(mol_event_free, event)

#define ROW(function, parameter) {#function " " #parameter, function##__##parameter},
static const struct {
    const char *name;
    void (*test)(void);
} tests[] = {TESTS(ROW)};

int main(int argc, char **argv)
{
    bool list = argc > 1 && strcmp(argv[1], "--list") == 0;
    size_t i;

    if (!list)
        set_up();
    for (i = 0; i < sizeof tests / sizeof *tests; i++) {
        if (list)
            puts(tests[i].name);
        else
            tests[i].test();
    }
    if (!list) {
        mol_options_free(options);
        mol_client_free(client);
        puts("all refused");
    }
    return 0;
}
