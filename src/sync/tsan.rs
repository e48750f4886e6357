//! Locks of the standard library whose order ThreadSanitizer can see.
//!
//! It sees what is compiled with it. The standard library is not, and where that is compiled into ours depends on inlining: a lock that
//! is taken without waiting is seen, one that is waited for is not. So an atomic of our own stands beside each lock, and says again that
//! who takes it sees what was done before it was given back.

use std::ffi::c_char;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Acquire, Ordering::Release};
use std::sync::{self, LockResult, PoisonError, WaitTimeoutResult};
use std::time::Duration;

#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    locked: sync::Mutex<T>,
    order: AtomicU64,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex { locked: sync::Mutex::new(value), order: AtomicU64::new(0) }
    }

    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        let guard = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        self.order.fetch_add(1, Acquire);
        Ok(MutexGuard { guard: Some(guard), order: &self.order })
    }
}

#[derive(Debug)]
pub(crate) struct MutexGuard<'m, T> {
    /// `None` while it is being waited on.
    guard: Option<sync::MutexGuard<'m, T>>,
    order: &'m AtomicU64,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.guard.as_ref().unwrap()
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().unwrap()
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if self.guard.is_some() {
            self.order.fetch_add(1, Release);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar(sync::Condvar::new())
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    pub(crate) fn wait<'m, T>(&self, mut guard: MutexGuard<'m, T>) -> LockResult<MutexGuard<'m, T>> {
        let (inner, order) = (guard.guard.take().unwrap(), guard.order);
        order.fetch_add(1, Release);
        let inner = self.0.wait(inner).unwrap_or_else(PoisonError::into_inner);
        order.fetch_add(1, Acquire);
        Ok(MutexGuard { guard: Some(inner), order })
    }

    pub(crate) fn wait_timeout<'m, T>(
        &self,
        mut guard: MutexGuard<'m, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'m, T>, WaitTimeoutResult)> {
        let (inner, order) = (guard.guard.take().unwrap(), guard.order);
        order.fetch_add(1, Release);
        let (inner, result) = self.0.wait_timeout(inner, timeout).unwrap_or_else(PoisonError::into_inner);
        order.fetch_add(1, Acquire);
        Ok((MutexGuard { guard: Some(inner), order }, result))
    }
}

#[derive(Debug)]
pub(crate) struct OnceLock<T> {
    value: sync::OnceLock<T>,
    set: AtomicBool,
    being_set: Mutex<()>,
}

impl<T> Default for OnceLock<T> {
    fn default() -> OnceLock<T> {
        OnceLock::new()
    }
}

impl<T> OnceLock<T> {
    pub(crate) fn new() -> OnceLock<T> {
        OnceLock { value: sync::OnceLock::new(), set: AtomicBool::new(false), being_set: Mutex::new(()) }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.set.load(Acquire).then(|| self.value.get().unwrap())
    }

    pub(crate) fn get_or_init(&self, value: impl FnOnce() -> T) -> &T {
        let _by_one_at_a_time = self.being_set.lock();
        let value = self.value.get_or_init(value);
        self.set.store(true, Release);
        value
    }
}

/// What it must not report: races of the test harness and of scopes, which are not compiled with it either.
#[no_mangle]
extern "C" fn __tsan_default_suppressions() -> *const c_char {
    c"race:CompletedTest\nrace:core::option::Option<test::run_test\nrace:std::thread::scoped::ScopeData\nrace:std::thread::thread::Inner\n"
        .as_ptr()
}

/// Too large an allocation fails, as the tests expect.
#[no_mangle]
extern "C" fn __tsan_default_options() -> *const c_char {
    c"allocator_may_return_null=1".as_ptr()
}
