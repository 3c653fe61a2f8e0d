/* A disk that hangs (tests/c/hang.c) blocks no other client.
 *
 *     hung_disk RUNTIME FOLDER      with the options of a healthy client in the environment
 *
 * Two clients have their docker configuration in FOLDER, which hangs. Prints the status and the duration of calls and
 * a diagnosis of each, and of a call of a third client on a healthy disk. All have a deadline of 3 seconds. Then prints
 * the same of the creation of a client whose certificates are in FOLDER. */
#define _DEFAULT_SOURCE
#include "check.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#define DEADLINE_MS 3000

static const char *runtime;

static long now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static mol_client client_in(const char *folder)
{
    mol_options options = {0};
    mol_client client = {0};

    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    if (folder != NULL) {
        CHECK(mol_options_set(options, "DOCKER_HOST", "", NULL) == MOL_OK);
        CHECK(mol_options_set(options, "DOCKER_CONFIG", folder, NULL) == MOL_OK);
    }
    CHECK(mol_client_new(options, false, &client, NULL) == MOL_OK);
    mol_options_free(options);
    return client;
}

static void *hung_call(void *client)
{
    long begun = now_ms();
    mol_image *image = NULL;
    mol_status status = mol_ensure_local_image(*(mol_client *)client, runtime, DEADLINE_MS, &image, NULL);

    printf("hung %s %ld\n", mol_status_name(status), now_ms() - begun);
    return NULL;
}

static void *hung_diagnosis(void *client)
{
    long begun = now_ms();
    mol_client of = *(mol_client *)client;
    mol_result *result = result_of(of, start(of, (mol_request){.kind = MOL_REQUEST_DIAGNOSE}, DEADLINE_MS));

    printf("doctor %s %ld %s\n", mol_status_name(result->status), now_ms() - begun,
           result->report == NULL ? "" : result->report);
    mol_result_free(result);
    return NULL;
}

int main(int argc, char **argv)
{
    enum { CALLS = 40 };
    static mol_client hung[2];
    pthread_t threads[CALLS];
    mol_client healthy, other = {0};
    mol_options options = {0};
    mol_error *error = NULL;
    mol_image *image = NULL;
    mol_status status;
    char file[4096];
    long begun;
    int i;

    CHECK(argc == 3);
    runtime = argv[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    healthy = client_in(NULL);
    hung[0] = client_in(argv[2]);
    hung[1] = client_in(argv[2]);
    for (i = 0; i < CALLS; i++)
        CHECK(pthread_create(&threads[i], NULL, i < 2 ? hung_diagnosis : hung_call, &hung[i % 2]) == 0);
    usleep(200000);

    begun = now_ms();
    status = mol_ensure_local_image(healthy, runtime, DEADLINE_MS, &image, NULL);
    printf("healthy %s %ld\n", mol_status_name(status), now_ms() - begun);
    for (i = 0; i < CALLS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    mol_image_free(image);
    mol_client_free(healthy);

    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    snprintf(file, sizeof file, "%s/bundle.pem", argv[2]);
    CHECK(mol_options_set(options, "SSL_CERT_FILE", file, NULL) == MOL_OK);
    begun = now_ms();
    status = mol_client_new(options, false, &other, &error);
    printf("new %s %ld %s\n", mol_status_name(status), now_ms() - begun, error == NULL ? "" : error->message);
    /* The calls that hang end with the process. */
    fflush(stdout);
    _exit(0);
}
