//! The last net: no error, no panic and no cancellation gets past it.
//!
//! Every exported function runs its body here, but for those that return a constant.

use super::cancellation::Uncancelled;
use super::error::{st_error, st_status, ST_ERR_INTERNAL, ST_ERR_INVALID_ARGUMENT, ST_OK};
use crate::error::Error;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Runs the body of an exported function. `None` if it panics.
///
/// The thread is not cancelled meanwhile: many bodies make system calls that are cancellation points,
/// any may print the message of a panic, and a thread of asynchronous cancellation type can be cancelled anywhere.
#[inline]
fn run<T>(body: impl FnOnce() -> T) -> Option<T> {
    let _uncancelled = Uncancelled::new();
    // A panic may leave the values that the body was about to write unwritten; no state of ours outlives it.
    catch_unwind(AssertUnwindSafe(body)).ok()
}

/// Runs the body of a fallible function, and turns its outcome into a status and, on failure, into `err`, which may be NULL.
///
/// # Safety
///
/// `err` is NULL or valid for writes.
pub(super) unsafe fn guard(err: *mut st_error, body: impl FnOnce() -> Result<(), Error>) -> st_status {
    // SAFETY: the caller's promise.
    unsafe { guard_status_with(err, || body().map(|()| ST_OK)) }
}

/// As [`guard`], of a function that knows several outcomes which are no errors of its own.
///
/// # Safety
///
/// As for [`guard`].
pub(super) unsafe fn guard_status_with(
    err: *mut st_error,
    body: impl FnOnce() -> Result<st_status, Error>,
) -> st_status {
    let status = run(|| match body() {
        Ok(status) => status,
        // Worded and freed in here, too. SAFETY: the caller's promise.
        Err(error) => unsafe { st_error::from(&error).give(err) },
    });
    // SAFETY: the caller's promise.
    status.unwrap_or_else(|| unsafe { st_error::internal().give(err) })
}

/// Runs the body of a function that returns a status and has no `st_error`. `None` is an argument that is NULL.
pub(super) fn guard_status(body: impl FnOnce() -> Option<st_status>) -> st_status {
    match run(body) {
        Some(status) => status.unwrap_or(ST_ERR_INVALID_ARGUMENT),
        None => ST_ERR_INTERNAL,
    }
}

/// Runs the body of a function that returns a value and no status; `otherwise` is the value on failure.
pub(super) fn guard_value<T>(otherwise: T, body: impl FnOnce() -> Option<T>) -> T {
    run(body).flatten().unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guard_fills_the_error_on_failure_only() {
        let mut err = st_error { status: -1, os_error: -1, message: [0x55; 504] };
        // SAFETY: `err` is a local.
        assert_eq!(unsafe { guard(&mut err, || Ok(())) }, ST_OK);
        assert_eq!((err.status, err.message[0]), (-1, 0x55));
        let refuse = || Err(Error::InvalidArgument { what: "no".to_owned() });
        // SAFETY: `err` is a local.
        assert_eq!(unsafe { guard(&mut err, refuse) }, ST_ERR_INVALID_ARGUMENT);
        assert_eq!((err.status, err.os_error, err.text()), (ST_ERR_INVALID_ARGUMENT, 0, "no"));
        // SAFETY: NULL is allowed.
        assert_eq!(unsafe { guard(std::ptr::null_mut(), refuse) }, ST_ERR_INVALID_ARGUMENT);
    }

    #[test]
    fn guard_turns_a_panic_into_internal() {
        let mut err = st_error { status: 0, os_error: 0, message: [0; 504] };
        // SAFETY: `err` is a local.
        assert_eq!(unsafe { guard(&mut err, || panic!("on purpose")) }, ST_ERR_INTERNAL);
        assert_eq!(err.status, ST_ERR_INTERNAL);
        assert_eq!(guard_status(|| panic!("on purpose")), ST_ERR_INTERNAL);
        assert_eq!(guard_value(7, || panic!("on purpose")), 7);
    }

    /// The functions whose bodies are not run by a guard: each returns a constant.
    const UNGUARDED: [&str; 3] = ["st_abi_version", "st_status_name", "st_version"];

    #[test]
    fn guard_runs_every_function_that_c_calls() {
        let mut unguarded = Vec::new();
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/ffi")).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let source = std::fs::read_to_string(path).unwrap();
            let source = source.split("#[cfg(test)]").next().unwrap();
            for function in source.split("extern \"C\" fn ").skip(1) {
                let (name, rest) = function.split_once('(').unwrap();
                let (_, body) = rest.split_once(" {\n").unwrap();
                let code = |line: &&str| !line.starts_with("//") && *line != "unsafe {";
                let first = body.lines().map(str::trim).find(code).unwrap();
                if !["guard", "unsafe { guard"].iter().any(|guard| first.starts_with(guard)) {
                    unguarded.push(name.to_owned());
                }
            }
        }
        unguarded.sort_unstable();
        assert_eq!(unguarded, UNGUARDED);
    }
}
