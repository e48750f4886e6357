/*
 * A folder seen through a file system that lacks things, for tests of writers: by FUSE.
 *
 *     odd_fs FOLDER MOUNTPOINT [-f] [-o OPTION,...]   mounts, and goes on in the background, or with -f does not
 *     fusermount3 -u MOUNTPOINT                       unmounts; so does ending the process, by SIGTERM
 *
 *     refuse=CALL:CALL...   these calls fail: link, rename, unlink, chmod, truncate, fallocate, fsync, fsyncdir, flush, flock
 *     os_error=N            ...with this errno (default: ENOSYS, which the kernel takes for "never ask again")
 *     append_only           a file is written from front to back: writes elsewhere are EINVAL, and it cannot be given a length,
 *                           as on mounts of object stores and of HDFS
 *
 * flush is what close(2) asks for. Nothing goes through the page cache, so that each write arrives as it was made.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 31

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static struct options {
    char *refuse;
    int os_error, append_only;
} options = {.os_error = ENOSYS};

static const struct fuse_opt option_table[] = {
    {"refuse=%s", offsetof(struct options, refuse), 0},
    {"os_error=%d", offsetof(struct options, os_error), 0},
    {"append_only", offsetof(struct options, append_only), 1},
    FUSE_OPT_END,
};

static int folder = -1;

/* As openat wants it: paths come with a slash in front. */
static const char *relative(const char *path) {
    return path[1] ? path + 1 : ".";
}

static int result(int value) {
    return value < 0 ? -errno : 0;
}

static int is_refused(const char *call) {
    const size_t len = strlen(call);
    for (const char *at = options.refuse; at; at = strchr(at, ':'), at = at ? at + 1 : NULL)
        if (strncmp(at, call, len) == 0 && (at[len] == ':' || at[len] == 0))
            return 1;
    return 0;
}

#define REFUSE(call)      \
    if (is_refused(call)) \
    return -options.os_error

static int fs_getattr(const char *path, struct stat *out, struct fuse_file_info *file) {
    return result(file ? fstat((int)file->fh, out) : fstatat(folder, relative(path), out, AT_SYMLINK_NOFOLLOW));
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

static int opened(int fd, struct fuse_file_info *file) {
    if (fd < 0)
        return -errno;
    /* A mapping needs the page cache; a writer is to have what it writes arrive as it is. */
    file->direct_io = (file->flags & O_ACCMODE) != O_RDONLY;
    file->fh = (uint64_t)fd;
    return 0;
}

static int fs_open(const char *path, struct fuse_file_info *file) {
    return opened(openat(folder, relative(path), (file->flags & ~(O_DIRECT | O_NOFOLLOW)) | O_CLOEXEC), file);
}

static int fs_create(const char *path, mode_t mode, struct fuse_file_info *file) {
    return opened(openat(folder, relative(path), (file->flags & ~O_DIRECT) | O_CREAT | O_CLOEXEC, mode), file);
}

static int fs_read(const char *path, char *out, size_t len, off_t from, struct fuse_file_info *file) {
    (void)path;
    const ssize_t n = pread((int)file->fh, out, len, from);
    return n < 0 ? -errno : (int)n;
}

static int fs_write(const char *path, const char *bytes, size_t len, off_t at, struct fuse_file_info *file) {
    (void)path;
    struct stat about;
    if (options.append_only && (fstat((int)file->fh, &about) != 0 || about.st_size != at))
        return -EINVAL;
    const ssize_t n = pwrite((int)file->fh, bytes, len, at);
    return n < 0 ? -errno : (int)n;
}

static int fs_truncate(const char *path, off_t len, struct fuse_file_info *file) {
    REFUSE("truncate");
    if (options.append_only && len > 0)
        return -EOPNOTSUPP;
    const int fd = file ? (int)file->fh : openat(folder, relative(path), O_WRONLY | O_CLOEXEC);
    const int done = result(ftruncate(fd, len));
    if (!file && fd >= 0)
        close(fd);
    return done;
}

static int fs_fallocate(const char *path, int mode, off_t from, off_t len, struct fuse_file_info *file) {
    (void)path;
    REFUSE("fallocate");
    return options.append_only ? -EOPNOTSUPP : result(fallocate((int)file->fh, mode, from, len));
}

static int fs_fsync(const char *path, int data_only, struct fuse_file_info *file) {
    (void)path, (void)data_only;
    REFUSE("fsync");
    return result(fsync((int)file->fh));
}

static int fs_fsyncdir(const char *path, int data_only, struct fuse_file_info *file) {
    (void)path, (void)data_only, (void)file;
    REFUSE("fsyncdir");
    return 0;
}

static int fs_flush(const char *path, struct fuse_file_info *file) {
    (void)path, (void)file;
    REFUSE("flush");
    return 0;
}

static int fs_flock(const char *path, struct fuse_file_info *file, int operation) {
    (void)path;
    REFUSE("flock");
    return result(flock((int)file->fh, operation));
}

static int fs_release(const char *path, struct fuse_file_info *file) {
    (void)path;
    return result(close((int)file->fh));
}

static int fs_chmod(const char *path, mode_t mode, struct fuse_file_info *file) {
    (void)file;
    REFUSE("chmod");
    return result(fchmodat(folder, relative(path), mode, 0));
}

static int fs_rename(const char *from, const char *to, unsigned flags) {
    REFUSE("rename");
    return flags ? -EINVAL : result(renameat(folder, relative(from), folder, relative(to)));
}

static int fs_link(const char *from, const char *to) {
    REFUSE("link");
    return result(linkat(folder, relative(from), folder, relative(to), 0));
}

static int fs_unlink(const char *path) {
    REFUSE("unlink");
    return result(unlinkat(folder, relative(path), 0));
}

static int fs_statfs(const char *path, struct statvfs *out) {
    (void)path;
    return result(fstatvfs(folder, out));
}

static void *fs_init(struct fuse_conn_info *connection, struct fuse_config *config) {
    (void)connection;
    /* Two names of a file are one file; and what was done to one is seen by the other at once. */
    config->use_ino = 1;
    config->hard_remove = 1;
    config->attr_timeout = config->entry_timeout = config->negative_timeout = 0;
    return NULL;
}

static const struct fuse_operations operations = {
    .init = fs_init,
    .getattr = fs_getattr,
    .readdir = fs_readdir,
    .open = fs_open,
    .create = fs_create,
    .read = fs_read,
    .write = fs_write,
    .truncate = fs_truncate,
    .fallocate = fs_fallocate,
    .fsync = fs_fsync,
    .fsyncdir = fs_fsyncdir,
    .flush = fs_flush,
    .flock = fs_flock,
    .release = fs_release,
    .chmod = fs_chmod,
    .rename = fs_rename,
    .link = fs_link,
    .unlink = fs_unlink,
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
        fprintf(stderr, "usage: %s FOLDER MOUNTPOINT [-f] [-o append_only,refuse=CALL:...,os_error=N]\n", argv[0]);
        return 2;
    }
    umask(0);
    const int status = fuse_main(arguments.argc, arguments.argv, &operations, NULL);
    fuse_opt_free_args(&arguments);
    return status;
}
