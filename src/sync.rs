//! Locks of the standard library; or such that ThreadSanitizer sees what they do (`scripts/tsan`).

#[cfg(all(tsan, test))]
mod tsan;

#[cfg(not(all(tsan, test)))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
#[cfg(all(tsan, test))]
pub(crate) use tsan::{Condvar, Mutex, MutexGuard, OnceLock};
