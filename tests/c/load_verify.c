/* Loading what is verified on first use: ST_VERIFY_FIRST_USE. */
#define _GNU_SOURCE

#include "loading.h"
#include "test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TENSORS = 12, NBYTES = 200003, DAMAGED = 5 };
static const fixture_generation generation = {4, TENSORS, NBYTES, 0, ST_WRITE_BLAKE3, 0};

/* Long ago: a change is a change of the time of modification, which may be no finer than some milliseconds. */
static void make_old(const char *path) {
    const struct timespec times[2] = {{1000000000, 0}, {1000000000, 0}};
    CHECK(utimensat(AT_FDCWD, path, times, 0) == 0);
}

static size_t index_of(const st_checkpoint *checkpoint, size_t tensor) {
    char name[16];
    size_t index;
    snprintf(name, sizeof(name), "t%zu", tensor);
    CHECK(st_find(checkpoint, name, &index) == ST_OK);
    return index;
}

static const char *write_it(const char *folder, bool damaged) {
    const char *path = fixture_model_in(folder);
    fixture_put_quickly(path, &generation);
    if (damaged) {
        st_checkpoint *checkpoint = fixture_open_path(path, ST_STORAGE_READ, 0);
        st_tensor tensor;
        OK(st_tensor_info(checkpoint, index_of(checkpoint, DAMAGED), &tensor, &err));
        st_close(checkpoint);
        fixture_flip(path, tensor.file_offset + NBYTES - 1);
    }
    make_old(path);
    return path;
}

static st_checkpoint *open_as(const char *path, int32_t storage, int32_t verify) {
    st_open_options options = ST_OPEN_OPTIONS_INIT;
    options.storage = storage;
    options.verify = verify;
    st_checkpoint *checkpoint;
    OK(st_open(path, &options, &checkpoint, &err));
    return checkpoint;
}

static st_checkpoint *open_verified(const char *path, int32_t storage) {
    return open_as(path, storage, ST_VERIFY_FIRST_USE);
}

/* Every tensor of a file, as a load by these options has them. The one that is damaged is, and no other. */
static void only_the_damaged_one_fails(const char *path, int32_t storage, const st_load_options *options, bool to_dst) {
    st_checkpoint *unverified = fixture_open_path(path, storage, 0);
    st_request requests[TENSORS];
    CHECK(loading_whole(unverified, requests, TENSORS) == TENSORS);
    for (size_t i = 0; i < TENSORS && to_dst; i++) {
        requests[i].dst = malloc(NBYTES);
        requests[i].dst_len = NBYTES;
        CHECK(requests[i].dst);
    }
    loading it = loading_of(unverified, requests, TENSORS);
    it.checkpoint = open_verified(path, storage);
    const size_t bad = index_of(unverified, DAMAGED);
    /* The second load finds it damaged, too: nothing is taken for verified that was not. */
    for (int again = 0; again < 2; again++) {
        loading_start(&it, options);
        st_loaded loaded;
        st_status status;
        while ((status = loading_next(&it, -1, &loaded)) != ST_DONE) {
            CHECK(loaded.request != ST_ALL && (status == ST_OK || loaded.request == bad));
            if (status != ST_OK) {
                CHECK(status == ST_ERR_CHECKSUM_MISMATCH);
                SAYS("\"t5\"");
            }
            loading_recycle(&it, &loaded);
        }
        CHECK(it.failed == 1 && it.status[bad] == ST_ERR_CHECKSUM_MISMATCH);
        /* No byte of it was given away before. */
        CHECK(it.arrived[bad] == 0);
        st_progress progress;
        CHECK(st_load_progress(it.load, &progress) == ST_OK);
        CHECK(progress.items_done == TENSORS && progress.items_total == TENSORS);
        st_load_free(it.load);
    }
    it.load = NULL;
    st_close(it.checkpoint);
    st_close(unverified);
    loading_free(&it);
    for (size_t i = 0; i < TENSORS && to_dst; i++)
        free(requests[i].dst);
}

static void damaged_tensors_fail_alone(void) {
    const char *path = write_it("damaged", true);
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++)
        for (size_t e = 0; e < LEN(loading_every_engine); e++)
            for (int to_dst = 0; to_dst < 2 && loading_fits(storage, loading_every_engine[e]); to_dst++) {
                st_load_options options = loading_by(loading_every_engine[e]);
                options.workers = to_dst ? 2 : 0; /* it is small: this thread reads */
                only_the_damaged_one_fails(path, storage, &options, to_dst);
            }
}

static void damaged_tensors_fail_before_their_first_piece(void) {
    const char *path = write_it("pieces", true);
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (uint32_t flags = 0; flags <= ST_LOAD_IN_ORDER; flags++) {
            st_load_options options = loading_by(loading_engines[e]);
            options.flags = flags;
            options.piece_bytes = 50000;
            only_the_damaged_one_fails(path, ST_STORAGE_AUTO, &options, false);
            options.piece_bytes = 0;
            options.staging_bytes = 64 << 10;
            only_the_damaged_one_fails(path, ST_STORAGE_AUTO, &options, false);
        }
}

static void what_is_right_is_loaded(void) {
    const char *path = write_it("right", false);
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        st_checkpoint *checkpoint = open_verified(path, ST_STORAGE_AUTO);
        st_request requests[TENSORS];
        const size_t n = loading_whole(checkpoint, requests, TENSORS);
        st_load_options options = loading_by(loading_engines[e]);
        loading_all(checkpoint, requests, n, &options);
        options.piece_bytes = 50000;
        loading_all(checkpoint, requests, n, &options);
        st_close(checkpoint);
    }
}

/* Slices are verified as st_tensor_read verifies them. */
static void slices_of_damaged_tensors(void) {
    static const st_range half = {0, 1000};
    const char *path = write_it("slices", true);
    st_checkpoint *checkpoint = open_verified(path, ST_STORAGE_AUTO);
    const st_request request = {index_of(checkpoint, DAMAGED), &half, 1, NULL, 0, 0};
    unsigned char bytes[1000];
    const st_status wanted = st_tensor_read(checkpoint, request.index, &half, 1, bytes, sizeof(bytes), &err);
    st_close(checkpoint);
    for (size_t e = 0; e < LEN(loading_engines); e++) {
        checkpoint = open_verified(path, ST_STORAGE_AUTO);
        const st_load_options options = loading_by(loading_engines[e]);
        st_load *load;
        st_loaded loaded;
        OK(st_load_start(checkpoint, &request, 1, &options, &load, &err));
        const st_status status = st_load_next(load, -1, &loaded, &err);
        CHECK(status == wanted && loaded.request == 0);
        CHECK(status != ST_OK || memcmp(loaded.data, bytes, sizeof(bytes)) == 0);
        CHECK(st_load_next(load, -1, &loaded, &err) == ST_DONE);
        st_load_free(load);
        st_close(checkpoint);
    }
}

/* Written to since it was opened: that is told by whoever verifies anything. */
static void file_has_changed(const char *path, int32_t verify, int32_t engine) {
    make_old(path);
    st_checkpoint *checkpoint = open_as(path, ST_STORAGE_AUTO, verify);
    static const st_range half = {0, 1000};
    st_request requests[TENSORS];
    const size_t n = loading_whole(checkpoint, requests, TENSORS);
    requests[3].ranges = &half;
    requests[3].rank = 1;
    /* The bytes are the same, but who knows. */
    fixture_flip(path, (uint64_t)TENSORS * NBYTES / 2);
    fixture_flip(path, (uint64_t)TENSORS * NBYTES / 2);
    const st_load_options options = loading_by(engine);
    st_load *load;
    st_loaded loaded;
    OK(st_load_start(checkpoint, requests, n, &options, &load, &err));
    for (size_t i = 0; i < n; i++) {
        FAILS(ST_ERR_FILE_CHANGED, st_load_next(load, -1, &loaded, &err));
        CHECK(loaded.request < n && loaded.last && loaded.status == ST_ERR_FILE_CHANGED);
        SAYS("model.safetensors");
    }
    CHECK(st_load_next(load, -1, &loaded, &err) == ST_DONE);
    st_load_free(load);
    st_close(checkpoint);
}

static void files_that_have_changed(void) {
    const char *path = write_it("changed", false);
    for (size_t e = 0; e < LEN(loading_engines); e++)
        for (int32_t verify = ST_VERIFY_STRUCTURE; verify <= ST_VERIFY_FULL; verify++)
            file_has_changed(path, verify, loading_engines[e]);
}

static const test_case cases[] = {
    CASE(damaged_tensors_fail_alone),
    CASE(damaged_tensors_fail_before_their_first_piece),
    CASE(what_is_right_is_loaded),
    CASE(slices_of_damaged_tensors),
    CASE(files_that_have_changed),
};
TEST_MAIN(cases)
