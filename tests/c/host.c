/* The library changes nothing of its host: signals, child processes, output, file descriptors.
 *
 *     host RUNTIME        builds an image: there are no child processes during and after the build, and the signals,
 *                         the umask and the output are as before
 *     host after RUNTIME  forks and executes during a build, and then executes this program as a host again
 *     host descriptors    what a child process runs: fails if it inherited more than its three descriptors */
#define _GNU_SOURCE /* mkostemp */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SIGNALS 64

/* The host's own handler. Go's handlers have the same flags. */
static void handler(int signal)
{
    (void)signal;
}

static void take_signals(struct sigaction dispositions[SIGNALS + 1])
{
    int signal;

    for (signal = 1; signal <= SIGNALS; signal++) {
        /* EINVAL: the C library reserves two or three signals. */
        memset(&dispositions[signal], 0, sizeof dispositions[signal]);
        CHECK(sigaction(signal, NULL, &dispositions[signal]) == 0 || errno == EINVAL);
    }
}

static void same_signals(const struct sigaction *before, const struct sigaction *after)
{
    int signal, member;

    for (signal = 1; signal <= SIGNALS; signal++) {
        CHECK(before[signal].sa_handler == after[signal].sa_handler);
        CHECK(before[signal].sa_flags == after[signal].sa_flags);
        for (member = 1; member <= SIGNALS; member++)
            CHECK(sigismember(&before[signal].sa_mask, member) == sigismember(&after[signal].sa_mask, member));
    }
}

#define SETS 256

/* Which of all 64 signals are blocked, ignored and handled, as the kernel reports it. */
static void take_sets(char sets[SETS])
{
    FILE *status = fopen("/proc/self/status", "r");
    char line[SETS];

    CHECK(status != NULL);
    sets[0] = '\0';
    while (fgets(line, sizeof line, status) != NULL)
        if (strncmp(line, "SigBlk", 6) == 0 || strncmp(line, "SigIgn", 6) == 0 || strncmp(line, "SigCgt", 6) == 0)
            strncat(sets, line, SETS - strlen(sets) - 1);
    CHECK(strlen(sets) > 60);
    fclose(status);
}

/* Handles and ignores some signals. */
static void have_signals(void)
{
    struct sigaction action;
    static const int handled[] = {SIGCHLD, SIGURG, SIGTERM, SIGUSR1, SIGPROF};
    size_t i;

    memset(&action, 0, sizeof action);
    action.sa_handler = handler;
    action.sa_flags = SA_ONSTACK | SA_RESTART;
    CHECK(sigaddset(&action.sa_mask, SIGUSR2) == 0);
    for (i = 0; i < sizeof handled / sizeof *handled; i++)
        CHECK(sigaction(handled[i], &action, NULL) == 0);
    CHECK(signal(SIGHUP, SIG_IGN) != SIG_ERR);
}

/* The number of child processes of all threads, zombies included. */
static int children(void)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    int count = 0;

    CHECK(tasks != NULL);
    while ((task = readdir(tasks)) != NULL) {
        char path[300];
        FILE *file;
        long child;

        snprintf(path, sizeof path, "/proc/self/task/%s/children", task->d_name);
        file = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (file == NULL)
            continue; /* the thread has ended */
        while (fscanf(file, "%ld", &child) == 1)
            count++;
        fclose(file);
    }
    closedir(tasks);
    return count;
}

static int descriptors(int open[], int most)
{
    DIR *all = opendir("/proc/self/fd");
    struct dirent *entry;
    int count = 0;

    CHECK(all != NULL);
    while ((entry = readdir(all)) != NULL)
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(all) && count < most)
            open[count++] = atoi(entry->d_name);
    closedir(all);
    return count;
}

/* During the build, standard output and standard error are a file, whose size is checked. If the program fails,
 * its content is copied to the real output. */
static int captured = -1, output = -1;

static void release(void)
{
    char text[4096];
    ssize_t length;

    fflush(NULL);
    length = captured < 0 ? 0 : pread(captured, text, sizeof text, 0);
    if (length > 0 && write(output, text, (size_t)length) != length)
        _exit(3);
}

static void capture(void)
{
    char path[] = "/tmp/mol-host.XXXXXX";

    fflush(stdout);
    captured = mkostemp(path, O_CLOEXEC);
    CHECK(captured >= 0 && unlink(path) == 0 && atexit(release) == 0);
    output = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 10);
    CHECK(output >= 0);
    CHECK(dup2(captured, STDOUT_FILENO) >= 0 && dup2(captured, STDERR_FILENO) >= 0);
}

static off_t written(void)
{
    struct stat found;

    fflush(NULL);
    CHECK(fstat(captured, &found) == 0);
    return found.st_size;
}

struct job {
    const char *runtime;
    mol_status status;
    atomic_bool done;
};

static void *make_image(void *arg)
{
    struct job *job = arg;
    mol_client client = client_from_env(true);
    mol_image *image = NULL;
    int fd = -1;

    CHECK(mol_client_fd(client, &fd, NULL) == MOL_OK);
    job->status = mol_ensure_local_image(client, job->runtime, MOL_TIMEOUT_CEILING, &image, NULL);
    mol_image_free(image);
    mol_client_free(client);
    atomic_store(&job->done, true);
    return NULL;
}

static void rest(void)
{
    const struct timespec moment = {0, 10000000};

    nanosleep(&moment, NULL);
}

/* Runs this program again in a child process, and returns its exit status. /proc/self/exe is read and not executed,
   because under valgrind the kernel's link points to valgrind. */
static int run(char *const argv[])
{
    char self[PATH_MAX] = "";
    int status;
    pid_t child;

    CHECK(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        execv(self, argv);
        _exit(127);
    }
    while (waitpid(child, &status, 0) < 0)
        CHECK(errno == EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Builds an image on a thread, and calls `meanwhile` repeatedly until the build ends. */
static void watch(const char *runtime, void (*meanwhile)(void))
{
    struct job job = {runtime, MOL_OK, false};
    pthread_t thread;
    int rounds = 0;

    CHECK(pthread_create(&thread, NULL, make_image, &job) == 0);
    while (!atomic_load(&job.done)) {
        meanwhile();
        rounds++;
        rest();
    }
    CHECK(pthread_join(thread, NULL) == 0);
    if (job.status != MOL_OK)
        fprintf(stderr, "%s\n", mol_status_name(job.status));
    CHECK(job.status == MOL_OK);
    CHECK(rounds > 1);
}

static void no_children(void)
{
    CHECK(children() == 0);
}

static void descriptors_are_not_inherited(void)
{
    static char *const argv[] = {"host", "descriptors", NULL};

    CHECK(run(argv) == 0);
}

static void *nothing(void *arg)
{
    return arg;
}

static void be_host(const char *runtime)
{
    struct sigaction before[SIGNALS + 1], after[SIGNALS + 1];
    sigset_t blocked, still;
    stack_t stack, same;
    char sets[SETS], same_sets[SETS];
    pthread_t first;
    int signal;

    /* The C library installs a signal handler when a process starts its first thread. */
    CHECK(pthread_create(&first, NULL, nothing, NULL) == 0 && pthread_join(first, NULL) == 0);
    have_signals();
    take_signals(before);
    CHECK(sigemptyset(&blocked) == 0 && sigaddset(&blocked, SIGUSR2) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &blocked, NULL) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &blocked) == 0);
    CHECK(sigaltstack(NULL, &stack) == 0);
    umask(077);
    take_sets(sets);
    capture();

    watch(runtime, no_children);
    no_children();
    take_signals(after);
    same_signals(before, after);
    CHECK(pthread_sigmask(SIG_SETMASK, NULL, &still) == 0);
    for (signal = 1; signal <= SIGNALS; signal++)
        CHECK(sigismember(&blocked, signal) == sigismember(&still, signal));
    CHECK(sigaltstack(NULL, &same) == 0 && same.ss_sp == stack.ss_sp && same.ss_flags == stack.ss_flags);
    take_sets(same_sets);
    CHECK(strcmp(sets, same_sets) == 0);
    CHECK(umask(0) == 077);
    CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
    CHECK(written() == 0);
    CHECK(dup2(output, STDOUT_FILENO) >= 0);
    puts("as it was");
}

int main(int argc, char **argv)
{
    int open[64], count, i;

    CHECK(argc >= 2);
    if (strcmp(argv[1], "descriptors") == 0) {
        count = descriptors(open, 64);
        for (i = 0; i < count; i++) {
            char path[40], target[200];
            ssize_t length;

            snprintf(path, sizeof path, "/proc/self/fd/%d", open[i]);
            length = readlink(path, target, sizeof target - 1);
            target[length > 0 ? length : 0] = '\0';
            if (open[i] > STDERR_FILENO) {
                printf("inherited %s\n", target);
                return 1;
            }
        }
        return 0;
    }
    if (strcmp(argv[1], "after") == 0) {
        char *again[] = {"host", NULL, NULL};

        CHECK(argc == 3);
        /* Descriptors that this program inherited itself do not count. */
        count = descriptors(open, 64);
        for (i = 0; i < count; i++)
            CHECK(open[i] <= STDERR_FILENO || fcntl(open[i], F_SETFD, FD_CLOEXEC) == 0);
        watch(argv[2], descriptors_are_not_inherited);
        again[1] = argv[2];
        return run(again);
    }
    be_host(argv[1]);
    return 0;
}
