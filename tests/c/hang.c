/* Simulates a disk that hangs, such as a network disk whose server is gone. Loaded with LD_PRELOAD: calls that
 * look up a path with a folder "hangs" in it never return. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void wait_for_disk(const char *path)
{
    while (path != NULL && strstr(path, "/hangs") != NULL)
        pause();
}

#define NEXT(name) __extension__ ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                  \
    int name(const char *path, int flags, ...)      \
    {                                               \
        va_list rest;                               \
        int mode;                                   \
        va_start(rest, flags);                      \
        mode = flags & O_CREAT ? va_arg(rest, int) : 0; \
        va_end(rest);                               \
        wait_for_disk(path);                        \
        return NEXT(name)(path, flags, mode);       \
    }

OPEN(open)
OPEN(open64)

int statx(int folder, const char *path, int flags, unsigned int mask, struct statx *found)
{
    wait_for_disk(path);
    return NEXT(statx)(folder, path, flags, mask, found);
}

int stat64(const char *path, struct stat64 *found)
{
    wait_for_disk(path);
    return NEXT(stat64)(path, found);
}
