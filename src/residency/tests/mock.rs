//! A source of pieces with known content, and a clock that ticks when asked.

use super::super::clock::Clock;
use super::super::Source;
use crate::storage::{Buffer, StorageError};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::Mutex;

/// No two answers are equal, so the order of uses is exact.
#[derive(Debug, Default)]
pub(crate) struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now(&self) -> u64 {
        self.0.fetch_add(1, Relaxed) + 1
    }
}

/// What an evicted copy is overwritten with. No piece has it for content.
pub(crate) const POISON: u8 = 0xdd;

/// Overwrites a copy that is evicted.
pub(crate) fn poison(copy: &Buffer) {
    // SAFETY: the ledger has taken it out of use; that nobody reads it is what the tests are about.
    unsafe { copy.start().as_ptr().write_bytes(POISON, copy.len()) }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) nbytes: u64,
    pub(crate) in_place: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Mock {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) writable: bool,
    /// Copies cannot be read.
    pub(crate) fails: AtomicBool,
    pub(crate) copies: AtomicUsize,
    /// The pieces whose pages were dropped, in that order.
    pub(crate) dropped: Mutex<Vec<usize>>,
}

impl Mock {
    pub(crate) fn new(pieces: impl IntoIterator<Item = (u64, bool)>) -> Mock {
        let pieces = pieces.into_iter().map(|(nbytes, in_place)| Piece { nbytes, in_place });
        Mock { pieces: pieces.collect(), ..Mock::default() }
    }

    /// What fills the copy of a piece.
    pub(crate) fn pattern(index: usize) -> u8 {
        (index % usize::from(POISON)) as u8
    }
}

/// Pieces in place lie here: their content is of no interest.
static PLACE: u64 = 0;

impl Source for Mock {
    fn nbytes(&self, index: usize) -> u64 {
        self.pieces[index].nbytes
    }

    fn in_place(&self, index: usize) -> Option<NonNull<u8>> {
        self.pieces[index].in_place.then_some(NonNull::from(&PLACE).cast())
    }

    fn copy(&self, index: usize) -> Result<Buffer, StorageError> {
        self.copies.fetch_add(1, Relaxed);
        let nbytes = self.pieces[index].nbytes;
        if self.fails.load(Relaxed) {
            return Err(StorageError::NoMemory { nbytes });
        }
        let buffer = Buffer::new(nbytes)?;
        // SAFETY: so large it is, and nobody else knows it.
        unsafe { buffer.start().as_ptr().write_bytes(Mock::pattern(index), nbytes as usize) };
        Ok(buffer)
    }

    fn drop_pages(&self, index: usize, is_held: &dyn Fn(usize) -> bool) {
        assert!(!is_held(index), "piece {index} is dropped while it is held");
        self.dropped.lock().unwrap().push(index);
    }

    fn copies_may_go(&self) -> bool {
        !self.writable
    }
}
