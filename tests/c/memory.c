/*
 * What the library does when there is no memory: the n-th allocation fails, once or from then on, for each n until all goes well.
 *
 * Only allocations whose size comes from the file are made to fail. Rust ends the process when a few bytes for a message cannot be
 * had, and so would most programs; but a header of 100 MB must not bring down a process that could live without it.
 */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FROM_SIZE = 1024, TENSORS = 2000, FIRST_SIZE = 20000 };

#ifdef __GLIBC__

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);

static long countdown; /* 0: all allocations work */
static bool from_then_on, has_failed;

static bool fails(size_t size) {
    if (countdown == 0 || size < FROM_SIZE)
        return false;
    if (countdown > 1) {
        countdown--;
        return false;
    }
    if (!from_then_on)
        countdown = 0;
    has_failed = true;
    errno = ENOMEM;
    return true;
}

void *malloc(size_t size) {
    return fails(size) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    return fails(count * size) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    return fails(size) ? NULL : __libc_realloc(old, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    *out = fails(size) ? NULL : __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}

void *aligned_alloc(size_t alignment, size_t size) {
    return fails(size) ? NULL : __libc_memalign(alignment, size);
}

static const char *path;
static int32_t storage;
static long fail_at;

/* The outcome of a call that may find no memory, and must find or do nothing else wrong. */
static bool had_memory(st_status status) {
    CHECK(status == ST_OK || (status == ST_ERR_NO_MEMORY && has_failed));
    CHECK(status == ST_OK || (err.status == status && strlen(err.message) > 0));
    return status == ST_OK;
}

static void use(st_checkpoint *checkpoint, bool may_fail) {
    const size_t *indices;
    const void *data;
    size_t len;
    st_view view;
    static unsigned char dst[FIRST_SIZE];
    const st_range column[] = {{0, ST_END}, {0, 1}};
    CHECK(st_keys(checkpoint, &len) || may_fail);
    if (st_find_prefix(checkpoint, "", &indices, &len) == ST_OK)
        CHECK(len == TENSORS);
    else
        CHECK(may_fail);
    if (had_memory(st_tensor_ptr(checkpoint, 0, &data, NULL, &err)))
        CHECK(fixture_is(data, 0, FIRST_SIZE));
    else
        CHECK(may_fail);
    CHECK(had_memory(st_tensor_view(checkpoint, 0, column, 2, &view, &err)) || may_fail);
    CHECK(had_memory(st_tensor_read(checkpoint, 0, column, 2, dst, sizeof(dst), &err)) || may_fail);
}

/* Ends with 9 when fewer than fail_at allocations were needed. */
static void run_once(void) {
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = storage;
    st_checkpoint *checkpoint;
    countdown = fail_at;
    const bool open = had_memory(st_open(path, &options, &checkpoint, &err));
    CHECK(open || !checkpoint);
    if (open)
        use(checkpoint, true);
    countdown = 0;
    const bool failed = has_failed;
    if (open) {
        /* A failure leaves nothing wrong behind. */
        use(checkpoint, false);
        st_close(checkpoint);
    }
    if (!failed)
        _exit(9);
}

static void fail_one_by_one(const char *metadata) {
    static char names[TENSORS][48];
    static fixture_tensor tensors[TENSORS];
    for (size_t i = 0; i < TENSORS; i++) {
        snprintf(names[i], sizeof(names[i]), "model.layers.%zu.self_attn.q_proj", i);
        tensors[i] = (fixture_tensor){names[i], "F16", i ? "[1,1]" : "[100,100]", i ? 2 : FIRST_SIZE, NULL};
    }
    /* Misaligned, so that pointers need copies. */
    const fixture file = {tensors, TENSORS, metadata, 1};
    path = fixture_write("memory.safetensors", &file);
    for (storage = ST_STORAGE_MMAP; storage <= ST_STORAGE_READ; storage++)
        for (int rest = 0; rest < 2; rest++) {
            from_then_on = rest;
            int status = 0;
            for (fail_at = 1; status == 0 && fail_at < 1000; fail_at++)
                status = test_in_child(run_once);
            if (WIFSIGNALED(status))
                fprintf(stderr, "allocation %ld: signal %d\n", fail_at - 1, WTERMSIG(status));
            CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9);
            CHECK(fail_at > 5);
        }
}

static void allocations_fail_one_by_one(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers bring their own malloc");
    fail_one_by_one("{\"format\":\"pt\"}");
}

/* A header with escapes takes another way through the library. */
static void allocations_fail_for_a_header_with_escapes(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers bring their own malloc");
    fail_one_by_one("{\"format\":\"\\u0070t\"}");
}

/* A tensor may have as many dimensions as its header has room for, and a slice holds numbers for each. */
static void many_dimensions_once(void) {
    enum { RANK = 100000 };
    static char shape[2 * RANK + 2] = "[1";
    static st_range ranges[RANK];
    for (size_t i = 1; i < RANK; i++)
        memcpy(shape + 2 * i, ",1", 2);
    shape[2 * RANK] = ']';
    for (size_t i = 0; i < RANK; i++)
        ranges[i].stop = ST_END;
    const fixture_tensor tensor = {"deep", "U8", shape, 1, NULL};
    const fixture file = {&tensor, 1, NULL, 0};
    st_checkpoint *checkpoint = fixture_open(&file, ST_STORAGE_MMAP, 0);
    unsigned char dst[1];
    bool all = false;
    for (fail_at = 1; !all; fail_at++) {
        has_failed = false;
        countdown = fail_at;
        all = had_memory(st_tensor_read(checkpoint, 0, ranges, RANK, dst, 1, &err));
        DLManagedTensorVersioned *tensor_out;
        if (had_memory(st_tensor_dlpack(checkpoint, 0, ranges, RANK, &tensor_out, &err)))
            (*(void (**)(DLManagedTensorVersioned *))((char *)tensor_out + 16))(tensor_out);
        else
            all = false;
        countdown = 0;
        all = all && !has_failed;
    }
    CHECK(fail_at > 5 && fixture_is(dst, 0, 1));
    st_close(checkpoint);
}

static void allocations_fail_for_a_tensor_of_many_dimensions(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers bring their own malloc");
    CHECK(test_in_child(many_dimensions_once) == 0);
}

/* A checkpoint whose names, header and index are all larger than what fails. */
static const fixture_generation *written;
static char written_path[512];

/* Ends with 9 when fewer than fail_at allocations were needed. */
static void write_once(void) {
    fixture_writing writing = {written, written_path, NULL, NULL, 0, 0, 0};
    fixture_run(250, written->nbytes);
    countdown = fail_at;
    const st_status status = fixture_go_on(&writing, &err);
    countdown = 0;
    if (!had_memory(status)) {
        /* With memory it goes on from there. */
        OK(fixture_go_on(&writing, &err));
    }
    CHECK(fixture_found(written_path, written, 1) == written);
    if (!has_failed)
        _exit(9);
}

static void verify_once(void) {
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    st_checkpoint *checkpoint;
    for (options.verify = ST_VERIFY_STRUCTURE; options.verify <= ST_VERIFY_FULL; options.verify++) {
        countdown = fail_at;
        const bool open = had_memory(st_open(written_path, &options, &checkpoint, &err));
        CHECK(open || !checkpoint);
        countdown = 0;
        if (!open)
            OK(st_open(written_path, &options, &checkpoint, &err));
        countdown = fail_at;
        const void *data;
        if (!had_memory(st_tensor_ptr(checkpoint, 3, &data, NULL, &err)))
            OK((countdown = 0, st_tensor_ptr(checkpoint, 3, &data, NULL, &err)));
        countdown = fail_at;
        const bool verified = had_memory(st_verify(checkpoint, NULL, NULL, &err));
        countdown = 0;
        if (!verified)
            OK(st_verify(checkpoint, NULL, NULL, &err));
        st_close(checkpoint);
    }
    if (!has_failed)
        _exit(9);
}

static void fail_in_a_child(void (*once)(void), const char *what) {
    for (int rest = 0; rest < 2; rest++) {
        from_then_on = rest;
        int status = 0;
        for (fail_at = 1; status == 0 && fail_at < 1000; fail_at++)
            status = test_in_child(once);
        if (WIFSIGNALED(status))
            fprintf(stderr, "%s: allocation %ld: signal %d\n", what, fail_at - 1, WTERMSIG(status));
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 9);
        CHECK(fail_at > 5);
    }
}

static void allocations_fail_while_writing_and_verifying(void) {
    if (test_is_instrumented())
        SKIP("valgrind and sanitizers bring their own malloc");
    /* So few that lists of as many are smaller than what fails: without memory for some of these the process ends. */
    enum { SHARD_COUNT = 3 };
    static const fixture_generation generations[] = {
        {1, 300, 3000, 0, ST_WRITE_NO_SYNC | ST_WRITE_BLAKE3, 0},
        {2, 300, 3000, SHARD_COUNT, ST_WRITE_NO_SYNC | ST_WRITE_CRC | ST_WRITE_SHA256, 1},
    };
    for (size_t i = 0; i < LEN(generations); i++) {
        written = &generations[i];
        strcpy(written_path, fixture_model_in("writing"));
        fail_in_a_child(write_once, "writing");
        if (i == 0)
            fail_in_a_child(verify_once, "verifying");
    }
}

#else

static void allocations_fail_while_writing_and_verifying(void) {
    SKIP("needs glibc");
}

static void allocations_fail_for_a_tensor_of_many_dimensions(void) {
    SKIP("needs glibc");
}

static void allocations_fail_one_by_one(void) {
    SKIP("needs glibc");
}

static void allocations_fail_for_a_header_with_escapes(void) {
    SKIP("needs glibc");
}

#endif

static const test_case cases[] = {
    CASE(allocations_fail_one_by_one),
    CASE(allocations_fail_for_a_header_with_escapes),
    CASE(allocations_fail_for_a_tensor_of_many_dimensions),
    CASE(allocations_fail_while_writing_and_verifying),
};

TEST_MAIN(cases)
