/* A client is freed while one thread waits for its next event and another for an image.
 *
 *     close RUNTIME
 *
 * Both come back: the first with MOL_ERR_CLOSED, the second with MOL_ERR_CANCELED. */
#include "check.h"

#include <pthread.h>

struct work {
    mol_client client;
    const char *runtime;
    mol_status status;
};

static void *wait_for_event(void *arg)
{
    struct work *work = arg;
    mol_event *event = NULL;

    work->status = mol_client_next_event(work->client, -1, &event, NULL);
    mol_event_free(event);
    return NULL;
}

static void *wait_for_image(void *arg)
{
    struct work *work = arg;
    mol_image *image = NULL;

    work->status = mol_ensure_local_image(work->client, work->runtime, 0, &image, NULL);
    mol_image_free(image);
    return NULL;
}

int main(int argc, char **argv)
{
    mol_options options = 0;
    mol_client client = 0;
    mol_image *image = NULL;
    pthread_t one, two;
    struct work event, job;

    CHECK(argc == 2);
    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_client_new(options, false, &client, NULL) == MOL_OK);
    mol_options_free(options);
    event = (struct work){client, argv[1], MOL_OK};
    job = event;
    CHECK(pthread_create(&one, NULL, wait_for_event, &event) == 0);
    CHECK(pthread_create(&two, NULL, wait_for_image, &job) == 0);

    /* A call that has no time: it ends with the time-out, and by then the others wait. */
    CHECK(mol_ensure_local_image(client, argv[1], 1000, &image, NULL) == MOL_ERR_DEADLINE_EXCEEDED);
    CHECK(image == NULL);

    mol_client_free(client);
    CHECK(pthread_join(one, NULL) == 0);
    CHECK(pthread_join(two, NULL) == 0);
    CHECK(event.status == MOL_ERR_CLOSED);
    CHECK(job.status == MOL_ERR_CANCELED);
    puts("closed");
    return 0;
}
