//! Cancellation of the calling thread (`pthread_cancel`). It unwinds the thread's stack, and Rust's
//! frames end the process when that reaches them.

use std::ffi::c_int;
use std::marker::PhantomData;

// Of POSIX. The libc crate lacks it for Linux. "C-unwind", because a thread whose cancellation type
// is asynchronous may end in the call that enables cancellation again.
extern "C-unwind" {
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// `PTHREAD_CANCEL_DISABLE` of pthread.h, in glibc and in musl.
const DISABLED: c_int = 1;

/// While this exists, the calling thread is not cancelled. A cancellation that was asked for
/// meanwhile waits until after the drop, if the thread allowed it before.
pub(super) struct Uncancelled {
    before: c_int,
    /// The state is that of one thread: neither `Send` nor `Sync`.
    _of_this_thread: PhantomData<*const ()>,
}

impl Uncancelled {
    #[inline]
    pub(super) fn new() -> Uncancelled {
        let mut before = DISABLED;
        // SAFETY: the state is valid, and `before` is a local. Nothing is cancelled by disabling.
        unsafe { pthread_setcancelstate(DISABLED, &raw mut before) };
        Uncancelled { before, _of_this_thread: PhantomData }
    }
}

impl Drop for Uncancelled {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the state that this thread had; the old one is not asked for.
        unsafe { pthread_setcancelstate(self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_disabled() -> bool {
        let mut before = -1;
        // SAFETY: valid states and a local.
        unsafe {
            pthread_setcancelstate(DISABLED, &raw mut before);
            pthread_setcancelstate(before, std::ptr::null_mut());
        }
        before == DISABLED
    }

    #[test]
    fn uncancelled_disables_cancellation_and_restores_what_was() {
        assert!(!is_disabled());
        let outer = Uncancelled::new();
        assert!(is_disabled());
        drop(Uncancelled::new());
        assert!(is_disabled());
        drop(outer);
        assert!(!is_disabled());
    }
}
