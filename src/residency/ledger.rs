//! Taking hold of pieces and releasing them. Letting them go is in `evict.rs`.

use super::clock::{Clock, Monotonic};
use super::evict::Freed;
use super::queue::Queue;
use super::slot::{Held, Hold, Slot, State};
use super::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use super::table::Table;
use super::{AcquireError, NotInUse, Source, Stats};
use crate::storage::{Buffer, StorageError};
use std::collections::HashMap;
use std::fmt;
use std::ptr::NonNull;
use std::sync::PoisonError;

/// Keeps account of the pieces of memory `0..len`. May be used from any number of threads.
///
/// The [`Source`] has to be the same in all calls. Pointers are valid as long as the piece is held and the ledger lives.
pub(crate) struct Ledger<C = Monotonic> {
    len: usize,
    pub(super) clock: C,
    /// Made on first use.
    table: OnceLock<Table>,
    shared: Shared,
}

/// What misses write to, on other cache lines than what hits read.
#[repr(align(64))]
struct Shared {
    books: Mutex<Books>,
    /// A copy has been read, or could not be.
    filled: Condvar,
}

/// What the mutex guards, besides most of the slots' states.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// 0 is none.
    pub(super) budget: u64,
    /// The bytes of all that is resident or is being read.
    pub(super) charged: u64,
    pub(super) copies: HashMap<usize, Buffer>,
    pub(super) queue: Queue,
    /// What is being evicted.
    pub(super) claimed: Vec<usize>,
}

impl Books {
    /// Whether `needed` more bytes fit into the budget when `leaving` bytes have gone.
    pub(super) fn fits(&self, needed: u64, leaving: u64) -> bool {
        self.budget == 0 || self.charged.saturating_sub(leaving).saturating_add(needed) <= self.budget
    }
}

impl Ledger {
    /// Nothing is resident. A budget of 0 bytes is none.
    pub(crate) fn new(len: usize, budget: u64) -> Ledger {
        Ledger::with_clock(len, budget, Monotonic::new())
    }
}

impl<C: Clock> Ledger<C> {
    pub(super) fn with_clock(len: usize, budget: u64, clock: C) -> Ledger<C> {
        let books = Mutex::new(Books { budget, ..Books::default() });
        let shared = Shared { books, filled: Condvar::new() };
        Ledger { len, clock, table: OnceLock::new(), shared }
    }

    /// Pins piece `index`, makes it the most recently used, and gives its first byte. If it is not resident, it is made so; then
    /// others are evicted until it fits into the budget.
    ///
    /// # Errors
    ///
    /// It does not fit, cannot be read, is pinned too often, or does not exist. Nothing is pinned, charged or evicted then, except that
    /// what was evicted for a copy that could not be read stays so.
    #[inline]
    pub(crate) fn acquire(&self, index: usize, source: &dyn Source) -> Result<NonNull<u8>, AcquireError> {
        self.hold(index, Hold::Pin, source)
    }

    /// As [`Ledger::acquire`], but for ever: the piece is in use without being pinned. Again and again is the same as once.
    ///
    /// # Errors
    ///
    /// As [`Ledger::acquire`].
    #[inline]
    pub(crate) fn keep(&self, index: usize, source: &dyn Source) -> Result<NonNull<u8>, AcquireError> {
        self.hold(index, Hold::Keep, source)
    }

    /// Undoes one [`Ledger::acquire`].
    ///
    /// # Errors
    ///
    /// The piece is not pinned. Nothing changes then.
    #[inline]
    pub(crate) fn release(&self, index: usize, source: &dyn Source) -> Result<(), NotInUse> {
        let slot = self.slot(index).ok_or(NotInUse)?;
        let state = slot.unpin().ok_or(NotInUse)?;
        // The queue forgets pieces that it finds in use. When memory exceeds the budget it has forgotten all of them.
        if state.is_forgotten() {
            self.requeue(index, slot, source);
        }
        Ok(())
    }

    /// Whether piece `index` is pinned or kept.
    #[cfg(test)]
    pub(crate) fn is_in_use(&self, index: usize) -> bool {
        self.slot(index).is_some_and(|slot| slot.state().is_in_use())
    }

    /// Whether piece `index` is resident. As long as the mutex is held, nothing becomes so.
    pub(super) fn is_held(&self, index: usize) -> bool {
        self.slot(index).is_some_and(|slot| slot.state().is(State::RESIDENT))
    }

    /// The budget in bytes. 0 is none.
    pub(crate) fn budget(&self) -> u64 {
        self.lock().budget
    }

    /// Statistics of piece `index`.
    pub(crate) fn stats(&self, index: usize, source: &dyn Source) -> Stats {
        self.slot(index).map_or(Stats::default(), |slot| slot.stats(source.nbytes(index)))
    }

    /// Sums of the statistics of all pieces.
    pub(crate) fn total_stats(&self, source: &dyn Source) -> Stats {
        // Nothing comes or goes meanwhile.
        let _books = self.lock();
        let all = self.slots().iter().enumerate().map(|(index, slot)| slot.stats(source.nbytes(index)));
        all.fold(Stats::default(), Stats::plus)
    }

    #[inline]
    fn hold(&self, index: usize, hold: Hold, source: &dyn Source) -> Result<NonNull<u8>, AcquireError> {
        let Some(slot) = self.slot(index) else { return self.hold_absent(index, hold, source) };
        match slot.hold(hold) {
            Held::Yes => self.found(slot, hold),
            Held::NotResident => self.hold_absent(index, hold, source),
            Held::TooManyPins => Err(AcquireError::TooManyPins),
        }
    }

    /// Notes that a piece was resident, and gives its first byte.
    #[inline]
    fn found(&self, slot: &Slot, hold: Hold) -> Result<NonNull<u8>, AcquireError> {
        // What is kept never goes, so it does not matter when it was used.
        if hold == Hold::Pin {
            slot.count_hit(self.clock.now());
        }
        slot.start().ok_or(StorageError::Internal("what is held lies nowhere").into())
    }

    /// Takes hold of a piece that was not resident a moment ago.
    #[cold]
    fn hold_absent(&self, index: usize, hold: Hold, source: &dyn Source) -> Result<NonNull<u8>, AcquireError> {
        let slot = self.table()?.slots().get(index).ok_or(AcquireError::NoSuchPiece)?;
        let (nbytes, in_place) = (source.nbytes(index), source.in_place(index));
        let mut freed = Freed::default();
        let mut books = self.lock();
        loop {
            match slot.hold(hold) {
                Held::Yes => return self.found(slot, hold),
                Held::TooManyPins => return Err(AcquireError::TooManyPins),
                Held::NotResident if slot.state().is(State::FILLING) => {
                    books = self.shared.filled.wait(books).unwrap_or_else(PoisonError::into_inner);
                }
                Held::NotResident => break,
            }
        }
        self.make_room(&mut books, nbytes, source, &mut freed)?;
        books.charged = books.charged.saturating_add(nbytes);
        if let Some(start) = in_place {
            self.publish(&mut books, index, slot, start, 0, hold);
            return Ok(start);
        }
        slot.start_filling();
        drop(books);
        // The memory is needed now.
        drop(freed);
        self.fill(index, slot, nbytes, hold, source)
    }

    /// Reads the copy of a piece that has been charged and marked as FILLING.
    fn fill(
        &self,
        index: usize,
        slot: &Slot,
        nbytes: u64,
        hold: Hold,
        source: &dyn Source,
    ) -> Result<NonNull<u8>, AcquireError> {
        let filling = Filling { ledger: self, slot, nbytes };
        let copy = source.copy(index)?;
        let start = copy.start();
        let mut books = self.lock();
        if books.copies.try_reserve(1).is_err() {
            drop(books);
            return Err(StorageError::NoMemory { nbytes }.into());
        }
        books.copies.insert(index, copy);
        let fixed = if source.copies_may_go() { 0 } else { State::FIXED };
        self.publish(&mut books, index, slot, start, State::COPIED | fixed, hold);
        std::mem::forget(filling);
        drop(books);
        self.shared.filled.notify_all();
        Ok(start)
    }

    /// Makes a piece resident that is charged already.
    fn publish(&self, books: &mut Books, index: usize, slot: &Slot, start: NonNull<u8>, flags: u64, hold: Hold) {
        let now = self.clock.now();
        // Who releases a piece that is not queued lets go of what exceeds the budget. It may have been lowered during a read.
        let queued = match hold {
            Hold::Pin if flags & State::FIXED == 0 && books.fits(0, 0) => State::QUEUED,
            _ => 0,
        };
        let before = slot.publish(start, now, flags | queued, hold);
        // An entry may be left from before it was evicted.
        if queued != 0 && !before.is(State::QUEUED) {
            books.queue.push(now, index);
        }
    }

    /// Queues a piece that was just released, and lets go of what exceeds the budget.
    #[cold]
    fn requeue(&self, index: usize, slot: &Slot, source: &dyn Source) {
        let mut freed = Freed::default();
        let mut books = self.lock();
        if slot.requeue() {
            books.queue.push(slot.used(), index);
        }
        self.trim(&mut books, source, &mut freed);
        drop(books);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Books> {
        // A panic elsewhere leaves nothing half done, so poison means nothing here.
        self.shared.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The slots; none before the first use.
    #[inline]
    pub(super) fn slots(&self) -> &[Slot] {
        self.table.get().map_or(&[], Table::slots)
    }

    #[inline]
    pub(super) fn slot(&self, index: usize) -> Option<&Slot> {
        self.slots().get(index)
    }

    fn table(&self) -> Result<&Table, StorageError> {
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        let mut books = self.lock();
        if let Some(table) = self.table.get() {
            return Ok(table);
        }
        books.queue.reserve(self.len)?;
        let nbytes = (self.len as u64).saturating_mul(size_of::<usize>() as u64);
        books.claimed.try_reserve_exact(self.len).map_err(|_| StorageError::NoMemory { nbytes })?;
        let table = Table::new(self.len)?;
        Ok(self.table.get_or_init(|| table))
    }
}

/// A copy being read. Dropping it, on an error or a panic, gives back the charge and wakes those who wait for the copy: each of them
/// tries again by itself.
struct Filling<'l, C: Clock> {
    ledger: &'l Ledger<C>,
    slot: &'l Slot,
    nbytes: u64,
}

impl<C: Clock> Drop for Filling<'_, C> {
    fn drop(&mut self) {
        let mut books = self.ledger.lock();
        books.charged = books.charged.saturating_sub(self.nbytes);
        self.slot.stop_filling();
        drop(books);
        self.ledger.shared.filled.notify_all();
    }
}

impl<C> fmt::Debug for Ledger<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("len", &self.len).finish_non_exhaustive()
    }
}
