/* A host that may have only so many more threads, or file descriptors, than it has.
 *
 *     limits threads|descriptors RUNTIME     with the options in the environment
 *
 * Makes an image with none to spare, with one, and so on until it is made twice in a row. Each time in a
 * process of its own, where the library begins anew: first with the limit set before there is a client,
 * then after. Each time the call is made again without the limit, and has to work. Prints how each call
 * ended: "end SPARE before|after STATUS MESSAGE", and "hint HINT".
 *
 * Whatever hangs is ended by an alarm, and this program with it. */
#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Nobody needs more than this. */
#define MOST 100

/* Longer than any call here takes on a slow machine, in seconds. */
#define PATIENCE 60

/* The longest time that it may take to free a client, in seconds. */
#define AT_ONCE 5

static bool threads;
static const char *runtime;

static int entries(const char *folder)
{
    DIR *all = opendir(folder);
    struct dirent *entry;
    int count = 0;

    CHECK(all != NULL);
    while ((entry = readdir(all)) != NULL)
        count += entry->d_name[0] != '.';
    closedir(all);
    return count;
}

/* What this process has now. The one that it was forked from has a thread too, and the same user. */
static int used(void)
{
    int lowest = open("/dev/null", O_RDONLY);

    CHECK(lowest >= 0 && close(lowest) == 0);
    return threads ? entries("/proc/self/task") + 1 : lowest;
}

static void set_limit(rlim_t limit)
{
    int resource = threads ? RLIMIT_NPROC : RLIMIT_NOFILE;
    struct rlimit both;

    CHECK(getrlimit(resource, &both) == 0);
    both.rlim_cur = limit < both.rlim_max ? limit : both.rlim_max;
    CHECK(setrlimit(resource, &both) == 0);
}

static mol_status report(int spare, const char *when, mol_status status, mol_error *error)
{
    CHECK((status == MOL_OK) == (error == NULL));
    printf("end %d %s %s %s\n", spare, when, mol_status_name(status), error ? error->message : "");
    if (error != NULL)
        printf("hint %s\n", error->hint);
    mol_error_free(error);
    return status;
}

static mol_status ensure(mol_client client, mol_error **error)
{
    mol_image *image = NULL;
    mol_status status = mol_ensure_local_image(client, runtime, 0, &image, error);

    mol_image_free(image);
    return status;
}

static void free_client(mol_client client)
{
    time_t begun = time(NULL);

    mol_client_free(client);
    CHECK(time(NULL) - begun <= AT_ONCE);
}

/* Another image for each number: one that is there already needs less. */
static mol_options options_for(int spare, const char *when)
{
    mol_options options = 0;
    char isolation[200];

    snprintf(isolation, sizeof isolation, "%s%d--%s", when, spare, getenv("MOLECULE_LOCAL_IMAGE_ISOLATION"));
    CHECK(setenv("MOLECULE_LOCAL_IMAGE_ISOLATION", isolation, 1) == 0);
    CHECK(mol_options_from_env(&options, NULL) == MOL_OK);
    return options;
}

static int child(int spare, bool before)
{
    const char *when = before ? "before" : "after";
    mol_options options = options_for(spare, when);
    mol_error *error = NULL;
    mol_client client = 0;
    mol_status status;
    bool made;

    alarm(PATIENCE);
    if (before)
        set_limit((rlim_t)(used() + spare));
    status = mol_client_new(options, true, &client, &error);
    if (!before) {
        CHECK(status == MOL_OK);
        set_limit((rlim_t)(used() + spare));
    }
    if (status == MOL_OK)
        status = ensure(client, &error);
    made = status == MOL_OK;
    report(spare, when, status, error);
    if (before || !made) {
        free_client(client);
        client = 0;
    }

    /* The limit is gone, and nothing of it stays. */
    set_limit(RLIM_INFINITY);
    if (client == 0)
        CHECK(mol_client_new(options, false, &client, NULL) == MOL_OK);
    error = NULL;
    status = ensure(client, &error);
    CHECK(report(spare, "lifted", status, error) == MOL_OK);
    free_client(client);
    mol_options_free(options);
    fflush(stdout);
    return made ? 0 : 10;
}

static bool makes_it(int spare, bool before)
{
    pid_t process;
    int status;

    fflush(stdout);
    process = fork();
    CHECK(process >= 0);
    if (process == 0)
        _exit(child(spare, before));
    CHECK(waitpid(process, &status, 0) == process);
    if (WIFSIGNALED(status))
        fprintf(stderr, "%d %s: signal %d\n", spare, before ? "before" : "after", WTERMSIG(status));
    CHECK(WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 10));
    return WEXITSTATUS(status) == 0;
}

int main(int argc, char **argv)
{
    int spare, made = 0;

    CHECK(argc == 3);
    threads = strcmp(argv[1], "threads") == 0;
    runtime = argv[2];
    for (spare = 0; made < 2; spare++) {
        bool before = makes_it(spare, true), after = makes_it(spare, false);

        CHECK(spare < MOST);
        made = before && after ? made + 1 : 0;
    }
    return 0;
}
