#define _GNU_SOURCE
/* Writing: st_writer_open, st_writer_metadata, st_writer_add, st_writer_declare, st_writer_write, st_writer_finish, st_writer_abort. */
#include "fixture.h"
#include "test.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
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

static void writer_abort_leaves_what_was_there(void) {
    const char *path = fixture_write("kept.safetensors", &fixture_sample);
    st_writer *writer = begin(path, NULL);
    OK(st_writer_declare(writer, "bytes", ST_DTYPE_U8, shape, 2, &err));
    OK(st_writer_write(writer, "bytes", "abcd", 4, &err));
    st_writer_abort(writer);
    st_writer_abort(NULL);
    st_close(fixture_open_path(path, ST_STORAGE_AUTO, 0));
}

static void writer_finish_can_be_called_again(void) {
    const char *path = fixture_path("again.safetensors");
    st_writer *writer = begin(path, NULL);
    OK(st_writer_declare(writer, "bytes", ST_DTYPE_U8, shape, 2, &err));
    FAILS(ST_ERR_INCOMPLETE, st_writer_finish(writer, &err));
    SAYS("\"bytes\" lacks 6 bytes");
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_finish(NULL, &err));
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

static void writer_open_of_paths_and_options_that_are_wrong(void) {
    st_writer *writer = (st_writer *)&err;
    const char *path = fixture_path("none.safetensors");
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(NULL, NULL, &writer, &err));
    CHECK(!writer);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, NULL, NULL, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open("", NULL, &writer, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(fixture_path(""), NULL, &writer, &err));
    FAILS(ST_ERR_IO, st_writer_open(fixture_path("absent/a"), NULL, &writer, &err));
    CHECK(err.os_error == ENOENT);
    fixture_write("file.safetensors", &fixture_sample);
    FAILS(ST_ERR_IO, st_writer_open(fixture_path("file.safetensors/a"), NULL, &writer, &err));
    CHECK(err.os_error == ENOTDIR);
    char long_name[300];
    memset(long_name, 'n', sizeof(long_name) - 1);
    long_name[sizeof(long_name) - 1] = 0;
    FAILS(ST_ERR_IO, st_writer_open(fixture_path(long_name), NULL, &writer, &err));
    CHECK(err.os_error == ENAMETOOLONG);
    FAILS(ST_ERR_NOT_A_FILE, st_writer_open("/tmp", NULL, &writer, &err));
    FAILS(ST_ERR_NOT_A_FILE, st_writer_open("/dev/null", NULL, &writer, &err));
    st_writer_options options = ST_WRITER_OPTIONS_INIT;
    options.flags = 32;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, &options, &writer, &err));
    options.flags = 0;
    static const uint32_t alignments[] = {1, 4, 12, 131072, 1u << 31, UINT32_MAX};
    for (size_t i = 0; i < LEN(alignments); i++) {
        char number[16];
        snprintf(number, sizeof(number), "%u", (unsigned)alignments[i]);
        options.alignment = alignments[i];
        FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, &options, &writer, &err));
        SAYS(number);
    }
    options.alignment = 0;
    options.struct_size = 31;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(path, &options, &writer, &err));
    options = (st_writer_options)ST_WRITER_OPTIONS_INIT;
    options.max_shard_bytes = 1;
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_open(fixture_path("\xff.safetensors"), &options, &writer, &err));
    CHECK(!writer && !exists(path));
}

static void writer_metadata_refuses_and_goes_on(void) {
    const char *path = fixture_path("metadata.safetensors");
    st_writer_options options = ST_WRITER_OPTIONS_INIT;
    options.flags = ST_WRITE_CRC;
    st_writer *writer = begin(path, &options);
    OK(st_writer_metadata(writer, "k", "v", &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_metadata(NULL, "k", "v", &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_metadata(writer, NULL, "v", &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_metadata(writer, "k", NULL, &err));
    FAILS(ST_ERR_HEADER_UTF8, st_writer_metadata(writer, "\xff", "v", &err));
    FAILS(ST_ERR_HEADER_UTF8, st_writer_metadata(writer, "x", "v\xff", &err));
    FAILS(ST_ERR_DUPLICATE_METADATA, st_writer_metadata(writer, "k", "v", &err));
    /* A checksum that will be written, and one that will not. */
    FAILS(ST_ERR_DUPLICATE_METADATA, st_writer_metadata(writer, "crc_num", "1", &err));
    OK(st_writer_metadata(writer, "modelspec.hash_sha256", "", &err));
    char *long_value = malloc(100000000);
    CHECK(long_value);
    memset(long_value, 'v', 99999999);
    long_value[99999999] = 0;
    FAILS(ST_ERR_HEADER_TOO_LARGE, st_writer_metadata(writer, "long", long_value, &err));
    free(long_value);
    OK(st_writer_metadata(writer, "more", "", &err));
    OK(st_writer_declare(writer, "bytes", ST_DTYPE_U8, shape, 2, &err));
    OK(st_writer_write(writer, "bytes", "abc", 3, &err));
    FAILS(ST_ERR_SEALED, st_writer_metadata(writer, "late", "", &err));
    OK(st_writer_write(writer, "bytes", "def", 3, &err));
    OK(st_writer_finish(writer, &err));
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    CHECK(st_metadata_len(checkpoint) == 4 && strcmp(st_metadata_get(checkpoint, "k"), "v") == 0);
    CHECK(strcmp(st_metadata_get(checkpoint, "more"), "") == 0 && st_metadata_get(checkpoint, "crc_num"));
    st_close(checkpoint);
}

/* What st_writer_add and st_writer_declare refuse of names, dtypes and shapes. */
static const struct {
    st_status status;
    const char *name;
    st_dtype dtype;
    uint64_t shape[2];
    size_t rank;
} wrong[] = {
    {ST_ERR_DUPLICATE_NAME, "a", ST_DTYPE_F32, {2, 3}, 2},          {ST_ERR_DUPLICATE_NAME, "b", ST_DTYPE_U8, {24}, 1},
    {ST_ERR_RESERVED_NAME, "__metadata__", ST_DTYPE_F32, {2, 3}, 2}, {ST_ERR_HEADER_UTF8, "\xff", ST_DTYPE_F32, {2, 3}, 2},
    {ST_ERR_INVALID_ARGUMENT, NULL, ST_DTYPE_F32, {2, 3}, 2},        {ST_ERR_INVALID_ARGUMENT, "c", 0, {2, 3}, 2},
    {ST_ERR_INVALID_ARGUMENT, "c", 23, {2, 3}, 2},                   {ST_ERR_INVALID_ARGUMENT, "c", -1, {2, 3}, 2},
    {ST_ERR_TENSOR_OVERFLOW, "c", ST_DTYPE_U8, {UINT64_MAX, 2}, 2},  {ST_ERR_TENSOR_OVERFLOW, "c", ST_DTYPE_F64, {UINT64_MAX / 8 + 1}, 1},
    {ST_ERR_TENSOR_PARTIAL_BYTE, "c", ST_DTYPE_F4, {3}, 1},          {ST_ERR_TENSOR_PARTIAL_BYTE, "c", ST_DTYPE_F6_E2M3, {2}, 1},
};

static st_writer *with_a_and_b(const char *path) {
    st_writer *writer = begin(path, NULL);
    OK(st_writer_add(writer, "a", ST_DTYPE_F32, shape, 2, weight, sizeof(weight), &err));
    OK(st_writer_declare(writer, "b", ST_DTYPE_U8, shape, 2, &err));
    return writer;
}

/* After refusals: what there was goes on, and is all that there is. */
static void holds_a_and_b(st_writer *writer, const char *path) {
    OK(st_writer_write(writer, "b", "abcdef", 6, &err));
    OK(st_writer_finish(writer, &err));
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    const void *data;
    size_t index;
    CHECK(st_len(checkpoint) == 2 && st_metadata_len(checkpoint) == 0);
    CHECK(st_find(checkpoint, "b", &index) == ST_OK);
    OK(st_tensor_ptr(checkpoint, index, &data, NULL, &err));
    CHECK(memcmp(data, "abcdef", 6) == 0);
    st_close(checkpoint);
}

static void writer_add_refuses_and_goes_on(void) {
    const char *path = fixture_path("added.safetensors");
    st_writer *writer = with_a_and_b(path);
    for (size_t i = 0; i < LEN(wrong); i++)
        FAILS(wrong[i].status, st_writer_add(writer, wrong[i].name, wrong[i].dtype, wrong[i].shape, wrong[i].rank, weight, 24, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_add(NULL, "c", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_add(writer, "c", ST_DTYPE_F32, NULL, 2, weight, 24, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_add(writer, "c", ST_DTYPE_F32, shape, 2, NULL, sizeof(weight), &err));
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_add(writer, "c", ST_DTYPE_F32, shape, 2, weight, 23, &err));
    SAYS("needs 24 bytes, 23 were given");
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_add(writer, "c", ST_DTYPE_F32, shape, 2, weight, 25, &err));
    OK(st_writer_write(writer, "b", NULL, 0, &err));
    FAILS(ST_ERR_SEALED, st_writer_add(writer, "c", ST_DTYPE_F32, shape, 2, weight, sizeof(weight), &err));
    holds_a_and_b(writer, path);
}

static void writer_declare_refuses_and_goes_on(void) {
    const char *path = fixture_path("declared.safetensors");
    st_writer *writer = with_a_and_b(path);
    for (size_t i = 0; i < LEN(wrong); i++)
        FAILS(wrong[i].status, st_writer_declare(writer, wrong[i].name, wrong[i].dtype, wrong[i].shape, wrong[i].rank, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_declare(NULL, "c", ST_DTYPE_U8, NULL, 0, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_declare(writer, "c", ST_DTYPE_U8, NULL, 2, &err));
    OK(st_writer_write(writer, "b", NULL, 0, &err));
    FAILS(ST_ERR_SEALED, st_writer_declare(writer, "c", ST_DTYPE_U8, shape, 2, &err));
    holds_a_and_b(writer, path);
}

/* The sizes of all tensors together. */
static void writer_declare_of_more_than_a_file_can_hold(void) {
    st_writer *writer = begin(fixture_path("large.safetensors"), NULL);
    const uint64_t large[] = {UINT64_MAX / 64};
    char name[16];
    for (int i = 0; i < 31; i++) {
        snprintf(name, sizeof(name), "large%d", i);
        OK(st_writer_declare(writer, name, ST_DTYPE_U8, large, 1, &err));
    }
    FAILS(ST_ERR_TENSOR_OVERFLOW, st_writer_declare(writer, "c", ST_DTYPE_U8, large, 1, &err));
    st_writer_abort(writer);
    CHECK(!exists(fixture_path("large.safetensors")));
}

static void writer_write_refuses_and_goes_on(void) {
    const char *path = fixture_path("pieces.safetensors");
    st_writer *writer = with_a_and_b(path);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_write(NULL, "b", "x", 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_write(writer, NULL, "x", 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_write(writer, "b", NULL, 1, &err));
    FAILS(ST_ERR_INVALID_ARGUMENT, st_writer_write(writer, "a", "", 0, &err));
    FAILS(ST_ERR_NOT_FOUND, st_writer_write(writer, "c", "", 0, &err));
    FAILS(ST_ERR_HEADER_UTF8, st_writer_write(writer, "\xff", "", 0, &err));
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_write(writer, "b", "abcdefg", 7, &err));
    /* Nothing was fixed by all that. */
    OK(st_writer_declare(writer, "d", ST_DTYPE_U8, NULL, 0, &err));
    OK(st_writer_write(writer, "b", "abcd", 4, &err));
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_write(writer, "b", "efg", 3, &err));
    OK(st_writer_write(writer, "d", "x", 1, &err));
    OK(st_writer_write(writer, "b", "ef", 2, &err));
    FAILS(ST_ERR_TENSOR_SIZE, st_writer_write(writer, "b", "g", 1, &err));
    OK(st_writer_finish(writer, &err));
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    const void *data;
    size_t index;
    CHECK(st_len(checkpoint) == 3 && st_find(checkpoint, "b", &index) == ST_OK);
    OK(st_tensor_ptr(checkpoint, index, &data, NULL, &err));
    CHECK(memcmp(data, "abcdef", 6) == 0);
    st_close(checkpoint);
}

static void writer_finish_is_ended_by_a_cancelled_task(void) {
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
    CASE(writer_abort_leaves_what_was_there),
    CASE(writer_finish_can_be_called_again),
    CASE(shards_and_an_index),
    CASE(writer_open_of_paths_and_options_that_are_wrong),
    CASE(writer_metadata_refuses_and_goes_on),
    CASE(writer_add_refuses_and_goes_on),
    CASE(writer_declare_refuses_and_goes_on),
    CASE(writer_declare_of_more_than_a_file_can_hold),
    CASE(writer_write_refuses_and_goes_on),
    CASE(writer_finish_is_ended_by_a_cancelled_task),
};

TEST_MAIN(cases)
