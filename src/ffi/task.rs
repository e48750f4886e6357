//! Section "Tasks: watching long calls".

use super::error::{st_error, st_status, ST_OK};
use super::guard::{guard, guard_status, guard_value};
use super::handle::{null, output};
use crate::error::Error;
use crate::task::{Progress, Task};
use std::sync::Arc;

/// A long call (st_verify, st_writer_finish) as other threads see it: how far it is, and a way to end it early. It is given to the call in its
/// options. One task may be given to one call after another.
pub struct st_task {
    _opaque: [u8; 0],
}

/// How far a call is. All zero before it has begun.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_progress {
    /// Bytes that were read or written so far.
    pub bytes_done: u64,
    /// Bytes that there are to read or write.
    pub bytes_total: u64,
    /// Tensors, or requests of a load, that are done with.
    pub items_done: u64,
    /// Tensors, or requests, that there are.
    pub items_total: u64,
    /// Bytes per second since the call began, or until it ended.
    pub bytes_per_second: u64,
    /// Of a load: bytes that were read from the files so far, with gaps and edges that nobody wanted. Otherwise 0.
    pub bytes_read: u64,
    /// Of a load: ST_ENGINE_*, or'ed: what has read something so far. Otherwise 0.
    pub engines: u32,
    /// Of a load: the number of its threads, 0 if it is small (see st_load_start). Otherwise 0.
    pub workers: u32,
}

/// Makes a task.
///
/// out: receives the handle, which the caller must st_task_free; NULL on failure.
///
/// ST_ERR_INVALID_ARGUMENT: out is NULL.
#[no_mangle]
pub unsafe extern "C" fn st_task_new(out: *mut *mut st_task, err: *mut st_error) -> st_status {
    // SAFETY: the header's rules for outputs and errors.
    unsafe {
        guard(err, || {
            output(out, "out")?.write(Arc::into_raw(Arc::<Task>::default()).cast_mut().cast());
            Ok(())
        })
    }
}

/// Tells how far the call is that was given this task. Any thread may ask, at any time, before, during and after the call.
///
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_task_progress(task: *const st_task, out: *mut st_progress) -> st_status {
    guard_status(|| {
        // SAFETY: NULL or a task that has not been freed; NULL or an output.
        let (task, out) = unsafe { (self::task(task).ok()?, output(out, "out").ok()?) };
        out.write(progress_of(&task.progress()));
        Some(ST_OK)
    })
}

/// Asks the call that was given this task to end: it returns ST_ERR_CANCELLED soon after, unless it is done before that. Any thread may
/// ask. It cannot be taken back: each later call with this task is cancelled too. NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn st_task_cancel(task: *mut st_task) {
    guard_value((), || {
        // SAFETY: NULL or a task that has not been freed.
        unsafe { self::task(task) }.ok()?.cancel();
        Some(())
    });
}

/// Frees a task; NULL is fine. A call that it was given to may still run: it holds a reference of its own. No other thread may use
/// the handle any more.
#[no_mangle]
pub unsafe extern "C" fn st_task_free(task: *mut st_task) {
    guard_value((), || {
        if !task.is_null() {
            // SAFETY: not NULL, so a task whose only reference in C the caller gives up.
            drop(unsafe { Arc::<Task>::from_raw(task.cast_const().cast()) });
        }
        Some(())
    });
}

/// Progress for C, of what is no load.
pub(super) fn progress_of(progress: &Progress) -> st_progress {
    st_progress {
        bytes_done: progress.bytes_done,
        bytes_total: progress.bytes_total,
        items_done: progress.items_done,
        items_total: progress.items_total,
        bytes_per_second: progress.bytes_per_second,
        bytes_read: 0,
        engines: 0,
        workers: 0,
    }
}

/// The task behind a handle.
///
/// # Safety
///
/// `handle` is NULL or not freed as long as the result is used.
unsafe fn task<'a>(handle: *const st_task) -> Result<&'a Task, Error> {
    // SAFETY: made by `st_task_new`, and the caller's promise.
    unsafe { handle.cast::<Task>().as_ref() }.ok_or_else(|| null("the task"))
}

/// The task that options name, with a reference of its own: a new one that nobody watches for NULL.
///
/// # Safety
///
/// `handle` is NULL or not freed during this call.
pub(super) unsafe fn task_of_options(handle: *const st_task) -> Arc<Task> {
    if handle.is_null() {
        return Arc::default();
    }
    // SAFETY: made by `st_task_new` and, the caller says, not freed; the reference that C holds is not given up.
    unsafe {
        Arc::increment_strong_count(handle.cast::<Task>());
        Arc::from_raw(handle.cast())
    }
}
