//! Why a piece could not be had, or not be let go.

use crate::storage::StorageError;

/// Why a piece could not be made resident. Nothing is pinned or charged then.
#[derive(Debug)]
pub(crate) enum AcquireError {
    /// There is no piece of that index.
    NoSuchPiece,
    /// It does not fit into the budget beside what cannot be evicted.
    Budget {
        /// Its size in bytes.
        needed: u64,
        /// What cannot be evicted, in bytes.
        in_use: u64,
        /// The budget in bytes.
        budget: u64,
    },
    /// It is pinned 2^31 times: more are refused, since the count must never wrap.
    TooManyPins,
    /// Its copy could not be read, or there is no memory.
    Storage(StorageError),
}

impl From<StorageError> for AcquireError {
    fn from(source: StorageError) -> AcquireError {
        AcquireError::Storage(source)
    }
}

/// A piece was released more often than it was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotInUse;

/// A piece is pinned or kept, and cannot be evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InUse;
