/* A host that may start only a few more threads, or open only a few more file descriptors.
 *
 *     limits threads|descriptors RUNTIME     with the options in the environment
 *
 * Builds an image with no spare thread or descriptor, then with one, and so on until it works twice in a row. Each
 * attempt runs in a process of its own, because the library keeps its threads: once with the limit set before the
 * client is created, and once after. Then the limit is lifted, and the same call must work. Prints the result of
 * each call: "end SPARE before|after|lifted STATUS MESSAGE", and "hint HINT" after a failure. With descriptors, the
 * first line is for mol_client_fd without a spare one: "end 0 fd STATUS MESSAGE".
 *
 * An alarm ends an attempt that hangs, and the program then fails. */
#define _GNU_SOURCE
#include "check.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* More spare threads or descriptors than any call needs. */
#define MOST 100

/* Longer than any call here takes on a slow machine, in seconds. */
#define ALARM 60

/* The longest time that mol_client_free may take, in seconds. */
#define FREED_WITHIN 5

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

/* What this process uses now. Its parent has one thread of the same user. */
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
    mol_status status = mol_ensure_local_image(client, runtime, MOL_TIMEOUT_CEILING, &image, error);

    mol_image_free(image);
    return status;
}

static void free_client(mol_client client)
{
    time_t begun = time(NULL);

    mol_client_free(client);
    CHECK(time(NULL) - begun <= FREED_WITHIN);
}

/* Each attempt builds an image of its own: an existing image needs fewer threads and descriptors. */
static mol_options options_for(int spare, const char *when)
{
    mol_options options = {0};
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
    mol_client client = {0};
    mol_status status;
    bool made;

    alarm(ALARM);
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
        client.id = 0;
    }

    /* Without the limit, everything works again. */
    set_limit(RLIM_INFINITY);
    if (client.id == 0)
        CHECK(mol_client_new(options, false, &client, NULL) == MOL_OK);
    error = NULL;
    status = ensure(client, &error);
    CHECK(report(spare, "lifted", status, error) == MOL_OK);
    free_client(client);
    mol_options_free(options);
    fflush(stdout);
    return made ? 0 : 10;
}

/* Asks for a descriptor to poll when there is none left. */
static int child_without_descriptor(int spare, bool before)
{
    mol_options options = options_for(spare, "fd");
    mol_error *error = NULL;
    mol_client client = {0};
    mol_status status;
    int fd = -1;

    (void)before;
    CHECK(mol_client_new(options, true, &client, NULL) == MOL_OK);
    mol_options_free(options);
    set_limit((rlim_t)(used() + spare));
    status = mol_client_fd(client, &fd, &error);
    CHECK(report(spare, "fd", status, error) == MOL_ERR_PROCESS_LIMIT);
    CHECK(fd == -1);
    set_limit(RLIM_INFINITY);
    CHECK(mol_client_fd(client, &fd, NULL) == MOL_OK && fd >= 0);
    free_client(client);
    fflush(stdout);
    return 0;
}

/* Runs an attempt in a child process. True if the image was built. */
static bool works(int (*attempt)(int, bool), int spare, bool before)
{
    pid_t process;
    int status;

    fflush(stdout);
    process = fork();
    CHECK(process >= 0);
    if (process == 0)
        _exit(attempt(spare, before));
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
    if (!threads)
        CHECK(works(child_without_descriptor, 0, false));
    for (spare = 0; made < 2; spare++) {
        bool before = works(child, spare, true), after = works(child, spare, false);

        CHECK(spare < MOST);
        made = before && after ? made + 1 : 0;
    }
    return 0;
}
