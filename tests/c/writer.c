#define _GNU_SOURCE
/* Writing: st_writer_open, st_writer_metadata, st_writer_add, st_writer_declare, st_writer_write, st_writer_finish, st_writer_abort. */
#include "fixture.h"
#include "test.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const uint64_t shape[] = {2, 3};
static const float weight[] = {1, 2, 3, 4, 5, 6};

static st_writer *begin(const char *path, const st_writer_options *options) {
    st_writer *writer = NULL;
    OK(st_writer_open(path, options, &writer, &err));
    CHECK(writer);
    return writer;
}

static bool exists(const char *path) {
    struct stat about;
    return lstat(path, &about) == 0;
}

static void write_and_read_back(void) {
    const char *path = fixture_path("written.safetensors");
    st_writer *writer = begin(path, NULL);
    OK(st_writer_metadata(writer, "format", "pt", &err));
    OK(st_writer_add(writer, "weight", ST_DTYPE_F32, shape, 2, weight, sizeof(weight), &err));
    OK(st_writer_declare(writer, "bytes", ST_DTYPE_U8, shape, 2, &err));
    OK(st_writer_add(writer, "empty", ST_DTYPE_I64, (const uint64_t[]){0}, 1, NULL, 0, &err));
    OK(st_writer_add(writer, "scalar", ST_DTYPE_F32, NULL, 0, weight, 4, &err));
    OK(st_writer_write(writer, "bytes", "abcd", 4, &err));
    OK(st_writer_write(writer, "bytes", NULL, 0, &err));
    OK(st_writer_write(writer, "bytes", "ef", 2, &err));
    CHECK(!exists(path));
    OK(st_writer_finish(writer, &err));

    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    size_t index, nbytes;
    const void *data;
    OK(st_find(checkpoint, "weight", &index));
    OK(st_tensor_ptr(checkpoint, index, &data, &nbytes, &err));
    CHECK(nbytes == sizeof(weight) && memcmp(data, weight, nbytes) == 0);
    OK(st_find(checkpoint, "bytes", &index));
    OK(st_tensor_ptr(checkpoint, index, &data, &nbytes, &err));
    CHECK(nbytes == 6 && memcmp(data, "abcdef", 6) == 0);
    CHECK(st_metadata_len(checkpoint) == 1);
    st_close(checkpoint);
}

static void abort_leaves_what_was_there(void) {
    const char *path = fixture_write("kept.safetensors", &fixture_sample);
    st_writer *writer = begin(path, NULL);
    OK(st_writer_declare(writer, "bytes", ST_DTYPE_U8, shape, 2, &err));
    OK(st_writer_write(writer, "bytes", "abcd", 4, &err));
    st_writer_abort(writer);
    st_writer_abort(NULL);
    st_close(fixture_open_path(path, ST_STORAGE_AUTO, 0));
}

static void finish_can_be_called_again(void) {
    const char *path = fixture_path("again.safetensors");
    st_writer *writer = begin(path, NULL);
    OK(st_writer_declare(writer, "bytes", ST_DTYPE_U8, shape, 2, &err));
    FAILS(ST_ERR_INCOMPLETE, st_writer_finish(writer, &err));
    SAYS("\"bytes\" lacks 6 bytes");
    FAILS(ST_ERR_SEALED, st_writer_metadata(writer, "format", "pt", &err));
    FAILS(ST_ERR_SEALED, st_writer_declare(writer, "more", ST_DTYPE_U8, shape, 2, &err));
    OK(st_writer_write(writer, "bytes", "abcdef", 6, &err));
    OK(st_writer_finish(writer, &err));
    st_close(fixture_open_path(path, ST_STORAGE_AUTO, 0));
}

static void shards_and_an_index(void) {
    st_writer_options options = ST_WRITER_OPTIONS_INIT;
    options.max_shard_bytes = sizeof(weight);
    options.flags = ST_WRITE_NO_SYNC | ST_WRITE_INSERTION_ORDER;
    options.alignment = 64;
    st_writer *writer = begin(fixture_path("parts.safetensors"), &options);
    OK(st_writer_add(writer, "one", ST_DTYPE_F32, shape, 2, weight, sizeof(weight), &err));
    OK(st_writer_add(writer, "two", ST_DTYPE_F32, shape, 2, weight, sizeof(weight), &err));
    OK(st_writer_finish(writer, &err));
    CHECK(!exists(fixture_path("parts.safetensors")));
    st_checkpoint *checkpoint = fixture_open_path(fixture_path("parts.safetensors.index.json"), ST_STORAGE_AUTO, 0);
    CHECK(st_shard_len(checkpoint) == 2);
    st_tensor tensor;
    OK(st_tensor_info(checkpoint, 0, &tensor, &err));
    CHECK(tensor.alignment >= 64);
    st_close(checkpoint);
}

static void refusals(void) {
    st_writer *writer = begin(fixture_path("refused.safetensors"), NULL);
    OK(st_writer_add(writer, "a", ST_DTYPE_F32, shape, 2, weight, sizeof(weight), &err));
    OK(st_writer_declare(writer, "b", ST_DTYPE_U8, shape, 2, &err));
    OK(st_writer_metadata(writer, "k", "v", &err));
    FAILS(ST_ERR_DUPLICATE_NAME, st_writer_declare(writer, "a", ST_DTYPE_F32, shape, 2, &err));
    FAILS(ST_ERR_DUPLICATE_METADATA, st_writer_metadata(writer, "k", "v", &err));
    FAILS(ST_ERR_RESERVED_NAME, st_writer_declare(writer, "__metadata__", ST_DTYPE_F32, shape, 2, &err));
    FAILS(ST_ERR_HEADER_UTF8, st_writer_declare(writer, "\xff", ST_DTYPE_F32, shape, 2, &err));
    FAILS(ST_ERR_HEADER_UTF8, st_writer_metadata(writer, "\xff", "v", &err));
    FAILS(ST_ERR_HEADER_UTF8, st_writer_metadata(writer, "x", "v\xff", &err));
    FAILS(ST_ERR_HEADER_UTF8, st_writer_write(writer, "\xff", "", 0, &err));
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_add(writer, "c", ST_DTYPE_F32, shape, 2, weight, 23, &err));
    SAYS("needs 24 bytes, 23 were given");
    const uint64_t huge[] = {UINT64_MAX, 2}, large[] = {UINT64_MAX / 64}, odd[] = {3};
    FAILS(ST_ERR_TENSOR_OVERFLOW, st_writer_declare(writer, "c", ST_DTYPE_U8, huge, 2, &err));
    for (int i = 0; i < 40; i++) {
        char name[16];
        snprintf(name, sizeof(name), "large%d", i);
        OK(st_writer_declare(writer, name, ST_DTYPE_U8, large, 1, &err));
        if (i == 30) {
            FAILS(ST_ERR_TENSOR_OVERFLOW, st_writer_declare(writer, "c", ST_DTYPE_U8, large, 1, &err));
            break;
        }
    }
    FAILS(ST_ERR_TENSOR_PARTIAL_BYTE, st_writer_declare(writer, "c", ST_DTYPE_F4, odd, 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_declare(writer, "c", 0, shape, 2, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_declare(writer, "c", 23, shape, 2, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_declare(writer, "c", ST_DTYPE_U8, NULL, 2, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_add(writer, "c", ST_DTYPE_F32, shape, 2, NULL, sizeof(weight), &err));
    FAILS(ST_ERR_NOT_FOUND, st_writer_write(writer, "c", "", 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_write(writer, "a", "", 0, &err));
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_write(writer, "b", "abcdefg", 7, &err));
    /* Nothing was fixed by all that. */
    OK(st_writer_metadata(writer, "more", "", &err));
    st_writer_abort(writer);
    CHECK(!exists(fixture_path("refused.safetensors")));
}

static void arguments_that_are_none(void) {
    st_writer *writer = (st_writer *)&err;
    const char *path = fixture_path("none.safetensors");
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(NULL, NULL, &writer, &err));
    CHECK(!writer);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, NULL, NULL, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open("", NULL, &writer, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(fixture_path(""), NULL, &writer, &err));
    FAILS(ST_ERR_IO, st_writer_open(fixture_path("absent/a"), NULL, &writer, &err));
    FAILS(ST_ERR_NOT_A_FILE, st_writer_open("/tmp", NULL, &writer, &err));
    st_writer_options options = ST_WRITER_OPTIONS_INIT;
    options.flags = 32;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, &options, &writer, &err));
    options.flags = 0;
    options.alignment = 12;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, &options, &writer, &err));
    SAYS("12");
    options.alignment = 0;
    options.struct_size = 31;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, &options, &writer, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_metadata(NULL, "k", "v", &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_add(NULL, "a", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_declare(NULL, "a", ST_DTYPE_U8, NULL, 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_write(NULL, "a", "x", 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_finish(NULL, &err));
    writer = begin(path, NULL);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_metadata(writer, NULL, "v", &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_metadata(writer, "k", NULL, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_declare(writer, NULL, ST_DTYPE_U8, NULL, 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_write(writer, NULL, "x", 1, &err));
    st_writer_abort(writer);
}

static void a_cancelled_task_ends_finish(void) {
    st_task *task;
    OK(st_task_new(&task, &err));
    st_writer_options options = ST_WRITER_OPTIONS_INIT;
    options.task = task;
    const char *path = fixture_path("watched.safetensors");
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        st_writer *writer = begin(path, &options);
        OK(st_writer_add(writer, "a", ST_DTYPE_F32, shape, 2, weight, sizeof(weight), &err));
        if (cancelled) {
            st_task_cancel(task);
            FAILS(ST_ERR_CANCELLED, st_writer_finish(writer, &err));
            st_writer_abort(writer);
            CHECK(!exists(path));
        } else {
            OK(st_writer_finish(writer, &err));
            st_progress progress;
            CHECK(st_task_progress(task, &progress) == ST_OK);
            CHECK(progress.bytes_done == sizeof(weight) && progress.bytes_total == sizeof(weight));
            CHECK(progress.items_done == 1 && progress.items_total == 1);
            CHECK(unlink(path) == 0);
        }
    }
    st_task_free(task);
}

static const test_case cases[] = {
    CASE(write_and_read_back),
    CASE(abort_leaves_what_was_there),
    CASE(finish_can_be_called_again),
    CASE(shards_and_an_index),
    CASE(refusals),
    CASE(arguments_that_are_none),
    CASE(a_cancelled_task_ends_finish),
};

TEST_MAIN(cases)
