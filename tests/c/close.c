/* Frees a client while threads wait in every function that waits.
 *
 *     close RUNTIME     with the options in the environment, and a template server that does not answer
 *
 * The waits for an event and for a result return MOL_ERR_CLOSED, and the call for an image MOL_ERR_CANCELED. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>
#include <unistd.h>

struct waiter {
    pthread_t thread;
    mol_client client;
    mol_call call;
    const char *runtime;
    mol_status status;
};

static void *wait_for_event(void *arg)
{
    struct waiter *waiter = arg;
    mol_event *event = NULL;

    do {
        mol_event_free(event);
        event = NULL;
        waiter->status = mol_client_next_event(waiter->client, MOL_TIMEOUT_NONE, &event, NULL);
    } while (waiter->status == MOL_OK);
    CHECK(event == NULL);
    return NULL;
}

static void *wait_for_result(void *arg)
{
    struct waiter *waiter = arg;
    mol_result *result = NULL;

    waiter->status = mol_call_wait(waiter->client, waiter->call, MOL_TIMEOUT_NONE, &result, NULL);
    CHECK(result == NULL);
    return NULL;
}

static void *wait_for_image(void *arg)
{
    struct waiter *waiter = arg;
    mol_image *image = NULL;

    waiter->status = mol_ensure_local_image(waiter->client, waiter->runtime, MOL_TIMEOUT_NONE, &image, NULL);
    CHECK(image == NULL);
    return NULL;
}

int main(int argc, char **argv)
{
    static void *(*const waits[])(void *) = {wait_for_event, wait_for_result, wait_for_result, wait_for_image};
    enum { EVENT, ANY_CALL, ONE_CALL, IMAGE, WAITERS };
    struct waiter waiters[WAITERS];
    mol_client client;
    mol_call call, none = {0};
    mol_image *image = NULL;
    mol_result *result = NULL;
    mol_event *event = NULL;
    int fd = -1, i;

    CHECK(argc == 2);
    alarm(LONG_MS / 1000); /* A wait that never ends fails the test. */
    client = client_from_env(true);
    call = start(client, (mol_request){.kind = MOL_REQUEST_IMAGE, .runtime = argv[1]}, MOL_TIMEOUT_NONE);
    for (i = 0; i < WAITERS; i++) {
        waiters[i].client = client;
        waiters[i].call.id = i == ONE_CALL ? call.id : 0;
        waiters[i].runtime = argv[1];
        waiters[i].status = MOL_OK;
        CHECK(pthread_create(&waiters[i].thread, NULL, waits[i], &waiters[i]) == 0);
    }

    /* This call ends at its deadline. By then the threads above wait. */
    CHECK(mol_ensure_local_image(client, argv[1], 1000, &image, NULL) == MOL_ERR_DEADLINE_EXCEEDED);
    CHECK(image == NULL);

    mol_client_free(client);
    for (i = 0; i < WAITERS; i++)
        CHECK(pthread_join(waiters[i].thread, NULL) == 0);
    for (i = EVENT; i <= ONE_CALL; i++)
        CHECK(waiters[i].status == MOL_ERR_CLOSED);
    CHECK(waiters[IMAGE].status == MOL_ERR_CANCELED);

    CHECK(mol_call_wait(client, call, 0, &result, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(mol_client_next_event(client, 0, &event, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(mol_client_fd(client, &fd, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(result == NULL && event == NULL && fd == -1);

    /* A client without calls: a wait ends only because the client is freed. */
    client = client_from_env(false);
    waiters[ANY_CALL] = (struct waiter){.client = client};
    CHECK(pthread_create(&waiters[ANY_CALL].thread, NULL, wait_for_result, &waiters[ANY_CALL]) == 0);
    CHECK(mol_call_wait(client, none, 200, &result, NULL) == MOL_OK && result == NULL);
    mol_client_free(client);
    CHECK(pthread_join(waiters[ANY_CALL].thread, NULL) == 0);
    CHECK(waiters[ANY_CALL].status == MOL_ERR_CLOSED || waiters[ANY_CALL].status == MOL_ERR_NO_SUCH_HANDLE);
    puts("closed");
    return 0;
}
