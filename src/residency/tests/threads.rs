//! Many threads at once: what is pinned stays as it is, and the budget holds.
//!
//! All threads are joined one by one: ThreadSanitizer does not see the end of a scope.

use super::super::ledger::Ledger;
use super::super::{AcquireError, Source};
use super::mock::Mock;
use crate::storage::{Buffer, StorageError};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::Barrier;

const PIECES: usize = 24;
const THREADS: usize = 16;
const ROUNDS: usize = if cfg!(debug_assertions) { 2000 } else { 20_000 };
const NBYTES: u64 = 512;

/// Every third piece is a copy; the others lie in place and share a page with the next piece.
struct Pieces {
    copies: Mock,
    /// Page `i` is shared by pieces `i` and `i + 1`: whether it is in memory.
    pages: Vec<AtomicBool>,
    drops: AtomicUsize,
}

impl Pieces {
    fn new() -> Pieces {
        let copies = Mock::new((0..PIECES).map(|index| (NBYTES, index % 3 != 0)));
        Pieces { copies, pages: (0..=PIECES).map(|_| AtomicBool::new(false)).collect(), drops: AtomicUsize::new(0) }
    }

    /// Looks twice at a piece that is held.
    fn check(&self, index: usize, start: NonNull<u8>) {
        if self.in_place(index).is_some() {
            let pages = [&self.pages[index], &self.pages[index + 1]];
            // Touched: now they are in memory, and must stay.
            pages.iter().for_each(|page| page.store(true, SeqCst));
            std::thread::yield_now();
            assert!(pages.iter().all(|page| page.load(SeqCst)), "a page of piece {index} was dropped in use");
            return;
        }
        for _ in 0..2 {
            // SAFETY: it is held.
            let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), NBYTES as usize) };
            assert!(bytes.iter().all(|byte| *byte == Mock::pattern(index)), "piece {index} went in use");
            std::thread::yield_now();
        }
    }
}

impl Source for Pieces {
    fn nbytes(&self, index: usize) -> u64 {
        self.copies.nbytes(index)
    }

    fn in_place(&self, index: usize) -> Option<NonNull<u8>> {
        self.copies.in_place(index)
    }

    fn copy(&self, index: usize) -> Result<Buffer, StorageError> {
        std::thread::yield_now();
        self.copies.copy(index)
    }

    fn drop_pages(&self, index: usize, is_held: &dyn Fn(usize) -> bool) {
        assert!(!is_held(index), "piece {index} is dropped while it is held");
        if index == 0 || !is_held(index - 1) {
            self.pages[index].store(false, SeqCst);
        }
        if index + 1 == PIECES || !is_held(index + 1) {
            self.pages[index + 1].store(false, SeqCst);
        }
        self.drops.fetch_add(1, SeqCst);
    }

    fn copies_may_go(&self) -> bool {
        true
    }
}

/// Numbers that differ from thread to thread and look random.
fn random(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as usize
}

fn use_pieces(ledger: &Ledger, pieces: &Pieces, mut state: u64) {
    for _ in 0..ROUNDS {
        // Few pieces are used often, so that hits and misses meet.
        let index = random(&mut state) % PIECES * (random(&mut state) % 4) / 3;
        match ledger.acquire(index, pieces) {
            Ok(start) => {
                pieces.check(index, start);
                if random(&mut state) % 8 == 0 {
                    ledger.acquire(index, pieces).unwrap();
                    ledger.release(index, pieces).unwrap();
                }
                assert!(ledger.is_in_use(index));
                assert!(ledger.evict(index, pieces).is_err());
                pieces.check(index, start);
                ledger.release(index, pieces).unwrap();
            }
            Err(AcquireError::Budget { needed, in_use, budget }) => assert!(in_use + needed > budget),
            Err(error) => panic!("{error:?}"),
        }
        match random(&mut state) % 64 {
            0 => ledger.evict_all(pieces),
            1..=8 => drop(ledger.evict(random(&mut state) % PIECES, pieces)),
            _ => {}
        }
    }
}

#[test]
fn pieces_in_use_stay_whatever_threads_do() {
    let (small, large) = (4 * NBYTES, 12 * NBYTES);
    let (ledger, pieces) = (Ledger::new(PIECES, large), Pieces::new());
    let done = AtomicBool::new(false);
    let (l, p) = (&ledger, &pieces);
    std::thread::scope(|threads| {
        let seeds = std::array::from_fn::<u64, THREADS, _>(|thread| 0x9e37_79b9_7f4a_7c15 ^ (thread as u64 + 1));
        let users = seeds.map(|seed| threads.spawn(move || use_pieces(l, p, seed)));
        let budgets = threads.spawn(|| {
            while !done.load(SeqCst) {
                for budget in [small, large] {
                    ledger.set_budget(budget, &pieces);
                    assert!(ledger.total_stats(&pieces).charged_bytes <= large);
                    std::thread::yield_now();
                }
            }
        });
        let ok = users.map(|user| user.join().is_ok());
        done.store(true, SeqCst);
        budgets.join().unwrap();
        assert_eq!(ok, [true; THREADS]);
    });
    ledger.set_budget(small, &pieces);
    let stats = ledger.total_stats(&pieces);
    assert!(stats.charged_bytes <= small);
    assert_eq!((stats.pins, stats.in_use_bytes), (0, 0));
    assert!(stats.hits > 0 && stats.evictions > 0 && pieces.drops.load(SeqCst) > 0);
    ledger.evict_all(&pieces);
    let stats = ledger.total_stats(&pieces);
    assert_eq!((stats.charged_bytes, stats.copied_bytes), (0, 0));
    assert_eq!(stats.misses, stats.evictions);
}

#[test]
fn acquire_reads_a_copy_once_for_all_threads() {
    for _ in 0..ROUNDS / 100 {
        let (ledger, mock, start) = (Ledger::new(1, NBYTES), Mock::new([(NBYTES, false)]), Barrier::new(4));
        let acquire = || {
            start.wait();
            ledger.acquire(0, &mock).unwrap().as_ptr() as usize
        };
        let pointers =
            std::thread::scope(|threads| [(); 4].map(|()| threads.spawn(acquire)).map(|t| t.join().unwrap()));
        assert_eq!(pointers, [pointers[0]; 4]);
        assert_eq!(mock.copies.load(SeqCst), 1);
        let stats = ledger.stats(0, &mock);
        assert_eq!((stats.pins, stats.hits, stats.misses), (4, 3, 1));
    }
}

#[test]
fn eviction_keeps_up_with_threads_that_never_stop() {
    let (ledger, pieces) = (Ledger::new(PIECES, 0), Pieces::new());
    let done = AtomicBool::new(false);
    let (l, p, d) = (&ledger, &pieces, &done);
    std::thread::scope(|threads| {
        let users = [0, 1, 2, 3].map(|first| {
            threads.spawn(move || {
                while !d.load(SeqCst) {
                    for index in (first..PIECES).step_by(4) {
                        l.acquire(index, p).unwrap();
                        l.release(index, p).unwrap();
                    }
                }
            })
        });
        for _ in 0..ROUNDS / 10 {
            // No more than each thread's one piece is in use at any time.
            ledger.set_budget(5 * NBYTES, &pieces);
            ledger.set_budget(0, &pieces);
        }
        done.store(true, SeqCst);
        assert_eq!(users.map(|user| user.join().is_ok()), [true; 4]);
    });
}
