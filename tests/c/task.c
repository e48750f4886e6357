/* Tasks: st_task_new, st_task_progress, st_task_cancel, st_task_free. What they do to calls is in verify.c and writer.c. */
#include "fixture.h"
#include "test.h"

#include <string.h>

static void task_new_and_free(void) {
    st_task *task = NULL;
    OK(st_task_new(&task, &err));
    CHECK(task);
    st_task_free(task);
    st_task_free(NULL);
    FAILS(ST_ERR_INVALID_ARGUMENT, st_task_new(NULL, &err));
}

static void task_progress_is_zero_before_a_call(void) {
    st_task *task;
    OK(st_task_new(&task, &err));
    st_progress progress;
    memset(&progress, 0x55, sizeof(progress));
    CHECK(st_task_progress(task, &progress) == ST_OK);
    CHECK(progress.bytes_done == 0 && progress.bytes_total == 0);
    CHECK(progress.items_done == 0 && progress.items_total == 0 && progress.bytes_per_second == 0);
    CHECK(progress.bytes_read == 0 && progress.engines == 0 && progress.workers == 0);
    CHECK(st_task_progress(NULL, &progress) == ST_ERR_INVALID_ARGUMENT);
    CHECK(st_task_progress(task, NULL) == ST_ERR_INVALID_ARGUMENT);
    st_task_free(task);
}

static void task_cancel_needs_no_call(void) {
    st_task *task;
    OK(st_task_new(&task, &err));
    st_task_cancel(task);
    st_task_cancel(task);
    st_task_cancel(NULL);
    st_task_free(task);
}

/* Who was given the task holds a reference of its own: here a writer, for which the task is still there, and still cancelled. */
static void task_free_leaves_it_to_those_that_have_it(void) {
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        st_task *task, *other;
        OK(st_task_new(&task, &err));
        st_writer_options options = ST_WRITER_OPTIONS_INIT;
        options.task = task;
        st_writer *writer;
        OK(st_writer_open(fixture_path("watched.safetensors"), &options, &writer, &err));
        OK(st_writer_add(writer, "t", ST_DTYPE_U8, NULL, 0, "x", 1, &err));
        if (cancelled)
            st_task_cancel(task);
        st_task_free(task);
        /* Its memory, had it been freed, would be this one's now. */
        OK(st_task_new(&other, &err));
        if (cancelled) {
            FAILS(ST_ERR_CANCELLED, st_writer_finish(writer, &err));
            st_writer_abort(writer);
        } else {
            OK(st_writer_finish(writer, &err));
        }
        st_progress progress;
        CHECK(st_task_progress(other, &progress) == ST_OK && progress.bytes_total == 0);
        st_task_free(other);
    }
}

static const test_case cases[] = {
    CASE(task_new_and_free),
    CASE(task_progress_is_zero_before_a_call),
    CASE(task_cancel_needs_no_call),
    CASE(task_free_leaves_it_to_those_that_have_it),
};

TEST_MAIN(cases)
