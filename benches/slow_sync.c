/* A slow disk: each fsync and fdatasync takes SLOW_SYNC_US microseconds more, and as long as what was written since the last one
 * takes at SLOW_SYNC_KIB_PER_SECOND (none or 0: no time), one after the other, as on a card that does one thing at a time.
 * Preloaded (LD_PRELOAD) into the gateway that benches/small.rs measures; the gateway itself is unchanged. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t disk = PTHREAD_MUTEX_INITIALIZER;
static atomic_long written;

static long number(const char *name)
{
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static int slowly(const char *name, int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    long delay = number("SLOW_SYNC_US"), rate = number("SLOW_SYNC_KIB_PER_SECOND");
    pthread_mutex_lock(&disk);
    long bytes = atomic_exchange(&written, 0);
    if (rate > 0)
        delay += bytes * 1000 / 1024 * 1000 / rate;
    for (; delay > 0; delay -= 500000)
        usleep((useconds_t)(delay < 500000 ? delay : 500000));
    int result = real(fd);
    pthread_mutex_unlock(&disk);
    return result;
}

int fsync(int fd) { return slowly("fsync", fd); }
int fdatasync(int fd) { return slowly("fdatasync", fd); }

/* sled's way to its file. */
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    ssize_t (*real)(int, const void *, size_t, off64_t) = (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    ssize_t result = real(fd, data, bytes, offset);
    if (result > 0)
        atomic_fetch_add(&written, result);
    return result;
}
