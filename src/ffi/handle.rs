//! Pointers from C, checked; and handles, which are `Arc`s.

use super::open::st_checkpoint;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use std::ffi::{c_char, CStr};
use std::mem::{ManuallyDrop, MaybeUninit};
use std::sync::Arc;

/// A pointer that must not be NULL is.
pub(super) fn null(name: &str) -> Error {
    Error::InvalidArgument { what: format!("{name} is NULL") }
}

/// Hands a checkpoint to C: the caller owns one reference.
pub(super) fn into_handle(checkpoint: Arc<Checkpoint>) -> *mut st_checkpoint {
    Arc::into_raw(checkpoint).cast_mut().cast()
}

/// Takes back one reference of a handle, to be dropped.
///
/// # Safety
///
/// `handle` is not NULL and owns the reference.
pub(super) unsafe fn take_handle(handle: *mut st_checkpoint) -> Arc<Checkpoint> {
    // SAFETY: handles are made by `into_handle`; the caller gives its reference up.
    unsafe { Arc::from_raw(handle.cast_const().cast()) }
}

/// The checkpoint behind a handle.
///
/// # Safety
///
/// `handle` is NULL or open as long as the result is used.
pub(super) unsafe fn checkpoint<'a>(handle: *const st_checkpoint) -> Result<&'a Checkpoint, Error> {
    // SAFETY: handles are made by `into_handle`, and the caller holds a reference.
    unsafe { handle.cast::<Checkpoint>().as_ref() }.ok_or_else(|| null("the checkpoint"))
}

/// One more reference to the checkpoint behind a handle.
///
/// # Safety
///
/// As for [`checkpoint`].
pub(super) unsafe fn shared_checkpoint(handle: *mut st_checkpoint) -> Result<Arc<Checkpoint>, Error> {
    if handle.is_null() {
        return Err(null("the checkpoint"));
    }
    // SAFETY: not NULL and, the caller says, open. The caller's own reference is not given up: it is never dropped here.
    let own = ManuallyDrop::new(unsafe { take_handle(handle) });
    Ok(Arc::clone(&own))
}

/// The bytes of a C string.
///
/// # Safety
///
/// `string` is NULL or NUL-terminated, and unchanged as long as the result is used.
pub(super) unsafe fn c_bytes<'a>(string: *const c_char, name: &str) -> Result<&'a [u8], Error> {
    if string.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL; the rest is the caller's promise.
    Ok(unsafe { CStr::from_ptr(string) }.to_bytes())
}

/// `len` values from `start` on, which may be NULL if there are none.
///
/// # Safety
///
/// `start` is NULL, or that many values can be read from it as long as the result is used.
pub(super) unsafe fn array<'a, T>(start: *const T, len: usize, name: &str) -> Result<&'a [T], Error> {
    match (start.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(null(name)),
        // No object is larger than that: a length beyond it is a negative number or garbage.
        (false, _) if len > isize::MAX as usize / size_of::<T>().max(1) => {
            Err(Error::InvalidArgument { what: format!("{name} cannot have {len} elements") })
        }
        // SAFETY: not NULL, not longer than an object can be; the rest is the caller's promise.
        (false, _) => Ok(unsafe { std::slice::from_raw_parts(start, len) }),
    }
}

/// `len` values from `start` on to write to, which may be NULL if there are none.
///
/// # Safety
///
/// `start` is NULL, or that many values can be written to it, by nobody else, as long as the result is used.
pub(super) unsafe fn array_mut<'a, T>(
    start: *mut T,
    len: usize,
    name: &str,
) -> Result<&'a mut [MaybeUninit<T>], Error> {
    // SAFETY: the caller's promise; this only checks NULL and the length.
    unsafe { array(start.cast_const().cast::<MaybeUninit<T>>(), len, name) }?;
    match len {
        0 => Ok(&mut []),
        // SAFETY: not NULL, not longer than an object can be; the rest is the caller's promise.
        _ => Ok(unsafe { std::slice::from_raw_parts_mut(start.cast(), len) }),
    }
}

/// An output that must be there.
///
/// # Safety
///
/// `out` is NULL or can be written to, by nobody else, as long as the result is used.
pub(super) unsafe fn output<'a, T>(out: *mut T, name: &str) -> Result<&'a mut MaybeUninit<T>, Error> {
    // SAFETY: the caller's promise.
    unsafe { optional_output(out) }.ok_or_else(|| null(name))
}

/// An output that may be NULL.
///
/// # Safety
///
/// As for [`output`].
pub(super) unsafe fn optional_output<'a, T>(out: *mut T) -> Option<&'a mut MaybeUninit<T>> {
    // SAFETY: the caller's promise; a `MaybeUninit` needs no value there.
    unsafe { out.cast::<MaybeUninit<T>>().as_mut() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn array_allows_null_only_for_nothing() {
        // SAFETY: nothing is read where NULL is given; the other is a local.
        unsafe {
            assert!(array::<u64>(std::ptr::null(), 0, "x").unwrap().is_empty());
            assert!(array::<u64>(std::ptr::null(), 1, "x").is_err());
            assert!(array(&1u64, usize::MAX, "x").is_err());
            assert_eq!(array(&1u64, 1, "x").unwrap(), [1]);
            assert!(array_mut::<u64>(std::ptr::null_mut(), 1, "x").is_err());
        }
    }

    #[test]
    fn shared_checkpoint_keeps_the_callers_reference() {
        let options = crate::OpenOptions::default();
        let checkpoint = Arc::new(Checkpoint::open_memory(b"\x02\0\0\0\0\0\0\0{}".to_vec(), options).unwrap());
        let handle = into_handle(Arc::clone(&checkpoint));
        // SAFETY: the handle was just made, and is taken back once.
        unsafe {
            drop(shared_checkpoint(handle).unwrap());
            assert_eq!(Arc::strong_count(&checkpoint), 2);
            drop(take_handle(handle));
        }
        assert_eq!(Arc::strong_count(&checkpoint), 1);
    }
}
