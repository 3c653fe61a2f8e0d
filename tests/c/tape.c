/* Any function, any arguments: a status, never a crash.
 *
 *     tape --list                        the functions, one a line
 *     tape SEED TAPES LENGTH THREADS     random tapes, on so many threads at once
 *
 * Compiled with MOL_TAPE_ONLY it is the fuzz target's, and has no main. No call leaves the machine: the
 * template server is a port where nobody listens, and the engine a socket that is not there. */
#include "check.h"
#include "tape.h"

#include <pthread.h>
#include <stdatomic.h>

/* Ids of all kinds, living and dead, shared by all threads. */
#define IDS 16
static _Atomic uint64_t ids[IDS];

struct tape {
    const uint8_t *next;
    const uint8_t *end;
};

static uint8_t byte(struct tape *tape)
{
    return tape->next < tape->end ? *tape->next++ : 0;
}

static uint64_t number(struct tape *tape)
{
    uint64_t value = 0;
    int i;

    for (i = 0; i < 8; i++)
        value = value << 8 | byte(tape);
    return value;
}

/* An id from one of the places where they are kept, or none at all. */
static uint64_t id(struct tape *tape)
{
    uint8_t choice = byte(tape);

    if (choice < 0xf0)
        return atomic_load(&ids[choice % IDS]);
    if (choice < 0xf4)
        return 0;
    if (choice < 0xf8)
        return UINT64_MAX;
    return number(tape);
}

/* Keeps an id, and frees what was in its place, whatever it is. */
static void keep(struct tape *tape, uint64_t made)
{
    uint64_t old = atomic_exchange(&ids[byte(tape) % IDS], made);

    mol_client_free(old);
    mol_options_free(old);
}

/* A string in memory of its own, with nothing around it; or NULL. The caller frees it. */
static char *text(struct tape *tape)
{
    static const char *const usual[] = {"hermes", "langgraph", "", "\xff\xfe\xc3", "1", "native", "s3cr3t-t0ken"};
    uint8_t choice = byte(tape);
    size_t length, left = (size_t)(tape->end - tape->next);
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
    memcpy(copy, tape->next, length);
    copy[length] = '\0';
    tape->next += length;
    return copy;
}

static int32_t option(struct tape *tape)
{
    uint8_t choice = byte(tape);

    return choice < 0xf0 ? choice % 32 : (int32_t)number(tape);
}

/* Where an answer goes, or NULL; and what must still be there if there is none. */
#define UNTOUCHED ((uint64_t)0x5afe5afe5afe5afe)
static void *const untouched = (void *)(uintptr_t)UNTOUCHED;

static bool given(struct tape *tape)
{
    return byte(tape) >= 0x10;
}

/* What a failure must look like. */
static void failed(mol_status status, mol_error *error, bool wanted)
{
    CHECK(status > 0 && strcmp(mol_status_name(status), "unknown_status") != 0);
    if (!wanted)
        return;
    CHECK(error != untouched && error != NULL && error->code == status);
    CHECK(error->message[0] != '\0' && error->hint && error->runtime && error->url && error->step && error->log_tail);
    mol_error_free(error);
}

/* Calls a function that can fail. `call` may use `error`; the result is whether it worked. */
#define WORKS(worked, call)                                       \
    do {                                                          \
        mol_error *failure = untouched;                           \
        bool wanted = given(tape);                                \
        mol_error **error = wanted ? &failure : NULL;             \
        mol_status status = (call);                               \
        (worked) = status == MOL_OK;                              \
        if (worked)                                               \
            CHECK(failure == untouched);                          \
        else                                                      \
            failed(status, failure, wanted);                      \
    } while (0)

static void play_mol_abi_version(struct tape *tape)
{
    (void)tape;
    CHECK(mol_abi_version() == MOL_ABI_VERSION);
}

static void play_mol_version(struct tape *tape)
{
    (void)tape;
    CHECK(strlen(mol_version()) >= 5);
}

static void play_mol_status_name(struct tape *tape)
{
    CHECK(mol_status_name((int32_t)number(tape))[0] != '\0');
}

static void play_mol_is_known_runtime(struct tape *tape)
{
    char *runtime = text(tape);

    CHECK(!mol_is_known_runtime(runtime) || strlen(runtime) >= 5);
    free(runtime);
}

static void play_mol_resolve(struct tape *tape)
{
    char *value = text(tape);
    mol_registry *registry = untouched;
    bool out = given(tape), worked;

    WORKS(worked, mol_resolve(value, out ? &registry : NULL, error));
    CHECK(worked ? out : registry == untouched);
    if (worked) {
        bool local = value == NULL || value[0] == '\0';

        CHECK(registry->mode == (local ? MOL_REGISTRY_MODE_LOCAL : MOL_REGISTRY_MODE_SAAS));
        CHECK(local || strcmp(registry->prefix, value) == 0);
        mol_registry_free(registry);
    }
    free(value);
}

static void play_mol_mask_token(struct tape *tape)
{
    char *input = text(tape), *token = text(tape), *masked = untouched;
    bool out = given(tape), worked;

    WORKS(worked, mol_mask_token(input, token, out ? &masked : NULL, error));
    CHECK(worked ? out : masked == untouched);
    if (worked) {
        CHECK(token == NULL || token[0] == '\0' || strchr(token, '*') != NULL || strstr(masked, token) == NULL);
        mol_string_free(masked);
    }
    free(input);
    free(token);
}

static void play_mol_options_new(struct tape *tape)
{
    mol_options options = UNTOUCHED;
    bool out = given(tape), worked;

    WORKS(worked, mol_options_new(out ? &options : NULL, error));
    CHECK(worked ? out && options != 0 : options == UNTOUCHED);
    if (worked)
        keep(tape, options);
}

static void play_mol_options_from_env(struct tape *tape)
{
    mol_options options = UNTOUCHED;
    bool out = given(tape), worked;

    WORKS(worked, mol_options_from_env(out ? &options : NULL, error));
    CHECK(worked ? out && options != 0 : options == UNTOUCHED);
    if (worked)
        keep(tape, options);
}

static void play_mol_options_set(struct tape *tape)
{
    uint64_t options = id(tape);
    int32_t which = option(tape);
    char *value = text(tape);
    bool worked;

    WORKS(worked, mol_options_set(options, which, value, error));
    CHECK(!worked || (value != NULL && which > 0));
    free(value);
}

static void play_mol_options_free(struct tape *tape)
{
    mol_options_free(id(tape));
}

/* Whatever the tape has set, calls of this client go nowhere. */
static void stay_at_home(uint64_t options)
{
    static const struct {
        int32_t option;
        const char *value;
    } home[] = {
        {MOL_OPTION_REPO_PREFIX, "http://127.0.0.1:1/o/t-"}, {MOL_OPTION_DOCKER_HOST, "unix:///nowhere/engine"},
        {MOL_OPTION_CACHE_DIR, "/proc/nowhere/cache"},            {MOL_OPTION_HTTP_PROXY, ""},
        {MOL_OPTION_HTTPS_PROXY, ""},                             {MOL_OPTION_RUNTIMES, ""},
    };
    size_t i;

    for (i = 0; i < sizeof home / sizeof *home; i++)
        mol_options_set(options, home[i].option, home[i].value, NULL);
}

static void play_mol_client_new(struct tape *tape)
{
    uint64_t options = id(tape);
    mol_client client = UNTOUCHED;
    bool events = byte(tape) & 1, out = given(tape), worked;

    stay_at_home(options);
    WORKS(worked, mol_client_new(options, events, out ? &client : NULL, error));
    CHECK(worked ? out && client != 0 : client == UNTOUCHED);
    if (worked)
        keep(tape, client);
}

static void play_mol_client_free(struct tape *tape)
{
    mol_client_free(id(tape));
}

static void play_mol_ensure_local_image(struct tape *tape)
{
    uint64_t client = id(tape);
    char *runtime = text(tape);
    int64_t timeout = 1 + byte(tape) % 8;
    mol_image *image = untouched;
    bool out = given(tape), worked;

    WORKS(worked, mol_ensure_local_image(client, runtime, timeout, out ? &image : NULL, error));
    CHECK(!worked && image == untouched);
    free(runtime);
}

static void play_mol_client_submit(struct tape *tape)
{
    uint64_t client = id(tape);
    char *runtime = text(tape);
    int64_t timeout = (int64_t)number(tape);
    mol_call call = UNTOUCHED;
    bool out = given(tape), worked;

    WORKS(worked, mol_client_submit(client, runtime, timeout, out ? &call : NULL, error));
    CHECK(worked ? out && mol_is_known_runtime(runtime) : call == UNTOUCHED);
    if (worked)
        keep(tape, call);
    free(runtime);
}

/* The calls that wait for a report. What comes between the client and the time is last. Nothing is ever pruned: the
 * options may be another thread's. */
#define PLAY_WAITS(waits, ...)                                                                  \
    static void play_##waits(struct tape *tape)                                                 \
    {                                                                                           \
        uint64_t client = id(tape);                                                             \
        char *runtime = text(tape), *report = untouched;                                        \
        int64_t timeout = 1 + byte(tape) % 8;                                                   \
        bool out = given(tape), worked;                                                         \
                                                                                                \
        WORKS(worked, waits(client, __VA_ARGS__ timeout, out ? &report : NULL, error));         \
        CHECK(worked ? out : report == untouched);                                              \
        if (worked)                                                                             \
            mol_string_free(report);                                                            \
        free(runtime);                                                                          \
    }                                                                                           \

/* The calls that do not wait, in the same way. */
#define PLAY_SUBMITS(submits, ...)                                                              \
    static void play_##submits(struct tape *tape)                                               \
    {                                                                                           \
        uint64_t client = id(tape);                                                             \
        char *runtime = text(tape);                                                             \
        int64_t timeout = (int64_t)number(tape);                                                \
        mol_call call = UNTOUCHED;                                                              \
        bool out = given(tape), worked;                                                         \
                                                                                                \
        WORKS(worked, submits(client, __VA_ARGS__ timeout, out ? &call : NULL, error));         \
        CHECK(worked ? out : call == UNTOUCHED);                                                \
        if (worked)                                                                             \
            keep(tape, call);                                                                   \
        free(runtime);                                                                          \
    }

PLAY_WAITS(mol_list, )
PLAY_WAITS(mol_prune, byte(tape), (int64_t)number(tape), true, )
PLAY_WAITS(mol_diagnose, )
PLAY_WAITS(mol_build_log, runtime, )
PLAY_SUBMITS(mol_client_submit_list, )
PLAY_SUBMITS(mol_client_submit_prune, byte(tape), (int64_t)number(tape), true, )
PLAY_SUBMITS(mol_client_submit_diagnose, )
PLAY_SUBMITS(mol_client_submit_engine_host, )
PLAY_SUBMITS(mol_client_submit_build_log, runtime, )

static void play_mol_client_submit_commit(struct tape *tape)
{
    uint64_t client = id(tape);
    char *runtime = text(tape), *commit = text(tape);
    mol_call call = UNTOUCHED;
    int64_t timeout = (int64_t)number(tape);
    bool out = given(tape), worked;

    WORKS(worked, mol_client_submit_commit(client, runtime, commit, timeout, out ? &call : NULL, error));
    CHECK(worked ? out && mol_is_known_runtime(runtime) : call == UNTOUCHED);
    if (worked)
        keep(tape, call);
    free(runtime);
    free(commit);
}

static void play_mol_client_metrics(struct tape *tape)
{
    uint64_t client = id(tape);
    char *metrics = untouched;
    bool out = given(tape), worked;

    WORKS(worked, mol_client_metrics(client, out ? &metrics : NULL, error));
    CHECK(worked ? out : metrics == untouched);
    if (worked)
        mol_string_free(metrics);
}

static void play_mol_client_cancel(struct tape *tape)
{
    uint64_t client = id(tape), call = id(tape);
    bool worked;

    WORKS(worked, mol_client_cancel(client, call, error));
}

static void play_mol_client_next_event(struct tape *tape)
{
    uint64_t client = id(tape);
    int64_t timeout = byte(tape) % 4;
    mol_event *event = untouched;
    bool out = given(tape), worked;

    WORKS(worked, mol_client_next_event(client, timeout, out ? &event : NULL, error));
    CHECK(worked ? out : event == untouched);
    if (worked) {
        CHECK((event->json != NULL) + (event->image != NULL) + (event->error != NULL) == 1);
        CHECK(event->call != 0 && event->image == NULL);
        mol_event_free(event);
    }
}

/* What was handed out is freed where it came from; here there is nothing. */
static void play_mol_string_free(struct tape *tape)
{
    (void)tape;
    mol_string_free(NULL);
}

static void play_mol_error_free(struct tape *tape)
{
    (void)tape;
    mol_error_free(NULL);
}

static void play_mol_image_free(struct tape *tape)
{
    (void)tape;
    mol_image_free(NULL);
}

static void play_mol_registry_free(struct tape *tape)
{
    (void)tape;
    mol_registry_free(NULL);
}

static void play_mol_event_free(struct tape *tape)
{
    (void)tape;
    mol_event_free(NULL);
}

/* The frequent ones come first: they are what the small bytes stand for. */
#define FUNCTIONS(X)        \
    X(mol_options_new)      \
    X(mol_client_new)       \
    X(mol_client_submit)    \
    X(mol_client_submit_commit) \
    X(mol_client_next_event) \
    X(mol_options_set)      \
    X(mol_client_cancel)    \
    X(mol_client_free)      \
    X(mol_ensure_local_image) \
    X(mol_mask_token)       \
    X(mol_resolve)          \
    X(mol_list)             \
    X(mol_client_submit_list) \
    X(mol_prune)            \
    X(mol_client_submit_prune) \
    X(mol_diagnose)         \
    X(mol_client_submit_diagnose) \
    X(mol_client_submit_engine_host) \
    X(mol_build_log)        \
    X(mol_client_submit_build_log) \
    X(mol_client_metrics)   \
    X(mol_options_from_env) \
    X(mol_options_free)     \
    X(mol_is_known_runtime) \
    X(mol_status_name)      \
    X(mol_version)          \
    X(mol_abi_version)      \
    X(mol_string_free)      \
    X(mol_error_free)       \
    X(mol_image_free)       \
    X(mol_registry_free)    \
    X(mol_event_free)

#define ROW(function) {#function, play_##function},
static const struct {
    const char *name;
    void (*play)(struct tape *tape);
} functions[] = {FUNCTIONS(ROW)};
#define COUNT (sizeof functions / sizeof *functions)

void play(const uint8_t *bytes, size_t length)
{
    struct tape tape = {bytes, bytes + length};

    while (tape.next < tape.end)
        functions[byte(&tape) % COUNT].play(&tape);
}

void rewind_all(void)
{
    int i;

    for (i = 0; i < IDS; i++) {
        uint64_t made = atomic_exchange(&ids[i], 0);

        mol_client_free(made);
        mol_options_free(made);
    }
}

#ifndef MOL_TAPE_ONLY

struct player {
    uint64_t state;
    long tapes;
    size_t length;
};

/* The generator of Knuth's MMIX; its low bits are no good. */
static uint8_t noise(struct player *player)
{
    player->state = player->state * 6364136223846793005u + 1442695040888963407u;
    return (uint8_t)(player->state >> 56);
}

static void *play_noise(void *arg)
{
    struct player *player = arg;
    long i;
    size_t at;

    for (i = 0; i < player->tapes; i++) {
        uint8_t *tape = malloc(player->length);

        CHECK(tape != NULL);
        for (at = 0; at < player->length; at++)
            tape[at] = noise(player);
        play(tape, player->length);
        free(tape);
    }
    return NULL;
}

#define THREADS 64

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    struct player players[THREADS];
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
        players[i].state = strtoull(argv[1], NULL, 10) * THREADS + (uint64_t)i;
        players[i].tapes = atol(argv[2]);
        players[i].length = (size_t)atol(argv[3]);
        CHECK(pthread_create(&threads[i], NULL, play_noise, &players[i]) == 0);
    }
    for (i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    rewind_all();
    puts("played");
    return 0;
}

#endif
