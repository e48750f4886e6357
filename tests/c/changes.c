/* What happens to the file after it was opened. */
#define _GNU_SOURCE

#include "fixture.h"
#include "test.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Several pages, so that the end can be lost in whole pages. The second tensor is misaligned. */
enum { FIRST = 8192 + 2, SECOND = 8192, SECOND_AT = FIRST };
static const fixture_tensor paged_tensors[] = {{"first", "U8", "[8194]", FIRST, NULL}, {"second", "F32", "[2048]", SECOND, NULL}};
static const fixture paged = {paged_tensors, 2, NULL, 0};

static off_t size_of(const char *path) {
    FILE *file = fopen(path, "rb");
    CHECK(file && fseek(file, 0, SEEK_END) == 0);
    off_t size = ftello(file);
    fclose(file);
    return size;
}

/* Both tensors have the bytes of `paged`, each way of getting at them. */
static void is_whole(st_checkpoint *checkpoint) {
    unsigned char *read = malloc(FIRST);
    CHECK(read);
    const void *data;
    OK(st_tensor_read(checkpoint, 0, NULL, 0, read, FIRST, &err));
    CHECK(fixture_is(read, 0, FIRST));
    OK(st_tensor_read(checkpoint, 1, NULL, 0, read, FIRST, &err));
    CHECK(fixture_is(read, SECOND_AT, SECOND));
    OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
    CHECK(fixture_is(data, 0, FIRST));
    OK(st_tensor_ptr(checkpoint, 1, &data, NULL, &err));
    CHECK((uintptr_t)data % 4 == 0 && fixture_is(data, SECOND_AT, SECOND));
    free(read);
}

static void file_unlinked(void) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        const char *path = fixture_write("paged.safetensors", &paged);
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        CHECK(unlink(path) == 0);
        is_whole(checkpoint);
        CHECK(strcmp(st_shard_path(checkpoint, 0), path) == 0);
        st_close(checkpoint);
    }
}

static void file_replaced_by_rename(void) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        const char *path = fixture_write("paged.safetensors", &paged);
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0), *other;
        CHECK(rename(fixture_write("sample.safetensors", &fixture_sample), path) == 0);
        is_whole(checkpoint);
        other = fixture_open_path(path, storage, 0);
        CHECK(st_len(other) == SAMPLE_LEN && st_len(checkpoint) == 2);
        st_close(other);
        st_close(checkpoint);
    }
}

static void file_grown(void) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        const char *path = fixture_write("paged.safetensors", &paged);
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        CHECK(truncate(path, size_of(path) + 100000) == 0);
        is_whole(checkpoint);
        st_info info;
        CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
        CHECK(info.file_bytes == 8 + info.header_bytes + info.tensor_bytes);
        st_close(checkpoint);
    }
}

static void file_truncated(void) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        const char *path = fixture_write("paged.safetensors", &paged);
        const off_t size = size_of(path);
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        unsigned char *read = malloc(FIRST);
        CHECK(read);
        CHECK(truncate(path, size - 4) == 0);
        OK(st_tensor_read(checkpoint, 0, NULL, 0, read, FIRST, &err));
        FAILS(ST_ERR_TRUNCATED, st_tensor_read(checkpoint, 1, NULL, 0, read, FIRST, &err));
        SAYS("paged.safetensors");
        SAYS("\"second\"");
        /* The part that is still there can be had. */
        const st_range front = {0, SECOND / 4 - 1};
        OK(st_tensor_read(checkpoint, 1, &front, 1, read, FIRST, &err));
        CHECK(fixture_is(read, SECOND_AT, SECOND - 4));
        /* A misaligned tensor is read, not mapped, whatever the storage. */
        const void *data = read;
        st_view view;
        DLManagedTensorVersioned *managed = (DLManagedTensorVersioned *)read;
        FAILS(ST_ERR_TRUNCATED, st_tensor_ptr(checkpoint, 1, &data, NULL, &err));
        CHECK(data == read);
        FAILS(ST_ERR_TRUNCATED, st_tensor_view(checkpoint, 1, NULL, 0, &view, &err));
        FAILS(ST_ERR_TRUNCATED, st_tensor_dlpack(checkpoint, 1, NULL, 0, &managed, &err));
        CHECK(managed == NULL);

        CHECK(truncate(path, 0) == 0);
        FAILS(ST_ERR_TRUNCATED, st_tensor_read(checkpoint, 0, NULL, 0, read, FIRST, &err));
        const st_range nothing = {0, 0};
        OK(st_tensor_read(checkpoint, 0, &nothing, 1, read, 0, &err));
        st_close(checkpoint);
        free(read);
    }
}

static void file_truncated_and_restored(void) {
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        const char *path = fixture_write("paged.safetensors", &paged);
        st_checkpoint *checkpoint = fixture_open_path(path, storage, 0);
        const void *data;
        CHECK(truncate(path, 100) == 0);
        FAILS(ST_ERR_TRUNCATED, st_tensor_ptr(checkpoint, 1, &data, NULL, &err));
        fixture_write("paged.safetensors", &paged);
        is_whole(checkpoint);
        st_close(checkpoint);
    }
}

static void copies_outlive_truncation(void) {
    const char *path = fixture_write("paged.safetensors", &paged);
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_READ, 0);
    is_whole(checkpoint);
    CHECK(truncate(path, 0) == 0);
    const void *data;
    OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
    CHECK(fixture_is(data, 0, FIRST));
    st_close(checkpoint);
}

static void header_changed_after_open(void) {
    const char *path = fixture_write("paged.safetensors", &paged);
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_MMAP, 0);
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0 && pwrite(fd, "\xff\xff\xff\xff\xff\xff\xff\xffgarbage", 15, 0) == 15);
    close(fd);
    size_t index;
    CHECK(st_find(checkpoint, "second", &index) == ST_OK && index == 1);
    is_whole(checkpoint);
    st_close(checkpoint);
}

static void touch_lost_page(void) {
    const char *path = fixture_write("paged.safetensors", &paged);
    st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_MMAP, 0);
    const void *data;
    OK(st_tensor_ptr(checkpoint, 0, &data, NULL, &err));
    CHECK(truncate(path, 0) == 0);
    (void)*((const volatile unsigned char *)data + FIRST - 1);
}

/* The one signal that the header warns of: if this case fails, the header is to be changed. */
static void mapped_pointer_after_truncation_raises_sigbus(void) {
    if (test_is_instrumented())
        SKIP("raises a signal");
    int status = test_in_child(touch_lost_page);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

static const test_case cases[] = {
    CASE(file_unlinked),
    CASE(file_replaced_by_rename),
    CASE(file_grown),
    CASE(file_truncated),
    CASE(file_truncated_and_restored),
    CASE(copies_outlive_truncation),
    CASE(header_changed_after_open),
    CASE(mapped_pointer_after_truncation_raises_sigbus),
};

TEST_MAIN(cases)
