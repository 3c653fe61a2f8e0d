/* Waits for results, by several threads at once.
 *
 *     waits RUNTIME     with the options in the environment, and a template server that does not answer
 *
 * A call for an image runs until it is cancelled. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

static const mol_call any = {0};
static mol_request image = {.kind = MOL_REQUEST_IMAGE};

static void sleep_ms(long ms)
{
    const struct timespec time = {ms / 1000, ms % 1000 * 1000000};

    nanosleep(&time, NULL);
}

static double now_ms(void)
{
    struct timespec now;

    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (double)now.tv_sec * 1000 + (double)now.tv_nsec / 1e6;
}

static void waits_for_its_time_only(mol_client client)
{
    mol_call call = start(client, image, MOL_TIMEOUT_NONE);
    mol_result *result = NULL;
    mol_image *made = NULL;
    double begun = now_ms();

    CHECK(mol_call_wait(client, call, 0, &result, NULL) == MOL_OK && result == NULL);
    CHECK(mol_call_wait(client, any, 0, &result, NULL) == MOL_OK && result == NULL);
    CHECK(now_ms() - begun < 1000);
    begun = now_ms();
    CHECK(mol_call_wait(client, call, 100, &result, NULL) == MOL_OK && result == NULL);
    CHECK(mol_call_wait(client, any, 100, &result, NULL) == MOL_OK && result == NULL);
    CHECK(now_ms() - begun >= 200);
    CHECK(mol_call_cancel(client, call, NULL) == MOL_OK);
    CHECK(mol_call_wait(client, call, MOL_TIMEOUT_CEILING, &result, NULL) == MOL_OK && result != NULL);
    CHECK(result->status == MOL_ERR_CANCELED && result->error->code == MOL_ERR_CANCELED);
    CHECK(strcmp(result->error->runtime, image.runtime) == 0);
    CHECK(result->image == NULL && result->report == NULL);
    mol_result_free(result);

    /* A call that may not take any time. */
    CHECK(mol_ensure_local_image(client, image.runtime, 0, &made, NULL) == MOL_ERR_DEADLINE_EXCEEDED);
    result = result_of(client, start(client, image, 0));
    CHECK(result->status == MOL_ERR_DEADLINE_EXCEEDED);
    mol_result_free(result);
}

static void knows_only_its_own_calls_that_were_not_taken(mol_client client)
{
    mol_client other = client_from_env(false);
    mol_call own = start(client, image, MOL_TIMEOUT_NONE), foreign = start(other, image, MOL_TIMEOUT_NONE);
    mol_result *result = NULL;

    CHECK(own.id != foreign.id);
    CHECK(mol_call_wait(client, foreign, MOL_TIMEOUT_NONE, &result, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(mol_call_cancel(client, foreign, NULL) == MOL_OK);
    CHECK(mol_call_wait(other, foreign, 200, &result, NULL) == MOL_OK && result == NULL); /* it was not cancelled */
    CHECK(mol_call_cancel(client, own, NULL) == MOL_OK);
    mol_result_free(result_of(client, own));
    CHECK(mol_call_wait(client, own, MOL_TIMEOUT_NONE, &result, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(mol_call_wait(client, own, 0, &result, NULL) == MOL_ERR_NO_SUCH_HANDLE);
    CHECK(result == NULL);
    mol_client_free(other);
}

struct waiter {
    pthread_t thread;
    mol_client client;
    mol_call call;
    atomic_bool done;
    mol_status status;
    mol_result *result;
};

static void *wait_without_limit(void *arg)
{
    struct waiter *waiter = arg;

    waiter->status = mol_call_wait(waiter->client, waiter->call, MOL_TIMEOUT_NONE, &waiter->result, NULL);
    atomic_store(&waiter->done, true);
    return NULL;
}

static void wait_in_thread(struct waiter *waiter, mol_client client, mol_call call)
{
    waiter->client = client;
    waiter->call = call;
    waiter->status = MOL_OK;
    waiter->result = NULL;
    atomic_init(&waiter->done, false);
    CHECK(pthread_create(&waiter->thread, NULL, wait_without_limit, waiter) == 0);
}

static mol_result *join(struct waiter *waiter)
{
    CHECK(pthread_join(waiter->thread, NULL) == 0);
    CHECK((waiter->status == MOL_OK) == (waiter->result != NULL));
    return waiter->result;
}

/* A thread waits for one call, and another for any call: each gets a result that it waits for. */
static void one_and_any(mol_client client)
{
    mol_call first = start(client, image, MOL_TIMEOUT_NONE), second = start(client, image, MOL_TIMEOUT_NONE);
    struct waiter one, other;
    mol_result *result;

    wait_in_thread(&one, client, first);
    wait_in_thread(&other, client, any);
    sleep_ms(100);
    CHECK(!atomic_load(&one.done) && !atomic_load(&other.done));
    CHECK(mol_call_cancel(client, second, NULL) == MOL_OK);
    result = join(&other);
    CHECK(result->call.id == second.id);
    mol_result_free(result);
    CHECK(!atomic_load(&one.done));
    CHECK(mol_call_cancel(client, first, NULL) == MOL_OK);
    result = join(&one);
    CHECK(result->call.id == first.id);
    mol_result_free(result);
}

/* The same, with one result for both: one of them gets it. */
static void one_or_any(mol_client client)
{
    mol_call call = start(client, image, MOL_TIMEOUT_NONE), next;
    struct waiter one, other;

    wait_in_thread(&one, client, call);
    wait_in_thread(&other, client, any);
    sleep_ms(20);
    CHECK(mol_call_cancel(client, call, NULL) == MOL_OK);
    if (join(&one) == NULL) {
        CHECK(one.status == MOL_ERR_NO_SUCH_HANDLE);
        CHECK(join(&other)->call.id == call.id);
    } else {
        CHECK(one.result->call.id == call.id);
        CHECK(!atomic_load(&other.done));
        next = start(client, image, MOL_TIMEOUT_NONE);
        CHECK(mol_call_cancel(client, next, NULL) == MOL_OK);
        CHECK(join(&other)->call.id == next.id);
    }
    mol_result_free(one.result);
    mol_result_free(other.result);
}

#define THREADS 4
#define CALLS 200

static struct {
    mol_client client;
    mol_call calls[CALLS];
    atomic_int taken[CALLS];
    atomic_int left;
} shared;

static void *take_any(void *arg)
{
    mol_result *result = NULL;
    int i;

    while (atomic_load(&shared.left) > 0) {
        CHECK(mol_call_wait(shared.client, any, 50, &result, NULL) == MOL_OK);
        if (result == NULL)
            continue;
        CHECK(result->status == MOL_ERR_CANCELED || result->status == MOL_ERR_DEADLINE_EXCEEDED);
        for (i = 0; i < CALLS && shared.calls[i].id != result->call.id; i++)
            ;
        CHECK(i < CALLS);
        CHECK(atomic_fetch_add(&shared.taken[i], 1) == 0);
        atomic_fetch_sub(&shared.left, 1);
        mol_result_free(result);
        result = NULL;
    }
    return arg;
}

/* Many threads wait for any of many calls: each result is given to one of them. */
static void each_result_once(mol_client client)
{
    pthread_t threads[THREADS];
    int i;

    shared.client = client;
    atomic_init(&shared.left, CALLS);
    for (i = 0; i < CALLS; i++)
        shared.calls[i] = start(client, image, i % 2 == 0 ? MOL_TIMEOUT_NONE : i);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, take_any, NULL) == 0);
    for (i = 0; i < CALLS; i += 2)
        CHECK(mol_call_cancel(client, shared.calls[i], NULL) == MOL_OK);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (i = 0; i < CALLS; i++)
        CHECK(atomic_load(&shared.taken[i]) == 1);
}

int main(int argc, char **argv)
{
    mol_client client;
    int round;

    CHECK(argc == 2);
    alarm(LONG_MS / 1000); /* A wait that never ends fails the test. */
    image.runtime = argv[1];
    client = client_from_env(false);
    waits_for_its_time_only(client);
    knows_only_its_own_calls_that_were_not_taken(client);
    one_and_any(client);
    for (round = 0; round < 20; round++)
        one_or_any(client);
    each_result_once(client);
    mol_client_free(client);
    puts("waited");
    return 0;
}
