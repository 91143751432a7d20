/* What a process does to the files below one folder: written down in the order in which it happens, and, at the n-th
 * call, made to fail. Preloaded into the gateway under test (LD_PRELOAD); the gateway itself is unchanged.
 *
 *   SHIM_UNDER   the folder, absolute, without links in it
 *   SHIM_LOG     the file to write the calls to (see `put`); none: not written down
 *   SHIM_CALLS   which calls count: any of w (write), s (fsync, fdatasync), o (open), m (mkdir, rename, unlink, rmdir),
 *                t (ftruncate), r (read)
 *   SHIM_AT      what is to happen happens at this call, counted from 1; none: never
 *   SHIM_UNTIL   and at all until this one (default: at that one only)
 *   SHIM_DO      "kill": SIGKILL before it; "eio", "enospc": it fails; "short": half of it is written, then it fails with
 *                ENOSPC at the next; "lie": a sync does nothing and says that it did; "slow": it takes a second longer
 *   SHIM_COUNT   a file in which the number of counted calls is kept, 8 bytes
 *
 * One lock is held around a call and its line, so the order of the lines is the order of the calls; a sync has two lines,
 * for it is long, and covers only what was written before the first.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define FDS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char under[PATH_MAX];
static size_t under_bytes;
static int log_fd = -1;
static const char *calls = "";
static uint64_t at, until;
static const char *what = "";
static uint64_t own_count, *count = &own_count;
static unsigned char watched[FDS];

#define REAL(result, name, ...) static result (*real_##name)(__VA_ARGS__)
REAL(int, open64, const char *, int, ...);
REAL(int, openat64, int, const char *, int, ...);
REAL(int, close, int);
REAL(int, fcntl64, int, int, ...);
REAL(ssize_t, write, int, const void *, size_t);
REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
REAL(ssize_t, read, int, void *, size_t);
REAL(ssize_t, pread64, int, void *, size_t, off64_t);
REAL(int, fsync, int);
REAL(int, fdatasync, int);
REAL(int, ftruncate64, int, off64_t);
REAL(int, rename, const char *, const char *);
REAL(int, unlink, const char *);
REAL(int, unlinkat, int, const char *, int);
REAL(int, mkdir, const char *, mode_t);
REAL(int, rmdir, const char *);

__attribute__((constructor)) static void begin(void)
{
#define FIND(name) real_##name = dlsym(RTLD_NEXT, #name)
    FIND(open64); FIND(openat64); FIND(close); FIND(fcntl64); FIND(write); FIND(pwrite64); FIND(read); FIND(pread64); FIND(fsync);
    FIND(fdatasync); FIND(ftruncate64); FIND(rename); FIND(unlink); FIND(unlinkat); FIND(mkdir); FIND(rmdir);
    const char *text = getenv("SHIM_UNDER");
    if (!text)
        return;
    if ((text = getenv("SHIM_LOG")))
        log_fd = real_open64(text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if ((text = getenv("SHIM_COUNT"))) {
        int fd = real_open64(text, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0 && real_ftruncate64(fd, 8) == 0) {
            void *place = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (place != MAP_FAILED) {
                count = place;
                *count = 0;
            }
        }
    }
    if ((text = getenv("SHIM_CALLS")))
        calls = text;
    if ((text = getenv("SHIM_DO")))
        what = text;
    if ((text = getenv("SHIM_AT")))
        at = until = strtoull(text, NULL, 10);
    if ((text = getenv("SHIM_UNTIL")))
        until = strtoull(text, NULL, 10);
    snprintf(under, sizeof under, "%s", getenv("SHIM_UNDER"));
    under_bytes = strlen(under);
}

/* A call's path, absolute; false: it is not below the folder. */
static int find(int folder, const char *path, char *whole)
{
    if (!under_bytes)
        return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else {
        char link[64], base[PATH_MAX];
        if (folder == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n < 0)
            return 0;
        base[n] = 0;
        if (snprintf(whole, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
            return 0;
    }
    return !strncmp(whole, under, under_bytes) && (whole[under_bytes] == '/' || !whole[under_bytes]);
}

static int is_watched(int fd)
{
    return fd >= 0 && fd < FDS && watched[fd];
}

/* A line: the kind, the file's descriptor, two numbers (offset or flags; length of what follows), and what follows. All
 * numbers 8 bytes, little endian. */
static void put(char kind, int fd, uint64_t number, const void *data, size_t bytes)
{
    if (log_fd < 0)
        return;
    uint64_t head[4] = {(unsigned char)kind, (uint64_t)fd, number, bytes};
    const char *parts[2] = {(const char *)head, data};
    size_t sizes[2] = {sizeof head, bytes};
    for (int i = 0; i < 2; i++)
        for (size_t done = 0; done < sizes[i];) {
            ssize_t n = real_write(log_fd, parts[i] + done, sizes[i] - done);
            if (n < 0)
                abort();
            done += (size_t)n;
        }
}

static void put_paths(char kind, const char *one, const char *other)
{
    char text[2 * PATH_MAX];
    int n = snprintf(text, sizeof text, "%s%c%s", one, 0, other);
    put(kind, -1, 0, text, (size_t)n);
}

/* Counts a call; true: it is one at which something is to happen. With the lock held. */
static int is_due(char kind)
{
    if (!strchr(calls, kind))
        return 0;
    uint64_t n = ++*count;
    if (!at || n < at || n > until)
        return 0;
    if (!strcmp(what, "kill"))
        kill(getpid(), SIGKILL);
    if (!strcmp(what, "slow"))
        sleep(1);
    return 1;
}

static int is(const char *name)
{
    return !strcmp(what, name);
}

/* The error of a call that is to fail; 0: it is done. */
static int failure(char kind)
{
    if (!is_due(kind))
        return 0;
    return is("eio") ? EIO : is("enospc") || is("short") ? ENOSPC : 0;
}

#define FAIL_IF(kind)                                   \
    do {                                                \
        int error = failure(kind);                      \
        if (error) {                                    \
            pthread_mutex_unlock(&lock);                \
            errno = error;                              \
            return -1;                                  \
        }                                               \
    } while (0)

static int opened(int folder, const char *path, int flags, mode_t mode, int is_at)
{
    char whole[PATH_MAX];
    if (!find(folder, path, whole))
        return is_at ? real_openat64(folder, path, flags, mode) : real_open64(path, flags, mode);
    pthread_mutex_lock(&lock);
    FAIL_IF('o');
    struct stat before;
    int existed = stat(whole, &before) == 0;
    int fd = is_at ? real_openat64(folder, path, flags, mode) : real_open64(path, flags, mode);
    int saved = errno;
    if (fd >= 0 && fd < FDS) {
        watched[fd] = 1;
        /* 1: it was made; 2: it was emptied. */
        put('O', fd, existed ? (flags & O_TRUNC ? 2 : 0) : 1, whole, strlen(whole));
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return fd;
}

#define MODE(flags, mode)                               \
    mode_t mode = 0;                                    \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {            \
        va_list rest;                                   \
        va_start(rest, flags);                          \
        mode = va_arg(rest, mode_t);                    \
        va_end(rest);                                   \
    }

int open64(const char *path, int flags, ...) { MODE(flags, mode); return opened(AT_FDCWD, path, flags, mode, 0); }
int open(const char *path, int flags, ...) { MODE(flags, mode); return opened(AT_FDCWD, path, flags, mode, 0); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags, mode); return opened(folder, path, flags, mode, 1); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags, mode); return opened(folder, path, flags, mode, 1); }

int close(int fd)
{
    if (!is_watched(fd))
        return real_close(fd);
    pthread_mutex_lock(&lock);
    watched[fd] = 0;
    put('C', fd, 0, NULL, 0);
    int result = real_close(fd);
    int saved = errno;
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

/* A second descriptor of a watched file is watched. */
static int controlled(int fd, int command, void *argument)
{
    int is_copy = is_watched(fd) && (command == F_DUPFD || command == F_DUPFD_CLOEXEC);
    if (!is_copy)
        return real_fcntl64(fd, command, argument);
    pthread_mutex_lock(&lock);
    int copy = real_fcntl64(fd, command, argument);
    int saved = errno;
    if (copy >= 0 && copy < FDS) {
        watched[copy] = 1;
        put('D', copy, (uint64_t)fd, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return copy;
}

#define ARGUMENT(command)                               \
    va_list rest;                                       \
    va_start(rest, command);                            \
    void *argument = va_arg(rest, void *);              \
    va_end(rest)

int fcntl64(int fd, int command, ...) { ARGUMENT(command); return controlled(fd, command, argument); }
int fcntl(int fd, int command, ...) { ARGUMENT(command); return controlled(fd, command, argument); }

static ssize_t written(int fd, const void *data, size_t bytes, off64_t offset, int is_at)
{
    pthread_mutex_lock(&lock);
    if (is_due('w')) {
        int error = is("eio") ? EIO : is("enospc") || (is("short") && bytes < 2) ? ENOSPC : 0;
        if (error) {
            pthread_mutex_unlock(&lock);
            errno = error;
            return -1;
        }
        if (is("short"))
            bytes /= 2;
    }
    off64_t place = is_at ? offset : lseek64(fd, 0, SEEK_CUR);
    ssize_t result = is_at ? real_pwrite64(fd, data, bytes, offset) : real_write(fd, data, bytes);
    int saved = errno;
    if (result > 0)
        put('W', fd, (uint64_t)place, data, (size_t)result);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}

ssize_t write(int fd, const void *data, size_t bytes)
{
    return is_watched(fd) ? written(fd, data, bytes, 0, 0) : real_write(fd, data, bytes);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    return is_watched(fd) ? written(fd, data, bytes, offset, 1) : real_pwrite64(fd, data, bytes, offset);
}

static int reading(int fd)
{
    if (!is_watched(fd))
        return 0;
    pthread_mutex_lock(&lock);
    int error = failure('r');
    pthread_mutex_unlock(&lock);
    return error;
}

ssize_t read(int fd, void *data, size_t bytes)
{
    int error = reading(fd);
    if (error) {
        errno = error;
        return -1;
    }
    return real_read(fd, data, bytes);
}

ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset)
{
    int error = reading(fd);
    if (error) {
        errno = error;
        return -1;
    }
    return real_pread64(fd, data, bytes, offset);
}

static int synced(int fd, int (*sync)(int))
{
    if (!is_watched(fd))
        return sync(fd);
    pthread_mutex_lock(&lock);
    int is_due_now = is_due('s');
    put('S', fd, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    if (is_due_now && is("eio")) {
        errno = EIO;
        return -1;
    }
    int result = is_due_now && is("lie") ? 0 : sync(fd);
    int saved = errno;
    if (result == 0) {
        pthread_mutex_lock(&lock);
        /* `sync` is fdatasync or fsync: both make the file's size durable. */
        put('E', fd, sync == real_fsync, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    errno = saved;
    return result;
}

int fsync(int fd) { return synced(fd, real_fsync); }
int fdatasync(int fd) { return synced(fd, real_fdatasync); }

int ftruncate64(int fd, off64_t bytes)
{
    if (!is_watched(fd))
        return real_ftruncate64(fd, bytes);
    pthread_mutex_lock(&lock);
    FAIL_IF('t');
    int result = real_ftruncate64(fd, bytes);
    int saved = errno;
    if (result == 0)
        put('T', fd, (uint64_t)bytes, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}
int ftruncate(int fd, off_t bytes) { return ftruncate64(fd, bytes); }

/* A call that changes names: what it does, and what is written down when it did. */
#define NAMES(watched, call, kind, one, other)          \
    do {                                                \
        if (!(watched))                                 \
            return call;                                \
        pthread_mutex_lock(&lock);                      \
        FAIL_IF('m');                                   \
        int result = call;                              \
        int saved = errno;                              \
        if (result == 0)                                \
            put_paths(kind, one, other);                \
        pthread_mutex_unlock(&lock);                    \
        errno = saved;                                  \
        return result;                                  \
    } while (0)

int rename(const char *from, const char *to)
{
    char one[PATH_MAX], other[PATH_MAX];
    int is_below = find(AT_FDCWD, from, one) & find(AT_FDCWD, to, other);
    NAMES(is_below, real_rename(from, to), 'R', one, other);
}

int unlink(const char *path)
{
    char one[PATH_MAX];
    NAMES(find(AT_FDCWD, path, one), real_unlink(path), 'U', one, "");
}

int unlinkat(int folder, const char *path, int flags)
{
    char one[PATH_MAX];
    NAMES(find(folder, path, one), real_unlinkat(folder, path, flags), 'U', one, "");
}

int mkdir(const char *path, mode_t mode)
{
    char one[PATH_MAX];
    NAMES(find(AT_FDCWD, path, one), real_mkdir(path, mode), 'M', one, "");
}

int rmdir(const char *path)
{
    char one[PATH_MAX];
    NAMES(find(AT_FDCWD, path, one), real_rmdir(path), 'U', one, "");
}
