/* A filesystem that fails, to be loaded before a program (LD_PRELOAD): every call that changes what lies under $FAULT_DIR is counted,
 * and written to $FAULT_LOG if that is set; call number $FAULT_AT ends with the error $FAULT_ERRNO.
 *
 *   ENOSPC  a full disk: from then on nothing more can be written or made, but files can be removed
 *   EACCES  a folder that may not be written any more: from then on nothing can be made, renamed or removed
 *   other   that call alone
 *
 * With $FAULT_SLEEP_MS each of these calls takes that much longer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

enum kind { WRITE, MAKE, REMOVE, SYNC };

/* The path of a descriptor, or "" if it has none. */
static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
}

static void absolute(int dir, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] != '/') {
        if (dir != AT_FDCWD)
            path_of(dir, base);
        else if (!getcwd(base, sizeof base))
            base[0] = 0;
    }
    snprintf(path, PATH_MAX, "%s%s%s", base, base[0] ? "/" : "", name);
}

/* Whether this call is to fail, with errno set. */
static int fails(const char *call, enum kind kind, const char *path) {
    const char *under = getenv("FAULT_DIR"), *at = getenv("FAULT_AT"), *error = getenv("FAULT_ERRNO"), *log = getenv("FAULT_LOG");
    if (!under || strncmp(path, under, strlen(under)))
        return 0;
    long n = atomic_fetch_add(&calls, 1) + 1;
    if (log) {
        FILE *file = fopen(log, "a");
        if (file) {
            fprintf(file, "%s %s\n", call, path);
            fclose(file);
        }
    }
    const char *sleep = getenv("FAULT_SLEEP_MS");
    if (sleep)
        usleep(1000 * (useconds_t)atol(sleep));
    if (!at || !error || n < atol(at))
        return 0;
    int number = atoi(error);
    int later = (number == ENOSPC && (kind == WRITE || kind == MAKE)) || (number == EACCES && (kind == MAKE || kind == REMOVE));
    if (n > atol(at) && !later)
        return 0;
    errno = number;
    return 1;
}

static int fd_fails(const char *call, enum kind kind, int fd) {
    char path[PATH_MAX];
    int before = errno;
    path_of(fd, path);
    errno = before;
    return fails(call, kind, path);
}

static int name_fails(const char *call, enum kind kind, int dir, const char *name) {
    char path[PATH_MAX];
    absolute(dir, name, path);
    return fails(call, kind, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define BY_FD(type, name, kind, declared, ...)                                                                                             \
    type name declared { return fd_fails(#name, kind, fd) ? -1 : NEXT(name)(__VA_ARGS__); }
#define BY_NAME(name, kind, dir, declared, ...)                                                                                            \
    int name declared { return name_fails(#name, kind, dir, path) ? -1 : NEXT(name)(__VA_ARGS__); }

BY_FD(ssize_t, write, WRITE, (int fd, const void *from, size_t n), fd, from, n)
BY_FD(ssize_t, writev, WRITE, (int fd, const struct iovec *from, int n), fd, from, n)
BY_FD(ssize_t, pwrite64, WRITE, (int fd, const void *from, size_t n, off64_t at), fd, from, n, at)
BY_FD(int, ftruncate64, WRITE, (int fd, off64_t n), fd, n)
BY_FD(int, fsync, SYNC, (int fd), fd)
BY_FD(int, fdatasync, SYNC, (int fd), fd)
BY_FD(int, fchmod, SYNC, (int fd, mode_t mode), fd, mode)
BY_NAME(chmod, SYNC, AT_FDCWD, (const char *path, mode_t mode), path, mode)
BY_NAME(mkdir, MAKE, AT_FDCWD, (const char *path, mode_t mode), path, mode)
BY_NAME(rename, MAKE, AT_FDCWD, (const char *path, const char *to), path, to)
BY_NAME(link, MAKE, AT_FDCWD, (const char *path, const char *to), path, to)
BY_NAME(unlink, REMOVE, AT_FDCWD, (const char *path), path)
BY_NAME(rmdir, REMOVE, AT_FDCWD, (const char *path), path)
BY_NAME(unlinkat, REMOVE, dir, (int dir, const char *path, int flags), dir, path, flags)

#define OPEN(name, dir, declared, ...)                                                                                                     \
    int name declared {                                                                                                                    \
        mode_t mode = 0;                                                                                                                   \
        if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {                                                                           \
            va_list rest;                                                                                                                  \
            va_start(rest, flags);                                                                                                         \
            mode = va_arg(rest, mode_t);                                                                                                   \
            va_end(rest);                                                                                                                  \
        }                                                                                                                                  \
        if ((flags & (O_WRONLY | O_RDWR)) && name_fails(#name, MAKE, dir, path))                                                           \
            return -1;                                                                                                                     \
        return NEXT(name)(__VA_ARGS__, mode);                                                                                              \
    }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), path, flags)
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), path, flags)
OPEN(openat, dir, (int dir, const char *path, int flags, ...), dir, path, flags)
OPEN(openat64, dir, (int dir, const char *path, int flags, ...), dir, path, flags)
