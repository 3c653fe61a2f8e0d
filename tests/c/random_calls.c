/* Calls any function with any arguments: the result is a status, never a crash.
 *
 *     random_calls --list                         prints the functions, one per line
 *     random_calls SEED INPUTS LENGTH THREADS     runs random inputs, on THREADS threads at once
 *
 * With MOL_WITHOUT_MAIN it has no main: the fuzz target has one. No call reaches another machine (reach_nothing). */
#include "check.h"
#include "random_calls.h"

#include <pthread.h>
#include <stdatomic.h>

/* Ids of all types, freed ones too, shared by all threads. */
#define IDS 16
static _Atomic uint64_t ids[IDS];

struct input {
    const uint8_t *next;
    const uint8_t *end;
};

static uint8_t byte(struct input *input)
{
    return input->next < input->end ? *input->next++ : 0;
}

static uint64_t number(struct input *input)
{
    uint64_t value = 0;
    int i;

    for (i = 0; i < 8; i++)
        value = value << 8 | byte(input);
    return value;
}

/* One of the kept ids, or an arbitrary number. */
static uint64_t id(struct input *input)
{
    uint8_t choice = byte(input);

    if (choice < 0xf0)
        return atomic_load(&ids[choice % IDS]);
    if (choice < 0xf4)
        return 0;
    if (choice < 0xf8)
        return UINT64_MAX;
    return number(input);
}

static void free_object(uint64_t old)
{
    mol_client_free((mol_client){old});
    mol_options_free((mol_options){old});
}

/* Keeps an id, and frees the object of the id that it replaces, whatever its type. */
static void keep(struct input *input, uint64_t made)
{
    uint64_t old = atomic_exchange(&ids[byte(input) % IDS], made);

    free_object(old);
}

/* A string in an allocation of exactly its size, or NULL. The caller frees it. */
static char *text(struct input *input)
{
    static const char *const usual[] = {"hermes", "langgraph", "", "\xff\xfe\xc3", "1", "native", "s3cr3t-t0ken"};
    uint8_t choice = byte(input);
    size_t length, left = (size_t)(input->end - input->next);
    char *copy;

    if (choice < 0x18)
        return NULL;
    if (choice < 0xa0) {
        const char *word = usual[choice % (sizeof usual / sizeof *usual)];

        copy = malloc(strlen(word) + 1);
        CHECK(copy != NULL);
        return strcpy(copy, word);
    }
    length = choice - 0xa0;
    length = length < left ? length : left;
    copy = malloc(length + 1);
    CHECK(copy != NULL);
    memcpy(copy, input->next, length);
    copy[length] = '\0';
    input->next += length;
    return copy;
}

/* The name of an option, or any text. The caller frees it. */
static char *option(struct input *input)
{
    static const char *const names[] = {
        "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "MOLECULE_LOCAL_TEMPLATE_BRANCH", "MOLECULE_GITEA_TOKEN", "pins",
        "MOLECULE_BUILD_CEILING_S", "MOLECULE_IMAGE_PLATFORM", "DOCKER_HOST", "HTTP_PROXY", "runtimes", "tag_arch",
    };
    uint8_t choice = byte(input);
    char *copy;

    if (choice >= 0xf0)
        return text(input);
    copy = malloc(64);
    CHECK(copy != NULL);
    return strcpy(copy, names[choice % (sizeof names / sizeof *names)]);
}

/* Whether an out-parameter is passed, or NULL. */
static bool given(struct input *input)
{
    return byte(input) >= 0x10;
}

/* Checks a failure, and frees the error. */
static void failed(mol_status status, mol_error *error, bool wanted)
{
    CHECK(status > 0 && strcmp(mol_status_name(status), "unknown_status") != 0);
    if (!wanted)
        return;
    CHECK(error != untouched && error != NULL && error->code == status);
    CHECK(error->message[0] != '\0' && error->hint && error->runtime && error->url && error->step && error->log_tail);
    mol_error_free(error);
}

/* Calls a function that can fail. `call` uses `error`; `worked` receives whether it returned MOL_OK. */
#define WORKS(worked, call)                                       \
    do {                                                          \
        mol_error *failure = untouched;                           \
        bool wanted = given(input);                               \
        mol_error **error = wanted ? &failure : NULL;             \
        mol_status status = (call);                               \
        (worked) = status == MOL_OK;                              \
        if (worked)                                               \
            CHECK(failure == untouched);                          \
        else                                                      \
            failed(status, failure, wanted);                      \
    } while (0)

static void run_mol_abi_version(struct input *input)
{
    (void)input;
    CHECK(mol_abi_version() == MOL_ABI_VERSION);
}

static void run_mol_version(struct input *input)
{
    (void)input;
    CHECK(strlen(mol_version()) >= 5);
}

static void run_mol_status_name(struct input *input)
{
    CHECK(mol_status_name((int)number(input))[0] != '\0');
}

static void run_mol_is_known_runtime(struct input *input)
{
    char *runtime = text(input);

    CHECK(!mol_is_known_runtime(runtime) || strlen(runtime) >= 5);
    free(runtime);
}

static void run_mol_resolve(struct input *input)
{
    char *value = text(input);
    mol_registry registry = {MOL_REGISTRY_MODE_LOCAL, untouched};
    bool out = given(input), worked;

    WORKS(worked, mol_resolve(value, out ? &registry : NULL, error));
    CHECK(worked ? out : registry.prefix == untouched);
    if (worked) {
        bool local = value == NULL || value[0] == '\0';

        CHECK(registry.mode == (local ? MOL_REGISTRY_MODE_LOCAL : MOL_REGISTRY_MODE_SAAS));
        CHECK(local ? strcmp(registry.prefix, "molecule-local") == 0 : registry.prefix == value);
    }
    free(value);
}

static void run_mol_mask_token(struct input *input)
{
    char *plain = text(input), *token = text(input), *masked = untouched;
    bool out = given(input), worked;

    WORKS(worked, mol_mask_token(plain, token, out ? &masked : NULL, error));
    CHECK(worked ? out : masked == untouched);
    if (worked) {
        CHECK(token == NULL || token[0] == '\0' || strchr(token, '*') != NULL || strstr(masked, token) == NULL);
        mol_string_free(masked);
    }
    free(plain);
    free(token);
}

static void run_mol_options_new(struct input *input)
{
    mol_options options = {UNTOUCHED};
    bool out = given(input), worked;

    WORKS(worked, mol_options_new(out ? &options : NULL, error));
    CHECK(worked ? out && options.id != 0 : options.id == UNTOUCHED);
    if (worked)
        keep(input, options.id);
}

static void run_mol_options_from_env(struct input *input)
{
    mol_options options = {UNTOUCHED};
    bool out = given(input), worked;

    WORKS(worked, mol_options_from_env(out ? &options : NULL, error));
    CHECK(worked ? out && options.id != 0 : options.id == UNTOUCHED);
    if (worked)
        keep(input, options.id);
}

static void run_mol_options_set(struct input *input)
{
    mol_options options = {id(input)};
    char *name = option(input), *value = text(input);
    bool worked;

    WORKS(worked, mol_options_set(options, name, value, error));
    CHECK(!worked || (name != NULL && value != NULL));
    free(name);
    free(value);
}

static void run_mol_options_free(struct input *input)
{
    mol_options_free((mol_options){id(input)});
}

static void ignore(mol_status status)
{
    (void)status;
}

/* Overrides the options of the input with which calls could leave this machine. */
static void stay_local(mol_options options)
{
    static const char *const unset[] = {"HTTP_PROXY", "HTTPS_PROXY", "runtimes"};
    size_t i;

    ignore(reach_nothing(options));
    for (i = 0; i < sizeof unset / sizeof *unset; i++)
        ignore(mol_options_set(options, unset[i], "", NULL));
}

static void run_mol_client_new(struct input *input)
{
    mol_options options = {id(input)};
    mol_client client = {UNTOUCHED};
    bool events = byte(input) & 1, out = given(input), worked;

    stay_local(options);
    WORKS(worked, mol_client_new(options, events, out ? &client : NULL, error));
    CHECK(worked ? out && client.id != 0 : client.id == UNTOUCHED);
    if (worked)
        keep(input, client.id);
}

static void run_mol_client_free(struct input *input)
{
    mol_client_free((mol_client){id(input)});
}

static void run_mol_client_next_event(struct input *input)
{
    mol_client client = {id(input)};
    int64_t timeout = byte(input) % 4;
    mol_event *event = untouched;
    bool out = given(input), worked;

    WORKS(worked, mol_client_next_event(client, timeout, out ? &event : NULL, error));
    CHECK(worked ? out : event == untouched);
    if (worked && event != NULL) {
        CHECK(event->size == sizeof *event && event->number > 0);
        CHECK(event->kind[0] != '\0' && event->message != NULL && event->json[0] == '{');
        mol_event_free(event);
    }
}

static void run_mol_client_fd(struct input *input)
{
    mol_client client = {id(input)};
    bool out = given(input), worked;
    int fd = -1;

    WORKS(worked, mol_client_fd(client, out ? &fd : NULL, error));
    CHECK(worked ? out && fd >= 0 : fd == -1);
}

static void run_mol_client_metrics(struct input *input)
{
    mol_client client = {id(input)};
    char *metrics = untouched;
    bool out = given(input), worked;

    WORKS(worked, mol_client_metrics(client, out ? &metrics : NULL, error));
    CHECK(worked ? out : metrics == untouched);
    if (worked)
        mol_string_free(metrics);
}

static void run_mol_ensure_local_image(struct input *input)
{
    mol_client client = {id(input)};
    char *runtime = text(input);
    int64_t timeout = byte(input) % 8;
    mol_image *image = untouched;
    bool out = given(input), worked;

    WORKS(worked, mol_ensure_local_image(client, runtime, timeout, out ? &image : NULL, error));
    CHECK(!worked && image == untouched);
    free(runtime);
}

/* A request in an allocation of exactly its size, or NULL. The caller frees it. A prune is always a dry run, with a
 * size that includes dry_run: another thread may have changed the options, so the client may not be a local one. */
static mol_request *request(struct input *input, char *runtime, char *commit)
{
    static const size_t sizes[] = {0, 8, 12, 16, 24, 32, 40, 48, 64, 4096, 4097, SIZE_MAX};
    mol_request fields = {.runtime = runtime, .commit = commit, .dry_run = true};
    uint8_t kind = byte(input), choice = byte(input);
    size_t room;
    unsigned char *memory;
    int number_of_kind = kind < 0xf0 ? kind % 8 : (int)number(input);

    if (choice < 0x08)
        return NULL;
    memcpy(&fields.kind, &number_of_kind, sizeof fields.kind);
    fields.keep_per_runtime = byte(input);
    fields.keep_recent_ms = (int64_t)number(input);
    fields.size = choice < 0xc0 ? sizeof fields : sizes[choice % (sizeof sizes / sizeof *sizes)];
    if (number_of_kind == MOL_REQUEST_PRUNE && fields.size < sizeof fields)
        fields.size = sizeof fields;
    /* The library always reads the size. If it refuses the size, it reads nothing else. */
    room = fields.size < sizeof(size_t) || fields.size > 4096 ? sizeof(size_t) : fields.size;
    memory = malloc(room);
    CHECK(memory != NULL);
    memset(memory, 0xff, room);
    memcpy(memory, &fields, room < sizeof fields ? room : sizeof fields);
    return (mol_request *)(void *)memory;
}

static void run_mol_call_start(struct input *input)
{
    mol_client client = {id(input)};
    char *runtime = text(input), *commit = text(input);
    mol_request *what = request(input, runtime, commit);
    mol_call call = {UNTOUCHED};
    int64_t timeout = (int64_t)number(input);
    bool out = given(input), worked;

    WORKS(worked, mol_call_start(client, what, timeout, out ? &call : NULL, error));
    CHECK(worked ? out && what != NULL && call.id != 0 : call.id == UNTOUCHED);
    if (worked)
        keep(input, call.id);
    free(what);
    free(runtime);
    free(commit);
}

static void run_mol_call_wait(struct input *input)
{
    mol_client client = {id(input)};
    mol_call call = {id(input)};
    int64_t timeout = byte(input) % 4;
    mol_result *result = untouched;
    bool out = given(input), worked;

    WORKS(worked, mol_call_wait(client, call, timeout, out ? &result : NULL, error));
    CHECK(worked ? out : result == untouched);
    if (worked && result != NULL) {
        CHECK(result->size == sizeof *result && result->image == NULL);
        CHECK(call.id == 0 || result->call.id == call.id);
        CHECK((result->report != NULL) + (result->error != NULL) == 1);
        CHECK(result->error == NULL ? result->status == MOL_OK : result->error->code == result->status);
        mol_result_free(result);
    }
}

static void run_mol_call_cancel(struct input *input)
{
    mol_client client = {id(input)};
    mol_call call = {id(input)};
    bool worked;

    WORKS(worked, mol_call_cancel(client, call, error));
}

/* The functions above free what they received. */
static void run_mol_string_free(struct input *input)
{
    (void)input;
    mol_string_free(NULL);
}

static void run_mol_error_free(struct input *input)
{
    (void)input;
    mol_error_free(NULL);
}

static void run_mol_image_free(struct input *input)
{
    (void)input;
    mol_image_free(NULL);
}

static void run_mol_result_free(struct input *input)
{
    (void)input;
    mol_result_free(NULL);
}

static void run_mol_event_free(struct input *input)
{
    (void)input;
    mol_event_free(NULL);
}

/* A byte modulo the number of functions selects one, so the first ones are a little more frequent. */
#define FUNCTIONS(X)          \
    X(mol_options_new)        \
    X(mol_client_new)         \
    X(mol_call_start)         \
    X(mol_call_wait)          \
    X(mol_client_next_event)  \
    X(mol_options_set)        \
    X(mol_call_cancel)        \
    X(mol_client_fd)          \
    X(mol_client_free)        \
    X(mol_ensure_local_image) \
    X(mol_mask_token)         \
    X(mol_resolve)            \
    X(mol_client_metrics)     \
    X(mol_options_from_env)   \
    X(mol_options_free)       \
    X(mol_is_known_runtime)   \
    X(mol_status_name)        \
    X(mol_version)            \
    X(mol_abi_version)        \
    X(mol_string_free)        \
    X(mol_error_free)         \
    X(mol_image_free)         \
    X(mol_result_free)        \
    X(mol_event_free)

#define ROW(function) {#function, run_##function},
static const struct {
    const char *name;
    void (*run)(struct input *input);
} functions[] = {FUNCTIONS(ROW)};
#define COUNT (sizeof functions / sizeof *functions)

void run_input(const uint8_t *bytes, size_t length)
{
    struct input input = {bytes, bytes + length};

    while (input.next < input.end)
        functions[byte(&input) % COUNT].run(&input);
}

void free_all(void)
{
    int i;

    for (i = 0; i < IDS; i++) {
        uint64_t made = atomic_exchange(&ids[i], 0);

        free_object(made);
    }
}

#ifndef MOL_WITHOUT_MAIN

struct runner {
    uint64_t state;
    long inputs;
    size_t length;
};

/* The generator of Knuth's MMIX. Its low bits are not random enough. */
static uint8_t random_byte(struct runner *runner)
{
    runner->state = runner->state * 6364136223846793005u + 1442695040888963407u;
    return (uint8_t)(runner->state >> 56);
}

static void *run_random_inputs(void *arg)
{
    struct runner *runner = arg;
    long i;
    size_t at;

    for (i = 0; i < runner->inputs; i++) {
        uint8_t *input = malloc(runner->length);

        CHECK(input != NULL);
        for (at = 0; at < runner->length; at++)
            input[at] = random_byte(runner);
        run_input(input, runner->length);
        free(input);
    }
    return NULL;
}

#define THREADS 64

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    struct runner runners[THREADS];
    long count, i;
    size_t function;

    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (function = 0; function < COUNT; function++)
            puts(functions[function].name);
        return 0;
    }
    CHECK(argc == 5);
    count = atol(argv[4]);
    CHECK(count > 0 && count <= THREADS);
    for (i = 0; i < count; i++) {
        runners[i].state = strtoull(argv[1], NULL, 10) * THREADS + (uint64_t)i;
        runners[i].inputs = atol(argv[2]);
        runners[i].length = (size_t)atol(argv[3]);
        CHECK(pthread_create(&threads[i], NULL, run_random_inputs, &runners[i]) == 0);
    }
    for (i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    free_all();
    puts("passed");
    return 0;
}

#endif
