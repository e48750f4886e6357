//! What no sequence of calls by one thread shows, and the limits.

use super::super::ledger::Ledger;
use super::super::{AcquireError, InUse, NotInUse, Source, Stats};
use super::mock::Mock;
use crate::storage::{Buffer, StorageError};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Barrier;
use std::time::Duration;

#[test]
fn new_allocates_nothing() {
    // More slots than there is memory.
    let ledger = Ledger::new(1 << 50, 0);
    let mock = Mock::new([(1, true)]);
    assert_eq!(ledger.release(0, &mock), Err(NotInUse));
    assert_eq!(ledger.evict(0, &mock), Ok(false));
    ledger.evict_all(&mock);
    ledger.set_budget(1, &mock);
    assert!(!ledger.is_in_use(0));
    assert_eq!(ledger.total_stats(&mock), Stats::default());
    for _ in 0..2 {
        let error = ledger.acquire(0, &mock).unwrap_err();
        assert!(matches!(error, AcquireError::Storage(StorageError::NoMemory { .. })), "{error:?}");
    }
}

#[test]
fn acquire_and_others_know_their_pieces() {
    for len in [0, 3] {
        let ledger = Ledger::new(len, 0);
        let mock = Mock::new(vec![(1, true); len]);
        assert!(matches!(ledger.acquire(len, &mock), Err(AcquireError::NoSuchPiece)));
        assert!(matches!(ledger.keep(usize::MAX, &mock), Err(AcquireError::NoSuchPiece)));
        assert_eq!(ledger.release(len, &mock), Err(NotInUse));
        assert_eq!(ledger.evict(len, &mock), Ok(false));
        assert!(!ledger.is_in_use(len));
        assert_eq!(ledger.stats(len, &mock), Stats::default());
    }
}

#[test]
fn acquire_of_what_is_larger_than_the_budget_evicts_nothing() {
    let ledger = Ledger::new(3, 10);
    let mock = Mock::new([(4, true), (4, false), (11, true)]);
    for index in [0, 1] {
        ledger.acquire(index, &mock).unwrap();
    }
    ledger.release(0, &mock).unwrap();
    let error = ledger.acquire(2, &mock).unwrap_err();
    assert!(matches!(error, AcquireError::Budget { needed: 11, in_use: 4, budget: 10 }), "{error:?}");
    assert_eq!(ledger.total_stats(&mock).evictions, 0);
    assert_eq!(ledger.evict(1, &mock), Err(InUse));
}

/// A source whose copy waits until it is told to go on, and fails the first time if told so.
struct Slow {
    fails: AtomicBool,
    started: Barrier,
    go_on: Barrier,
}

impl Source for Slow {
    fn nbytes(&self, _: usize) -> u64 {
        10
    }

    fn in_place(&self, index: usize) -> Option<NonNull<u8>> {
        (index != 0).then_some(NonNull::dangling())
    }

    fn copy(&self, _: usize) -> Result<Buffer, StorageError> {
        self.started.wait();
        self.go_on.wait();
        match self.fails.swap(false, SeqCst) {
            true => Err(StorageError::NoMemory { nbytes: 10 }),
            false => Buffer::new(10),
        }
    }

    fn drop_pages(&self, _: usize, _: &dyn Fn(usize) -> bool) {}

    fn copies_may_go(&self) -> bool {
        true
    }
}

#[test]
fn acquire_reads_a_copy_without_holding_up_others() {
    for fails in [false, true] {
        let slow = Slow { fails: AtomicBool::new(fails), started: Barrier::new(2), go_on: Barrier::new(2) };
        let ledger = Ledger::new(3, 20);
        std::thread::scope(|threads| {
            let acquire = || ledger.acquire(0, &slow).map(|start| start.as_ptr() as usize);
            let first = threads.spawn(acquire);
            slow.started.wait();
            let second = threads.spawn(acquire);
            // The copy is charged, and in use; there is room for one more.
            ledger.acquire(1, &slow).unwrap();
            assert!(matches!(ledger.acquire(2, &slow), Err(AcquireError::Budget { in_use: 20, .. })));
            assert_eq!(ledger.evict(0, &slow), Ok(false));
            assert_eq!(ledger.total_stats(&slow).charged_bytes, 20);
            std::thread::sleep(Duration::from_millis(10));
            slow.go_on.wait();
            if fails {
                // The second, which waited, reads it itself.
                slow.started.wait();
                slow.go_on.wait();
            }
            let (first, second) = (first.join().unwrap(), second.join().unwrap());
            match fails {
                true => assert!(first.is_err() && second.is_ok()),
                false => assert_eq!(first.unwrap(), second.unwrap()),
            }
        });
        assert_eq!(ledger.stats(0, &slow).pins, if fails { 1 } else { 2 });
        assert_eq!(ledger.stats(0, &slow).misses, 1);
    }
}

#[test]
fn set_budget_during_a_read_is_obeyed_at_the_release() {
    let slow = Slow { fails: AtomicBool::new(false), started: Barrier::new(2), go_on: Barrier::new(2) };
    let ledger = Ledger::new(1, 0);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| ledger.acquire(0, &slow).map(|_| ()));
        slow.started.wait();
        ledger.set_budget(5, &slow);
        slow.go_on.wait();
        reader.join().unwrap().unwrap();
    });
    assert_eq!(ledger.total_stats(&slow).charged_bytes, 10);
    ledger.release(0, &slow).unwrap();
    assert_eq!(ledger.total_stats(&slow).charged_bytes, 0);
}

/// A source that panics instead of copying.
struct Panics;

impl Source for Panics {
    fn nbytes(&self, _: usize) -> u64 {
        10
    }

    fn in_place(&self, _: usize) -> Option<NonNull<u8>> {
        None
    }

    fn copy(&self, _: usize) -> Result<Buffer, StorageError> {
        panic!("on purpose")
    }

    fn drop_pages(&self, _: usize, _: &dyn Fn(usize) -> bool) {}

    fn copies_may_go(&self) -> bool {
        true
    }
}

#[test]
fn acquire_that_panics_leaves_nothing_behind() {
    let ledger = Ledger::new(1, 10);
    let acquire = std::panic::AssertUnwindSafe(|| ledger.acquire(0, &Panics).map(|_| ()));
    assert!(std::panic::catch_unwind(acquire).is_err());
    let mock = Mock::new([(10, false)]);
    assert_eq!(ledger.total_stats(&mock), Stats::default());
    assert!(ledger.acquire(0, &mock).is_ok());
}
