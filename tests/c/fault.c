/*
 * System calls that fail, each in turn. This program defines the calls itself, and the dynamic linker gives its definitions to the
 * shared library: so it must be linked to that one, with its symbols exported.
 */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { OPENAT2 = 437, LARGE_SHARDS = 4 };

/* What the next calls do. All zero: what the system does. */
static struct faults {
    atomic_int pread_calls; /* counted here: shards are opened by several threads */
    int pread_fails_at;    /* this call, counted from 1, fails with EIO */
    int pread_interrupted; /* so many calls are interrupted before one gets through, again and again */
    size_t pread_at_most;  /* a call gives no more bytes than this */
    int pread_ends_at;     /* from this call on the file is at its end */
    bool mmap_not_shared, mmap_not_private, mmap_not_anonymous;
    bool populate_unknown; /* as in Linux before 5.14 */
    int open_would_block;  /* opens that may not wait fail, as for a file with a lease; counted here */
    bool leased;
    atomic_int open_calls; /* counted here */
    int open_fails_at;     /* this call fails with EMFILE */
    bool openat2_unknown;  /* as in Linux before 5.6 */
    int openat2_undecided; /* so many calls cannot tell, as when something is renamed meanwhile; counted down here */
    atomic_int threads;    /* counted here */
    int no_thread_from;    /* from this call on, no thread can be started */
    atomic_int joined;     /* threads waited for, counted here */
    long file_system;      /* f_type that fstatfs gives */
    atomic_int mapped;     /* files mapped, counted here */
} faults;

static _Thread_local int interruptions;

/* The system's own definition of a call. */
static void *real(const char *name) {
    void *function = dlsym(RTLD_NEXT, name);
    CHECK(function);
    return function;
}

ssize_t pread64(int fd, void *dst, size_t len, off64_t offset) {
    ssize_t (*next)(int, void *, size_t, off64_t);
    *(void **)&next = real("pread64");
    if (interruptions < faults.pread_interrupted) {
        interruptions++;
        errno = EINTR;
        return -1;
    }
    interruptions = 0;
    const int call = ++faults.pread_calls;
    if (call == faults.pread_fails_at) {
        errno = EIO;
        return -1;
    }
    if (faults.pread_ends_at && call >= faults.pread_ends_at)
        return 0;
    return next(fd, dst, faults.pread_at_most && faults.pread_at_most < len ? faults.pread_at_most : len, offset);
}

void *mmap64(void *address, size_t len, int protection, int flags, int fd, off64_t offset) {
    void *(*next)(void *, size_t, int, int, int, off64_t);
    *(void **)&next = real("mmap64");
    bool anonymous = flags & MAP_ANONYMOUS, shared = (flags & MAP_TYPE) == MAP_SHARED;
    if (anonymous ? faults.mmap_not_anonymous : shared ? faults.mmap_not_shared : faults.mmap_not_private) {
        errno = anonymous ? ENOMEM : ENODEV;
        return MAP_FAILED;
    }
    faults.mapped += !anonymous;
    return next(address, len, protection, flags, fd, offset);
}

int madvise(void *address, size_t len, int advice) {
    int (*next)(void *, size_t, int);
    *(void **)&next = real("madvise");
    if (faults.populate_unknown && advice == MADV_POPULATE_READ) {
        errno = EINVAL;
        return -1;
    }
    return next(address, len, advice);
}

/* Whether an open of these flags fails now, and why. */
static bool open_fails(int flags) {
    if (faults.leased && (flags & O_NONBLOCK)) {
        faults.open_would_block++;
        errno = EWOULDBLOCK;
        return true;
    }
    if (++faults.open_calls == faults.open_fails_at) {
        errno = EMFILE;
        return true;
    }
    return false;
}

int openat64(int directory, const char *path, int flags, ...) {
    int (*next)(int, const char *, int, ...);
    *(void **)&next = real("openat64");
    if (open_fails(flags))
        return -1;
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return next(directory, path, flags, mode);
}

/* openat2, which has no function of its own, and others that the library and its language call by number. */
long syscall(long number, ...) {
    long (*next)(long, ...);
    *(void **)&next = real("syscall");
    long arguments[6];
    va_list rest;
    va_start(rest, number);
    for (size_t i = 0; i < LEN(arguments); i++)
        arguments[i] = va_arg(rest, long);
    va_end(rest);
    if (number == OPENAT2) {
        if (faults.openat2_unknown) {
            errno = ENOSYS;
            return -1;
        }
        if (faults.openat2_undecided > 0) {
            faults.openat2_undecided--;
            errno = EAGAIN;
            return -1;
        }
        if (open_fails((int)*(uint64_t *)arguments[2]))
            return -1;
    }
    return next(number, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

int fstatfs(int fd, struct statfs *out) {
    int (*next)(int, struct statfs *);
    *(void **)&next = real("fstatfs");
    int result = next(fd, out);
    if (result == 0 && faults.file_system)
        out->f_type = faults.file_system;
    return result;
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    *(void **)&next = real("pthread_create");
    if (++faults.threads >= faults.no_thread_from && faults.no_thread_from)
        return EAGAIN;
    return next(thread, attributes, run, argument);
}

int pthread_join(pthread_t thread, void **result) {
    int (*next)(pthread_t, void **);
    *(void **)&next = real("pthread_join");
    faults.joined++;
    return next(thread, result);
}

static atomic_int environment_reads;

char *getenv(const char *name) {
    char *(*next)(const char *);
    *(void **)&next = real("getenv");
    environment_reads++;
    return next(name);
}

static void no_faults(void) {
    memset(&faults, 0, sizeof(faults));
}

static st_checkpoint *open_sample(int32_t storage, uint32_t flags) {
    return fixture_open(&fixture_sample, storage, flags);
}

static int32_t storage_of(const st_checkpoint *checkpoint) {
    st_info info;
    CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
    return info.storage;
}

static void weight_is_right(st_checkpoint *checkpoint) {
    unsigned char bytes[SAMPLE_WEIGHT_SIZE];
    OK(st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, bytes, sizeof(bytes), &err));
    CHECK(fixture_is(bytes, SAMPLE_WEIGHT_AT, sizeof(bytes)));
    const void *data;
    OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
    CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
}

static int open_files(void) {
    int count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += lseek(fd, 0, SEEK_CUR) >= 0 || errno != EBADF;
    return count;
}

static void pread_in_small_pieces_and_interrupted(void) {
    for (size_t at_most = 1; at_most <= 64; at_most *= 4) {
        no_faults();
        faults.pread_at_most = at_most;
        faults.pread_interrupted = 2;
        st_checkpoint *checkpoint = open_sample(ST_STORAGE_READ, 0);
        weight_is_right(checkpoint);
        CHECK(faults.pread_calls > (int)(SAMPLE_WEIGHT_SIZE / at_most));
        st_close(checkpoint);
    }
}

static void open_with_each_pread_failing(void) {
    const char *path = fixture_write("each.safetensors", &fixture_sample);
    int files = open_files();
    for (int n = 1;; n++) {
        no_faults();
        faults.pread_fails_at = n;
        st_checkpoint *checkpoint = (st_checkpoint *)&faults;
        st_status status = st_open(path, NULL, &checkpoint, &err);
        if (status == ST_OK) {
            CHECK(n == 2); /* the length and the header, and nothing else */
            st_close(checkpoint);
            break;
        }
        CHECK(status == ST_ERR_IO && err.status == ST_ERR_IO && err.os_error == EIO && !checkpoint);
        SAYS("each.safetensors");
        CHECK(open_files() == files);
    }
    no_faults();
}

static void open_of_a_file_that_ends_meanwhile(void) {
    const char *path = fixture_write("ends.safetensors", &fixture_sample);
    no_faults();
    faults.pread_ends_at = 1;
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_TRUNCATED, st_open(path, NULL, &checkpoint, &err));
    /* A header that is longer than what is read with its length. */
    enum { LONG = 20000 };
    static char metadata[LONG + 16];
    memset(metadata, 'x', LONG);
    memcpy(metadata, "{\"k\":\"", 6);
    strcpy(metadata + LONG - 2, "\"}");
    path = fixture_write("long.safetensors", &(fixture){NULL, 0, metadata, 0});
    for (int n = 1; n <= 2; n++) {
        no_faults();
        faults.pread_ends_at = n;
        FAILS(ST_ERR_TRUNCATED, st_open(path, NULL, &checkpoint, &err));
    }
    no_faults();
    OK(st_open(path, NULL, &checkpoint, &err));
    CHECK(faults.pread_calls == 2);
    st_close(checkpoint);
}

static void read_that_fails_can_be_tried_again(void) {
    st_checkpoint *checkpoint = open_sample(ST_STORAGE_READ, 0);
    unsigned char bytes[SAMPLE_WEIGHT_SIZE];
    const void *data = NULL;
    no_faults();
    faults.pread_fails_at = 1;
    FAILS(ST_ERR_IO, st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, bytes, sizeof(bytes), &err));
    CHECK(err.os_error == EIO);
    SAYS("weight");
    no_faults();
    faults.pread_fails_at = 1;
    FAILS(ST_ERR_IO, st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
    CHECK(!data);
    no_faults();
    weight_is_right(checkpoint);
    st_close(checkpoint);
}

static void mapping_not_shared_is_private(void) {
    no_faults();
    faults.mmap_not_shared = true;
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_MMAP; storage++) {
        st_checkpoint *checkpoint = open_sample(storage, 0);
        CHECK(storage_of(checkpoint) == ST_STORAGE_MMAP);
        weight_is_right(checkpoint);
        st_close(checkpoint);
    }
    no_faults();
}

static void mapping_refused_is_read(void) {
    const char *path = fixture_write("refused.safetensors", &fixture_sample);
    no_faults();
    faults.mmap_not_shared = faults.mmap_not_private = true;
    for (uint32_t flags = 0; flags <= ST_OPEN_COPY_ON_WRITE; flags++) {
        st_checkpoint *checkpoint = open_sample(ST_STORAGE_AUTO, flags);
        CHECK(storage_of(checkpoint) == ST_STORAGE_READ);
        weight_is_right(checkpoint);
        st_close(checkpoint);

        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = ST_STORAGE_MMAP;
        options.flags = flags;
        FAILS(ST_ERR_IO, st_open(path, &options, &checkpoint, &err));
        CHECK(err.os_error == ENODEV && !checkpoint);
    }
    CHECK(faults.mapped == 0);
    no_faults();
}

static void remote_file_systems_are_read(void) {
    static const long remote[] = {0x6969, 0x65735546, 0xff534d42, 0xfe534d42, 0x01021997, 0x00c36400, 0x0bd00bd0};
    static const long local[] = {0xef53, 0x58465342, 0x01021994, 0x9123683e, 0x794c7630};
    no_faults();
    for (size_t i = 0; i < LEN(remote) + LEN(local); i++) {
        bool is_remote = i < LEN(remote);
        faults.file_system = is_remote ? remote[i] : local[i - LEN(remote)];
        st_checkpoint *checkpoint = open_sample(ST_STORAGE_AUTO, 0);
        CHECK(storage_of(checkpoint) == (is_remote ? ST_STORAGE_READ : ST_STORAGE_MMAP));
        weight_is_right(checkpoint);
        st_close(checkpoint);
        /* Who asks for a mapping gets one. */
        checkpoint = open_sample(ST_STORAGE_MMAP, 0);
        CHECK(storage_of(checkpoint) == ST_STORAGE_MMAP);
        st_close(checkpoint);
    }
    no_faults();
}

static void copy_without_memory(void) {
    /* Large enough to be mapped by itself. */
    static const fixture_tensor tensor = {"large", "U8", "[1000000]", 1000000, NULL};
    static const fixture large = {&tensor, 1, NULL, 0};
    st_checkpoint *checkpoint = fixture_open(&large, ST_STORAGE_READ, 0);
    const void *data = NULL;
    no_faults();
    faults.mmap_not_anonymous = true;
    FAILS(ST_ERR_NO_MEMORY, st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
    SAYS("1000000");
    CHECK(!data);
    no_faults();
    OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
    CHECK(fixture_is(data, 0, 1000000));
    st_close(checkpoint);
}

static void populate_on_an_old_kernel(void) {
    no_faults();
    faults.populate_unknown = true;
    st_checkpoint *checkpoint = open_sample(ST_STORAGE_MMAP, ST_OPEN_POPULATE);
    CHECK(faults.pread_calls == 2); /* the header, and then all of the file */
    weight_is_right(checkpoint);
    st_close(checkpoint);

    const char *path = fixture_write("old.safetensors", &fixture_sample);
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.flags = ST_OPEN_POPULATE;
    no_faults();
    faults.populate_unknown = true;
    faults.pread_fails_at = 2;
    FAILS(ST_ERR_IO, st_open(path, &options, &checkpoint, &err));
    CHECK(err.os_error == EIO);
    no_faults();
    faults.populate_unknown = true;
    faults.pread_ends_at = 2;
    FAILS(ST_ERR_TRUNCATED, st_open(path, &options, &checkpoint, &err));
    no_faults();
}

static void open_waits_for_a_lease(void) {
    no_faults();
    faults.leased = true;
    st_checkpoint *checkpoint = open_sample(ST_STORAGE_AUTO, 0);
    CHECK(faults.open_would_block == 1);
    weight_is_right(checkpoint);
    st_close(checkpoint);
    no_faults();
}

static void sharded_is_right(st_checkpoint *checkpoint) {
    CHECK(st_len(checkpoint) == SHARDED_LEN);
    for (size_t i = 0; i < SHARDED_LEN; i++) {
        const void *data;
        OK(st_tensor_ptr(checkpoint, i, &data, NULL, &err));
        CHECK(fixture_is(data, fixture_sharded[i].at, fixture_sharded[i].nbytes));
    }
    st_close(checkpoint);
}

/* Opens with the call failing, for each call, until none does; gives how many there were. */
static int each_failing(const char *path, int *fails_at, int os_error) {
    const int files = open_files();
    for (int n = 1;; n++) {
        no_faults();
        *fails_at = n;
        st_checkpoint *checkpoint = (st_checkpoint *)&faults;
        const st_status status = st_open(path, NULL, &checkpoint, &err);
        no_faults();
        if (status == ST_OK) {
            sharded_is_right(checkpoint);
            return n - 1;
        }
        CHECK(status == ST_ERR_IO && err.status == ST_ERR_IO && err.os_error == os_error && !checkpoint);
        SAYS("\"");
        CHECK(open_files() == files);
    }
}

static void shards_with_each_call_failing(void) {
    const char *folder = fixture_write_sharded("each", 1);
    /* The index, and the header of each shard. */
    CHECK(each_failing(folder, &faults.pread_fails_at, EIO) == 1 + SHARDS);
    /* The directory, the list of its names, the index, and each shard; without openat2 (valgrind lacks it) also steps to these. */
    const long opens = each_failing(folder, &faults.open_fails_at, EMFILE);
    CHECK(test_is_instrumented() ? opens >= 3 + SHARDS : opens == 3 + SHARDS);
}

/* What opening does for several shards that one thread does as fast: nothing beside that. */
static void few_small_shards_start_no_threads(void) {
    const char *const folders[] = {fixture_write_sharded("few", 1), fixture_write_sharded("few_numbered", 0)};
    for (size_t i = 0; i < LEN(folders); i++)
        for (uint32_t verify = ST_VERIFY_NONE; verify <= ST_VERIFY_STRUCTURE; verify++) {
            st_open_options options = ST_OPEN_OPTIONS_INIT;
            options.verify = (int32_t)verify;
            st_checkpoint *checkpoint;
            no_faults();
            OK(st_open(folders[i], &options, &checkpoint, &err));
            /* Under valgrind names are walked, and what takes long is worth threads. */
            CHECK(test_is_instrumented() || (faults.threads == 0 && faults.open_calls == (i == 0 ? 3 : 2) + SHARDS));
            sharded_is_right(checkpoint);
        }
    no_faults();
}

/* Shards whose headers are worth several threads, and what they are without. */
static const char *write_large_headers(const char *folder, bool with_index) {
    enum { LONG = 1 << 20 };
    static char metadata[LONG + 16], path[512];
    memset(metadata, 'x', LONG);
    memcpy(metadata, "{\"k\":\"", 6);
    strcpy(metadata + LONG - 2, "\"}");
    CHECK(mkdir(fixture_path(folder), 0755) == 0);
    for (int i = 0; i < LARGE_SHARDS; i++) {
        char name[64], tensor_name[16];
        snprintf(name, sizeof(name), "%s/m-%d-of-%d.safetensors", folder, i + 1, LARGE_SHARDS);
        snprintf(tensor_name, sizeof(tensor_name), "t%d", i);
        const fixture_tensor tensor = {tensor_name, "U8", "[1]", 1, NULL};
        fixture_write(name, &(fixture){&tensor, 1, metadata, 0});
    }
    if (with_index) {
        char text[64 * LARGE_SHARDS] = "{", *end = text + 1;
        for (int i = 0; i < LARGE_SHARDS; i++)
            end += sprintf(end, "%s\"t%d\":\"m-%d-of-%d.safetensors\"", i ? "," : "", i, i + 1, LARGE_SHARDS);
        strcpy(end, "}");
        fixture_write_bytes(fixture_path_in(folder, "m.safetensors.index.json"), text, strlen(text));
    }
    strcpy(path, fixture_path(folder));
    return path;
}

static void large_headers_are_read_by_several_threads(void) {
    for (int with_index = 0; with_index < 2; with_index++) {
        const char *folder = write_large_headers(with_index ? "large_indexed" : "large", with_index);
        st_checkpoint *checkpoint;
        no_faults();
        OK(st_open(folder, NULL, &checkpoint, &err));
        /* One shard tells how large headers are; for the last one no other thread is needed. */
        CHECK(faults.threads == LARGE_SHARDS - 2 && faults.joined == faults.threads);
        CHECK(st_len(checkpoint) == LARGE_SHARDS);
        st_close(checkpoint);
    }
    no_faults();
}

static void shards_without_threads(void) {
    const char *folder = write_large_headers("alone", false);
    for (int from = 1; from < LARGE_SHARDS - 1; from++) {
        no_faults();
        faults.no_thread_from = from;
        st_checkpoint *checkpoint;
        OK(st_open(folder, NULL, &checkpoint, &err));
        /* One that cannot be had is enough to stop asking. */
        CHECK(faults.threads == from && faults.joined == from - 1);
        CHECK(st_len(checkpoint) == LARGE_SHARDS);
        st_close(checkpoint);
    }
    no_faults();
}

/* A lease looks the same to who asks the kernel to resolve a name as a name that is being moved. */
static void shards_with_leases(void) {
    const char *folder = fixture_write_sharded("leased", 1);
    for (int unknown = 0; unknown < 2; unknown++) {
        no_faults();
        faults.leased = true;
        faults.openat2_unknown = unknown;
        st_checkpoint *checkpoint;
        OK(st_open(folder, NULL, &checkpoint, &err));
        CHECK(faults.open_would_block >= 1 + SHARDS);
        sharded_is_right(checkpoint);
    }
    no_faults();
}

static void names_that_are_being_moved(void) {
    const char *folder = fixture_write_sharded("moved", 1);
    static const int undecided[] = {1, 5, 100, 1000};
    for (size_t i = 0; i < LEN(undecided); i++) {
        no_faults();
        faults.openat2_undecided = undecided[i];
        st_checkpoint *checkpoint;
        OK(st_open(folder, NULL, &checkpoint, &err));
        /* The kernel is asked again, but not for ever. */
        CHECK(faults.openat2_undecided < undecided[i] && (undecided[i] < 1000 || faults.openat2_undecided > 0));
        sharded_is_right(checkpoint);
    }
    no_faults();
}

static void shards_of_which_one_is_not_mapped_are_read(void) {
    const char *folder = fixture_write_sharded("mapped", 1);
    no_faults();
    faults.mmap_not_shared = faults.mmap_not_private = true;
    st_checkpoint *checkpoint;
    OK(st_open(folder, NULL, &checkpoint, &err));
    CHECK(storage_of(checkpoint) == ST_STORAGE_READ);
    sharded_is_right(checkpoint);
    no_faults();
}

/* Not left to end by themselves: the program may go on to fork, or to unload the library. */
static void threads_have_ended_when_open_returns(void) {
    const char *folder = write_large_headers("ended", false);
    st_checkpoint *checkpoint;
    no_faults();
    OK(st_open(folder, NULL, &checkpoint, &err));
    CHECK(faults.threads > 0 && faults.joined == faults.threads);
    st_close(checkpoint);
    char last[64];
    snprintf(last, sizeof(last), "m-%d-of-%d.safetensors", LARGE_SHARDS, LARGE_SHARDS);
    CHECK(truncate(fixture_path_in("ended", last), 3) == 0);
    no_faults();
    FAILS(ST_ERR_HEADER_TOO_SMALL, st_open(folder, NULL, &checkpoint, &err));
    CHECK(faults.threads > 0 && faults.joined == faults.threads);
    no_faults();
}

/* Another thread of the program may be changing it. */
static void environment_is_not_read(void) {
    const char *folder = fixture_write_sharded("environment", 1);
    st_checkpoint *checkpoint;
    environment_reads = 0;
    OK(st_open(folder, NULL, &checkpoint, &err));
    sharded_is_right(checkpoint);
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = ST_STORAGE_READ;
    options.flags = ST_OPEN_POPULATE;
    OK(st_open(folder, &options, &checkpoint, &err));
    sharded_is_right(checkpoint);
    CHECK(environment_reads == 0);
}

static const test_case cases[] = {
    CASE(pread_in_small_pieces_and_interrupted),
    CASE(open_with_each_pread_failing),
    CASE(open_of_a_file_that_ends_meanwhile),
    CASE(read_that_fails_can_be_tried_again),
    CASE(mapping_not_shared_is_private),
    CASE(mapping_refused_is_read),
    CASE(remote_file_systems_are_read),
    CASE(copy_without_memory),
    CASE(populate_on_an_old_kernel),
    CASE(open_waits_for_a_lease),
    CASE(shards_with_each_call_failing),
    CASE(few_small_shards_start_no_threads),
    CASE(large_headers_are_read_by_several_threads),
    CASE(shards_without_threads),
    CASE(shards_with_leases),
    CASE(names_that_are_being_moved),
    CASE(shards_of_which_one_is_not_mapped_are_read),
    CASE(threads_have_ended_when_open_returns),
    CASE(environment_is_not_read),
};
TEST_MAIN(cases)
