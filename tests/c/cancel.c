/*
 * Threads that are cancelled inside calls: the call finishes, then the thread is cancelled at its
 * next cancellation point, and nothing leaks or stays locked.
 */
#define _GNU_SOURCE

#include "dlpack_abi.h"
#include "fixture.h"
#include "loading.h"
#include "test.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Runs a function in a thread, which must end by being cancelled. */
static void is_cancelled(void *(*run)(void *), void *with) {
    pthread_t thread;
    void *result = NULL;
    CHECK(pthread_create(&thread, NULL, run, with) == 0);
    CHECK(pthread_join(thread, &result) == 0);
    CHECK(result == PTHREAD_CANCELED);
}

/*
 * From here on the thread is to be cancelled: at the first cancellation point that it comes to,
 * such as open(2), read(2) or fsync(2).
 */
static void cancel_this_thread(void) {
    CHECK(pthread_cancel(pthread_self()) == 0);
}

/* After a call: the thread can still be cancelled, as before. */
static void still_can(void) {
    int state = -1;
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state) == 0);
    CHECK(state == PTHREAD_CANCEL_ENABLE);
    CHECK(pthread_setcancelstate(state, NULL) == 0);
}

#define DURING(call) (OK(call), still_can())

static const char *file, *directory, *output_path;
static unsigned char *bytes;
static size_t bytes_len;

static void use(st_checkpoint *checkpoint) {
    const void *data;
    size_t len, index;
    const size_t *indices;
    const size_t wanted[] = {0, 1, 2};
    const st_range rows = {0, 1};
    unsigned char read[SAMPLE_WEIGHT_SIZE];
    st_tensor tensor;
    st_view view;
    st_info info;
    st_residency_info residency;
    struct DLManagedTensorVersioned *managed;
    struct DLManagedTensor *unversioned;
    CHECK(st_len(checkpoint) == SAMPLE_LEN && st_keys(checkpoint, &len));
    CHECK(st_find(checkpoint, "odd", &index) == ST_OK && index == SAMPLE_ODD);
    CHECK(st_find_n(checkpoint, "odd", 3, &index) == ST_OK);
    CHECK(st_find_prefix(checkpoint, "", &indices, &len) == ST_OK && len == SAMPLE_LEN);
    CHECK(st_checkpoint_info(checkpoint, &info) == ST_OK);
    CHECK(st_metadata_len(checkpoint) == 2 && st_metadata_get(checkpoint, "format"));
    CHECK(st_shard_len(checkpoint) == 1 && st_shard_path(checkpoint, 0));
    DURING(st_tensor_info(checkpoint, SAMPLE_ODD, &tensor, &err));
    DURING(st_tensor_ptr(checkpoint, SAMPLE_ODD, &data, NULL, &err));
    CHECK(fixture_is(data, SAMPLE_ODD_AT, SAMPLE_ODD_SIZE));
    DURING(st_tensor_view(checkpoint, SAMPLE_WEIGHT, &rows, 1, &view, &err));
    DURING(st_tensor_read(checkpoint, SAMPLE_WEIGHT, NULL, 0, read, sizeof(read), &err));
    CHECK(fixture_is(read, SAMPLE_WEIGHT_AT, SAMPLE_WEIGHT_SIZE));
    DURING(st_tensor_dlpack(checkpoint, SAMPLE_ODD, NULL, 0, &managed, &err));
    managed->deleter(managed);
    DURING(st_tensor_dlpack_unversioned(checkpoint, SAMPLE_ODD, NULL, 0, &unversioned, &err));
    unversioned->deleter(unversioned);
    DURING(st_acquire(checkpoint, SAMPLE_SCALAR, &data, NULL, &err));
    DURING(st_release(checkpoint, SAMPLE_SCALAR, &err));
    DURING(st_prefetch(checkpoint, wanted, LEN(wanted), &err));
    DURING(st_residency(checkpoint, ST_ALL, &residency, &err));
    DURING(st_set_budget(checkpoint, 4096, &err));
    DURING(st_evict(checkpoint, SAMPLE_SCALAR, ST_EVICT_PAGE_CACHE, &err));
    FAILS(ST_ERR_CHECKSUM_MISSING, st_verify(checkpoint, NULL, NULL, &err));
    FAILS(ST_ERR_OUT_OF_RANGE, st_tensor_ptr(checkpoint, 77, &data, NULL, &err));
    still_can();
    CHECK(st_retain(checkpoint) == checkpoint);
    st_close(checkpoint);
}

/* Every way to open, and every question. */
static void *open_and_use(void *unused) {
    (void)unused;
    st_checkpoint *checkpoint;
    cancel_this_thread();
    for (int32_t storage = ST_STORAGE_AUTO; storage <= ST_STORAGE_READ; storage++) {
        st_open_options options = ST_OPEN_OPTIONS_INIT;
        options.storage = storage;
        DURING(st_open(file, &options, &checkpoint, &err));
        use(checkpoint);
        st_close(checkpoint);
    }
    DURING(st_open(directory, NULL, &checkpoint, &err));
    CHECK(st_shard_len(checkpoint) == SHARDS);
    st_close(checkpoint);
    DURING(st_open_buffer(bytes, bytes_len, NULL, &checkpoint, &err));
    use(checkpoint);
    st_close(checkpoint);
    FAILS(ST_ERR_IO, st_open("/nonexistent/file", NULL, &checkpoint, &err));
    still_can();
    pthread_testcancel();
    CHECK(!"a thread that was to be cancelled goes on");
    return NULL;
}

static void calls_on_checkpoints_finish_first(void) {
    file = fixture_write("cancel.safetensors", &fixture_sample);
    directory = fixture_write_sharded("cancel", 1);
    bytes = fixture_bytes(&fixture_sample, &bytes_len);
    const size_t descriptors = test_entries("/proc/self/fd"), threads = test_entries("/proc/self/task");
    is_cancelled(open_and_use, NULL);
    test_threads_end(threads);
    CHECK(test_entries("/proc/self/fd") == descriptors);
    free(bytes);
}

/* A writer is finished, another aborted when its temporary files are there. */
static void *write_and_verify(void *generation) {
    fixture_writing writing = {generation, output_path, NULL, NULL, 0, 0, 0};
    const uint64_t shape[] = {8};
    st_writer *writer;
    st_task *task;
    st_progress progress;
    st_verify_options options = ST_VERIFY_OPTIONS_INIT;
    st_verify_report report;
    st_checkpoint *checkpoint;
    fixture_run(250, writing.generation->nbytes);
    cancel_this_thread();
    DURING(fixture_go_on(&writing, &err));
    DURING(st_writer_open(output_path, NULL, &writer, &err));
    DURING(st_writer_declare(writer, "t", ST_DTYPE_U8, shape, 1, &err));
    DURING(st_writer_write(writer, "t", shape, sizeof(shape), &err));
    st_writer_abort(writer);
    still_can();
    DURING(st_open(output_path, NULL, &checkpoint, &err));
    DURING(st_task_new(&task, &err));
    options.task = task;
    DURING(st_verify(checkpoint, &options, &report, &err));
    CHECK(report.tensors == writing.generation->tensors && report.bad_shards == 0);
    CHECK(st_task_progress(task, &progress) == ST_OK);
    st_task_cancel(task);
    FAILS(ST_ERR_CANCELLED, st_verify(checkpoint, &options, &report, &err));
    st_task_free(task);
    st_close(checkpoint);
    still_can();
    pthread_testcancel();
    CHECK(!"a thread that was to be cancelled goes on");
    return NULL;
}

static void writing_and_verifying_finish_first(void) {
    fixture_generation generations[] = {{1, 5, 1000, 0, ST_WRITE_BLAKE3 | ST_WRITE_SHA256, 0},
                                        {2, 5, 1000, 0, ST_WRITE_CRC, 1}};
    static char to[512];
    strcpy(to, fixture_model_in("written"));
    output_path = to;
    const size_t descriptors = test_entries("/proc/self/fd"), threads = test_entries("/proc/self/task");
    for (size_t i = 0; i < LEN(generations); i++) {
        is_cancelled(write_and_verify, &generations[i]);
        test_threads_end(threads);
        CHECK(test_entries("/proc/self/fd") == descriptors);
        CHECK(fixture_found(to, &generations[i], 1));
        fixture_only(to, &generations[i]);
    }
}

static st_checkpoint *loaded;
static st_load *load;
static int32_t engine;

static void *load_all(void *unused) {
    (void)unused;
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    st_request requests[L_LEN];
    st_progress progress;
    st_loaded it;
    options.engine = engine;
    const size_t n = loading_whole(loaded, requests, LEN(requests));
    st_status status;
    cancel_this_thread();
    /* Once to the end; once freed while it runs. */
    for (int i = 0; i < 2; i++) {
        DURING(st_load_start(loaded, requests, n, &options, &load, &err));
        while (i == 0 && (status = st_load_next(load, -1, &it, &err)) != ST_DONE) {
            CHECK(status == ST_OK);
            DURING(st_load_recycle(load, &it, &err));
        }
        CHECK(st_load_progress(load, &progress) == ST_OK);
        if (i == 1)
            st_load_cancel(load);
        st_load_free(load);
        still_can();
    }
    pthread_testcancel();
    CHECK(!"a thread that was to be cancelled goes on");
    return NULL;
}

static void loading_finishes_first(void) {
    const char *path = fixture_write("load.safetensors", &loading_model);
    loaded = fixture_open_path(path, ST_STORAGE_AUTO, 0);
    const size_t threads = test_entries("/proc/self/task");
    for (size_t i = 0; i < LEN(loading_engines); i++) {
        engine = loading_engines[i];
        loading_drop(path);
        is_cancelled(load_all, NULL);
        test_threads_end(threads);
    }
    st_close(loaded);
}

/* --- Cancelled by another thread while a call waits --- */

enum { TIMEOUT_MS = 60000 };
static int cancel_type;
static volatile bool has_begun, has_returned;
static st_loaded taken;

static void *wait_for_staging(void *unused) {
    (void)unused;
    int before;
    CHECK(pthread_setcanceltype(cancel_type, &before) == 0);
    has_begun = true;
    const st_status status = st_load_next(load, TIMEOUT_MS, &taken, NULL);
    /* Of asynchronous type it is cancelled before this. */
    has_returned = status == ST_OK;
    pthread_testcancel();
    return NULL;
}

static void wait_and_be_cancelled(int type) {
    st_load_options options = ST_LOAD_OPTIONS_INIT;
    const st_request requests[2] = {{.index = L_LARGE}, {.index = L_LARGE}};
    st_loaded first;
    pthread_t thread;
    void *result;
    loaded = fixture_open(&loading_model, ST_STORAGE_AUTO, 0);
    /* Room for one of the two: the other waits until that is recycled. */
    options.staging_bytes = 4 << 20;
    options.piece_bytes = 4 << 20;
    OK(st_load_start(loaded, requests, 2, &options, &load, &err));
    OK(st_load_next(load, -1, &first, &err));
    cancel_type = type;
    has_begun = has_returned = false;
    memset(&taken, 0, sizeof(taken));
    CHECK(pthread_create(&thread, NULL, wait_for_staging, NULL) == 0);
    while (!has_begun)
        usleep(1000);
    /* Until it waits inside the call; on a machine that is slower it is cancelled earlier, which is fine. */
    usleep(100 * 1000);
    CHECK(pthread_cancel(thread) == 0);
    OK(st_load_recycle(load, &first, &err));
    CHECK(pthread_join(thread, &result) == 0);
    /* Of asynchronous type it ends as the call enables cancellation again, where glibc 2.36 sets no result. */
    CHECK(result == PTHREAD_CANCELED || (type == PTHREAD_CANCEL_ASYNCHRONOUS && !result));
    CHECK(has_returned == (type == PTHREAD_CANCEL_DEFERRED));
    /* The thread holds no lock, and has lost nothing. */
    if (!taken.data)
        OK(st_load_next(load, -1, &taken, &err));
    CHECK(taken.status == ST_OK && taken.request != first.request);
    OK(st_load_recycle(load, &taken, &err));
    CHECK(st_load_next(load, -1, &taken, &err) == ST_DONE);
    st_load_free(load);
    st_close(loaded);
}

static void a_call_that_waits_finishes_first(void) {
    wait_and_be_cancelled(PTHREAD_CANCEL_DEFERRED);
}

static void a_thread_of_asynchronous_type_is_cancelled_after_the_call(void) {
    if (test_is_emulated())
        SKIP("the emulator cancels no thread asynchronously");
    wait_and_be_cancelled(PTHREAD_CANCEL_ASYNCHRONOUS);
}

/* A thread that had cancellation disabled keeps it so. */
static void what_was_disabled_stays_disabled(void) {
    int state;
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state) == 0);
    st_close(fixture_open(&fixture_sample, ST_STORAGE_AUTO, 0));
    CHECK(pthread_setcancelstate(state, &state) == 0 && state == PTHREAD_CANCEL_DISABLE);
}

static const test_case cases[] = {
    CASE(calls_on_checkpoints_finish_first),
    CASE(writing_and_verifying_finish_first),
    CASE(loading_finishes_first),
    CASE(a_call_that_waits_finishes_first),
    CASE(a_thread_of_asynchronous_type_is_cancelled_after_the_call),
    CASE(what_was_disabled_stays_disabled),
};

TEST_MAIN(cases)
