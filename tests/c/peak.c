/* The memory that one call uses, and the descriptors that it leaves open.
 *
 *     peak RUNTIME [TIMEOUT_MS]     with the options in the environment
 *
 * Prints the status, the message of an error, the growth of the peak of the resident memory during the call in KiB,
 * and the numbers of sockets, and of files below the cache, that are open after the client was freed. */
#define _DEFAULT_SOURCE
#include "check.h"

#include <dirent.h>
#include <unistd.h>

/* Reads VmHWM: ru_maxrss includes the peak of the process that executed this one. */
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

/* The number of open files whose name in /proc starts with `start`. */
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
    mol_client client;
    mol_image *image = NULL;
    mol_status status;
    long before;
    int tries;

    CHECK(argc >= 2);
    client = client_from_env(false);
    before = peak_kib();
    status = mol_ensure_local_image(client, argv[1], argc > 2 ? atoll(argv[2]) : MOL_TIMEOUT_CEILING, &image, &error);
    printf("status %s\nmessage %s\n", mol_status_name(status), error == NULL ? "" : error->message);
    printf("growth %ld\n", peak_kib() - before);
    mol_error_free(error);
    mol_image_free(image);
    mol_client_free(client);

    /* Background tasks close the connections shortly after the client was freed. */
    for (tries = 0; tries < 1000 && open_files("socket:") > 0; tries++)
        usleep(10000);
    printf("sockets %d\nfiles %d\n", open_files("socket:"), open_files(getenv("MOLECULE_LOCAL_BUILD_CACHE")));
    return 0;
}
