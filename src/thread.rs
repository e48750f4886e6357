//! Threads of the library's own.

use std::mem::MaybeUninit;
use std::thread::Builder;

/// How to start a thread of this name. With a size for its stack, since Rust would otherwise look for one in the environment, which
/// another thread of a C program may be changing.
pub(crate) fn builder(name: &str, stack_bytes: usize) -> Builder {
    Builder::new().name(name.to_owned()).stack_size(stack_bytes)
}

/// Runs what starts threads with all signals blocked, which they inherit: a program's signal handlers run in its own threads, and a
/// signal that it waits for is not taken from it.
pub(crate) fn without_signals<T>(start: impl FnOnce() -> T) -> T {
    let before = Mask::block_all();
    let started = start();
    drop(before);
    started
}

/// The signals that the calling thread blocked before. They are restored when this goes, also in a panic.
struct Mask(libc::sigset_t);

impl Mask {
    fn block_all() -> Mask {
        let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: `sigfillset` initialises the first set, and `pthread_sigmask`, which cannot fail with these arguments, the other.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Mask(before.assume_init())
        }
    }
}

impl Drop for Mask {
    fn drop(&mut self) {
        // SAFETY: a set that the system has given; the old one is not asked for.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(signal: i32) -> bool {
        let mut now = MaybeUninit::uninit();
        // SAFETY: the call fills `now` in and changes nothing.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), now.as_mut_ptr());
            libc::sigismember(now.as_ptr(), signal) == 1
        }
    }

    #[test]
    fn without_signals_blocks_them_in_the_thread_and_not_after() {
        let thread = without_signals(|| builder("blocked", 64 * 1024).spawn(|| blocks(libc::SIGTERM))).unwrap();
        assert!(thread.join().unwrap());
        assert!(!blocks(libc::SIGTERM));
        assert!(std::panic::catch_unwind(|| without_signals(|| panic!("on purpose"))).is_err());
        assert!(!blocks(libc::SIGTERM));
    }
}
