//! What comes out of a load.

use super::options::Engine;
use crate::error::Error;
use crate::task::Progress;
use std::ptr::NonNull;

/// What [`Load::next`](super::Load::next) gives.
#[derive(Debug)]
pub enum Next {
    /// A request, or a piece of one, has arrived or failed.
    Loaded(Loaded),
    /// Everything was delivered.
    Done,
    /// Nothing has arrived in time.
    Timeout,
}

/// A request, or a piece of one, that has arrived or failed.
#[derive(Debug)]
pub struct Loaded {
    /// The request's tag.
    pub tag: u64,
    /// The request's place among those that were given.
    pub request: usize,
    /// The tensor.
    pub index: usize,
    /// The bytes, or why they have not arrived; the other requests, and the other pieces of this one, do all the same.
    pub bytes: Result<LoadedBytes, Error>,
    /// Where they start in the request: not 0 only for pieces.
    pub offset: u64,
    /// Whether this is the request's last piece, which is the only one where it is not in pieces. Pieces come in order.
    pub is_last: bool,
    /// What read it; if several did, the last bytes of it. `None` if there was nothing to read.
    pub engine: Option<Engine>,
    /// For [`Load::recycle`](super::Load::recycle); 0 if there is nothing to recycle.
    pub buffer: u64,
}

/// Where bytes have arrived: at the request's destination, or staged.
#[derive(Debug)]
pub struct LoadedBytes {
    pub(super) start: NonNull<u8>,
    pub(super) len: usize,
}

// SAFETY: whoever looks at the bytes answers for that.
unsafe impl Send for LoadedBytes {}
// SAFETY: as for `Send`.
unsafe impl Sync for LoadedBytes {}

impl LoadedBytes {
    /// The first byte. Staged ones are there until they are recycled, or the load is dropped; and may be written to.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes.
    ///
    /// # Safety
    ///
    /// As long as the slice is used they are not recycled, the load is not dropped, the destination is there, and nobody writes to it.
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: all of them were written; the caller's promise for the rest.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

/// How far a load is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes that have arrived, and requests that were delivered.
    pub done: Progress,
    /// Bytes that were read from the files, with gaps and edges that nobody wanted.
    pub bytes_read: u64,
    /// The engines that have read something.
    pub engines: Vec<Engine>,
    /// Threads that read.
    pub workers: usize,
}
