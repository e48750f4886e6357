#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Opens the sample with options that may be of any size. */
static st_status open_with(const void *options, st_checkpoint **checkpoint) {
    return st_open(fixture_write("sample.safetensors", &fixture_sample), options, checkpoint, &err);
}

static void opens(const void *options) {
    st_checkpoint *checkpoint;
    OK(open_with(options, &checkpoint));
    CHECK(st_len(checkpoint) == SAMPLE_LEN);
    st_info info;
    CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
    CHECK(info.writable == 0);
    st_close(checkpoint);
}

static void refuses(st_status status, const void *options) {
    st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
    FAILS(status, open_with(options, &checkpoint));
    CHECK(checkpoint == NULL);
}

static st_open_options options_of(int32_t storage, uint32_t flags) {
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = storage;
    options.flags = flags;
    return options;
}

static void null_init_and_zero_are_the_defaults(void) {
    st_open_options init = ST_OPEN_OPTIONS_INIT, zeroed;
    memset(&zeroed, 0, sizeof(zeroed));
    zeroed.struct_size = sizeof(zeroed);
    CHECK(memcmp(&init, &zeroed, sizeof(init)) == 0);
    opens(NULL);
    opens(&init);
    opens(&zeroed);
}

static void struct_size_of_no_version_is_refused(void) {
    const size_t sizes[] = {0, 1, 7, 8, 15, 1 << 20, (size_t)INT_MAX, SIZE_MAX - 1, SIZE_MAX};
    for (size_t i = 0; i < LEN(sizes); i++) {
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.struct_size = sizes[i];
        refuses(ST_ERR_INVALID_ARGUMENT, &options);
        char number[32];
        snprintf(number, sizeof(number), "%zu", sizes[i]);
        SAYS(number);
    }
}

/* As a program that was compiled against a later header would have them. */
struct later {
    st_open_options known;
    unsigned char unknown[48];
};

static void later_options_that_use_nothing_new_are_taken(void) {
    for (size_t size = sizeof(st_open_options); size <= sizeof(struct later); size++) {
        struct later later = {ST_OPEN_OPTIONS_INIT, {0}};
        later.known.struct_size = size;
        /* What lies after the struct is none of the library's business. */
        memset((char *)&later + size, 0xff, sizeof(later) - size);
        opens(&later);
    }
}

static void later_options_that_use_something_new_are_refused(void) {
    for (size_t i = 0; i < sizeof(((struct later *)0)->unknown); i++) {
        struct later later = {ST_OPEN_OPTIONS_INIT, {0}};
        later.known.struct_size = sizeof(later);
        later.unknown[i] = 1;
        refuses(ST_ERR_INVALID_ARGUMENT, &later);
        SAYS(ST_VERSION);
    }
}

static void unknown_storage_is_refused(void) {
    const int32_t unknown[] = {-1, 4, 100, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < LEN(unknown); i++) {
        st_open_options options = options_of(unknown[i], 0);
        refuses(ST_ERR_INVALID_ARGUMENT, &options);
    }
}

static void unknown_flags_are_refused(void) {
    for (int bit = 4; bit < 32; bit++) {
        st_open_options options = options_of(ST_STORAGE_AUTO, 1u << bit | ST_OPEN_POPULATE);
        refuses(ST_ERR_INVALID_ARGUMENT, &options);
    }
}

static void each_storage_is_told(void) {
    for (size_t i = 0; i < LEN(fixture_storages); i++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[i], 0);
        st_info info;
        CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
        CHECK(info.storage != ST_STORAGE_AUTO);
        CHECK(fixture_storages[i] == ST_STORAGE_AUTO || info.storage == fixture_storages[i]);
        st_close(checkpoint);
    }
}

static void memory_for_a_file_is_refused(void) {
    st_open_options options = options_of(ST_STORAGE_MEMORY, 0);
    refuses(ST_ERR_UNSUPPORTED, &options);
}

static void files_storage_for_a_buffer_is_refused(void) {
    const int32_t storages[] = {ST_STORAGE_MMAP, ST_STORAGE_READ};
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len);
    for (size_t i = 0; i < LEN(storages); i++) {
        st_open_options options = options_of(storages[i], 0);
        st_checkpoint *checkpoint;
        FAILS(ST_ERR_UNSUPPORTED, st_open_buffer(bytes, len, &options, &checkpoint, &err));
        CHECK(!checkpoint);
    }
    free(bytes);
}

static void copy_on_write_changes_memory_only(void) {
    for (size_t i = 0; i < LEN(fixture_storages); i++) {
        st_checkpoint *checkpoint = fixture_open(&fixture_sample, fixture_storages[i], ST_OPEN_COPY_ON_WRITE);
        st_info info;
        CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK && info.writable == 1);
        const struct {
            size_t index, at, size;
        } tensors[] = {{SAMPLE_WEIGHT, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE}, {SAMPLE_ODD, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE}};
        for (size_t t = 0; t < LEN(tensors); t++) {
            const void *data, *again;
            unsigned char read[SAMPLE_WEIGHT_SIZE];
            OK(st_tensor_ptr(checkpoint, tensors[t].index, &data, NULL, &err));
            CHECK(fixture_is(data, tensors[t].at, tensors[t].size));
            memset((void *)(uintptr_t)data, 0xee, tensors[t].size);
            OK(st_tensor_ptr(checkpoint, tensors[t].index, &again, NULL, &err));
            CHECK(again == data && *(const unsigned char *)again == 0xee);
            OK(st_tensor_read(checkpoint, tensors[t].index, NULL, 0, read, sizeof(read), &err));
            CHECK(fixture_is(read, tensors[t].at, tensors[t].size));
        }
        st_close(checkpoint);
    }
}

static void copy_on_write_is_not_seen_by_others(void) {
    const char *path = fixture_write("sample.safetensors", &fixture_sample);
    const int32_t storages[] = {ST_STORAGE_MMAP, ST_STORAGE_READ};
    for (size_t i = 0; i < LEN(storages); i++) {
        st_open_options options = options_of(storages[i], ST_OPEN_COPY_ON_WRITE);
        st_checkpoint *writer, *reader, *other_writer;
        OK(st_open(path, &options, &writer, &err));
        OK(st_open(path, NULL, &reader, &err));
        OK(st_open(path, &options, &other_writer, &err));
        const void *data;
        OK(st_tensor_ptr(writer, SAMPLE_WEIGHT, &data, NULL, &err));
        memset((void *)(uintptr_t)data, 0xee, SAMPLE_WEIGHT_SIZE);
        OK(st_tensor_ptr(reader, SAMPLE_WEIGHT, &data, NULL, &err));
        CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        OK(st_tensor_ptr(other_writer, SAMPLE_WEIGHT, &data, NULL, &err));
        CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        st_close(writer);
        st_close(other_writer);
        st_close(reader);
        OK(st_open(path, NULL, &reader, &err));
        OK(st_tensor_ptr(reader, SAMPLE_WEIGHT, &data, NULL, &err));
        CHECK(fixture_is(data, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
        st_close(reader);
    }
}

static void write_to_read_only_tensor(void) {
    st_checkpoint *checkpoint = fixture_open(&fixture_sample, ST_STORAGE_MMAP, 0);
    const void *data;
    OK(st_tensor_ptr(checkpoint, SAMPLE_WEIGHT, &data, NULL, &err));
    *(volatile unsigned char *)(uintptr_t)data = 1;
}

static void without_copy_on_write_a_mapping_is_read_only(void) {
    if (test_is_instrumented())
        SKIP("raises a signal");
    int status = test_in_child(write_to_read_only_tensor);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* A checkpoint of one tensor of 4 MiB. */
enum { LARGE = 4 << 20 };
static const fixture_tensor large_tensors[] = {{"large", "U8", "[4194304]", LARGE, NULL}};
static const fixture large = {large_tensors, 1, NULL, 0};

static bool is_resident(const void *data, size_t len) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    static unsigned char pages[LARGE / 4096 + 2];
    uintptr_t first = (uintptr_t)data / page * page, end = (uintptr_t)data + len;
    CHECK(mincore((void *)first, end - first, pages) == 0);
    for (size_t i = 0; i < (end - first + page - 1) / page; i++)
        if (!(pages[i] & 1))
            return false;
    return true;
}

static const char *write_large_and_drop_it_from_the_cache(void) {
    const char *path = fixture_write("large.safetensors", &large);
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && fsync(fd) == 0);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
    return path;
}

static void populate_reads_all_of_a_mapping(void) {
    const uint32_t flags[] = {ST_OPEN_POPULATE, ST_OPEN_POPULATE | ST_OPEN_COPY_ON_WRITE};
    for (size_t i = 0; i < LEN(flags); i++) {
        st_open_options options = options_of(ST_STORAGE_MMAP, flags[i]);
        st_checkpoint *checkpoint;
        OK(st_open(write_large_and_drop_it_from_the_cache(), &options, &checkpoint, &err));
        const void *data;
        OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
        CHECK(is_resident(data, LARGE));
        st_close(checkpoint);
    }
}

static void populate_is_taken_by_every_storage(void) {
    for (size_t i = 0; i < LEN(fixture_storages); i++) {
        st_checkpoint *checkpoint = fixture_open(&large, fixture_storages[i], ST_OPEN_POPULATE);
        const void *data;
        OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
        CHECK(fixture_is(data, 0, LARGE));
        st_close(checkpoint);
    }
}

static void lock_with_little_room(void) {
    test_become_nobody();
    struct rlimit limit = {65536, 65536};
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    st_open_options options = options_of(ST_STORAGE_MMAP, ST_OPEN_LOCK);
    st_checkpoint *checkpoint = (st_checkpoint *)&checkpoint;
    st_status status = st_open(fixture_path("large.safetensors"), &options, &checkpoint, &err);
    CHECK(status == ST_ERR_IO || status == ST_ERR_NO_MEMORY);
    CHECK(err.status == status && (err.os_error == ENOMEM || err.os_error == EPERM || err.os_error == EAGAIN));
    CHECK(checkpoint == NULL);
    /* The small one fits. */
    OK(st_open(fixture_path("sample.safetensors"), &options, &checkpoint, &err));
    st_close(checkpoint);
}

static void lock_needs_room(void) {
    if (test_is_instrumented())
        SKIP("limits memory");
    fixture_write("sample.safetensors", &fixture_sample);
    fixture_write("large.safetensors", &large);
    CHECK(test_in_child(lock_with_little_room) == 0);
}

static long locked_kilobytes(void) {
    FILE *status = fopen("/proc/self/status", "r");
    char line[256];
    long locked = -1;
    while (status && fgets(line, sizeof(line), status))
        if (sscanf(line, "VmLck: %ld", &locked) == 1)
            break;
    if (status)
        fclose(status);
    return locked;
}

static void lock_locks_until_closed(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers do not lock memory");
    struct rlimit limit;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    if (geteuid() != 0 && limit.rlim_cur < LARGE + 65536)
        SKIP("RLIMIT_MEMLOCK is too small here");
    long before = locked_kilobytes();
    st_checkpoint *checkpoint = fixture_open(&large, ST_STORAGE_MMAP, ST_OPEN_LOCK);
    CHECK(locked_kilobytes() - before >= LARGE / 1024);
    st_close(checkpoint);
    CHECK(locked_kilobytes() == before);
}

static void lock_needs_a_mapping(void) {
    st_open_options options = options_of(ST_STORAGE_READ, ST_OPEN_LOCK);
    refuses(ST_ERR_UNSUPPORTED, &options);
    options.storage = ST_STORAGE_AUTO;
    size_t len;
    unsigned char *bytes = fixture_bytes(&fixture_sample, &len);
    st_checkpoint *checkpoint;
    FAILS(ST_ERR_UNSUPPORTED, st_open_buffer(bytes, len, &options, &checkpoint, &err));
    free(bytes);
}

static const test_case cases[] = {
    CASE(null_init_and_zero_are_the_defaults),
    CASE(struct_size_of_no_version_is_refused),
    CASE(later_options_that_use_nothing_new_are_taken),
    CASE(later_options_that_use_something_new_are_refused),
    CASE(unknown_storage_is_refused),
    CASE(unknown_flags_are_refused),
    CASE(each_storage_is_told),
    CASE(memory_for_a_file_is_refused),
    CASE(files_storage_for_a_buffer_is_refused),
    CASE(copy_on_write_changes_memory_only),
    CASE(copy_on_write_is_not_seen_by_others),
    CASE(without_copy_on_write_a_mapping_is_read_only),
    CASE(populate_reads_all_of_a_mapping),
    CASE(populate_is_taken_by_every_storage),
    CASE(lock_needs_room),
    CASE(lock_locks_until_closed),
    CASE(lock_needs_a_mapping),
};

TEST_MAIN(cases)
