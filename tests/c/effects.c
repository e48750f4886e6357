/* What the library does to its process: nothing that it was not asked for. */
#define _GNU_SOURCE

#include "dlpack_abi.h"
#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* A folder of shards, which are opened by several threads. */
static char sharded[512];

/* Calls of every kind, some of which fail. */
static void use_the_library(const char *path) {
    st_checkpoint *checkpoint;
    size_t index;
    const size_t *indices;
    const void *data;
    st_view view;
    char dst[SAMPLE_DATA_SIZE];
    struct DLManagedTensorVersioned *managed;
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = storage;
        options.flags = ST_OPEN_POPULATE;
        OK(st_open(path, &options, &checkpoint, &err));
        for (size_t i = 0; i <= SAMPLE_LEN; i++) {
            st_tensor_ptr(checkpoint, i, &data, NULL, &err);
            st_tensor_view(checkpoint, i, NULL, 0, &view, &err);
            st_tensor_read(checkpoint, i, NULL, 0, dst, 20, &err);
            if (st_tensor_dlpack(checkpoint, i, NULL, 0, &managed, &err) == ST_OK)
                managed->deleter(managed);
        }
        st_find(checkpoint, "nothing", &index);
        st_find_prefix(checkpoint, "w", &indices, &index);
        st_keys(checkpoint, NULL);
        st_close(checkpoint);
    }
    OK(st_open(sharded, NULL, &checkpoint, &err));
    for (size_t i = 0; i < SHARDED_LEN; i++)
        OK(st_tensor_ptr(checkpoint, i, &data, NULL, &err));
    st_close(checkpoint);
    st_open("/nonexistent/file", NULL, &checkpoint, &err);
    st_open("/dev/null", NULL, &checkpoint, &err);
    st_open(NULL, NULL, NULL, &err);
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len);
    for (size_t i = 0; i < len - SAMPLE_DATA_SIZE; i++) {
        bytes[i] ^= 0x20;
        if (st_open_buffer(bytes, len, NULL, &checkpoint, &err) == ST_OK)
            st_close(checkpoint);
        bytes[i] ^= 0x20;
    }
    free(bytes);
}

static const char *sample(void) {
    CHECK(snprintf(sharded, sizeof(sharded), "%s", fixture_write_sharded("sharded", 1)) < (int)sizeof(sharded));
    return fixture_write("sample.safetensors", &fixture_sample);
}

static void no_output(void) {
    const char *path = sample(), *output = fixture_path("output");
    fflush(NULL);
    int out = dup(1), error = dup(2), file = open(output, O_CREAT | O_RDWR | O_APPEND, 0600);
    CHECK(out >= 0 && error >= 0 && file >= 0);
    dup2(file, 1);
    dup2(file, 2);
    use_the_library(path);
    dup2(out, 1);
    dup2(error, 2);
    struct stat stat;
    CHECK(fstat(file, &stat) == 0);
    CHECK(stat.st_size == 0);
    close(out);
    close(error);
    close(file);
}

static void no_signal_handlers(void) {
    struct sigaction before[65], after;
    memset(before, 0, sizeof(before));
    for (int i = 1; i < 65; i++)
        sigaction(i, NULL, &before[i]);
    sigset_t blocked_before, blocked_after;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked_before);
    use_the_library(sample());
    pthread_sigmask(SIG_SETMASK, NULL, &blocked_after);
    for (int i = 1; i < 65; i++) {
        CHECK(sigismember(&blocked_before, i) == sigismember(&blocked_after, i));
        if (sigaction(i, NULL, &after) == 0)
            CHECK(after.sa_handler == before[i].sa_handler && after.sa_flags == before[i].sa_flags);
    }
}

static volatile sig_atomic_t handled;

static void handle(int signal) {
    (void)signal;
    handled = 1;
}

/* A program that waits for its signals must get them, whatever threads the library has: here that of st_prefetch. */
static void signals_stay_with_the_program(void) {
    st_checkpoint *checkpoint;
    OK(st_open(sample(), NULL, &checkpoint, &err));
    const size_t index = 0, before = test_entries("/proc/self/task");
    OK(st_prefetch(checkpoint, &index, 1, &err));
    CHECK(test_entries("/proc/self/task") == before + 1);

    CHECK(signal(SIGUSR1, handle) != SIG_ERR);
    sigset_t waited_for;
    sigemptyset(&waited_for);
    sigaddset(&waited_for, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &waited_for, NULL) == 0);
    CHECK(kill(getpid(), SIGUSR1) == 0);
    CHECK(sigtimedwait(&waited_for, NULL, &(struct timespec){10, 0}) == SIGUSR1);
    CHECK(!handled);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &waited_for, NULL) == 0);
    signal(SIGUSR1, SIG_DFL);
    st_close(checkpoint);
}

static void no_threads_are_left(void) {
    size_t before = test_entries("/proc/self/task");
    use_the_library(sample());
    test_threads_end(before);
}

static void no_descriptors_are_left(void) {
    const char *path = sample();
    const char *damaged = fixture_path("damaged");
    fixture_write_bytes(damaged, "\x02\0\0\0\0\0\0\0{", 9);
    size_t before = test_entries("/proc/self/fd");
    const int rounds = test_is_instrumented() ? 100 : 1000;
    for (int i = 0; i < rounds; i++) {
        st_checkpoint *checkpoint;
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = i % 3;
        OK(st_open(path, &options, &checkpoint, &err));
        st_close(st_retain(checkpoint));
        st_close(checkpoint);
        FAILS(ST_ERR_HEADER_LENGTH, st_open(damaged, &options, &checkpoint, &err));
        FAILS(ST_ERR_FOLDER_EMPTY, st_open("/", &options, &checkpoint, &err));
        options.flags = ST_OPEN_LOCK;
        options.storage = ST_STORAGE_READ;
        FAILS(ST_ERR_UNSUPPORTED, st_open(path, &options, &checkpoint, &err));
    }
    CHECK(test_entries("/proc/self/fd") == before);
}

static void descriptors_close_on_exec(void) {
    bool open_before[256];
    for (int fd = 0; fd < 256; fd++)
        open_before[fd] = fcntl(fd, F_GETFD) >= 0;
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, storage, 0);
        for (int fd = 0; fd < 256; fd++)
            CHECK(open_before[fd] || fcntl(fd, F_GETFD) < 0 || (fcntl(fd, F_GETFD) & FD_CLOEXEC));
        st_close(checkpoint);
    }
}

static void open_without_descriptors(void) {
    struct rlimit none = {0, 0};
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
    FAILS(ST_ERR_IO, st_open(fixture_path("sample.safetensors"), NULL, &checkpoint, &err));
    CHECK(err.os_error == EMFILE && checkpoint == NULL);
}

static void no_descriptors_to_be_had(void) {
    if (test_is_instrumented())
        SKIP("valgrind keeps descriptors for itself");
    sample();
    CHECK(test_in_child(open_without_descriptors) == 0);
}

static size_t resident_pages(void) {
    size_t size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%zu %zu", &size, &resident) == 2);
    fclose(file);
    return resident;
}

static void memory_does_not_grow(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers look for leaks themselves");
    const char *path = sample();
    for (int i = 0; i < 20; i++)
        use_the_library(path);
    size_t before = resident_pages();
    for (int i = 0; i < 100; i++)
        use_the_library(path);
    /* 100 rounds with thousands of calls each: one leak of a few bytes per call would be a MiB. */
    CHECK(resident_pages() < before + (1 << 20) / 4096);
}

/* A checkpoint of one tensor of 1 GiB, sparse on the disk, at an even address. */
static const uint64_t GIGABYTE = 1ull << 30;

static const char *write_gigabyte(void) {
    char header[256];
    int n = snprintf(header, sizeof(header), "{\"t\":{\"dtype\":\"U8\",\"shape\":[1024,1048576],\"data_offsets\":[0,%llu]}}",
                     (unsigned long long)GIGABYTE);
    unsigned char prefix[8] = {(unsigned char)n};
    const char *path = fixture_path("gigabyte.safetensors");
    int fd = open(path, O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(fd >= 0 && write(fd, prefix, 8) == 8 && write(fd, header, (size_t)n) == n);
    if (ftruncate(fd, (off_t)(8 + (uint64_t)n + GIGABYTE)) != 0)
        SKIP("no file of 1 GiB here");
    close(fd);
    return path;
}

static void limit_address_space(void) {
    size_t pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file && fscanf(file, "%zu", &pages) == 1);
    fclose(file);
    const rlim_t limit = (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + (64 << 20);
    const struct rlimit limits = {limit, limit};
    CHECK(setrlimit(RLIMIT_AS, &limits) == 0);
}

static void open_with_little_memory(void) {
    const char *path = fixture_path("gigabyte.safetensors");
    limit_address_space();
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    st_checkpoint *checkpoint;
    const void *data = NULL;
    char row[1 << 20];
    const st_range last = {1023, ST_END};

    options.storage = ST_STORAGE_MMAP;
    FAILS(ST_ERR_NO_MEMORY, st_open(path, &options, &checkpoint, &err));
    CHECK(checkpoint == NULL);
    /* A mapping that is refused is what ST_STORAGE_AUTO has an answer to. */
    OK(st_open(path, NULL, &checkpoint, &err));
    st_info info;
    CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK && info.storage == ST_STORAGE_READ);
    FAILS(ST_ERR_NO_MEMORY, st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
    SAYS("\"t\"");
    SAYS("1073741824");
    CHECK(data == NULL);
    OK(st_tensor_read(checkpoint, 0, &last, 1, row, sizeof(row), &err));
    FAILS(ST_ERR_NO_MEMORY, st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
    st_close(checkpoint);
}

static void little_memory_is_reported(void) {
    if (test_is_instrumented())
        SKIP("limits memory");
    const char *path = write_gigabyte();
    CHECK(test_in_child(open_with_little_memory) == 0);
    CHECK(unlink(path) == 0);
}

static void opening_reads_the_header_only(void) {
    if (test_is_instrumented())
        SKIP("counts pages");
    const char *path = write_gigabyte();
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = storage;
        st_checkpoint *checkpoint;
        size_t before = resident_pages();
        OK(st_open(path, &options, &checkpoint, &err));
        const st_range row = {512, 513};
        st_view view;
        if (storage == ST_STORAGE_MMAP) {
            OK(st_tensor_view(checkpoint, 0, &row, 1, &view, &err));
            CHECK(*(const char *)view.data == 0);
        }
        CHECK(resident_pages() < before + (4 << 20) / 4096);
        st_close(checkpoint);
    }
    CHECK(unlink(path) == 0);
}

static const test_case cases[] = {
    CASE(no_output),
    CASE(no_signal_handlers),
    CASE(signals_stay_with_the_program),
    CASE(no_threads_are_left),
    CASE(no_descriptors_are_left),
    CASE(descriptors_close_on_exec),
    CASE(no_descriptors_to_be_had),
    CASE(memory_does_not_grow),
    CASE(little_memory_is_reported),
    CASE(opening_reads_the_header_only),
};

TEST_MAIN(cases)
