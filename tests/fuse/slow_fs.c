/*
 * A folder seen through a file system that is slow or broken, for tests and benchmarks: read-only, by FUSE.
 *
 *     slow_fs FOLDER MOUNTPOINT [-f] [-o OPTION,...]   mounts, and goes on in the background, or with -f does not
 *     cat MOUNTPOINT/.reads                            "reads R bytes B at_once M": the requests so far; the most at once
 *     fusermount3 -u MOUNTPOINT                        unmounts; so does ending the process, by SIGTERM
 *
 *     latency_us=N          each request for a read takes so many microseconds longer; requests overlap, up to 128
 *     bandwidth=N           all reads together get no more than N MB (of 10^6 bytes) per second
 *     eio_file=PATH         reads of this file, given as seen from the mount point...
 *     eio_from=N,eio_to=N   ...that touch these bytes, of which the last is eio_to - 1, fail with EIO (default: all)
 *     direct_io             nothing goes through the page cache
 *     short=N               no read gives more than N bytes; with direct_io, since the page cache takes that for the end
 *                           of the file
 *     refuse_direct         nothing can be opened with O_DIRECT
 *
 * and what libfuse knows besides, such as kernel_cache and allow_other. Without kernel_cache each open(2) drops what the
 * page cache has of the file. Requests are of up to 1 MiB; reads through the page cache arrive as the kernel's read-ahead
 * cuts them.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 31

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { AT_ONCE = 128 };

static struct options {
    unsigned latency_us, bandwidth, at_most;
    char *eio_file;
    unsigned long long eio_from, eio_to;
    int direct_io, refuse_direct;
} options = {.eio_to = ~0ULL};

static const struct fuse_opt option_table[] = {
    {"latency_us=%u", offsetof(struct options, latency_us), 0},
    {"bandwidth=%u", offsetof(struct options, bandwidth), 0},
    {"short=%u", offsetof(struct options, at_most), 0},
    {"eio_file=%s", offsetof(struct options, eio_file), 0},
    {"eio_from=%llu", offsetof(struct options, eio_from), 0},
    {"eio_to=%llu", offsetof(struct options, eio_to), 0},
    {"direct_io", offsetof(struct options, direct_io), 1},
    {"refuse_direct", offsetof(struct options, refuse_direct), 1},
    FUSE_OPT_END,
};

static int folder = -1;
static const char reads_file[] = "/.reads";
static atomic_ullong reads, bytes_read;
static atomic_uint now_at_once, most_at_once;

/* What an open file is to the kernel: a descriptor, and whether it is the one that fails. */
enum { FAILS = 1 << 30, IS_READS = 1 << 29 };

/* As openat wants it: paths come with a slash in front. */
static const char *relative(const char *path) {
    return path[1] ? path + 1 : ".";
}

static int result(int value) {
    return value < 0 ? -errno : 0;
}

/* --- time --------------------------------------------------------------------------------------------------------- */

static unsigned long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (unsigned long long)now.tv_sec * 1000000000 + (unsigned long long)now.tv_nsec;
}

/* Waits until a request for so many bytes would be answered: the line is used by one at a time, latencies overlap. */
static void take_time(size_t len) {
    static pthread_mutex_t line = PTHREAD_MUTEX_INITIALIZER;
    static unsigned long long line_is_free;
    unsigned long long done = now_ns();
    if (options.bandwidth) {
        pthread_mutex_lock(&line);
        if (line_is_free > done)
            done = line_is_free;
        done += len * 1000ULL / options.bandwidth;
        line_is_free = done;
        pthread_mutex_unlock(&line);
    }
    done += options.latency_us * 1000ULL;
    const struct timespec until = {(time_t)(done / 1000000000), (long)(done % 1000000000)};
    if (options.bandwidth || options.latency_us)
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
            ;
}

/* --- operations --------------------------------------------------------------------------------------------------- */

static void *fs_init(struct fuse_conn_info *connection, struct fuse_config *config) {
    (void)config;
    /* The kernel lets no more than 12 reads ahead be under way if it is not told otherwise. */
    connection->max_background = AT_ONCE;
    connection->congestion_threshold = AT_ONCE;
    return NULL;
}

static int fs_getattr(const char *path, struct stat *out, struct fuse_file_info *file) {
    (void)file;
    if (strcmp(path, reads_file) != 0)
        return result(fstatat(folder, relative(path), out, AT_SYMLINK_NOFOLLOW));
    *out = (struct stat){.st_mode = S_IFREG | 0444, .st_nlink = 1};
    return 0;
}

static int fs_readlink(const char *path, char *out, size_t len) {
    const ssize_t n = readlinkat(folder, relative(path), out, len - 1);
    if (n < 0)
        return -errno;
    out[n] = 0;
    return 0;
}

static int fs_readdir(const char *path, void *out, fuse_fill_dir_t fill, off_t from, struct fuse_file_info *file,
                      enum fuse_readdir_flags flags) {
    (void)from, (void)file, (void)flags;
    const int fd = openat(folder, relative(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir)
        return -errno;
    for (const struct dirent *entry; (entry = readdir(dir));)
        fill(out, entry->d_name, NULL, 0, 0);
    closedir(dir);
    return 0;
}

static int fs_open(const char *path, struct fuse_file_info *file) {
    if ((file->flags & O_ACCMODE) != O_RDONLY)
        return -EROFS;
    if (strcmp(path, reads_file) == 0) {
        file->direct_io = 1;
        file->fh = IS_READS;
        return 0;
    }
    if (options.refuse_direct && (file->flags & O_DIRECT))
        return -EINVAL;
    const int fd = openat(folder, relative(path), O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    file->direct_io = options.direct_io;
    file->fh = (uint64_t)fd;
    if (options.eio_file && strcmp(relative(path), options.eio_file) == 0)
        file->fh |= FAILS;
    return 0;
}

static int read_reads(char *out, size_t len, off_t from) {
    char text[128];
    const int n = snprintf(text, sizeof(text), "reads %llu bytes %llu at_once %u\n", (unsigned long long)reads,
                           (unsigned long long)bytes_read, (unsigned)most_at_once);
    if (from >= n)
        return 0;
    if (len > (size_t)(n - from))
        len = (size_t)(n - from);
    memcpy(out, text + from, len);
    return (int)len;
}

static int read_file(uint64_t handle, char *out, size_t len, off_t from) {
    const unsigned long long start = (unsigned long long)from;
    if (options.at_most && len > options.at_most)
        len = options.at_most;
    take_time(len);
    if ((handle & FAILS) && start < options.eio_to && start + len > options.eio_from)
        return -EIO;
    const ssize_t n = pread((int)(handle & ~(uint64_t)FAILS), out, len, from);
    return n < 0 ? -errno : (int)n;
}

static int fs_read(const char *path, char *out, size_t len, off_t from, struct fuse_file_info *file) {
    (void)path;
    if (file->fh == IS_READS)
        return read_reads(out, len, from);
    const unsigned at_once = ++now_at_once;
    for (unsigned most = most_at_once; at_once > most && !atomic_compare_exchange_weak(&most_at_once, &most, at_once);)
        ;
    const int n = read_file(file->fh, out, len, from);
    now_at_once--;
    reads++;
    bytes_read += n > 0 ? (unsigned)n : 0;
    return n;
}

static int fs_release(const char *path, struct fuse_file_info *file) {
    (void)path;
    return file->fh == IS_READS ? 0 : result(close((int)(file->fh & ~(uint64_t)FAILS)));
}

static int fs_statfs(const char *path, struct statvfs *out) {
    (void)path;
    return result(fstatvfs(folder, out));
}

static const struct fuse_operations operations = {
    .init = fs_init,
    .getattr = fs_getattr,
    .readlink = fs_readlink,
    .readdir = fs_readdir,
    .open = fs_open,
    .read = fs_read,
    .release = fs_release,
    .statfs = fs_statfs,
};

/* Takes the folder, which comes first; all that follows is libfuse's. */
static int take_argument(void *data, const char *argument, int key, struct fuse_args *rest) {
    (void)data, (void)rest;
    if (key != FUSE_OPT_KEY_NONOPT || folder >= 0)
        return 1;
    folder = open(argument, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0)
        perror(argument);
    return folder < 0 ? -1 : 0;
}

int main(int argc, char **argv) {
    struct fuse_args arguments = FUSE_ARGS_INIT(argc, argv);
    if (fuse_opt_parse(&arguments, &options, option_table, take_argument) != 0)
        return 1;
    if (folder < 0) {
        fprintf(stderr, "usage: %s FOLDER MOUNTPOINT [-f] [-o latency_us=N,bandwidth=N,...]\n", argv[0]);
        return 2;
    }
    fuse_opt_add_arg(&arguments, "-oro");
    /* Before 3.12 there is no limit, and no such option. */
    if (fuse_version() >= 312)
        fuse_opt_add_arg(&arguments, "-omax_threads=128,max_idle_threads=128");
    const int status = fuse_main(arguments.argc, arguments.argv, &operations, NULL);
    fuse_opt_free_args(&arguments);
    return status;
}
