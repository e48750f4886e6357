//! The last net: no error and no panic gets past it.

use super::error::{st_error, st_status, ST_ERR_INTERNAL, ST_ERR_INVALID_ARGUMENT, ST_OK};
use crate::error::Error;
use std::panic::{catch_unwind, AssertUnwindSafe};

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
    // A panic may leave the values that the body was about to write unwritten; no state of ours outlives it.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(status)) => return status,
        Ok(Err(error)) => st_error::from(&error),
        Err(_) => st_error::internal(),
    };
    // SAFETY: the caller's promise.
    unsafe { failure.give(err) }
}

/// Runs the body of a function that returns a status and has no `st_error`. `None` is an argument that is NULL.
pub(super) fn guard_status(body: impl FnOnce() -> Option<st_status>) -> st_status {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(status) => status.unwrap_or(ST_ERR_INVALID_ARGUMENT),
        Err(_) => ST_ERR_INTERNAL,
    }
}

/// Runs the body of a function that returns a value and no status; `otherwise` is the value on failure.
pub(super) fn guard_value<T>(otherwise: T, body: impl FnOnce() -> Option<T>) -> T {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Some(value)) => value,
        Ok(None) | Err(_) => otherwise,
    }
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
}
