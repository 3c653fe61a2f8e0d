/* The descriptor of mol_client_fd is readable while a result or an event waits.
 *
 * Without arguments. No call reaches a server or an engine. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

static const mol_call any = {0};
static const mol_request image = {.kind = MOL_REQUEST_IMAGE, .runtime = "hermes"};
static const mol_request list = {.kind = MOL_REQUEST_LIST};

static mol_client new_client(bool events)
{
    mol_options options = {0};
    mol_client client = {0};

    CHECK(mol_options_new(&options, NULL) == MOL_OK);
    CHECK(reach_nothing(options) == MOL_OK);
    CHECK(mol_client_new(options, events, &client, NULL) == MOL_OK);
    mol_options_free(options);
    return client;
}

static int descriptor(mol_client client)
{
    int fd = -1;

    CHECK(mol_client_fd(client, &fd, NULL) == MOL_OK && fd >= 0);
    return fd;
}

/* Whether the descriptor becomes readable within the time. */
static bool readable(int fd, int timeout_ms)
{
    struct pollfd ready = {fd, POLLIN, 0};
    int count = poll(&ready, 1, timeout_ms);

    CHECK(count >= 0 && (ready.revents & ~POLLIN) == 0);
    return count == 1;
}

static bool take_event(mol_client client)
{
    mol_event *event = NULL;

    CHECK(mol_client_next_event(client, 0, &event, NULL) == MOL_OK);
    if (event == NULL)
        return false;
    mol_event_free(event);
    return true;
}

static bool take_result(mol_client client)
{
    mol_result *result = NULL;

    CHECK(mol_call_wait(client, any, 0, &result, NULL) == MOL_OK);
    if (result == NULL)
        return false;
    mol_result_free(result);
    return true;
}

/* Ends one call, and waits until its result can be taken, without taking it. */
static void end_call(mol_client client, int fd)
{
    (void)start(client, list, MOL_TIMEOUT_CEILING);
    CHECK(readable(fd, LONG_MS));
}

static void follows_events_and_results(void)
{
    mol_client client = new_client(true);
    int fd = descriptor(client), results = 0, events = 0;

    CHECK(descriptor(client) == fd);
    CHECK((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    CHECK(!readable(fd, 50));
    (void)start(client, image, MOL_TIMEOUT_CEILING);
    while (results == 0) {
        CHECK(readable(fd, LONG_MS));
        results += take_result(client);
        while (take_event(client))
            events++;
        CHECK(results > 0 || events > 0);
    }
    CHECK(events > 0);
    CHECK(!readable(fd, 50));
    mol_client_free(client);
    CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
}

static void stays_readable_until_the_last_is_taken(void)
{
    mol_client client = new_client(false);
    int fd = descriptor(client);
    mol_call first, second;

    first = start(client, list, MOL_TIMEOUT_CEILING);
    second = start(client, list, MOL_TIMEOUT_CEILING);
    mol_result_free(result_of(client, second));
    CHECK(readable(fd, LONG_MS) && readable(fd, 0));
    mol_result_free(result_of(client, first));
    CHECK(!readable(fd, 0) && !take_result(client));
    mol_client_free(client);
    CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
}

static bool calls_in_progress(mol_client client)
{
    char *metrics = NULL;
    bool some;

    CHECK(mol_client_metrics(client, &metrics, NULL) == MOL_OK);
    CHECK(strstr(metrics, "\"in_progress\":") != NULL);
    some = strstr(metrics, "\"in_progress\":0") == NULL;
    mol_string_free(metrics);
    return some;
}

static void is_readable_at_once_if_something_waited_before(void)
{
    const struct timespec moment = {0, 50000000};
    mol_client client = new_client(false);

    (void)start(client, image, MOL_TIMEOUT_CEILING);
    while (calls_in_progress(client))
        nanosleep(&moment, NULL);
    /* The result is queued right after the call was counted as ended. */
    CHECK(readable(descriptor(client), LONG_MS));
    CHECK(take_result(client) && !readable(descriptor(client), 0));
    mol_client_free(client);
}

static void belongs_to_one_client(void)
{
    mol_client one = new_client(false), other = new_client(false);
    int fd = descriptor(one), other_fd = descriptor(other);

    CHECK(fd != other_fd);
    end_call(other, other_fd);
    CHECK(!readable(fd, 50));
    mol_client_free(one);
    CHECK(fcntl(fd, F_GETFD) == -1 && readable(other_fd, 0));
    CHECK(take_result(other) && !readable(other_fd, 0));
    mol_client_free(other);
    CHECK(fcntl(other_fd, F_GETFD) == -1);
}

static void *wait_for_any(void *arg)
{
    mol_result *result = NULL;

    mol_status status = mol_call_wait(*(mol_client *)arg, any, MOL_TIMEOUT_NONE, &result, NULL);

    /* On a busy machine the client may be freed before the thread begins to wait. */
    CHECK(status == MOL_ERR_CLOSED || status == MOL_ERR_NO_SUCH_HANDLE);
    return NULL;
}

/* The thread may still be on its way out of the library when mol_client_free returns. */
static void is_closed_also_while_a_thread_waits(void)
{
    const struct timespec moment = {0, 100000000};
    mol_client client = new_client(false);
    int fd = descriptor(client);
    pthread_t thread;

    CHECK(pthread_create(&thread, NULL, wait_for_any, &client) == 0);
    nanosleep(&moment, NULL);
    mol_client_free(client);
    CHECK(fcntl(fd, F_GETFD) == -1 && errno == EBADF);
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(void)
{
    int round;

    alarm(LONG_MS / 1000); /* A wait that never ends fails the test. */
    follows_events_and_results();
    stays_readable_until_the_last_is_taken();
    is_readable_at_once_if_something_waited_before();
    belongs_to_one_client();
    for (round = 0; round < 20; round++)
        is_closed_also_while_a_thread_waits();
    puts("polled");
    return 0;
}
