/* Tasks: st_task_new, st_task_progress, st_task_cancel, st_task_free. What they do to calls is in verify.c and writer.c. */
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

static const test_case cases[] = {
    CASE(task_new_and_free),
    CASE(task_progress_is_zero_before_a_call),
    CASE(task_cancel_needs_no_call),
};

TEST_MAIN(cases)
