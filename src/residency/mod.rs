//! Which pieces of memory are in use, which are held, and which go when a budget is reached.
//!
//! This layer lies between `storage` and `checkpoint`. It knows numbered pieces and their sizes, no tensors, names or files. What it
//! has to know of a piece it asks a [`Source`]: the checkpoint.
//!
//! A piece becomes *resident* when it is first asked for, and is charged against the budget from then on. It lies in a mapping, or in a
//! copy that the ledger owns. Users *pin* it; what is pinned never goes. What is not goes when room is needed, least recently used first.
//!
//! # Locks
//!
//! Asking for a piece that is resident takes no lock and writes to nothing but the piece's own cache line. All that makes pieces
//! resident, and all that lets them go, happens under one mutex; only copies are read outside of it. Everything that both sides have
//! to agree on is in the piece's one state word, see [`slot`].

mod clock;
mod error;
mod evict;
mod ledger;
mod queue;
mod slot;
mod stats;
mod sync;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use error::{AcquireError, InUse, NotInUse};
pub(crate) use ledger::Ledger;
pub(crate) use stats::Stats;

use crate::storage::{Buffer, StorageError};
use std::ptr::NonNull;

/// Knows the pieces. What it says of a piece never changes.
///
/// All but [`Source::copy`] may be called with the ledger locked: they must not call the ledger, except through what they are given.
pub(crate) trait Source {
    /// What a piece is charged against the budget.
    fn nbytes(&self, index: usize) -> u64;

    /// Where a piece lies, if it can be pointed to without a copy; it is empty, or lies in a mapping or in memory.
    fn in_place(&self, index: usize) -> Option<NonNull<u8>>;

    /// Reads an aligned copy of a piece. This may take long: nothing is locked.
    ///
    /// # Errors
    ///
    /// It cannot be read, or there is no memory. The next call may succeed.
    fn copy(&self, index: usize) -> Result<Buffer, StorageError>;

    /// Drops the pages of a piece that lies in place, except those shared with a piece for which `is_held` is true: it may be in use.
    fn drop_pages(&self, index: usize, is_held: &dyn Fn(usize) -> bool);

    /// Whether copies may be dropped and read again. Not where memory is writable: a copy may have been written to.
    fn copies_may_go(&self) -> bool;
}
