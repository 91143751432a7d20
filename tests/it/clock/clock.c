/* Another time for a process (LD_PRELOAD): the time of day is the machine's and an offset, which another process may
 * change at any moment, as an administrator or a time server sets a clock. Monotonic time goes on as it does then.
 *
 *   CLOCK_OFFSET   a file of 8 bytes: the offset in seconds, little endian, signed
 *
 * A wait until a time of day is the kernel's business: when the clock is set it ends sooner or later. Here it is taken
 * in slices, each of which ends as a wait may end without a reason, and is begun anew by its caller.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SLICE_NS 100000000

static volatile const int64_t *offset;

static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_cnd_timedwait)(cnd_t *, mtx_t *, const struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    real_cnd_timedwait = dlsym(RTLD_NEXT, "cnd_timedwait");
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *path = getenv("CLOCK_OFFSET");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *place = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (place == MAP_FAILED)
        abort();
    offset = place;
    close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    /* Others may be begun before this one. */
    if (!real_clock_gettime)
        real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real_clock_gettime(clock, now);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *offset;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    (void)zone;
    struct timespec precise;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *place)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place)
        *place = now.tv_sec;
    return now.tv_sec;
}

static int is_over(const struct timespec *until)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec > until->tv_sec || (now.tv_sec == until->tv_sec && now.tv_nsec >= until->tv_nsec);
}

int cnd_timedwait(cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict until)
{
    if (is_over(until))
        return thrd_timedout;
    struct timespec slice, real;
    real_clock_gettime(CLOCK_REALTIME, &real);
    slice = real;
    slice.tv_nsec += SLICE_NS;
    if (slice.tv_nsec >= 1000000000) {
        slice.tv_nsec -= 1000000000;
        slice.tv_sec++;
    }
    /* Its own end, if that is sooner. */
    struct timespec own = {until->tv_sec - *offset, until->tv_nsec};
    if (own.tv_sec < slice.tv_sec || (own.tv_sec == slice.tv_sec && own.tv_nsec < slice.tv_nsec))
        slice = own;
    int result = real_cnd_timedwait(condition, mutex, &slice);
    if (result != thrd_timedout)
        return result;
    return is_over(until) ? thrd_timedout : thrd_success;
}
