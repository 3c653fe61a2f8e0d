/* Included first by each program here, so that mol.h is compiled with nothing before it. */
#include "mol.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Prints the place and ends the program if the condition is false. */
#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

/* Longer than any call of a test takes. */
#define LONG_MS 120000

/* The content of an out-parameter that must not be written. */
#define UNTOUCHED ((uint64_t)0x5afe5afe5afe5afe)
static void *const untouched = (void *)(uintptr_t)UNTOUCHED;

/* Sets options with which a client reaches no server and no engine: port 1 refuses connections, and the engine's socket
 * does not exist. */
static inline mol_status reach_nothing(mol_options options)
{
    static const char *const values[][2] = {
        {"MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", "http://127.0.0.1:1/o/t-"},
        {"DOCKER_HOST", "unix:///nowhere/engine"},
        {"MOLECULE_LOCAL_BUILD_CACHE", "/proc/nowhere/cache"},
    };
    mol_status status = MOL_OK;
    size_t i;

    for (i = 0; i < sizeof values / sizeof *values && status == MOL_OK; i++)
        status = mol_options_set(options, values[i][0], values[i][1], NULL);
    return status;
}

/* A client with the options from the environment. */
static inline mol_client client_from_env(bool events)
{
    mol_options options = {0};
    mol_client client = {0};

    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_client_new(options, events, &client, NULL) == MOL_OK);
    mol_options_free(options);
    return client;
}

/* Starts a call. */
static inline mol_call start(mol_client client, mol_request request, int64_t timeout_ms)
{
    mol_call call = {0};

    request.size = sizeof request;
    CHECK(mol_call_start(client, &request, timeout_ms, &call, NULL) == MOL_OK);
    CHECK(call.id != 0);
    return call;
}

/* Waits for the result of a call. The caller frees it. */
static inline mol_result *result_of(mol_client client, mol_call call)
{
    mol_result *result = NULL;

    CHECK(mol_call_wait(client, call, LONG_MS, &result, NULL) == MOL_OK);
    CHECK(result != NULL && result->call.id == call.id && result->size == sizeof *result);
    CHECK((result->status == MOL_OK) == (result->error == NULL));
    CHECK((result->image != NULL) + (result->report != NULL) + (result->error != NULL) == 1);
    return result;
}
