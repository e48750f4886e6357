//! What comes out of a load.

use super::options::Engine;
use super::request::Destination;
use crate::error::Error;
use crate::task::Progress;

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
    /// The bytes: at the request's destination, or staged, where they may be read and written until they are recycled. Or why they have not
    /// arrived; the other requests, and the other pieces of this one, do all the same.
    pub bytes: Result<Destination, Error>,
    /// Where they start in the request: not 0 only for pieces.
    pub offset: u64,
    /// Whether this is the request's last piece, which is the only one where it is not in pieces. Pieces come in order.
    pub is_last: bool,
    /// What read it; if several did, the last bytes of it. `None` if there was nothing to read.
    pub engine: Option<Engine>,
    /// For [`Load::recycle`](super::Load::recycle); 0 if there is nothing to recycle.
    pub buffer: u64,
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
