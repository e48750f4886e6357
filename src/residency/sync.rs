//! What threads share: of the standard library; or of loom, which tries all orders (`scripts/loom`).

#[cfg(not(all(loom, test)))]
pub(super) use crate::sync::{Condvar, Mutex, MutexGuard, OnceLock};
#[cfg(not(all(loom, test)))]
pub(super) use std::sync::atomic::{AtomicPtr, AtomicU64};

#[cfg(all(loom, test))]
pub(super) use loom::sync::{
    atomic::{AtomicPtr, AtomicU64},
    Condvar, Mutex, MutexGuard,
};
// Loom has none, and needs none: what is in it is made under a lock.
#[cfg(all(loom, test))]
pub(super) use std::sync::OnceLock;
