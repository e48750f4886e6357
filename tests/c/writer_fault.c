/*
 * System calls of the writer that fail, each in turn. As in fault.c this program defines the calls itself, so it must be linked to
 * the shared library, with its symbols exported.
 */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

typedef enum call {
    OPEN, LOOK, FIND, READ, WRITE, WRITEV, ALLOCATE, LENGTHEN, SYNC, MODE, RENAME, LINK, UNLINK, LOCK, CLOSE, APPEND, CALLS
} call;

/* What calls do while faults.on; all zero: what the system does. */
static struct {
    atomic_bool on;
    atomic_int calls;   /* counted here, of all kinds */
    call fails;         /* of this kind of call... */
    int fails_at;       /* ...this one, counted from 1, fails... */
    int os_error;       /* ...with this errno */
    atomic_int counted; /* calls of that kind, counted here */
    const bool *refused_calls; /* all calls of these kinds fail so */
    atomic_bool has_failed;
    int interrupted;          /* so many calls are interrupted before one gets through, again and again */
    size_t at_most;           /* a write writes no more bytes than this */
    bool half;                /* a write writes half of its bytes, if there are several */
    int disk_has;             /* writes beyond so many calls find the disk full; 0: never */
    bool no_direct_open;      /* a file is not opened around the page cache */
    bool no_direct_write;     /* nor written that way */
    atomic_int refused;       /* counted here */
    bool all_files_open; /* files are made for everybody to read and write */
    bool only_appends;   /* a write has to begin where the file ends */
    bool no_dont_cache, no_locks, no_links, no_fallocate;
    int hook_at;          /* before this call of any kind... */
    void (*hook)(void);   /* ...this is done... */
    bool only_unlocked;   /* ...unless the folder is locked */
    bool folder_is_locked; /* seen here */
} faults;

static _Thread_local int interruptions;

static void no_faults(void) {
    memset(&faults, 0, sizeof(faults));
}

/* The system's own definition of a call. */
static void *real(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    if (!function)
        abort();
    return function;
}

#define REAL(type, name) \
    type;                \
    *(void **)&next = real(name)

static bool fails(call kind) {
    if (!faults.on)
        return false;
    if (++faults.calls == faults.hook_at && !(faults.only_unlocked && faults.folder_is_locked)) {
        faults.on = false;
        faults.hook();
        faults.on = true;
    }
    if ((faults.refused_calls && faults.refused_calls[kind]) ||
        (faults.fails_at && kind == faults.fails && ++faults.counted == faults.fails_at)) {
        faults.has_failed = true;
        errno = faults.os_error;
        return true;
    }
    return false;
}

static bool interrupted(void) {
    if (!faults.on || interruptions >= faults.interrupted) {
        interruptions = 0;
        return false;
    }
    interruptions++;
    errno = EINTR;
    return true;
}

/* What the system lacks. */
static bool lacks(bool feature, int os_error) {
    if (!faults.on || !feature)
        return false;
    faults.refused++;
    errno = os_error;
    return true;
}

int openat64(int folder, const char *path, int flags, ...) {
    REAL(int (*next)(int, const char *, int, ...), "openat64");
    va_list rest;
    va_start(rest, flags);
    const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (interrupted() || fails(OPEN) || lacks(faults.no_direct_open && (flags & O_DIRECT), EINVAL))
        return -1;
    return next(folder, path, flags, faults.on && faults.all_files_open && (flags & O_CREAT) ? 0666 : mode);
}

int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict out) {
    REAL(int (*next)(int, const char *restrict, int, unsigned, struct statx *restrict), "statx");
    return fails(LOOK) ? -1 : next(folder, path, flags, mask, out);
}

int fstatat64(int folder, const char *restrict path, struct stat64 *restrict out, int flags) {
    REAL(int (*next)(int, const char *restrict, struct stat64 *restrict, int), "fstatat64");
    return fails(FIND) ? -1 : next(folder, path, out, flags);
}

ssize_t pread64(int fd, void *dst, size_t len, off64_t offset) {
    REAL(ssize_t(*next)(int, void *, size_t, off64_t), "pread64");
    return interrupted() || fails(READ) ? -1 : next(fd, dst, len, offset);
}

static bool disk_is_full(void) {
    if (!faults.on || faults.disk_has == 0)
        return false;
    if (faults.disk_has > 1) {
        faults.disk_has--;
        return false;
    }
    faults.has_failed = true;
    errno = ENOSPC;
    return true;
}

static size_t shortened(size_t len) {
    if (faults.on && faults.at_most && len > faults.at_most)
        return faults.at_most;
    return faults.on && faults.half && len > 1 ? len / 2 : len;
}

ssize_t pwrite64(int fd, const void *src, size_t len, off64_t offset) {
    REAL(ssize_t(*next)(int, const void *, size_t, off64_t), "pwrite64");
    struct stat about;
    if (interrupted() || fails(WRITE) || disk_is_full() ||
        lacks(faults.only_appends && fstat(fd, &about) == 0 && about.st_size != offset, EOPNOTSUPP) ||
        lacks(faults.no_direct_write && (fcntl(fd, F_GETFL) & O_DIRECT), EINVAL))
        return -1;
    return next(fd, src, shortened(len), offset);
}

ssize_t pwritev2(int fd, const struct iovec *pieces, int n, off_t offset, int flags) {
    REAL(ssize_t(*next)(int, const struct iovec *, int, off_t, int), "pwritev2");
    if (interrupted() || fails(WRITEV) || disk_is_full() || lacks(faults.no_dont_cache, EOPNOTSUPP))
        return -1;
    const struct iovec piece = {pieces[0].iov_base, shortened(pieces[0].iov_len)};
    CHECK(n == 1);
    return next(fd, &piece, 1, offset, flags);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t len) {
    REAL(int (*next)(int, int, off64_t, off64_t), "fallocate64");
    return interrupted() || fails(ALLOCATE) || lacks(faults.no_fallocate, EOPNOTSUPP) ? -1 : next(fd, mode, offset, len);
}

int ftruncate64(int fd, off64_t len) {
    REAL(int (*next)(int, off64_t), "ftruncate64");
    return interrupted() || fails(LENGTHEN) ? -1 : next(fd, len);
}

ssize_t write(int fd, const void *src, size_t len) {
    REAL(ssize_t(*next)(int, const void *, size_t), "write");
    return faults.on && (interrupted() || fails(APPEND) || disk_is_full()) ? -1 : next(fd, src, faults.on ? shortened(len) : len);
}

/* The descriptor is closed whatever is said of it. */
int close(int fd) {
    REAL(int (*next)(int), "close");
    const bool has_failed = fails(CLOSE);
    const int os_error = errno, closed = next(fd);
    if (has_failed)
        errno = os_error;
    return has_failed ? -1 : closed;
}

/* Never waits for the disk while there are faults: what counts is what the library does about them. */
int fsync(int fd) {
    REAL(int (*next)(int), "fsync");
    return interrupted() || fails(SYNC) ? -1 : faults.on ? 0 : next(fd);
}

int fchmod(int fd, mode_t mode) {
    REAL(int (*next)(int, mode_t), "fchmod");
    return interrupted() || fails(MODE) ? -1 : next(fd, mode);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(int (*next)(int, const char *, int, const char *), "renameat");
    return fails(RENAME) ? -1 : next(from_folder, from, to_folder, to);
}

int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    REAL(int (*next)(int, const char *, int, const char *, int), "linkat");
    return fails(LINK) || lacks(faults.no_links, EPERM) ? -1 : next(from_folder, from, to_folder, to, flags);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int (*next)(int, const char *, int), "unlinkat");
    return fails(UNLINK) ? -1 : next(folder, path, flags);
}

int flock(int fd, int operation) {
    REAL(int (*next)(int, int), "flock");
    if (fails(LOCK) || lacks(faults.no_locks, ENOTSUP))
        return -1;
    struct stat locked;
    if (faults.on && fstat(fd, &locked) == 0 && S_ISDIR(locked.st_mode))
        faults.folder_is_locked = true;
    return next(fd, operation);
}

/* What is replaced by what. */
typedef struct replacement {
    const char *name;
    fixture_generation two[2];
} replacement;

enum { SMALL = 3000, LARGE = 17 << 20, SUMS = ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3 };

static const replacement replacements[] = {
    {"file", {{1, 3, SMALL, 0, 0, 0}, {2, 4, SMALL, 0, 0, 0}}},
    {"streamed", {{1, 3, SMALL, 0, 0, 0}, {2, 4, SMALL, 0, SUMS, 1}}},
    {"unsynced", {{1, 3, SMALL, 0, 0, 0}, {2, 4, SMALL, 0, ST_WRITE_NO_SYNC | SUMS, 0}}},
    {"namesakes", {{1, 4, SMALL, 2, 0, 0}, {2, 2, SMALL, 2, 0, 0}}},
    {"streamed_namesakes", {{1, 4, SMALL, 2, 0, 0}, {2, 4, SMALL, 2, ST_WRITE_BLAKE3, 1}}},
    {"fewer", {{1, 6, SMALL, 3, 0, 0}, {2, 4, SMALL, 2, 0, 0}}},
    {"one_for_several", {{1, 4, SMALL, 2, 0, 0}, {2, 4, SMALL, 1, 0, 0}}},
    {"file_for_several", {{1, 4, SMALL, 2, 0, 0}, {2, 4, SMALL, 0, 0, 0}}},
    {"several_for_file", {{1, 3, SMALL, 0, 0, 0}, {2, 4, SMALL, 2, 0, 2}}},
};

/* A replacement that is under way. */
static struct {
    char path[512], reference[512];
    const replacement *what;
    fixture_writing writing;
} now;

/* Writes the first generation, in a folder with nothing else. */
static void begin(void) {
    no_faults();
    fixture_empty(now.path);
    fixture_put_quickly(now.path, &now.what->two[0]);
    fixture_only(now.path, &now.what->two[0]);
    now.writing = (fixture_writing){&now.what->two[1], now.path, NULL, NULL, 0, 0, 0};
}

static void choose(const replacement *what, const char *folder) {
    char name[64];
    now.what = what;
    CHECK(snprintf(name, sizeof(name), "%s_%s", folder, what->name) < (int)sizeof(name));
    strcpy(now.path, fixture_model_in(name));
    CHECK(snprintf(name, sizeof(name), "right_%s_%s", folder, what->name) < (int)sizeof(name));
    strcpy(now.reference, fixture_model_in(name));
    no_faults();
    fixture_put(now.reference, &what->two[1]);
}

static bool is_new(void) {
    return fixture_found(now.path, now.what->two, 2) == &now.what->two[1];
}

static void is_written(void) {
    CHECK(is_new());
    CHECK(fixture_same(now.path, now.reference, &now.what->two[1]));
}

static st_status go_on(void) {
    faults.on = true;
    const st_status status = fixture_go_on(&now.writing, &err);
    faults.on = false;
    return status;
}

/*
 * Whatever has happened, the next writer succeeds, and leaves nothing else. Not so with old shards that no index names any more,
 * because they could not be removed, or there was no time to: those go when others of their names have come and gone.
 */
static void next_one_succeeds(bool old_shards_stay) {
    no_faults();
    if (old_shards_stay)
        fixture_put_quickly(now.path, &now.what->two[0]);
    fixture_put_quickly(now.path, &now.what->two[1]);
    fixture_only(now.path, &now.what->two[1]);
    is_written();
}

/* After a failure: what was there is there, or all of what is new. */
static void stopped(bool retry) {
    const call kind = faults.fails;
    const bool is_sync = kind == SYNC || kind == CLOSE, in_place = strstr(err.message, "in place");
    const bool for_good = is_sync;
    const int os_error = err.os_error;
    const bool found_new = is_new();
    /* Until the last step the index may name the new ones under other names, and old ones be there. */
    const bool between = in_place;
    CHECK(found_new == in_place);
    no_faults();
    if (for_good) {
        for (int again = 0; again < 3; again++) {
            FAILS(ST_ERR_IO, st_writer_finish(now.writing.writer, &err));
            CHECK(err.os_error == os_error);
        }
    } else if (retry) {
        OK(go_on());
        is_written();
        fixture_only(now.path, &now.what->two[1]);
        return;
    }
    st_writer_abort(now.writing.writer);
    CHECK(is_new() == found_new);
    if (!found_new)
        fixture_only(now.path, &now.what->two[0]);
    else if (!between && !is_sync)
        fixture_only(now.path, &now.what->two[1]);
}

/* Makes the n-th call of a kind fail, for each n until there are no more; gives how many there were. */
static int each_failing(call kind, int os_error, bool no_fallocate) {
    const size_t descriptors = test_entries("/proc/self/fd");
    for (int n = 1;; n++)
        for (int retry = 0; retry < 2; retry++) {
            begin();
            faults.fails = kind;
            faults.fails_at = n;
            faults.os_error = os_error;
            faults.no_fallocate = no_fallocate;
            const st_status status = go_on();
            const bool has_failed = faults.has_failed;
            if (status == ST_OK) {
                is_written();
                /* There is nobody to tell that a file could not be taken away; and an index stays where nobody can see that it may go. */
                const bool has_index = now.what->two[0].shards > 0 && now.what->two[1].shards <= 1;
                if (!has_failed || (kind != UNLINK && !(kind == OPEN && has_index)))
                    fixture_only(now.path, &now.what->two[1]);
            } else {
                CHECK(has_failed && status == ST_ERR_IO && err.status == status && err.os_error == os_error);
                SAYS("model.safetensors");
                stopped(retry);
            }
            CHECK(test_entries("/proc/self/fd") == descriptors);
            next_one_succeeds(kind == UNLINK);
            if (!has_failed)
                return n - 1;
        }
}

static void each_of_a_kind(const char *folder, call kind, const int *os_errors, size_t len, bool no_fallocate, int least) {
    for (size_t i = 0; i < LEN(replacements); i++) {
        choose(&replacements[i], folder);
        for (size_t k = 0; k < len; k++)
            CHECK(each_failing(kind, os_errors[k], no_fallocate) >= least);
    }
}

static void each_open_fails(void) {
    each_of_a_kind("open", OPEN, (const int[]){EACCES, EMFILE, ENOSPC}, 3, false, 2);
}

static void each_look_fails(void) {
    each_of_a_kind("look", LOOK, (const int[]){EIO}, 1, false, 1);
    each_of_a_kind("find", FIND, (const int[]){EIO, EACCES}, 2, false, 2);
}

static void each_read_fails(void) {
    each_of_a_kind("read", READ, (const int[]){EIO}, 1, false, 0);
}

static void each_write_fails(void) {
    each_of_a_kind("write", WRITE, (const int[]){EIO, ENOSPC, EDQUOT, EFBIG}, 4, false, 2);
}

static void each_allocation_of_the_disk_fails(void) {
    each_of_a_kind("allocate", ALLOCATE, (const int[]){ENOSPC, EDQUOT, EIO, EFBIG}, 4, false, 1);
    each_of_a_kind("lengthen", LENGTHEN, (const int[]){ENOSPC, EIO}, 2, true, 1);
}

static void each_sync_fails(void) {
    each_of_a_kind("sync", SYNC, (const int[]){EIO, ENOSPC, EDQUOT}, 3, false, 0);
}

static void each_close_fails(void) {
    each_of_a_kind("close", CLOSE, (const int[]){EIO, ENOSPC, EDQUOT}, 3, false, 3);
}

static void each_change_of_permissions_fails(void) {
    each_of_a_kind("mode", MODE, (const int[]){EPERM, EIO}, 2, false, 0);
}

static void each_rename_fails(void) {
    each_of_a_kind("rename", RENAME, (const int[]){EACCES, EIO, ENOSPC}, 3, false, 1);
}

static void each_link_fails(void) {
    each_of_a_kind("link", LINK, (const int[]){EIO, EMLINK}, 2, false, 0);
}

static void each_unlink_fails(void) {
    each_of_a_kind("unlink", UNLINK, (const int[]){EACCES, EIO}, 2, false, 0);
}

static void each_lock_fails(void) {
    each_of_a_kind("lock", LOCK, (const int[]){ENOTSUP, ENOLCK, EINTR}, 3, false, 1);
}

/* Writes with faults that cost nothing but time. */
static void written_all_the_same(void) {
    OK(go_on());
    is_written();
    fixture_only(now.path, &now.what->two[1]);
}

static void calls_are_interrupted(void) {
    for (size_t i = 0; i < LEN(replacements); i++) {
        choose(&replacements[i], "interrupted");
        begin();
        faults.interrupted = 3;
        written_all_the_same();
    }
}

static void writes_are_short(void) {
    for (size_t i = 0; i < LEN(replacements); i++)
        for (int half = 0; half < 2; half++) {
            choose(&replacements[i], "short");
            begin();
            faults.half = half;
            faults.at_most = half ? 0 : 1;
            written_all_the_same();
        }
}

static void writes_that_write_nothing_end(void) {
    choose(&replacements[0], "nothing");
    begin();
    faults.fails = WRITE;
    faults.fails_at = 1;
    faults.os_error = EAGAIN;
    FAILS(ST_ERR_IO, go_on());
    CHECK(err.os_error == EAGAIN);
    stopped(true);
}

static void file_systems_without_locks(void) {
    for (size_t i = 0; i < LEN(replacements); i++) {
        choose(&replacements[i], "lockless");
        begin();
        faults.no_locks = true;
        written_all_the_same();
        CHECK(faults.refused > 0);
    }
}

static void file_systems_without_links(void) {
    for (size_t i = 0; i < LEN(replacements); i++) {
        choose(&replacements[i], "linkless");
        begin();
        faults.no_links = true;
        written_all_the_same();
        CHECK(faults.refused > 0 || (now.what->two[0].shards == 0 && now.what->two[1].shards == 0));
        /* A rename that fails leaves no index, which the next try mends. */
        for (int n = 1;; n++) {
            begin();
            faults.no_links = true;
            faults.fails = RENAME;
            faults.fails_at = n;
            faults.os_error = EIO;
            if (go_on() == ST_OK)
                break;
            CHECK(err.status == ST_ERR_IO && err.os_error == EIO);
            faults.fails_at = 0;
            written_all_the_same();
        }
    }
}

static void file_systems_without_fallocate(void) {
    for (size_t i = 0; i < LEN(replacements); i++) {
        choose(&replacements[i], "sparse");
        begin();
        faults.no_fallocate = true;
        written_all_the_same();
        CHECK(faults.refused > 0);
        /* Then a full disk is found later. */
        for (int n = 1;; n++) {
            begin();
            faults.no_fallocate = true;
            faults.disk_has = n;
            if (go_on() == ST_OK)
                break;
            CHECK(err.status == ST_ERR_IO && err.os_error == ENOSPC);
            FAILS(ST_ERR_IO, go_on());
            CHECK(err.os_error == ENOSPC);
            stopped(true);
        }
    }
}

/* Large enough for threads, and writes around the page cache. */
static const replacement large[] = {
    {"added", {{1, 1, SMALL, 0, 0, 0}, {2, 2, LARGE + 3, 0, ST_WRITE_NO_SYNC | ST_WRITE_BLAKE3, 0}}},
    {"streamed", {{1, 1, SMALL, 0, 0, 0}, {2, 2, LARGE + 3, 0, ST_WRITE_NO_SYNC, 1}}},
};

static void ways_around_the_page_cache_are_closed(void) {
    if (test_is_instrumented())
        SKIP("writes too much");
    for (size_t i = 0; i < LEN(large); i++) {
        choose(&large[i], "cache");
        for (int way = 0; way < 4; way++) {
            begin();
            faults.no_direct_open = way == 1;
            faults.no_direct_write = way == 2;
            faults.no_dont_cache = way >= 1;
            faults.half = way == 3;
            written_all_the_same();
        }
    }
}

static void each_large_write_fails(void) {
    if (test_is_instrumented())
        SKIP("writes too much");
    for (size_t i = 0; i < LEN(large); i++) {
        choose(&large[i], "large");
        const call kind = now.what->two[1].streamed ? WRITEV : WRITE;
        const size_t descriptors = test_entries("/proc/self/fd"), threads = test_entries("/proc/self/task");
        /* Not of each: there are some thirty. */
        for (int n = 1;; n += 4) {
            begin();
            faults.fails = kind;
            faults.fails_at = n;
            faults.os_error = ENOSPC;
            const st_status status = go_on();
            if (status == ST_OK)
                break;
            CHECK(status == ST_ERR_IO && err.os_error == ENOSPC);
            stopped(n & 4);
            CHECK(test_entries("/proc/self/fd") == descriptors);
            test_threads_end(threads);
        }
        next_one_succeeds(false);
    }
}

/* --- what sandboxes and file systems refuse ----------------------------------------------------------------------------------- */

static const int refusals[] = {EPERM, ENOSYS, EOPNOTSUPP, EINVAL};

/* What becomes of a checkpoint where calls are refused, each time. */
typedef enum outcome {
    WORKS, /* as ever */
    LITTER, /* all of it is there; but what should have been removed still is */
    REFUSED /* not written, for a reason that is told; what was there is there */
} outcome;

/*
 * A row: calls that are refused; the outcome for each of the refusals; what the message says.
 *
 * Not in the table: statx(2), for which Rust's library has a substitute if it was refused from the start.
 */
typedef struct refusal {
    const char *name;
    call calls[3];
    size_t len;
    outcome outcomes[LEN(refusals)];
    const char *says;
} refusal;

static const refusal table[] = {
    {"open", {OPEN}, 1, {REFUSED, REFUSED, REFUSED, REFUSED}, "cannot open the folder"},
    {"find", {FIND}, 1, {REFUSED, REFUSED, REFUSED, REFUSED}, "cannot look at what would be replaced"},
    {"writev", {WRITEV}, 1, {WORKS, WORKS, WORKS, WORKS}, NULL},
    {"allocate", {ALLOCATE}, 1, {WORKS, WORKS, WORKS, WORKS}, NULL},
    /* Without a length of their own files grow: a full disk is found later. */
    {"lengthen", {ALLOCATE, LENGTHEN}, 2, {WORKS, WORKS, WORKS, WORKS}, NULL},
    /* Files are appended to; but see out_of_order. */
    {"write", {WRITE}, 1, {WORKS, WORKS, WORKS, WORKS}, NULL},
    {"place", {ALLOCATE, LENGTHEN, WRITE}, 3, {WORKS, WORKS, WORKS, WORKS}, NULL},
    {"append", {WRITE, APPEND}, 2, {REFUSED, REFUSED, REFUSED, REFUSED}, "cannot write"},
    /* EPERM is of a sandbox, which takes a promise away: ST_WRITE_NO_SYNC does without it. The others say that there is nothing to wait for. */
    {"sync", {SYNC}, 1, {REFUSED, WORKS, WORKS, WORKS}, "cannot sync"},
    /* Files of which closing fails may lack bytes, whatever the reason. */
    {"close", {CLOSE}, 1, {REFUSED, WORKS, REFUSED, REFUSED}, "cannot close"},
    /* Others can do less with the new file than with the old one; but see permissions_that_cannot_be_kept. */
    {"mode", {MODE}, 1, {WORKS, WORKS, WORKS, WORKS}, NULL},
    {"rename", {RENAME}, 1, {REFUSED, REFUSED, REFUSED, REFUSED}, "does not let a file be replaced atomically"},
    {"link", {LINK}, 1, {WORKS, WORKS, WORKS, WORKS}, NULL},
    /* But a file that shards replace must go: all is in place, and finish has to be called again. */
    {"unlink", {UNLINK}, 1, {LITTER, LITTER, LITTER, LITTER}, NULL},
    /* Two writers at the same time may disturb each other. */
    {"lock", {LOCK}, 1, {WORKS, WORKS, WORKS, WORKS}, NULL},
    {"all that is optional", {LOCK, LINK, MODE}, 3, {WORKS, WORKS, WORKS, WORKS}, NULL},
};

/* What differs by what is written. */
static outcome outcome_of(const refusal *row, size_t errno_number, bool is_first) {
    const fixture_generation *generation = &now.what->two[1];
    bool refused[CALLS] = {false};
    for (size_t i = 0; i < row->len; i++)
        refused[row->calls[i]] = true;
    if (refused[WRITE] && generation->streamed && (generation->streamed == 1 || (generation->flags & SUMS)))
        return REFUSED;
    if (refused[SYNC] && (generation->flags & ST_WRITE_NO_SYNC))
        return WORKS;
    if (refused[UNLINK] && !is_first && generation->shards > 1 && now.what->two[0].shards == 0)
        return REFUSED;
    return row->outcomes[errno_number];
}

static const char *reason(const refusal *row) {
    const fixture_generation *generation = &now.what->two[1];
    const bool is_unordered = row->calls[0] == WRITE && generation->streamed && (generation->flags & SUMS);
    if (row->says && !is_unordered)
        return row->says;
    return generation->streamed ? "order" : "in place";
}

static void write_where_it_is_refused(const refusal *row, size_t errno_number, bool is_first) {
    bool refused[CALLS] = {false};
    for (size_t i = 0; i < row->len; i++)
        refused[row->calls[i]] = true;
    const outcome expected = outcome_of(row, errno_number, is_first);
    begin();
    if (is_first)
        fixture_empty(now.path);
    faults.refused_calls = refused;
    faults.os_error = refusals[errno_number];
    const st_status status = go_on();
    no_faults();
    if ((status == ST_OK) != (expected != REFUSED))
        fprintf(stderr, "%s refused with %s, %s, %s: %s\n", row->name, strerror(refusals[errno_number]), now.what->name,
                is_first ? "first" : "second", status == ST_OK ? "works" : err.message);
    CHECK((status == ST_OK) == (expected != REFUSED));
    if (status == ST_OK) {
        CHECK(is_new());
        if (expected == WORKS) {
            is_written();
            fixture_only(now.path, &now.what->two[1]);
        }
    } else {
        SAYS("model.safetensors");
        SAYS(reason(row));
        const bool in_place = strstr(err.message, "in place");
        st_writer_abort(now.writing.writer);
        if (in_place)
            CHECK(is_new());
        else if (is_first)
            CHECK(test_entries(fixture_path("refused")) == 2);
        else
            CHECK(!is_new());
    }
    /* What a refusal has left does not last. */
    fixture_put_quickly(now.path, &now.what->two[0]);
    fixture_put_quickly(now.path, &now.what->two[1]);
    is_written();
}

static void each_call_is_refused(void) {
    const replacement in_order = {"in_order", {{1, 3, SMALL, 0, 0, 0}, {2, 4, SMALL, 0, 0, 2}}};
    for (size_t i = 0; i <= LEN(replacements); i++) {
        choose(i < LEN(replacements) ? &replacements[i] : &in_order, "refused");
        strcpy(now.path, fixture_model_in("refused"));
        for (size_t row = 0; row < LEN(table); row++)
            for (size_t k = 0; k < LEN(refusals); k++)
                for (int is_first = 0; is_first < 2; is_first++)
                    write_where_it_is_refused(&table[row], k, is_first);
        fixture_empty(now.path);
    }
}

/* A mount that can only append: what is added is written, and what comes in its order; the rest is refused with a reason. */
static void mounts_that_only_append(void) {
    static const struct {
        fixture_generation what;
        bool works;
    } writings[] = {
        {{2, 4, SMALL, 0, 0, 0}, true},
        {{2, 4, SMALL, 0, SUMS, 0}, true},
        {{2, 4, SMALL, 2, SUMS, 0}, true},
        {{2, 1, LARGE + 3, 0, 0, 0}, true},
        {{2, 3, LARGE, 0, ST_WRITE_NO_SYNC, 2}, true},
        {{2, 4, SMALL, 2, 0, 2}, true},
        {{2, 1, SMALL, 0, 0, 1}, true},
        {{2, 4, SMALL, 0, 0, 1}, false},
        {{2, 4, SMALL, 0, ST_WRITE_BLAKE3, 2}, false},
    };
    bool refused[CALLS] = {false};
    refused[LENGTHEN] = refused[ALLOCATE] = true;
    for (size_t i = 0; i < LEN(writings); i++) {
        const replacement what = {"append", {{1, 3, SMALL, 0, 0, 0}, writings[i].what}};
        if (test_is_instrumented() && writings[i].what.nbytes != SMALL)
            continue;
        choose(&what, "append");
        for (int can_lengthen = 0; can_lengthen < 2; can_lengthen++) {
            begin();
            faults.only_appends = faults.no_dont_cache = true;
            /* Not all such mounts refuse a length. */
            faults.refused_calls = refused;
            refused[LENGTHEN] = !can_lengthen;
            faults.no_direct_open = true;
            faults.os_error = ENOTSUP;
            if (writings[i].works) {
                written_all_the_same();
                continue;
            }
            CHECK(go_on() != ST_OK);
            SAYS("order");
            st_writer_abort(now.writing.writer);
            fixture_only(now.path, &now.what->two[0]);
        }
    }
}

/* What was added lies between what is streamed, and is written when its turn has come. */
static void added_and_streamed_in_order(void) {
    const char *path = fixture_model_in("mixed");
    const uint64_t shape[] = {SMALL};
    for (int in_order = 0; in_order < 2; in_order++) {
        no_faults();
        faults.only_appends = faults.no_fallocate = faults.no_dont_cache = true;
        faults.refused_calls = (const bool[CALLS]){[LENGTHEN] = true};
        faults.os_error = ENOTSUP;
        faults.on = true;
        st_writer *writer;
        const st_writer_options options = {sizeof(options), ST_WRITE_NO_SYNC | ST_WRITE_INSERTION_ORDER, 0, 0, NULL};
        OK(st_writer_open(path, &options, &writer, &err));
        const char *const names[] = {"a", "b", "c", "d", "e"};
        for (size_t i = 0; i < LEN(names); i++)
            if (i % 2)
                OK(st_writer_declare(writer, names[i], ST_DTYPE_U8, shape, 1, &err));
            else
                OK(st_writer_add(writer, names[i], ST_DTYPE_U8, shape, 1, fixture_run(i, SMALL), SMALL, &err));
        if (!in_order) {
            /* "b" would have to come before. */
            CHECK(st_writer_write(writer, "d", fixture_run(3, SMALL), SMALL, &err) != ST_OK);
            SAYS("order");
        }
        OK(st_writer_write(writer, "b", fixture_run(1, SMALL), 1000, &err));
        OK(st_writer_write(writer, "b", fixture_run(1, SMALL) + 1000, SMALL - 1000, &err));
        OK(st_writer_write(writer, "d", fixture_run(3, SMALL), SMALL, &err));
        OK(st_writer_finish(writer, &err));
        no_faults();
        st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
        for (size_t i = 0; i < LEN(names); i++) {
            size_t index, nbytes;
            const void *data;
            OK(st_find(checkpoint, names[i], &index));
            OK(st_tensor_ptr(checkpoint, index, &data, &nbytes, &err));
            CHECK(nbytes == SMALL && fixture_is(data, i, SMALL));
        }
        st_close(checkpoint);
    }
}

/* A new file that is more private than the old one stays so. But where everybody may do everything with each new file, what was private must
 * not become so. */
static void permissions_that_cannot_be_kept(void) {
    const mode_t before = umask(0);
    for (size_t k = 0; k < LEN(refusals); k++)
        for (int way = 0; way < 3; way++) {
            const bool is_private = way == 2;
            choose(&replacements[0], "modes");
            begin();
            CHECK(chmod(now.path, is_private ? 0600 : 0666) == 0);
            faults.all_files_open = way > 0;
            faults.refused_calls = (const bool[CALLS]){[MODE] = true};
            faults.os_error = refusals[k];
            if (!is_private) {
                written_all_the_same();
                continue;
            }
            FAILS(ST_ERR_IO, go_on());
            CHECK(err.os_error == refusals[k]);
            SAYS("cannot set the permissions");
            st_writer_abort(now.writing.writer);
            fixture_only(now.path, &now.what->two[0]);
        }
    umask(before);
}

static void end_here(void) {
    kill(getpid(), SIGKILL);
}

static void until_the_end(void) {
    OK(go_on());
}

/* Not at random, as in crash.c, but before each call of the system. */
static void kill_at_each_call(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers would tell of all that is not freed");
    for (size_t i = 0; i < LEN(replacements); i++) {
        choose(&replacements[i], "killed");
        int status = 1;
        for (int n = 1; status; n++) {
            begin();
            faults.hook = end_here;
            faults.hook_at = n;
            status = test_in_child(until_the_end);
            CHECK(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL));
            CHECK(is_new() || status);
            next_one_succeeds(false);
            CHECK(status || n > 10);
        }
    }
}

/* Another writer of the same path, which does all that it does while the first one waits. */
static fixture_generation third;

static void write_another(void) {
    fixture_writing other = {&third, now.path, NULL, NULL, 0, 0, 0};
    const st_error kept = err;
    CHECK(fixture_go_on(&other, &err) == ST_OK);
    err = kept;
}

/* Before each call of the first one, but for those during which it has the folder locked and the other would wait. */
static void come_between(size_t shards) {
    third = now.what->two[1];
    third.number = 3;
    third.tensors = 4;
    third.shards = shards;
    third.flags |= ST_WRITE_NO_SYNC;
    for (int n = 1;; n++) {
        begin();
        faults.hook = write_another;
        faults.hook_at = n;
        faults.only_unlocked = true;
        OK(go_on());
        const bool is_last = faults.calls < n;
        /* The other one may have been the last. */
        const fixture_generation any[2] = {now.what->two[1], third};
        fixture_only(now.path, fixture_found(now.path, any, 2));
        if (is_last)
            break;
    }
}

static void another_writer_comes_between(void) {
    for (size_t i = 0; i < LEN(replacements); i++)
        if (replacements[i].two[0].shards == 0 && replacements[i].two[1].shards == 0) {
            choose(&replacements[i], "between");
            come_between(0);
        }
}

static void another_writer_of_shards_comes_between(void) {
    for (size_t i = 0; i < LEN(replacements); i++)
        if (replacements[i].two[1].shards > 1) {
            choose(&replacements[i], "between");
            come_between(2);
            come_between(4);
        }
}

/* A writer whose last steps fail, and which goes on, or gives up, after another has written all of the checkpoint. */
static void another_writer_comes_before_the_next_try(void) {
    for (size_t i = 0; i < LEN(replacements); i++) {
        choose(&replacements[i], "try");
        for (int n = 1, failed = 1; failed; n++)
            for (int retry = 0; retry < 2; retry++) {
                begin();
                faults.fails = RENAME;
                faults.fails_at = n;
                faults.os_error = EIO;
                failed = go_on() != ST_OK;
                if (!failed)
                    break;
                no_faults();
                third = now.what->two[1];
                third.number = 3;
                third.flags |= ST_WRITE_NO_SYNC;
                fixture_put(now.path, &third);
                if (retry) {
                    OK(go_on());
                    is_written();
                    fixture_only(now.path, &now.what->two[1]);
                } else {
                    st_writer_abort(now.writing.writer);
                    CHECK(fixture_found(now.path, &third, 1) == &third);
                    fixture_only(now.path, &third);
                }
            }
    }
}

static void signals_and_limits(void) {
    const fixture_generation two[2] = {{1, 2, SMALL, 0, 0, 0}, {2, 4, LARGE / 16, 0, 0, 0}};
    const replacement limited = {"limited", {two[0], two[1]}};
    choose(&limited, "limit");
    begin();
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
    const struct rlimit limit = {LARGE / 16, RLIM_INFINITY}, none = {RLIM_INFINITY, RLIM_INFINITY};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    FAILS(ST_ERR_IO, go_on());
    CHECK(err.os_error == EFBIG);
    SAYS("model.safetensors");
    CHECK(!is_new());
    CHECK(setrlimit(RLIMIT_FSIZE, &none) == 0);
    OK(go_on());
    is_written();
    /* Also where it is the default that ends the process: it must not be sent at all. */
    begin();
    CHECK(signal(SIGXFSZ, SIG_DFL) != SIG_ERR);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    FAILS(ST_ERR_IO, go_on());
    CHECK(err.os_error == EFBIG);
    stopped(false);
}

static void files_larger_than_they_may_be(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers write files of their own");
    CHECK(test_in_child(signals_and_limits) == 0);
}

enum { NOT_ALLOWED = 77 };

/* In a file system of 5 MiB that nobody else sees, and which goes with the process. */
static void fill_a_disk(void) {
    const char *folder = fixture_path("disk");
    CHECK(mkdir(folder, 0755) == 0);
    if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", "", MS_REC | MS_PRIVATE, "") != 0 ||
        mount("none", folder, "tmpfs", 0, "size=5m") != 0)
        _exit(NOT_ALLOWED);
    for (int way = 0; way < 4; way++) {
        const fixture_generation old = {1, 1, 512 << 10, 0, 0, 0};
        const fixture_generation new = {2, 4, 512 << 10, way & 2 ? 2 : 0, ST_WRITE_BLAKE3, way & 1};
        const replacement what = {"full", {old, new}};
        now.what = &what;
        strcpy(now.path, fixture_path_in("disk", "model.safetensors"));
        strcpy(now.reference, fixture_model_in("right_full"));
        no_faults();
        fixture_put(now.reference, &new);
        begin();
        const char *ballast = fixture_path_in("disk", "ballast");
        static const char bytes[5 << 19];
        fixture_write_bytes(ballast, bytes, sizeof(bytes));
        FAILS(ST_ERR_IO, go_on());
        CHECK(err.os_error == ENOSPC);
        SAYS("model.safetensors");
        FAILS(ST_ERR_IO, go_on());
        CHECK(!is_new());
        CHECK(unlink(ballast) == 0);
        OK(go_on());
        is_written();
        fixture_only(now.path, &new);
        /* Given up, it leaves the disk as it was. */
        fixture_write_bytes(ballast, bytes, sizeof(bytes));
        now.writing = (fixture_writing){&new, now.path, NULL, NULL, 0, 0, 0};
        FAILS(ST_ERR_IO, go_on());
        st_writer_abort(now.writing.writer);
        CHECK(unlink(ballast) == 0);
        fixture_only(now.path, &new);
        CHECK(is_new());
        for (size_t i = 1; i <= new.shards; i++) {
            char name[64];
            snprintf(name, sizeof(name), "disk/model-%05zu-of-%05zu.safetensors", i, new.shards);
            CHECK(unlink(fixture_path(name)) == 0);
        }
        CHECK(!new.shards || unlink(fixture_path("disk/model.safetensors.index.json")) == 0);
    }
}

static void disks_that_are_full(void) {
    const int status = test_in_child(fill_a_disk);
    if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_ALLOWED)
        SKIP("cannot mount a file system here");
    CHECK(status == 0);
}

static const test_case cases[] = {
    CASE(each_open_fails),
    CASE(each_look_fails),
    CASE(each_read_fails),
    CASE(each_write_fails),
    CASE(each_allocation_of_the_disk_fails),
    CASE(each_sync_fails),
    CASE(each_close_fails),
    CASE(each_change_of_permissions_fails),
    CASE(each_rename_fails),
    CASE(each_link_fails),
    CASE(each_unlink_fails),
    CASE(each_lock_fails),
    CASE(calls_are_interrupted),
    CASE(writes_are_short),
    CASE(writes_that_write_nothing_end),
    CASE(file_systems_without_locks),
    CASE(file_systems_without_links),
    CASE(file_systems_without_fallocate),
    CASE(ways_around_the_page_cache_are_closed),
    CASE(each_large_write_fails),
    CASE(each_call_is_refused),
    CASE(mounts_that_only_append),
    CASE(added_and_streamed_in_order),
    CASE(permissions_that_cannot_be_kept),
    CASE(kill_at_each_call),
    CASE(another_writer_comes_between),
    CASE(another_writer_of_shards_comes_between),
    CASE(another_writer_comes_before_the_next_try),
    CASE(files_larger_than_they_may_be),
    CASE(disks_that_are_full),
};

TEST_MAIN(cases)
