/*
 * System calls of loading that fail, each in turn. As in fault.c this program defines the calls itself, so it must be
 * linked to the shared library, with its symbols exported. Reads through io_uring are no calls: they are changed in the
 * ring before the system sees them.
 */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCK = 64 << 10, CACHESTAT = 451 };

typedef enum call { OPEN, LOOK, READ, MAP, ADVISE, THREAD, FILE_SYSTEM, SETUP, ENTER, REGISTER, CACHE, CALLS } call;

/* What calls do while faults.on; all zero: what the system does. */
static struct {
    atomic_bool on;
    call fails;         /* of this kind of call... */
    int fails_at;       /* ...this one, counted from 1, fails... */
    int fails_until;    /* ...and those up to this one... */
    int os_error;       /* ...with this errno (of a read through io_uring: EIO) */
    atomic_int counted; /* calls of that kind, counted here */
    int interrupted;    /* so many calls are interrupted before one gets through, again and again */
    size_t at_most;     /* a read through the page cache gives no more bytes than this */
    bool in_parts;      /* a read gives a part of its bytes */
    uint64_t bad_from, bad_to; /* what touches these bytes of a file fails with EIO */
    bool good_first;    /* ...but gives what lies before them, as disks do */
    bool no_direct_open, no_direct_read;
    int cut_at;         /* before this read the file loses its end */
    const char *cut;
    off_t cut_to;
    atomic_int reads;   /* counted here */
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

/* Whether this call of a kind is one that fails; if so, with which errno. */
static int failure(call kind) {
    if (!faults.on || kind != faults.fails || !faults.fails_at)
        return 0;
    const int n = ++faults.counted, until = faults.fails_until ? faults.fails_until : faults.fails_at;
    return n >= faults.fails_at && n <= until ? faults.os_error : 0;
}

static bool fails(call kind) {
    const int os_error = failure(kind);
    if (os_error)
        errno = os_error;
    return os_error;
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

static void before_a_read(void) {
    if (faults.on && ++faults.reads == faults.cut_at)
        CHECK(truncate(faults.cut, faults.cut_to) == 0);
}

static bool is_bad(uint64_t offset, size_t len) {
    return faults.on && offset < faults.bad_to && offset + len > faults.bad_from;
}

/* --- calls -------------------------------------------------------------------------------------------------------- */

static int open_as_system(const char *name, int folder, const char *path, int flags, mode_t mode) {
    if (interrupted() || fails(OPEN))
        return -1;
    if (faults.on && faults.no_direct_open && (flags & O_DIRECT)) {
        errno = EINVAL;
        return -1;
    }
    if (strncmp(name, "openat", 6) == 0) {
        REAL(int (*next)(int, const char *, int, ...), name);
        return next(folder, path, flags, mode);
    }
    REAL(int (*next)(const char *, int, ...), name);
    return next(path, flags, mode);
}

#define WITH_MODE(call)                                     \
    va_list rest;                                           \
    va_start(rest, flags);                                  \
    const mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                           \
    return call

int open(const char *path, int flags, ...) {
    WITH_MODE(open_as_system("open", -1, path, flags, mode));
}

int open64(const char *path, int flags, ...) {
    WITH_MODE(open_as_system("open64", -1, path, flags, mode));
}

int openat(int folder, const char *path, int flags, ...) {
    WITH_MODE(open_as_system("openat", folder, path, flags, mode));
}

int openat64(int folder, const char *path, int flags, ...) {
    WITH_MODE(open_as_system("openat64", folder, path, flags, mode));
}

int statx(int folder, const char *restrict path, int flags, unsigned mask, struct statx *restrict out) {
    REAL(int (*next)(int, const char *restrict, int, unsigned, struct statx *restrict), "statx");
    return fails(LOOK) ? -1 : next(folder, path, flags, mask, out);
}

int fstat64(int fd, struct stat64 *out) {
    REAL(int (*next)(int, struct stat64 *), "fstat64");
    return fails(LOOK) ? -1 : next(fd, out);
}

int fstatfs(int fd, struct statfs *out) {
    REAL(int (*next)(int, struct statfs *), "fstatfs");
    return fails(FILE_SYSTEM) ? -1 : next(fd, out);
}

int fstatfs64(int fd, struct statfs64 *out) {
    REAL(int (*next)(int, struct statfs64 *), "fstatfs64");
    return fails(FILE_SYSTEM) ? -1 : next(fd, out);
}

static bool is_direct(int fd) {
    return fcntl(fd, F_GETFL) & O_DIRECT;
}

/* How many bytes a read asks the system for; 0 if it fails before. */
static size_t length_of_read(int fd, size_t len, off_t offset) {
    if (!faults.on)
        return len;
    before_a_read();
    if (interrupted() || fails(READ))
        return 0;
    if (faults.no_direct_read && is_direct(fd)) {
        errno = EINVAL;
        return 0;
    }
    if (is_bad((uint64_t)offset, len)) {
        const uint64_t start = faults.bad_from / PAGE * PAGE;
        if (faults.good_first && start > (uint64_t)offset)
            return (size_t)(start - (uint64_t)offset);
        errno = EIO;
        return 0;
    }
    return faults.at_most && len > faults.at_most && !is_direct(fd) ? faults.at_most : len;
}

/* How many of the bytes that were read the library hears of. */
static ssize_t told_of_read(ssize_t n) {
    return faults.on && faults.in_parts && n > 100 ? n - n / 3 : n;
}

ssize_t pread64(int fd, void *dst, size_t len, off64_t offset) {
    REAL(ssize_t(*next)(int, void *, size_t, off64_t), "pread64");
    const size_t asked = len ? length_of_read(fd, len, offset) : 0;
    return len && !asked ? -1 : told_of_read(next(fd, dst, asked, offset));
}

ssize_t pread(int fd, void *dst, size_t len, off_t offset) {
    return pread64(fd, dst, len, offset);
}

/* Short reads of several pieces end with, or in, the first. */
static ssize_t read_pieces(int fd, const struct iovec *pieces, int n, off_t offset, int flags) {
    REAL(ssize_t(*next)(int, const struct iovec *, int, off_t, int), "preadv64v2");
    size_t len = 0;
    for (int i = 0; i < n; i++)
        len += pieces[i].iov_len;
    const size_t asked = len ? length_of_read(fd, len, offset) : 0;
    if (len && !asked)
        return -1;
    if (asked == len)
        return told_of_read(next(fd, pieces, n, offset, flags));
    const struct iovec first = {pieces[0].iov_base, asked < pieces[0].iov_len ? asked : pieces[0].iov_len};
    return told_of_read(next(fd, &first, 1, offset, flags));
}

ssize_t preadv(int fd, const struct iovec *pieces, int n, off_t offset) {
    return read_pieces(fd, pieces, n, offset, 0);
}

ssize_t preadv64(int fd, const struct iovec *pieces, int n, off64_t offset) {
    return read_pieces(fd, pieces, n, offset, 0);
}

ssize_t preadv2(int fd, const struct iovec *pieces, int n, off_t offset, int flags) {
    return read_pieces(fd, pieces, n, offset, flags);
}

ssize_t preadv64v2(int fd, const struct iovec *pieces, int n, off64_t offset, int flags) {
    return read_pieces(fd, pieces, n, offset, flags);
}

int madvise(void *address, size_t len, int advice) {
    REAL(int (*next)(void *, size_t, int), "madvise");
    return fails(ADVISE) ? -1 : next(address, len, advice);
}

int posix_fadvise64(int fd, off64_t offset, off64_t len, int advice) {
    REAL(int (*next)(int, off64_t, off64_t, int), "posix_fadvise64");
    return fails(ADVISE) ? errno : next(fd, offset, len, advice);
}

int posix_fadvise(int fd, off_t offset, off_t len, int advice) {
    return posix_fadvise64(fd, offset, len, advice);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    REAL(int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *), "pthread_create");
    return fails(THREAD) ? errno : next(thread, attributes, run, argument);
}

/* --- io_uring ----------------------------------------------------------------------------------------------------- */

/* The rings that are open, by their descriptors. */
static struct ring {
    struct io_uring_params parameters;
    unsigned char *queue;
    struct io_uring_sqe *entries;
} rings[1024];

static struct ring *ring_of(long fd) {
    return fd >= 0 && fd < (long)LEN(rings) ? &rings[fd] : NULL;
}

static void *map_as_system(const char *name, void *address, size_t len, int access, int flags, int fd, off_t offset) {
    REAL(void *(*next)(void *, size_t, int, int, int, off_t), name);
    if (fails(MAP))
        return MAP_FAILED;
    void *mapping = next(address, len, access, flags, fd, offset);
    struct ring *ring = flags & MAP_ANONYMOUS ? NULL : ring_of(fd);
    if (ring && ring->parameters.sq_entries && offset == IORING_OFF_SQ_RING)
        ring->queue = mapping;
    if (ring && ring->parameters.sq_entries && offset == (off_t)IORING_OFF_SQES)
        ring->entries = mapping;
    return mapping;
}

void *mmap(void *address, size_t len, int protection, int flags, int fd, off_t offset) {
    return map_as_system("mmap", address, len, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t len, int protection, int flags, int fd, off64_t offset) {
    return map_as_system("mmap64", address, len, protection, flags, fd, offset);
}

/* A read of what no process has, its own first page, fails with EIO. */
static int own_memory;

static void make_fail(struct io_uring_sqe *entry) {
    entry->fd = own_memory;
    entry->off = 0;
    entry->flags &= (unsigned char)~IOSQE_FIXED_FILE;
}

static void change_read(struct io_uring_sqe *entry) {
    before_a_read();
    const bool has_len = entry->opcode == IORING_OP_READ || entry->opcode == IORING_OP_READ_FIXED;
    if (!has_len && entry->opcode != IORING_OP_READV)
        return;
    size_t len = has_len ? entry->len : 0;
    for (unsigned i = 0; !has_len && i < entry->len; i++)
        len += ((const struct iovec *)(uintptr_t)entry->addr)[i].iov_len;
    if (faults.no_direct_read)
        entry->opcode = 255; /* EINVAL */
    else if (failure(READ))
        make_fail(entry);
    else if (is_bad(entry->off, len))
        make_fail(entry);
    else if (faults.in_parts && has_len && len > 2 * PAGE)
        entry->len = (unsigned)(len * 2 / 3 / PAGE * PAGE);
}

/* What is about to be submitted. */
static void change_reads(const struct ring *ring, unsigned n) {
    if (!ring || !ring->queue || !ring->entries)
        return;
    const struct io_sqring_offsets *at = &ring->parameters.sq_off;
    const unsigned head = *(const volatile unsigned *)(ring->queue + at->head);
    const unsigned mask = *(const unsigned *)(ring->queue + at->ring_mask);
    const unsigned *order = (const unsigned *)(ring->queue + at->array);
    for (unsigned i = 0; i < n; i++)
        change_read(&ring->entries[order[(head + i) & mask]]);
}

long syscall(long number, ...) {
    REAL(long (*next)(long, ...), "syscall");
    va_list rest;
    long a[6];
    va_start(rest, number);
    for (size_t i = 0; i < LEN(a); i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    const bool enters = number == __NR_io_uring_enter;
    if (number == CACHESTAT && fails(CACHE))
        return -1;
    if (number == __NR_io_uring_register && fails(REGISTER))
        return -1;
    if (number == __NR_io_uring_setup && fails(SETUP))
        return -1;
    if (enters && (interrupted() || fails(ENTER)))
        return -1;
    if (enters && faults.on)
        change_reads(ring_of(a[0]), (unsigned)a[1]);
    const long result = next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    struct ring *ring = number == __NR_io_uring_setup ? ring_of(result) : NULL;
    if (ring)
        *ring = (struct ring){*(const struct io_uring_params *)a[1], NULL, NULL};
    return result;
}

/* --- loads that fail ---------------------------------------------------------------------------------------------- */

/* The model, open, and half of its tensors with a place to go to. */
static struct {
    char path[512];
    st_request requests[L_LEN];
    unsigned char *places[L_LEN];
    loading it;
} model;

static void open_it(int32_t storage) {
    no_faults();
    if (!own_memory)
        own_memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    CHECK(own_memory > 0);
    strcpy(model.path, fixture_write("model.safetensors", &loading_model));
    st_checkpoint *checkpoint = fixture_open_path(model.path, storage, 0);
    loading_whole(checkpoint, model.requests, L_LEN);
    for (size_t i = 1; i < L_LEN; i += 2) {
        const size_t size = loading_size(checkpoint, &model.requests[i]);
        model.places[i] = malloc(size + 1);
        CHECK(model.places[i]);
        model.requests[i].dst = model.places[i];
        model.requests[i].dst_len = size;
    }
    model.it = loading_of(checkpoint, model.requests, L_LEN);
}

static void close_it(void) {
    no_faults();
    st_checkpoint *checkpoint = model.it.checkpoint;
    loading_free(&model.it);
    st_close(checkpoint);
    for (size_t i = 1; i < L_LEN; i += 2)
        free(model.places[i]);
}

static st_load_options in_small_blocks(int32_t engine) {
    st_load_options options = loading_by(engine);
    options.block_bytes = BLOCK;
    options.workers = 3;
    return options;
}

/* Loads all with the faults that are set. What does not fail is right, and nothing stays behind. Gives start's status. */
static st_status load_it(int32_t engine) {
    const st_load_options options = in_small_blocks(engine);
    const size_t threads = test_entries("/proc/self/task"), descriptors = test_entries("/proc/self/fd");
    faults.on = true;
    const st_status status = loading_try(&model.it, &options);
    if (status == ST_OK)
        loading_drain(&model.it);
    st_load_free(model.it.load);
    faults.on = false;
    model.it.load = NULL;
    CHECK(test_entries("/proc/self/fd") == descriptors);
    test_threads_end(threads);
    return status;
}

static void load_it_right(int32_t engine) {
    OK(load_it(engine));
    CHECK(model.it.failed == 0 && model.it.ended == L_LEN);
}

/* Calls a function for each engine that files have, the model open and no faults set. */
static void by_each_engine(void (*call)(int32_t engine)) {
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        open_it(e % 2 ? ST_STORAGE_READ : ST_STORAGE_AUTO);
        call(loading_engines[e]);
        close_it();
    }
}

/* The next call to let fail: each of the first ones, then some. */
static int after(int n) {
    return test_is_instrumented() ? n * 3 : n < 12 ? n + 1 : n * 4 / 3;
}

/* Makes the n-th call of a kind fail. What may come of it: nothing; or these. */
static void each_failing(int32_t engine, call kind, int os_error, st_status may_be) {
    for (int n = 1;; n = after(n)) {
        no_faults();
        faults.fails = kind;
        faults.fails_at = n;
        faults.os_error = os_error;
        const st_status status = load_it(engine);
        const bool was_the_last = faults.counted < n;
        CHECK(status == ST_OK || status == may_be);
        if (status == ST_OK)
            for (size_t i = 0; i < L_LEN; i++)
                CHECK(model.it.status[i] == ST_OK || model.it.status[i] == may_be);
        CHECK(status == ST_OK || err.os_error == os_error || may_be == ST_ERR_NO_MEMORY);
        /* The checkpoint is as good as before. */
        no_faults();
        load_it_right(engine);
        if (was_the_last)
            break;
    }
}

/* The same where it must cost nothing; and with all calls failing. */
static void none_is_needed(int32_t engine, call kind, int os_error) {
    each_failing(engine, kind, os_error, ST_OK);
    no_faults();
    faults.fails = kind;
    faults.fails_at = 1;
    faults.fails_until = 1 << 30;
    faults.os_error = os_error;
    load_it_right(engine);
}

static void opens_fail(int32_t engine) {
    none_is_needed(engine, OPEN, EMFILE);
    none_is_needed(engine, OPEN, EINVAL);
    none_is_needed(engine, OPEN, ENOENT);
    none_is_needed(engine, OPEN, EACCES);
}

static void each_open_fails(void) {
    by_each_engine(opens_fail);
}

static void looks_fail(int32_t engine) {
    each_failing(engine, LOOK, EIO, ST_ERR_IO);
    none_is_needed(engine, FILE_SYSTEM, EIO);
    none_is_needed(engine, CACHE, ENOSYS);
    none_is_needed(engine, CACHE, EPERM);
    none_is_needed(engine, CACHE, EOPNOTSUPP);
}

static void each_look_fails(void) {
    by_each_engine(looks_fail);
}

static void advice_fails(int32_t engine) {
    none_is_needed(engine, ADVISE, EINVAL);
}

static void each_advice_fails(void) {
    by_each_engine(advice_fails);
}

static void reads_fail(int32_t engine) {
    each_failing(engine, READ, EIO, ST_ERR_IO);
}

static void each_read_fails(void) {
    by_each_engine(reads_fail);
}

/* When none can be read, each fails, and says so. */
static void all_reads_fail(int32_t engine) {
    faults.fails = READ;
    faults.fails_at = 1;
    faults.fails_until = 1 << 30;
    faults.os_error = EIO;
    OK(load_it(engine));
    for (size_t i = 0; i < L_LEN; i++)
        CHECK(model.it.status[i] == (model.it.sizes[i] ? ST_ERR_IO : ST_OK));
    no_faults();
    load_it_right(engine);
}

static void no_read_succeeds(void) {
    by_each_engine(all_reads_fail);
}

static void memory_fails(int32_t engine) {
    each_failing(engine, MAP, ENOMEM, ST_ERR_NO_MEMORY);
}

static void each_mapping_fails(void) {
    by_each_engine(memory_fails);
}

/* As many as there are do the work; only where there is none it cannot be done. */
static void threads_fail(int32_t engine) {
    for (int from = 1; from <= 4; from++) {
        no_faults();
        faults.fails = THREAD;
        faults.fails_at = from;
        faults.fails_until = 1 << 30;
        faults.os_error = EAGAIN;
        const st_status status = load_it(engine);
        CHECK(status == ST_OK || (from == 1 && status == ST_ERR_NO_MEMORY));
        CHECK(status != ST_OK || model.it.failed == 0);
    }
}

static void threads_that_cannot_be_had(void) {
    by_each_engine(threads_fail);
}

static void rings_fail(int32_t engine) {
    static const int os_errors[] = {ENOSYS, EPERM, ENOMEM, EMFILE, EINVAL};
    for (size_t i = 0; i < LEN(os_errors); i++)
        none_is_needed(engine, SETUP, os_errors[i]);
    none_is_needed(engine, REGISTER, ENOMEM);
    none_is_needed(engine, REGISTER, EINVAL);
    none_is_needed(engine, ENTER, EPERM);
    each_failing(engine, ENTER, EAGAIN, ST_OK);
    each_failing(engine, ENTER, EBUSY, ST_OK);
    each_failing(engine, ENTER, EINTR, ST_OK);
    each_failing(engine, ENTER, ENOMEM, ST_ERR_NO_MEMORY);
}

static void each_call_of_io_uring_fails(void) {
    by_each_engine(rings_fail);
}

static void ways_around_the_page_cache_are_closed(int32_t engine) {
    faults.no_direct_open = true;
    load_it_right(engine);
    CHECK(model.it.engines == ST_ENGINE_BUFFERED);
    no_faults();
    faults.no_direct_read = true;
    load_it_right(engine);
    CHECK(model.it.engines == ST_ENGINE_BUFFERED);
}

static void direct_reads_that_are_refused(void) {
    by_each_engine(ways_around_the_page_cache_are_closed);
}

static void interrupt(int32_t engine) {
    faults.interrupted = 3;
    load_it_right(engine);
}

static void calls_are_interrupted(void) {
    by_each_engine(interrupt);
}

static void shorten(int32_t engine) {
    faults.in_parts = true;
    load_it_right(engine);
    no_faults();
    faults.at_most = 1000;
    faults.interrupted = 1;
    load_it_right(engine);
}

static void reads_are_short(void) {
    by_each_engine(shorten);
}

/* One byte at a time. */
static void reads_of_a_byte(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_READ, 0);
    st_request requests[SAMPLE_LEN];
    const size_t n = loading_whole(checkpoint, requests, LEN(requests));
    loading it = loading_of(checkpoint, requests, n);
    no_faults();
    faults.at_most = 1;
    faults.on = true;
    const st_load_options options = loading_by(ST_ENGINE_BUFFERED);
    loading_start(&it, &options);
    loading_end(&it);
    CHECK(faults.reads >= SAMPLE_DATA_SIZE);
    no_faults();
    loading_free(&it);
    st_close(checkpoint);
}

/* Bytes that cannot be read cost those requests that want them, and no others. */
static void bad_bytes(int32_t engine) {
    for (size_t tensor = 0; tensor < L_LEN; tensor++)
        for (int place = 0; place < 3; place++) {
            if (model.it.sizes[tensor] < 8 * PAGE)
                continue;
            st_tensor info;
            OK(st_tensor_info(model.it.checkpoint, tensor, &info, &err));
            /* Far enough from the others, which may lie on the same page. */
            const uint64_t places[] = {PAGE, info.nbytes / 2, info.nbytes - PAGE - 1};
            no_faults();
            faults.bad_from = info.file_offset + places[place];
            faults.bad_to = faults.bad_from + 1;
            faults.good_first = place == 1;
            OK(load_it(engine));
            CHECK(model.it.failed == 1 && model.it.status[tensor] == ST_ERR_IO);
        }
    no_faults();
    load_it_right(engine);
}

static void bad_bytes_cost_only_who_wants_them(void) {
    by_each_engine(bad_bytes);
}

static void bad_bytes_are_told_with_errno_and_name(void) {
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        open_it(ST_STORAGE_AUTO);
        st_tensor info;
        OK(st_tensor_info(model.it.checkpoint, L_LARGE, &info, &err));
        faults.bad_from = info.file_offset + info.nbytes / 2;
        faults.bad_to = faults.bad_from + 1;
        const st_load_options options = in_small_blocks(loading_engines[e]);
        faults.on = true;
        loading_start(&model.it, &options);
        st_loaded loaded;
        st_status status;
        while ((status = loading_next(&model.it, -1, &loaded)) != ST_DONE) {
            if (status != ST_OK) {
                CHECK(status == ST_ERR_IO && err.os_error == EIO && loaded.index == L_LARGE);
                SAYS("\"large\"");
                SAYS("model.safetensors");
            }
            loading_recycle(&model.it, &loaded);
        }
        close_it();
    }
}

/* The end of the file goes while it is loaded. What was read before is right, and what is left of it. */
static void cut(int32_t engine) {
    struct stat whole;
    CHECK(stat(model.path, &whole) == 0);
    const off_t ends[] = {0, whole.st_size / 3, whole.st_size / 2 / PAGE * PAGE, whole.st_size - 1};
    size_t len;
    unsigned char *bytes = fixture_slurp(model.path, &len);
    for (size_t k = 0; k < LEN(ends); k++)
        for (int n = 1; n < 40; n = n * 2 + 1) {
            no_faults();
            faults.cut_at = n;
            faults.cut = model.path;
            faults.cut_to = ends[k];
            OK(load_it(engine));
            for (size_t i = 0; i < L_LEN; i++) {
                st_tensor info;
                OK(st_tensor_info(model.it.checkpoint, i, &info, &err));
                const bool is_left = info.file_offset + info.nbytes <= (uint64_t)ends[k];
                CHECK(model.it.status[i] == ST_OK || (model.it.status[i] == ST_ERR_TRUNCATED && !is_left));
            }
            /* What was cut off is gone for good, or comes back as it was. */
            const int fd = open(model.path, O_WRONLY | O_CLOEXEC);
            CHECK(fd >= 0 && pwrite(fd, bytes, len, 0) == (ssize_t)len && close(fd) == 0);
            no_faults();
            load_it_right(engine);
        }
    free(bytes);
}

static void files_that_become_shorter(void) {
    by_each_engine(cut);
}

static const test_case cases[] = {
    CASE(each_open_fails),
    CASE(each_look_fails),
    CASE(each_advice_fails),
    CASE(each_read_fails),
    CASE(no_read_succeeds),
    CASE(each_mapping_fails),
    CASE(threads_that_cannot_be_had),
    CASE(each_call_of_io_uring_fails),
    CASE(direct_reads_that_are_refused),
    CASE(calls_are_interrupted),
    CASE(reads_are_short),
    CASE(reads_of_a_byte),
    CASE(bad_bytes_cost_only_who_wants_them),
    CASE(bad_bytes_are_told_with_errno_and_name),
    CASE(files_that_become_shorter),
};
TEST_MAIN(cases)
