#define _GNU_SOURCE

#include "dlpack_abi.h"
#include "fixture.h"
#include "test.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST_THREADS = 16 };

static size_t threads(void) {
    return test_is_instrumented() ? 4 : MOST_THREADS;
}

static int rounds(int n) {
    return test_is_instrumented() ? n / 20 + 1 : n;
}

/* What the threads of a round share, and where each leaves what it got. */
static struct {
    st_checkpoint *checkpoint;
    const char *path;
    pthread_barrier_t start;
    const void *got[MOST_THREADS][SAMPLE_LEN];
} shared;

static void *const no_result = NULL;

/* Runs a function in all threads at once; its argument is the number of its thread. */
static void run_in_threads(void *(*run)(void *)) {
    pthread_t ids[MOST_THREADS];
    CHECK(pthread_barrier_init(&shared.start, NULL, (unsigned)threads()) == 0);
    for (size_t i = 0; i < threads(); i++)
        CHECK(pthread_create(&ids[i], NULL, run, (void *)i) == 0);
    for (size_t i = 0; i < threads(); i++)
        CHECK(pthread_join(ids[i], NULL) == 0);
    pthread_barrier_destroy(&shared.start);
}

static void all_threads_got_the_same(size_t what) {
    for (size_t i = 0; i < threads(); i++)
        CHECK(shared.got[i][what] && shared.got[i][what] == shared.got[0][what]);
}

static void use_everything(st_checkpoint *checkpoint) {
    size_t index, len;
    const size_t *indices;
    const void *data;
    unsigned char read[SAMPLE_WEIGHT_SIZE];
    st_view view;
    st_tensor tensor;
    struct DLManagedTensorVersioned *managed;
    const st_range rows = {1, 3};
    CHECK(st_find(checkpoint, "odd", &index) == ST_OK && index == SAMPLE_ODD);
    CHECK(st_find(checkpoint, "none", &index) == ST_ERR_NOT_FOUND);
    CHECK(st_keys(checkpoint, &len) && len == SAMPLE_LEN);
    CHECK(st_find_prefix(checkpoint, "b", &indices, &len) == ST_OK && len == 2 && indices[0] == SAMPLE_BIAS);
    CHECK(strcmp(st_metadata_get(checkpoint, "format"), "pt") == 0);
    OK(st_tensor_info(checkpoint, SAMPLE_WEIGHT, &tensor, &err));
    OK(st_tensor_ptr(checkpoint, SAMPLE_ODD, &data, NULL, &err));
    CHECK(fixture_is(data, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
    OK(st_tensor_view(checkpoint, SAMPLE_WEIGHT, &rows, 1, &view, &err));
    CHECK(fixture_is(view.data, SAMPLE_WEIGHT_AT + 20, 40));
    OK(st_tensor_read(checkpoint, SAMPLE_WEIGHT, &rows, 1, read, sizeof(read), &err));
    CHECK(fixture_is(read, SAMPLE_WEIGHT_AT + 20, 40));
    FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_ptr(checkpoint, 77, &data, NULL, &err));
    OK(st_tensor_dlpack(checkpoint, SAMPLE_ODD, NULL, 0, &managed, &err));
    CHECK(st_retain(checkpoint) == checkpoint);
    CHECK(fixture_is(managed->dl_tensor.data, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
    managed->deleter(managed);
    st_close(checkpoint);
}

static void *hammer(void *number) {
    (void)number;
    pthread_barrier_wait(&shared.start);
    for (int i = 0; i < rounds(500); i++)
        use_everything(shared.checkpoint);
    return no_result;
}

static void everything_on_one_handle(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        shared.checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        run_in_threads(hammer);
        st_close(shared.checkpoint);
    }
}

static void *first_keys(void *number) {
    pthread_barrier_wait(&shared.start);
    shared.got[(size_t)number][0] = st_keys(shared.checkpoint, NULL);
    return no_result;
}

static void *first_prefix(void *number) {
    const size_t *indices = NULL;
    size_t len;
    pthread_barrier_wait(&shared.start);
    CHECK(st_find_prefix(shared.checkpoint, "", &indices, &len) == ST_OK && len == SAMPLE_LEN);
    shared.got[(size_t)number][0] = indices;
    return no_result;
}

static void first_keys_and_first_prefix(void) {
    for (int i = 0; i < rounds(100); i++) {
        shared.checkpoint = fixture_open(&fixture_sample, ST_STORAGE_MMAP, 0);
        run_in_threads(first_keys);
        all_threads_got_the_same(0);
        run_in_threads(first_prefix);
        all_threads_got_the_same(0);
        st_close(shared.checkpoint);
    }
}

static void *first_ptr(void *number) {
    pthread_barrier_wait(&shared.start);
    for (size_t i = 0; i < SAMPLE_LEN; i++) {
        /* Each thread from another tensor on. */
        const size_t index = (i + (size_t)number) % SAMPLE_LEN;
        OK(st_tensor_ptr(shared.checkpoint, index, &shared.got[(size_t)number][index], NULL, &err));
    }
    CHECK(fixture_is(shared.got[(size_t)number][SAMPLE_ODD], SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
    return no_result;
}

static void first_copy_is_made_once(void) {
    const int32_t storages[] = {ST_STORAGE_MMAP, ST_STORAGE_READ};
    for (int i = 0; i < rounds(100); i++) {
        shared.checkpoint = fixture_open(&fixture_sample, storages[i % 2], 0);
        run_in_threads(first_ptr);
        for (size_t t = 0; t < SAMPLE_LEN; t++)
            all_threads_got_the_same(t);
        st_close(shared.checkpoint);
    }
}

static void *fail_to_copy(void *number) {
    (void)number;
    pthread_barrier_wait(&shared.start);
    const void *data;
    FAILS(ST_ERR_TRUNCATED, st_tensor_ptr(shared.checkpoint, SAMPLE_ODD, &data, NULL, &err));
    return no_result;
}

static void copy_that_fails_is_tried_again(void) {
    for (int i = 0; i < rounds(50); i++) {
        const char *path = fixture_write("sample.safetensors", &fixture_sample);
        OK(st_open(path, NULL, &shared.checkpoint, &err));
        CHECK(truncate(path, 0) == 0);
        run_in_threads(fail_to_copy);
        fixture_write("sample.safetensors", &fixture_sample);
        run_in_threads(first_ptr);
        all_threads_got_the_same(SAMPLE_ODD);
        st_close(shared.checkpoint);
    }
}

static void *retain_and_close(void *number) {
    (void)number;
    pthread_barrier_wait(&shared.start);
    for (int i = 0; i < rounds(10000); i++) {
        CHECK(st_retain(shared.checkpoint) == shared.checkpoint);
        st_close(shared.checkpoint);
    }
    /* The reference that was taken for this thread: whichever comes last closes. */
    use_everything(shared.checkpoint);
    st_close(shared.checkpoint);
    return no_result;
}

static void whichever_thread_comes_last_closes(void) {
    for (int i = 0; i < 5; i++) {
        shared.checkpoint = fixture_open(&fixture_sample, fixture_storages[i % 4], 0);
        for (size_t t = 1; t < threads(); t++)
            st_retain(shared.checkpoint);
        run_in_threads(retain_and_close);
    }
}

static void *open_and_close(void *number) {
    (void)number;
    pthread_barrier_wait(&shared.start);
    for (int i = 0; i < rounds(100); i++) {
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = i % 3;
        st_checkpoint *checkpoint;
        OK(st_open(shared.path, &options, &checkpoint, &err));
        use_everything(checkpoint);
        st_close(checkpoint);
        FAILS(ST_ERR_IO, st_open("/nonexistent/file", &options, &checkpoint, &err));
    }
    return no_result;
}

static void open_and_close_of_one_path(void) {
    shared.path = fixture_write("sample.safetensors", &fixture_sample);
    run_in_threads(open_and_close);
}

static struct DLManagedTensorVersioned *exported[MOST_THREADS];

static void *delete_exported(void *number) {
    struct DLManagedTensorVersioned *managed = exported[(size_t)number];
    pthread_barrier_wait(&shared.start);
    CHECK(fixture_is(managed->dl_tensor.data, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
    managed->deleter(managed);
    return no_result;
}

static void dlpack_tensors_deleted_in_other_threads(void) {
    for (int i = 0; i < rounds(100); i++) {
        shared.checkpoint = fixture_open(&fixture_sample, ST_STORAGE_READ, 0);
        for (size_t t = 0; t < threads(); t++)
            OK(st_tensor_dlpack(shared.checkpoint, SAMPLE_ODD, NULL, 0, &exported[t], &err));
        st_close(shared.checkpoint);
        run_in_threads(delete_exported);
    }
}

static void use_in_child(void) {
    use_everything(shared.checkpoint);
    st_close(shared.checkpoint);
}

static void fork_leaves_the_handle_to_both(void) {
    for (size_t s = 0; s < LEN(fixture_storages); s++) {
        shared.checkpoint = fixture_open(&fixture_sample, fixture_storages[s], 0);
        CHECK(test_in_child(use_in_child) == 0);
        use_everything(shared.checkpoint);
        CHECK(test_in_child(use_in_child) == 0);
        st_close(shared.checkpoint);
    }
}

static const test_case cases[] = {
    CASE(everything_on_one_handle),
    CASE(first_keys_and_first_prefix),
    CASE(first_copy_is_made_once),
    CASE(copy_that_fails_is_tried_again),
    CASE(whichever_thread_comes_last_closes),
    CASE(open_and_close_of_one_path),
    CASE(dlpack_tensors_deleted_in_other_threads),
    CASE(fork_leaves_the_handle_to_both),
};

TEST_MAIN(cases)
