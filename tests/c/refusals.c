/*
 * Each system call of opening refused, as sandboxes and odd file systems do, with each of the numbers that they give. What is optional
 * is passed over: everything opens, and is right. What is not is an error with that number, and nothing is left open.
 */
#define _GNU_SOURCE

#include "fixture.h"
#include "refusing.h"
#include "test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif

static const unsigned os_errors[] = {EPERM, ENOSYS, EOPNOTSUPP, EINVAL};

static struct {
    const char *paths[4]; /* a file, a directory with an index, one without, an index */
    uint32_t may_fail;    /* these flags need the call */
    int all_may_fail;     /* so does everything */
    unsigned os_error;
} opening;

static size_t descriptors(void) {
    size_t count = 0;
    for (int fd = 0; fd < 64; fd++)
        count += dup2(fd, fd) >= 0;
    return count;
}

static void is_right(st_checkpoint *checkpoint) {
    for (size_t i = 0; i < st_len(checkpoint); i++) {
        const void *data;
        st_tensor tensor;
        unsigned char read[16384];
        OK(st_tensor_info(checkpoint, i, &tensor, &err));
        OK(st_tensor_ptr(checkpoint, i, &data, NULL, &err));
        OK(st_tensor_read(checkpoint, i, NULL, 0, read, sizeof(read), &err));
        CHECK(memcmp(read, data, tensor.nbytes) == 0);
    }
    CHECK(st_len(checkpoint) == SAMPLE_LEN || st_len(checkpoint) == SHARDED_LEN);
    if (st_len(checkpoint) == SHARDED_LEN)
        for (size_t i = 0; i < SHARDED_LEN; i++) {
            const void *data;
            OK(st_tensor_ptr(checkpoint, i, &data, NULL, &err));
            CHECK(fixture_is(data, fixture_sharded[i].at, fixture_sharded[i].nbytes));
        }
}

static void open_each_way(void) {
    const size_t before = descriptors();
    size_t opened = 0;
    for (size_t p = 0; p < LEN(opening.paths); p++)
        for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++)
            for (uint32_t flags = 0; flags < 2 * ST_OPEN_FOLLOW_LINKS; flags++) {
                if (storage == ST_STORAGE_READ && (flags & ST_OPEN_LOCK))
                    continue;
                st_open_options options = ST_OPEN_OPTIONS_INIT;
                options.storage = storage;
                options.flags = flags;
                st_checkpoint *checkpoint = (st_checkpoint *)&options;
                const st_status status = st_open(opening.paths[p], &options, &checkpoint, &err);
                if (status == ST_OK) {
                    is_right(checkpoint);
                    st_close(checkpoint);
                    opened++;
                } else {
                    const bool may_fail = opening.all_may_fail || (flags & opening.may_fail);
                    if (!may_fail)
                        fprintf(stderr, "storage %d, flags %u: %s\n", (int)storage, (unsigned)flags, err.message);
                    CHECK(may_fail && status == ST_ERR_IO && err.os_error == (int32_t)opening.os_error && !checkpoint);
                }
                CHECK(descriptors() == before);
            }
    CHECK(opened > 0 || opening.all_may_fail);
}

static void refuse_each(const unsigned *numbers, size_t len, uint32_t may_fail, int all_may_fail) {
    static char paths[4][512];
    if (test_is_instrumented())
        SKIP("what watches this process needs the calls");
    strcpy(paths[0], fixture_write("file.safetensors", &fixture_sample));
    strcpy(paths[1], fixture_write_sharded("indexed", 1));
    strcpy(paths[2], fixture_write_sharded("numbered", 0));
    strcpy(paths[3], fixture_path_in("indexed", fixture_index));
    for (size_t i = 0; i < LEN(paths); i++)
        opening.paths[i] = paths[i];
    opening.may_fail = may_fail;
    opening.all_may_fail = all_may_fail;
    for (size_t i = 0; i < len; i++)
        for (size_t k = 0; k < LEN(os_errors); k++) {
            opening.os_error = os_errors[k];
            refusing_in_child(numbers[i], os_errors[k], open_each_way);
        }
}

static void optional_calls(void) {
    static const unsigned numbers[] = {
        SYS_openat2,   SYS_fstatfs,   SYS_madvise,      SYS_fadvise64, SYS_getrusage, SYS_statx,             SYS_preadv,
        SYS_preadv2,   SYS_mincore,   SYS_cachestat,    SYS_fcntl,     SYS_prlimit64, SYS_sched_getaffinity, SYS_readlinkat,
        SYS_clone3,    SYS_mremap,    SYS_clock_gettime, SYS_prctl,
    };
    /* ST_OPEN_LOCK needs madvise as little as anything else, but memory that may be locked. */
    refuse_each(numbers, LEN(numbers), 0, 0);
}

static void calls_that_a_flag_needs(void) {
    static const unsigned numbers[] = {SYS_mlock};
    refuse_each(numbers, LEN(numbers), ST_OPEN_LOCK, 0);
}

static void calls_that_opening_needs(void) {
    static const unsigned numbers[] = {SYS_openat, SYS_newfstatat, SYS_pread64, SYS_getdents64};
    refuse_each(numbers, LEN(numbers), 0, 1);
}

/* Threads are optional as well: here there is work for several. */
static char many[512];

static void open_many(void) {
    st_checkpoint *checkpoint;
    OK(st_open(many, NULL, &checkpoint, &err));
    CHECK(st_shard_len(checkpoint) == 4);
    st_close(checkpoint);
}

static void threads(void) {
    enum { TENSORS = 10000, SHARD_COUNT = 4 };
    if (test_is_instrumented())
        SKIP("what watches this process needs the calls");
    strcpy(many, fixture_path("many"));
    CHECK(mkdir(many, 0755) == 0);
    static char names[TENSORS][24];
    static fixture_tensor tensors[TENSORS];
    for (int s = 0; s < SHARD_COUNT; s++) {
        for (int i = 0; i < TENSORS; i++) {
            snprintf(names[i], sizeof(names[i]), "layer.%d.%d", s, i);
            tensors[i] = (fixture_tensor){names[i], "U8", "[0]", 0, NULL};
        }
        char file[64];
        snprintf(file, sizeof(file), "many/m-%d-of-%d.safetensors", s + 1, SHARD_COUNT);
        fixture_write(file, &(fixture){tensors, TENSORS, NULL, 0});
    }
    for (size_t k = 0; k < LEN(os_errors); k++)
        refusing_in_child(SYS_sched_getaffinity, os_errors[k], open_many);
    refusing_in_child(SYS_clone3, ENOSYS, open_many);
    refusing_in_child(SYS_clone3, EPERM, open_many);
}

static const test_case cases[] = {
    CASE(optional_calls),
    CASE(calls_that_a_flag_needs),
    CASE(calls_that_opening_needs),
    CASE(threads),
};

TEST_MAIN(cases)
