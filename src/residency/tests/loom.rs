//! All orders in which threads can meet, tried by loom: `scripts/loom`.
//!
//! A page is a cell that users read and evictions write. Loom fails when the two can happen at once, or in an order that no atomic
//! operation makes certain.

use super::super::ledger::Ledger;
use super::super::{AcquireError, Source};
use super::mock::{Mock, Ticks};
use crate::storage::{Buffer, StorageError};
use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicUsize;
use loom::sync::Arc;
use loom::thread::{spawn, JoinHandle};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;

const NBYTES: u64 = 64;

/// Pieces that lie in place; page `i` is shared by pieces `i` and `i + 1`. The first pieces need copies.
struct Pages {
    copied: usize,
    pages: Vec<UnsafeCell<usize>>,
    copies: AtomicUsize,
    /// So many copies fail.
    failures: usize,
}

impl Pages {
    /// Reads the pages of a piece.
    fn touch(&self, index: usize) {
        for page in [index.checked_sub(1), Some(index)].into_iter().flatten() {
            // SAFETY: loom checks that nobody writes to it.
            self.pages[page].with(|page| unsafe { page.read_volatile() });
        }
    }
}

impl Source for Pages {
    fn nbytes(&self, _: usize) -> u64 {
        NBYTES
    }

    fn in_place(&self, index: usize) -> Option<NonNull<u8>> {
        (index >= self.copied).then_some(NonNull::dangling())
    }

    fn copy(&self, index: usize) -> Result<Buffer, StorageError> {
        if self.copies.fetch_add(1, Relaxed) < self.failures {
            return Err(StorageError::NoMemory { nbytes: NBYTES });
        }
        Mock::new(vec![(NBYTES, false); index + 1]).copy(index)
    }

    fn drop_pages(&self, index: usize, is_held: &dyn Fn(usize) -> bool) {
        for (page, neighbour) in [(index.checked_sub(1), index.wrapping_sub(1)), (Some(index), index + 1)] {
            if let Some(page) = page.filter(|_| !is_held(neighbour)) {
                // SAFETY: loom checks that nobody reads or writes it.
                self.pages[page].with_mut(|page| unsafe { page.write_volatile(1) });
            }
        }
    }

    fn copies_may_go(&self) -> bool {
        true
    }
}

/// A ledger with a source, for threads to share.
struct Both {
    ledger: Ledger<Ticks>,
    source: Pages,
}

impl Both {
    /// `resident` are resident and free to go.
    fn new(len: usize, copied: usize, failures: usize, budget: u64, resident: &[usize]) -> Arc<Both> {
        let ledger = Ledger::with_clock(len, budget, Ticks::default());
        let pages = (0..len).map(|_| UnsafeCell::new(0)).collect();
        let both = Both { ledger, source: Pages { copied, pages, copies: AtomicUsize::new(0), failures } };
        for index in resident {
            assert!(both.visit(*index));
        }
        Arc::new(both)
    }

    fn acquire(&self, index: usize) -> Result<NonNull<u8>, AcquireError> {
        self.ledger.acquire(index, &self.source)
    }

    fn release(&self, index: usize) {
        self.ledger.release(index, &self.source).unwrap();
    }

    /// Acquires a piece, looks at it, and releases it; gives whether it could be had.
    fn visit(&self, index: usize) -> bool {
        let start = match self.acquire(index) {
            Ok(start) => start,
            Err(AcquireError::Budget { .. } | AcquireError::Storage(_)) => return false,
            Err(error) => panic!("{error:?}"),
        };
        match self.source.in_place(index) {
            Some(_) => self.source.touch(index),
            // SAFETY: it is held.
            None => assert_eq!(unsafe { start.as_ptr().read_volatile() }, Mock::pattern(index)),
        }
        self.release(index);
        true
    }

    fn charged(&self) -> u64 {
        let stats = self.ledger.total_stats(&self.source);
        assert_eq!(stats.charged_bytes, self.ledger.lock().charged);
        assert_eq!(stats.charged_bytes, (stats.misses - stats.evictions) * NBYTES);
        stats.charged_bytes
    }
}

fn thread<T: 'static>(both: &Arc<Both>, run: impl FnOnce(&Both) -> T + 'static) -> JoinHandle<T> {
    let both = Arc::clone(both);
    spawn(move || run(&both))
}

/// For models of too many orders: tries those in which threads are interrupted at most four times.
fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(model);
}

#[test]
fn acquire_and_evict_of_one_piece() {
    for copied in [0, 1] {
        loom::model(move || {
            let both = Both::new(1, copied, 0, 0, &[0]);
            let user = thread(&both, |both| both.visit(0));
            let _ = both.ledger.evict(0, &both.source);
            assert!(user.join().unwrap());
            assert!(both.ledger.evict(0, &both.source).is_ok());
            assert_eq!(both.charged(), 0);
        });
    }
}

#[test]
fn acquire_of_a_neighbour_and_evict() {
    loom::model(|| {
        let both = Both::new(2, 0, 0, 0, &[0, 1]);
        let user = thread(&both, |both| both.visit(1));
        assert_eq!(both.ledger.evict(0, &both.source), Ok(true));
        assert!(user.join().unwrap());
        assert_eq!(both.charged(), NBYTES);
    });
}

#[test]
fn keep_and_evict_of_one_piece() {
    loom::model(|| {
        let both = Both::new(1, 0, 0, 0, &[0]);
        let user = thread(&both, |both| {
            both.ledger.keep(0, &both.source).unwrap();
            both.source.touch(0);
        });
        let _ = both.ledger.evict(0, &both.source);
        user.join().unwrap();
        assert!(both.ledger.evict(0, &both.source).is_err());
        assert_eq!(both.charged(), NBYTES);
    });
}

#[test]
fn keep_of_a_neighbour_and_evict() {
    bounded(|| {
        let both = Both::new(2, 0, 0, 0, &[0, 1]);
        let keep = |both: &Both| {
            both.ledger.keep(1, &both.source).unwrap();
            both.source.touch(1);
        };
        let (first, second) = (thread(&both, keep), thread(&both, keep));
        assert_eq!(both.ledger.evict(0, &both.source), Ok(true));
        first.join().unwrap();
        second.join().unwrap();
        both.ledger.evict_all(&both.source);
        assert_eq!(both.charged(), NBYTES);
    });
}

#[test]
fn release_and_a_lowered_budget() {
    loom::model(|| {
        let both = Both::new(1, 0, 0, 0, &[]);
        both.acquire(0).unwrap();
        let user = thread(&both, |both| both.release(0));
        both.ledger.set_budget(NBYTES - 1, &both.source);
        user.join().unwrap();
        assert_eq!(both.charged(), 0);
    });
}

#[test]
fn visits_and_a_lowered_budget() {
    bounded(|| {
        let both = Both::new(2, 0, 0, 0, &[0, 1]);
        let users = [thread(&both, |both| both.visit(0)), thread(&both, |both| both.visit(1))];
        both.ledger.set_budget(NBYTES, &both.source);
        // Either may find no room beside the other.
        let _ = users.map(|user| user.join().unwrap());
        assert!(both.charged() <= NBYTES);
    });
}

#[test]
fn release_and_a_miss_that_needs_the_room() {
    loom::model(|| {
        let both = Both::new(2, 0, 0, NBYTES, &[]);
        both.acquire(0).unwrap();
        let user = thread(&both, |both| both.release(0));
        let first = both.visit(1);
        user.join().unwrap();
        assert!(first || both.visit(1));
        assert!(both.charged() <= NBYTES);
    });
}

#[test]
fn misses_that_evict_each_other() {
    bounded(|| {
        let both = Both::new(3, 0, 0, 2 * NBYTES, &[0, 1]);
        let user = thread(&both, |both| both.visit(2));
        both.visit(0);
        user.join().unwrap();
        assert!(both.visit(1));
        assert!(both.charged() <= 2 * NBYTES);
    });
}

#[test]
fn two_acquire_one_copy() {
    for failures in [0, 1] {
        loom::model(move || {
            // Another piece comes first, so that the table is there.
            let both = Both::new(2, 1, failures, 2 * NBYTES, &[1]);
            let user = thread(&both, |both| both.acquire(0).map(|start| start.as_ptr() as usize).ok());
            let here = both.acquire(0).map(|start| start.as_ptr() as usize).ok();
            let there = user.join().unwrap();
            match failures {
                0 => assert!(here == there && both.source.copies.load(Relaxed) == 1),
                _ => assert!(here.is_some() != there.is_some() && both.source.copies.load(Relaxed) == 2),
            }
            for _ in [here, there].iter().flatten() {
                both.release(0);
            }
            both.ledger.evict_all(&both.source);
            assert_eq!(both.charged(), 0);
        });
    }
}

#[test]
fn a_copy_is_read_while_another_goes() {
    bounded(|| {
        let both = Both::new(2, 2, 0, NBYTES, &[0]);
        let users = [thread(&both, |both| both.visit(0)), thread(&both, |both| both.visit(1))];
        let visited = users.map(|user| user.join().unwrap());
        assert!(visited.contains(&true));
        assert!(both.charged() <= NBYTES);
    });
}
