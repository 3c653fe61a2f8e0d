/* What one call costs its process: how much memory, and what is open when it is over.
 *
 *     peak RUNTIME [TIMEOUT_MS]     with the options in the environment
 *
 * Prints the status, the message of an error, by how many KiB the peak of the resident memory grew during
 * the call, and how many sockets and how many files below the cache are still open once the client is freed. */
#define _DEFAULT_SOURCE
#include "check.h"

#include <dirent.h>
#include <unistd.h>

/* VmHWM and not ru_maxrss, which a process takes over from the one that has started it. */
static long peak_kib(void)
{
    char line[256];
    long kib = -1;
    FILE *status = fopen("/proc/self/status", "r");
    CHECK(status != NULL);
    while (fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmHWM: %ld", &kib) == 1)
            break;
    fclose(status);
    CHECK(kib > 0);
    return kib;
}

/* The open files whose name, as the kernel tells it, begins so. */
static int open_files(const char *start)
{
    char path[300], target[4096];
    int found = 0;
    struct dirent *entry;
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder != NULL);
    while ((entry = readdir(folder)) != NULL) {
        ssize_t length;
        snprintf(path, sizeof path, "/proc/self/fd/%s", entry->d_name);
        length = readlink(path, target, sizeof target - 1);
        if (length > 0) {
            target[length] = 0;
            found += strncmp(target, start, strlen(start)) == 0;
        }
    }
    closedir(folder);
    return found;
}

int main(int argc, char **argv)
{
    mol_error *error = NULL;
    mol_options options = 0;
    mol_client client = 0;
    mol_image *image = NULL;
    mol_status status;
    long before;
    int tries;

    CHECK(argc >= 2);
    CHECK(mol_options_from_env(&options, &error) == MOL_OK);
    CHECK(mol_client_new(options, false, &client, &error) == MOL_OK);
    mol_options_free(options);

    before = peak_kib();
    status = mol_ensure_local_image(client, argv[1], argc > 2 ? atoll(argv[2]) : 0, &image, &error);
    printf("status %s\nmessage %s\n", mol_status_name(status), error == NULL ? "" : error->message);
    printf("growth %ld\n", peak_kib() - before);
    mol_error_free(error);
    mol_image_free(image);
    mol_client_free(client);

    /* A connection is closed by a task of its own, moments after the client is gone. */
    for (tries = 0; tries < 100 && open_files("socket:") > 0; tries++)
        usleep(10000);
    printf("sockets %d\nfiles %d\n", open_files("socket:"), open_files(getenv("MOLECULE_LOCAL_BUILD_CACHE")));
    return 0;
}
