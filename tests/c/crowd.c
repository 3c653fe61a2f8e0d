/* Many calls at once, in one process.
 *
 *     crowd CALLS TIMEOUT_MS ROUNDS RUNTIME...     with the options in the environment
 *
 * Each round starts that many calls, for each runtime in turn, and takes all their results. A TIMEOUT_MS of 0
 * stands for the ceiling. Prints every event and one line for every result. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <poll.h>

#define MOST 1000

struct running {
    mol_call call;
    const char *runtime;
};

static struct running calls[MOST];

static void print_result(int round, const mol_result *result, const char *runtime)
{
    if (result->image != NULL) {
        CHECK(strcmp(result->image->runtime, runtime) == 0);
        printf("end %d %s ok %s\n", round, runtime, result->image->reference);
    } else {
        CHECK(strcmp(result->error->runtime, runtime) == 0);
        CHECK(result->error->code == result->status);
        printf("end %d %s %s %s\n", round, runtime, mol_status_name(result->status), result->error->message);
    }
}

/* Prints the events that wait. */
static void print_events(mol_client client)
{
    mol_event *event = NULL;

    for (;;) {
        CHECK(mol_client_next_event(client, 0, &event, NULL) == MOL_OK);
        if (event == NULL)
            return;
        printf("event %s\n", event->json);
        mol_event_free(event);
    }
}

/* Takes the results of all calls of a round. */
static void take_results(mol_client client, int round, int count)
{
    const mol_call any = {0};
    struct pollfd ready = {-1, POLLIN, 0};
    mol_result *result = NULL;
    int running = count, i;

    CHECK(mol_client_fd(client, &ready.fd, NULL) == MOL_OK);
    while (running > 0) {
        CHECK(poll(&ready, 1, LONG_MS) == 1);
        CHECK(mol_call_wait(client, any, 0, &result, NULL) == MOL_OK);
        /* The events of a call come before its result, so they are here. */
        print_events(client);
        if (result == NULL)
            continue;
        for (i = 0; i < count && calls[i].call.id != result->call.id; i++)
            ;
        CHECK(i < count);
        print_result(round, result, calls[i].runtime);
        calls[i].call.id = 0; /* a second result of the same call would not be found */
        running--;
        mol_result_free(result);
    }
}

int main(int argc, char **argv)
{
    mol_client client;
    int64_t timeout_ms;
    int count, runtimes, rounds, round, i;

    CHECK(argc >= 5);
    count = atoi(argv[1]);
    timeout_ms = atoll(argv[2]);
    rounds = atoi(argv[3]);
    runtimes = argc - 4;
    CHECK(count > 0 && count <= MOST);
    if (timeout_ms == 0)
        timeout_ms = MOL_TIMEOUT_CEILING;
    setvbuf(stdout, NULL, _IOLBF, 0);
    client = client_from_env(true);
    for (round = 1; round <= rounds; round++) {
        for (i = 0; i < count; i++) {
            mol_request request = {.kind = MOL_REQUEST_IMAGE, .runtime = argv[4 + i % runtimes]};

            calls[i].runtime = request.runtime;
            calls[i].call = start(client, request, timeout_ms);
        }
        take_results(client, round, count);
    }
    mol_client_free(client);
    return 0;
}
