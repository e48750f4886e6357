//! What threads share: of the standard library, or of loom, which tries all orders (`scripts/loom`).

#[cfg(not(all(loom, test)))]
pub(super) use std::sync::{
    atomic::{AtomicBool, AtomicPtr, AtomicU64},
    Condvar, Mutex, MutexGuard,
};

#[cfg(all(loom, test))]
pub(super) use loom::sync::{
    atomic::{AtomicBool, AtomicPtr, AtomicU64},
    Condvar, Mutex, MutexGuard,
};
