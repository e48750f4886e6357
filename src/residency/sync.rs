//! What threads share: of the standard library; or of loom, which tries all orders (`scripts/loom`); or such that ThreadSanitizer sees it.

#[cfg(not(all(loom, test)))]
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU64};
#[cfg(not(all(any(loom, tsan), test)))]
pub(super) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};

#[cfg(all(loom, test))]
pub(super) use loom::sync::{
    atomic::{AtomicPtr, AtomicU64},
    Condvar, Mutex, MutexGuard,
};
// Loom has none, and needs none: what is in it is made under a lock.
#[cfg(all(loom, test))]
pub(super) use std::sync::OnceLock;

#[cfg(all(tsan, not(loom), test))]
pub(super) use super::tests::tsan::{Condvar, Mutex, MutexGuard, OnceLock};
