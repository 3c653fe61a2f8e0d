/* Passes invalid values to every parameter of every function: each returns a status, and writes no result.
 *
 *     refusals            runs all cases
 *     refusals --list     prints them as "function parameter", which a test compares with the header
 *
 * No call reaches a server or an engine. */
#define _POSIX_C_SOURCE 200809L /* setenv */
#include "check.h"

#include <limits.h>

/* Invalid UTF-8: single bytes, an overlong form, a surrogate, a truncated character. */
static const char *const BAD[] = {"\xff", "\xc0\xaf", "\xed\xa0\x80", "text \xe6\x97", "\x80text"};

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* The call fails with this status and an error, and also if the caller does not want the error. */
#define REFUSES(wanted, call)                                              \
    do {                                                                   \
        mol_error *failure = NULL;                                         \
        mol_error **error = &failure;                                      \
        CHECK((call) == (wanted));                                         \
        CHECK(failure != NULL && failure->code == (wanted));               \
        CHECK(failure->size == sizeof *failure);                           \
        CHECK(failure->message[0] != '\0');                                \
        CHECK(failure->hint && failure->runtime && failure->url);          \
        CHECK(failure->step && failure->log_tail);                         \
        mol_error_free(failure);                                           \
        error = NULL;                                                      \
        CHECK((call) == (wanted));                                         \
    } while (0)

/* The call works, with and without a place for an error, and writes no error. */
#define WORKS(call)                                                        \
    do {                                                                   \
        mol_error *failure = untouched;                                    \
        mol_error **error = &failure;                                      \
        CHECK((call) == MOL_OK && failure == untouched);                   \
        error = NULL;                                                      \
        CHECK((call) == MOL_OK);                                           \
    } while (0)

static mol_options options, freed_options;
static mol_client client, freed_client;

/* Ids without an object: never created, freed (twice), or of another type. */
#define NO_OPTIONS {0, UINT64_MAX, UNTOUCHED, freed_options.id, client.id, freed_client.id}
#define NO_CLIENT {0, UINT64_MAX, UNTOUCHED, options.id, freed_options.id, freed_client.id}
#define EACH(id, ids) for (id = (ids); id < (ids) + COUNT(ids); id++)

static void set_up(void)
{
    int i;

    CHECK(mol_options_new(&options, NULL) == MOL_OK && options.id != 0);
    CHECK(reach_nothing(options) == MOL_OK);
    CHECK(mol_options_new(&freed_options, NULL) == MOL_OK && freed_options.id != options.id);
    CHECK(mol_client_new(options, true, &client, NULL) == MOL_OK && client.id != 0);
    CHECK(mol_client_new(options, true, &freed_client, NULL) == MOL_OK && freed_client.id != client.id);
    for (i = 0; i < 2; i++) {
        mol_options_free(freed_options);
        mol_client_free(freed_client);
    }
}

/* A client of one test, with no calls but the test's. */
static mol_client new_client(bool events)
{
    mol_client made = {0};

    CHECK(mol_client_new(options, events, &made, NULL) == MOL_OK && made.id != 0);
    return made;
}

static void mol_abi_version__nothing(void)
{
    CHECK(mol_abi_version() == MOL_ABI_VERSION);
}

static void mol_version__nothing(void)
{
    char version[64];

    snprintf(version, sizeof version, "%d.%d.%d", MOL_VERSION_MAJOR, MOL_VERSION_MINOR, MOL_VERSION_PATCH);
    CHECK(strcmp(version, MOL_VERSION) == 0);
    CHECK(strcmp(mol_version(), MOL_VERSION) == 0);
}

static void mol_status_name__status(void)
{
    static const int none[] = {-1, 21, MOL_ERR_BUILDER_UNREACHABLE + 1, INT_MAX, INT_MIN};
    int status;
    size_t i;

    CHECK(strcmp(mol_status_name(MOL_OK), "ok") == 0);
    CHECK(strcmp(mol_status_name(MOL_ERR_REPO_NOT_FOUND), "repo_not_found") == 0);
    for (status = MOL_OK; status <= MOL_ERR_BUILDER_UNREACHABLE; status++)
        CHECK(status == 21 || strcmp(mol_status_name(status), "unknown_status") != 0);
    for (i = 0; i < COUNT(none); i++)
        CHECK(strcmp(mol_status_name(none[i]), "unknown_status") == 0);
}

static void mol_is_known_runtime__runtime(void)
{
    size_t i;

    CHECK(mol_is_known_runtime("hermes"));
    CHECK(!mol_is_known_runtime(NULL) && !mol_is_known_runtime("") && !mol_is_known_runtime("Hermes"));
    for (i = 0; i < COUNT(BAD); i++)
        CHECK(!mol_is_known_runtime(BAD[i]));
}

static void mol_resolve__image_registry(void)
{
    static const char spaces[] = "   ";
    mol_registry registry = {MOL_REGISTRY_MODE_SAAS, untouched};
    size_t i;

    for (i = 0; i < COUNT(BAD); i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_resolve(BAD[i], &registry, error));
    CHECK(registry.prefix == untouched);
    CHECK(mol_resolve(NULL, &registry, NULL) == MOL_OK);
    CHECK(registry.mode == MOL_REGISTRY_MODE_LOCAL && strcmp(registry.prefix, "molecule-local") == 0);
    CHECK(mol_resolve(spaces, &registry, NULL) == MOL_OK);
    CHECK(registry.mode == MOL_REGISTRY_MODE_SAAS && registry.prefix == spaces);
    CHECK(mol_resolve("", &registry, NULL) == MOL_OK);
    CHECK(registry.mode == MOL_REGISTRY_MODE_LOCAL && strcmp(registry.prefix, "molecule-local") == 0);
}

static void mol_resolve__registry(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_resolve("x", NULL, error));
}

static void mol_resolve__error(void)
{
    mol_registry registry;

    WORKS(mol_resolve("x", &registry, error));
}

static void mol_mask_token__text(void)
{
    char *masked = untouched;
    size_t i;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token(NULL, "t", &masked, error));
    for (i = 0; i < COUNT(BAD); i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token(BAD[i], "t", &masked, error));
    CHECK(masked == untouched);
}

static void mol_mask_token__token(void)
{
    char *masked = untouched;
    size_t i;

    for (i = 0; i < COUNT(BAD); i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_mask_token("text", BAD[i], &masked, error));
    CHECK(masked == untouched);
    CHECK(mol_mask_token("https://u@h a", NULL, &masked, NULL) == MOL_OK);
    CHECK(strcmp(masked, "https://***@h a") == 0);
    mol_string_free(masked);
    CHECK(mol_mask_token("https://u:s3cr3t@host/?t=s3cr3t", "s3cr3t", &masked, NULL) == MOL_OK);
    CHECK(strcmp(masked, "https://***@host/?t=***") == 0);
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
    mol_options made = {0};
    mol_error *error = untouched;

    CHECK(mol_options_new(&made, &error) == MOL_OK && error == untouched);
    mol_options_free(made);
}

static void mol_options_from_env__options(void)
{
    mol_options made = {UNTOUCHED};
    size_t i;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_from_env(NULL, error));
    for (i = 0; i < COUNT(BAD); i++) {
        CHECK(setenv("MOLECULE_LOCAL_TEMPLATE_BRANCH", BAD[i], 1) == 0);
        REFUSES(MOL_ERR_INVALID_OPTION, mol_options_from_env(&made, error));
    }
    CHECK(unsetenv("MOLECULE_LOCAL_TEMPLATE_BRANCH") == 0);
    CHECK(made.id == UNTOUCHED);
}

static void mol_options_from_env__error(void)
{
    mol_options made = {0};
    mol_error *error = untouched;

    CHECK(mol_options_from_env(&made, &error) == MOL_OK && error == untouched);
    mol_options_free(made);
}

static void mol_options_set__options(void)
{
    uint64_t none[] = NO_OPTIONS, *id;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE,
                mol_options_set((mol_options){*id}, "MOLECULE_LOCAL_TEMPLATE_BRANCH", "x", error));
}

static void mol_options_set__name(void)
{
    static const char *const none[] = {NULL, "", "LANG", "molecule_gitea_token", "MOLECULE_GITEA_TOKEN ", "runtime"};
    size_t i;

    for (i = 0; i < COUNT(none); i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(options, none[i], "x", error));
    for (i = 0; i < COUNT(BAD); i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(options, BAD[i], "x", error));
}

static void mol_options_set__value(void)
{
    static const char branch[] = "MOLECULE_LOCAL_TEMPLATE_BRANCH";
    size_t i;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(options, branch, NULL, error));
    for (i = 0; i < COUNT(BAD); i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_options_set(options, branch, BAD[i], error));
    WORKS(mol_options_set(options, branch, "", error));
}

static void mol_options_set__error(void)
{
    WORKS(mol_options_set(options, "pins", "", error));
}

static void mol_options_free__options(void)
{
    uint64_t none[] = NO_OPTIONS, *id;

    EACH(id, none)
        mol_options_free((mol_options){*id});
    WORKS(mol_options_set(options, "pins", "", error));
}

static void mol_client_new__options(void)
{
    uint64_t none[] = NO_OPTIONS, *id;
    mol_options wrong = {0};
    mol_client made = {UNTOUCHED};

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_new((mol_options){*id}, false, &made, error));
    CHECK(mol_options_new(&wrong, NULL) == MOL_OK);
    CHECK(mol_options_set(wrong, "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "https://host/", NULL) == MOL_OK);
    REFUSES(MOL_ERR_INVALID_OPTION, mol_client_new(wrong, false, &made, error));
    CHECK(made.id == UNTOUCHED);
    mol_options_free(wrong);
}

static void mol_client_new__events(void)
{
    mol_client one = new_client(true), other = new_client(false);

    CHECK(one.id != other.id);
    mol_client_free(one);
    mol_client_free(other);
}

static void mol_client_new__client(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_new(options, false, NULL, error));
}

static void mol_client_new__error(void)
{
    mol_client made = {0};
    mol_error *error = untouched;

    CHECK(mol_client_new(options, false, &made, &error) == MOL_OK && error == untouched);
    mol_client_free(made);
}

static void mol_client_free__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;

    EACH(id, none)
        mol_client_free((mol_client){*id});
    WORKS(mol_call_cancel(client, (mol_call){1}, error));
}

static void mol_client_next_event__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    mol_client without_events = new_client(false);
    mol_event *event = untouched;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE,
                mol_client_next_event((mol_client){*id}, MOL_TIMEOUT_NONE, &event, error));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_next_event(without_events, MOL_TIMEOUT_NONE, &event, error));
    CHECK(event == untouched);
    mol_client_free(without_events);
}

static void mol_client_next_event__timeout_ms(void)
{
    /* Waits without a limit are in close.c. */
    static const int64_t some[] = {INT64_MIN, -1, 0, 1, INT64_MAX};
    mol_request request = {.kind = MOL_REQUEST_IMAGE, .runtime = "hermes"};
    mol_client own = new_client(true);
    mol_event *event = untouched;
    size_t i;

    WORKS(mol_client_next_event(own, 0, &event, error));
    CHECK(event == NULL);
    event = untouched;
    WORKS(mol_client_next_event(own, 1, &event, error));
    CHECK(event == NULL);
    for (i = 0; i < COUNT(some); i++) {
        mol_call call = start(own, request, MOL_TIMEOUT_CEILING);
        mol_result *result = result_of(own, call);

        CHECK(result->last_event > 0);
        do {
            CHECK(mol_client_next_event(own, some[i], &event, NULL) == MOL_OK && event != NULL);
            CHECK(event->call.id == call.id && event->number > 0 && event->number <= result->last_event);
            if (event->number == result->last_event) {
                mol_event_free(event);
                break;
            }
            mol_event_free(event);
        } while (true);
        mol_result_free(result);
    }
    mol_client_free(own);
}

static void mol_client_next_event__event(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_next_event(client, 0, NULL, error));
}

static void mol_client_next_event__error(void)
{
    CHECK(mol_client_next_event((mol_client){0}, 0, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);
}

static void mol_client_fd__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    int fd = -1;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_fd((mol_client){*id}, &fd, error));
    CHECK(fd == -1);
}

static void mol_client_fd__fd(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_fd(client, NULL, error));
}

static void mol_client_fd__error(void)
{
    int fd = -1;

    WORKS(mol_client_fd(client, &fd, error));
    CHECK(fd > 2);
}

static void mol_client_metrics__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    char *metrics = untouched;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_client_metrics((mol_client){*id}, &metrics, error));
    CHECK(metrics == untouched);
}

static void mol_client_metrics__metrics(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_client_metrics(client, NULL, error));
}

static void mol_client_metrics__error(void)
{
    mol_error *error = untouched;
    char *metrics = NULL;

    CHECK(mol_client_metrics(client, &metrics, &error) == MOL_OK && error == untouched && metrics[0] == '{');
    mol_string_free(metrics);
}

static void mol_ensure_local_image__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    mol_image *image = untouched;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_ensure_local_image((mol_client){*id}, "hermes", 0, &image, error));
    CHECK(image == untouched);
}

static void mol_ensure_local_image__runtime(void)
{
    size_t i;
    mol_image *image = untouched;

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, NULL, 0, &image, error));
    for (i = 0; i < COUNT(BAD); i++)
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, BAD[i], 0, &image, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_ensure_local_image(client, "HERMES", 0, &image, error));
    REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_ensure_local_image(client, "", 0, &image, error));
    CHECK(image == untouched);
}

/* With 0 or 1, the call may end at its deadline or because the port refuses, whichever is first. In all other cases it
 * has the time to find out that the port refuses. Calls that run into their deadline are in waits.c. */
static const int64_t TIMEOUTS[] = {INT64_MIN, MOL_TIMEOUT_NONE, 0, 1, INT64_MAX - 1, MOL_TIMEOUT_CEILING};

static bool is_expected(mol_status status, int64_t timeout_ms)
{
    bool is_short = timeout_ms == 0 || timeout_ms == 1;

    return status == MOL_ERR_GITEA_UNREACHABLE || (is_short && status == MOL_ERR_DEADLINE_EXCEEDED);
}

static void mol_ensure_local_image__timeout_ms(void)
{
    size_t i;
    mol_image *image = untouched;

    for (i = 0; i < COUNT(TIMEOUTS); i++)
        CHECK(is_expected(mol_ensure_local_image(client, "hermes", TIMEOUTS[i], &image, NULL), TIMEOUTS[i]));
    CHECK(image == untouched);
}

static void mol_ensure_local_image__image(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_ensure_local_image(client, "hermes", 0, NULL, error));
}

static void mol_ensure_local_image__error(void)
{
    CHECK(mol_ensure_local_image(client, NULL, 0, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);
}

#define COMMIT "0123456789abcdef0123456789abcdef01234567"

static const mol_request list = {.size = sizeof(mol_request), .kind = MOL_REQUEST_LIST};

static void mol_call_start__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    mol_call call = {UNTOUCHED};

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_call_start((mol_client){*id}, &list, 0, &call, error));
    CHECK(call.id == UNTOUCHED);
}

/* Starts a call with this request, and returns the status of its result. */
static mol_status end_of(const mol_request *request)
{
    mol_client own = new_client(false);
    mol_call call = {0};
    mol_result *result;
    mol_status status;

    CHECK(mol_call_start(own, request, MOL_TIMEOUT_CEILING, &call, NULL) == MOL_OK && call.id != 0);
    result = result_of(own, call);
    status = result->status;
    mol_result_free(result);
    mol_client_free(own);
    return status;
}

/* A request in memory of exactly `size` bytes, so that valgrind and AddressSanitizer find a read beyond it. The
 * bytes beyond mol_request are 0. */
static mol_request *sized(mol_request request, size_t size)
{
    /* The library reads the size in any case. */
    unsigned char *memory = malloc(size < sizeof size ? sizeof size : size);

    CHECK(memory != NULL);
    memset(memory, 0, size);
    request.size = size;
    memcpy(memory, &request, size < sizeof size ? sizeof size : size < sizeof request ? size : sizeof request);
    return (mol_request *)(void *)memory;
}

static void request_sizes(void)
{
    static const size_t wrong[] = {0, 1, sizeof(size_t), offsetof(mol_request, keep_per_runtime) - 1, 4097};
    mol_request image = {.kind = MOL_REQUEST_IMAGE, .runtime = "hermes", .commit = untouched};
    mol_call call = {UNTOUCHED};
    mol_request *request;
    size_t i, size;

    for (i = 0; i < COUNT(wrong); i++) {
        request = sized(list, wrong[i]);
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, request, 0, &call, error));
        free(request);
    }
    request = sized(list, sizeof *request);
    request->size = SIZE_MAX;
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, request, 0, &call, error));
    free(request);

    /* A program with an older header: the fields beyond the size are 0. */
    request = sized(image, offsetof(mol_request, runtime));
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, request, 0, &call, error));
    free(request);
    CHECK(call.id == UNTOUCHED);
    request = sized(image, offsetof(mol_request, commit));
    CHECK(end_of(request) == MOL_ERR_GITEA_UNREACHABLE);
    free(request);
    request = sized(list, offsetof(mol_request, keep_per_runtime));
    CHECK(end_of(request) == MOL_ERR_ENGINE_UNREACHABLE);
    free(request);

    /* A program with a newer header: fields that this library does not know must be 0. */
    for (size = sizeof *request; size <= 4096; size *= 2) {
        request = sized(list, size);
        CHECK(end_of(request) == MOL_ERR_ENGINE_UNREACHABLE);
        free(request);
    }
    request = sized(list, 4096);
    CHECK(end_of(request) == MOL_ERR_ENGINE_UNREACHABLE);
    for (i = sizeof *request; i < 4096; i += 4095 - sizeof *request) {
        ((unsigned char *)request)[i] = 1;
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, request, 0, &call, error));
        ((unsigned char *)request)[i] = 0;
    }
    free(request);
}

static void request_kinds(void)
{
    static const int none[] = {0, -1, MOL_REQUEST_ENGINE_HOST + 1, INT_MAX, INT_MIN};
    mol_request request = {.size = sizeof request, .runtime = "hermes"};
    mol_call call = {UNTOUCHED};
    size_t i;

    CHECK(sizeof request.kind == sizeof *none);
    for (i = 0; i < COUNT(none); i++) {
        memcpy(&request.kind, &none[i], sizeof *none);
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, &request, 0, &call, error));
    }
    CHECK(call.id == UNTOUCHED);
}

static void request_runtimes(void)
{
    static const mol_request_kind kinds[] = {MOL_REQUEST_IMAGE, MOL_REQUEST_BUILD_LOG};
    mol_request request = {.size = sizeof request};
    mol_call call = {UNTOUCHED};
    size_t i, kind;

    for (kind = 0; kind < COUNT(kinds); kind++) {
        request.kind = kinds[kind];
        request.runtime = NULL;
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, &request, 0, &call, error));
        for (i = 0; i < COUNT(BAD); i++) {
            request.runtime = BAD[i];
            REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, &request, 0, &call, error));
        }
        request.runtime = "HERMES";
        REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_call_start(client, &request, 0, &call, error));
        request.runtime = "";
        REFUSES(MOL_ERR_UNKNOWN_RUNTIME, mol_call_start(client, &request, 0, &call, error));
    }
    CHECK(call.id == UNTOUCHED);
}

static void request_commits(void)
{
    static const char *const none[] = {"", "main", "0123456789ab", COMMIT "0", " " COMMIT};
    mol_request request = {.size = sizeof request, .kind = MOL_REQUEST_IMAGE, .runtime = "hermes"};
    mol_call call = {UNTOUCHED};
    size_t i;

    for (i = 0; i < COUNT(BAD); i++) {
        request.commit = BAD[i];
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, &request, 0, &call, error));
    }
    for (i = 0; i < COUNT(none); i++) {
        request.commit = none[i];
        REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, &request, 0, &call, error));
    }
    CHECK(call.id == UNTOUCHED);
    request.commit = COMMIT;
    CHECK(end_of(&request) == MOL_ERR_ENGINE_UNREACHABLE);
}

/* Every number is valid for the options of a prune, and any byte for a bool. */
static void request_numbers(void)
{
    static const uint32_t keep[] = {0, 1, UINT32_MAX};
    static const int64_t recent[] = {0, INT64_MIN, INT64_MAX};
    static const unsigned char bytes[] = {0, 1, 0xff};
    mol_request request = {.size = sizeof request, .kind = MOL_REQUEST_PRUNE};
    size_t i;

    for (i = 0; i < COUNT(keep); i++) {
        request.keep_per_runtime = keep[i];
        request.keep_recent_ms = recent[i];
        memcpy(&request.dry_run, &bytes[i], 1);
        CHECK(end_of(&request) == MOL_ERR_ENGINE_UNREACHABLE);
    }
}

static void mol_call_start__request(void)
{
    mol_call call = {UNTOUCHED};

    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, NULL, 0, &call, error));
    CHECK(call.id == UNTOUCHED);
    request_sizes();
    request_kinds();
    request_runtimes();
    request_commits();
    request_numbers();
}

static void mol_call_start__timeout_ms(void)
{
    mol_request request = {.runtime = "hermes"};
    mol_client own = new_client(false);
    mol_result *result;
    size_t i;
    int kind;

    for (i = 0; i < COUNT(TIMEOUTS); i++) {
        request.kind = MOL_REQUEST_IMAGE;
        result = result_of(own, start(own, request, TIMEOUTS[i]));
        CHECK(is_expected(result->status, TIMEOUTS[i]));
        mol_result_free(result);
        for (kind = MOL_REQUEST_IMAGE; kind <= MOL_REQUEST_ENGINE_HOST; kind++) {
            mol_call call;

            request.kind = (mol_request_kind)kind;
            call = start(own, request, TIMEOUTS[i]);
            CHECK(mol_call_cancel(own, call, NULL) == MOL_OK);
            result = result_of(own, call);
            CHECK(result->status != MOL_OK || kind == MOL_REQUEST_DIAGNOSE);
            mol_result_free(result);
        }
    }
    mol_client_free(own);
}

static void mol_call_start__call(void)
{
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_start(client, &list, 0, NULL, error));
}

static void mol_call_start__error(void)
{
    mol_error *error = untouched;
    mol_call call = {0};

    CHECK(mol_call_start(client, NULL, 0, NULL, NULL) == MOL_ERR_INVALID_ARGUMENT);
    CHECK(mol_call_start(client, &list, 0, &call, &error) == MOL_OK && error == untouched);
    mol_result_free(result_of(client, call));
}

static void mol_call_wait__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;
    mol_result *result = untouched;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE,
                mol_call_wait((mol_client){*id}, (mol_call){0}, MOL_TIMEOUT_NONE, &result, error));
    CHECK(result == untouched);
}

static void mol_call_wait__call(void)
{
    mol_client own = new_client(false);
    mol_call taken = start(own, list, MOL_TIMEOUT_CEILING), foreign = start(client, list, MOL_TIMEOUT_CEILING);
    uint64_t none[] = {UINT64_MAX, UNTOUCHED, taken.id, foreign.id}, *id;
    mol_result *result = untouched;

    mol_result_free(result_of(own, taken));
    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_call_wait(own, (mol_call){*id}, MOL_TIMEOUT_NONE, &result, error));
    CHECK(result == untouched);
    mol_result_free(result_of(client, foreign));
    mol_client_free(own);
}

static void mol_call_wait__timeout_ms(void)
{
    static const int64_t some[] = {INT64_MIN, -1, 1000, INT64_MAX};
    mol_client own = new_client(false);
    mol_result *result = untouched;
    size_t i;

    WORKS(mol_call_wait(own, (mol_call){0}, 0, &result, error));
    CHECK(result == NULL);
    result = untouched;
    WORKS(mol_call_wait(own, (mol_call){0}, 1, &result, error));
    CHECK(result == NULL);
    for (i = 0; i < COUNT(some); i++) {
        mol_call call = start(own, list, MOL_TIMEOUT_CEILING);

        result = NULL;
        CHECK(mol_call_wait(own, i % 2 == 0 ? call : (mol_call){0}, some[i], &result, NULL) == MOL_OK);
        CHECK(result != NULL && result->call.id == call.id && result->status == MOL_ERR_ENGINE_UNREACHABLE);
        mol_result_free(result);
    }
    mol_client_free(own);
}

static void mol_call_wait__result(void)
{
    mol_call call = start(client, list, MOL_TIMEOUT_CEILING);

    /* The result is still there afterwards. */
    REFUSES(MOL_ERR_INVALID_ARGUMENT, mol_call_wait(client, call, LONG_MS, NULL, error));
    mol_result_free(result_of(client, call));
}

static void mol_call_wait__error(void)
{
    mol_result *result = NULL;

    WORKS(mol_call_wait(client, (mol_call){0}, 0, &result, error));
    CHECK(result == NULL);
}

static void mol_call_cancel__client(void)
{
    uint64_t none[] = NO_CLIENT, *id;

    EACH(id, none)
        REFUSES(MOL_ERR_NO_SUCH_HANDLE, mol_call_cancel((mol_client){*id}, (mol_call){1}, error));
}

static void mol_call_cancel__call(void)
{
    /* The library does not remember which calls have ended, and so ignores every id. */
    uint64_t none[] = {0, 1, UINT64_MAX, UNTOUCHED, options.id, client.id}, *id;

    EACH(id, none)
        WORKS(mol_call_cancel(client, (mol_call){*id}, error));
}

static void mol_call_cancel__error(void)
{
    WORKS(mol_call_cancel(client, (mol_call){1}, error));
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

static void mol_result_free__result(void)
{
    mol_result_free(NULL);
}

static void mol_event_free__event(void)
{
    mol_event_free(NULL);
}

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
    X(mol_options_set, name) \
    X(mol_options_set, value) \
    X(mol_options_set, error) \
    X(mol_options_free, options) \
    X(mol_client_new, options) \
    X(mol_client_new, events) \
    X(mol_client_new, client) \
    X(mol_client_new, error) \
    X(mol_client_free, client) \
    X(mol_client_next_event, client) \
    X(mol_client_next_event, timeout_ms) \
    X(mol_client_next_event, event) \
    X(mol_client_next_event, error) \
    X(mol_client_fd, client) \
    X(mol_client_fd, fd) \
    X(mol_client_fd, error) \
    X(mol_client_metrics, client) \
    X(mol_client_metrics, metrics) \
    X(mol_client_metrics, error) \
    X(mol_ensure_local_image, client) \
    X(mol_ensure_local_image, runtime) \
    X(mol_ensure_local_image, timeout_ms) \
    X(mol_ensure_local_image, image) \
    X(mol_ensure_local_image, error) \
    X(mol_call_start, client) \
    X(mol_call_start, request) \
    X(mol_call_start, timeout_ms) \
    X(mol_call_start, call) \
    X(mol_call_start, error) \
    X(mol_call_wait, client) \
    X(mol_call_wait, call) \
    X(mol_call_wait, timeout_ms) \
    X(mol_call_wait, result) \
    X(mol_call_wait, error) \
    X(mol_call_cancel, client) \
    X(mol_call_cancel, call) \
    X(mol_call_cancel, error) \
    X(mol_string_free, text) \
    X(mol_error_free, error) \
    X(mol_image_free, image) \
    X(mol_result_free, result) \
    X(mol_event_free, event)

#define ROW(function, parameter) {#function " " #parameter, function##__##parameter},
static const struct {
    const char *name;
    void (*test)(void);
} tests[] = {TESTS(ROW)};

int main(int argc, char **argv)
{
    bool only_list = argc > 1 && strcmp(argv[1], "--list") == 0;
    size_t i;

    if (!only_list)
        set_up();
    for (i = 0; i < COUNT(tests); i++) {
        if (only_list)
            puts(tests[i].name);
        else
            tests[i].test();
    }
    if (!only_list) {
        mol_options_free(options);
        mol_client_free(client);
        puts("all refused");
    }
    return 0;
}
