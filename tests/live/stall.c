/* Preloaded into a PostgreSQL server: what brings data to the disk waits while the file ../stall is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>

static void stall(void)
{
    while (access("../stall", F_OK) == 0)
        usleep(10000);
}

int fsync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int)) dlsym(RTLD_NEXT, "fsync");
    stall();
    return real(fd);
}

int fdatasync(int fd)
{
    static int (*real)(int);
    if (!real)
        real = (int (*)(int)) dlsym(RTLD_NEXT, "fdatasync");
    stall();
    return real(fd);
}
