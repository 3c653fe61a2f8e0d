/* Load with many failures: eight threads create clients, call, cancel and free at random.
 *
 *     siege SECONDS PREFIX... -- HOST...     with the other options in the environment
 *
 * Each client has one of the prefixes and one of the engines; the first of both are healthy. Prints:
 *
 *     middle THREADS FILES KIB    the resources of the process in the middle, when there is no client
 *     end THREADS FILES KIB       the same at the end
 *     status NAME COUNT           how many results had this status
 *     free MS                     the duration of the slowest mol_client_free
 *     at last NAME                the status of a last call without a deadline to the healthy server and engine */
#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#define THREADS 8
#define STATUSES 64

static char **prefixes, **hosts;
static int prefix_count, host_count;
static double end_of_round;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long counts[STATUSES];
static long slowest_free_ms;

static double now(void)
{
    struct timespec time;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void count(mol_status status)
{
    CHECK((int)status >= 0 && status < STATUSES);
    CHECK(pthread_mutex_lock(&lock) == 0);
    counts[status]++;
    CHECK(pthread_mutex_unlock(&lock) == 0);
}

static void report(const char *when)
{
    long kib = 0, threads = 0;
    int files = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    DIR *folder = opendir("/proc/self/fd");

    CHECK(status != NULL && folder != NULL);
    while (fgets(line, sizeof line, status) != NULL) {
        sscanf(line, "VmRSS: %ld", &kib);
        sscanf(line, "Threads: %ld", &threads);
    }
    while (readdir(folder) != NULL)
        files++;
    fclose(status);
    closedir(folder);
    printf("%s %ld %d %ld\n", when, threads, files, kib);
}

/* Makes a blocking call, or starts a call and cancels it after a while. */
static void make_call(mol_client client, const char *runtime, unsigned *seed)
{
    mol_image *image = NULL;
    mol_request request = {.size = sizeof request, .kind = MOL_REQUEST_IMAGE, .runtime = runtime};
    mol_result *result;
    mol_call id = {0};
    mol_status status;

    if (rand_r(seed) % 2 == 0) {
        count(mol_ensure_local_image(client, runtime, 1 + rand_r(seed) % 1500, &image, NULL));
        mol_image_free(image);
        return;
    }
    status = mol_call_start(client, &request, 3000, &id, NULL);
    if (status != MOL_OK) {
        count(status);
        return;
    }
    usleep((unsigned)(rand_r(seed) % 300000));
    CHECK(mol_call_cancel(client, id, NULL) == MOL_OK);
    result = result_of(client, id);
    count(result->status);
    mol_result_free(result);
}

static mol_status new_client(const char *prefix, const char *host, bool events, mol_client *client)
{
    mol_options options = {0};
    mol_status status;

    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    CHECK(mol_options_set(options, "MOLECULE_LOCAL_TEMPLATE_REPO_PREFIX", prefix, NULL) == MOL_OK);
    CHECK(mol_options_set(options, "DOCKER_HOST", host, NULL) == MOL_OK);
    status = mol_client_new(options, events, client, NULL);
    mol_options_free(options);
    return status;
}

static void *attack(void *number)
{
    static const char *const runtimes[] = {"hermes", "codex", "claude-code"};
    unsigned seed = (unsigned)(size_t)number + 1;

    while (now() < end_of_round) {
        mol_client client = {0};
        const char *prefix = prefixes[rand_r(&seed) % prefix_count];
        const char *host = hosts[rand_r(&seed) % host_count];
        mol_status status = new_client(prefix, host, rand_r(&seed) % 2 == 0, &client);
        int calls = 1 + rand_r(&seed) % 3;
        double begun;

        if (status != MOL_OK) {
            count(status);
            usleep(10000);
            continue;
        }
        while (calls-- > 0)
            make_call(client, runtimes[rand_r(&seed) % 3], &seed);
        begun = now();
        mol_client_free(client);
        CHECK(pthread_mutex_lock(&lock) == 0);
        if ((long)((now() - begun) * 1000) > slowest_free_ms)
            slowest_free_ms = (long)((now() - begun) * 1000);
        CHECK(pthread_mutex_unlock(&lock) == 0);
    }
    return NULL;
}

static void round_of(double seconds)
{
    pthread_t threads[THREADS];
    size_t i;

    end_of_round = now() + seconds;
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, attack, (void *)i) == 0);
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    /* Background tasks of freed clients end shortly after. */
    sleep(2);
}

/* At the end, a call without a deadline to the healthy server and engine must succeed. */
static void recover(void)
{
    mol_client client = {0};
    mol_image *image = NULL;

    CHECK(new_client(prefixes[0], hosts[0], false, &client) == MOL_OK);
    printf("at last %s\n", mol_status_name(mol_ensure_local_image(client, "hermes", -1, &image, NULL)));
    mol_image_free(image);
    mol_client_free(client);
}

int main(int argc, char **argv)
{
    double seconds;
    int i;

    CHECK(argc >= 5);
    seconds = atof(argv[1]);
    prefixes = argv + 2;
    while (strcmp(prefixes[prefix_count], "--") != 0)
        prefix_count++;
    hosts = prefixes + prefix_count + 1;
    host_count = argc - 3 - prefix_count;
    CHECK(prefix_count > 0 && host_count > 0);

    round_of(seconds / 2);
    report("middle");
    round_of(seconds / 2);
    report("end");
    for (i = 0; i < STATUSES; i++)
        if (counts[i] > 0)
            printf("status %s %ld\n", mol_status_name((mol_status)i), counts[i]);
    printf("free %ld\n", slowest_free_ms);
    recover();
    return 0;
}
