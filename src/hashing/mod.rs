//! Checksums of many bytes, on several threads, in bounded memory.
//!
//! ```text
//! plan     files cut into blocks, in the order in which they are hashed; no list of them is made
//! turns    what can only be hashed from front to back, by several threads
//! pass     reads each block once and feeds all sums with it
//! ```
//!
//! BLAKE3 and CRC-32 of a tensor are joined from those of its blocks. SHA-256 cannot be: whoever has a block waits for its turn.

mod pass;
mod plan;
mod turns;

pub(crate) use pass::{pass, Source};

use crate::format::checksum::{Crc, Digest};
use std::ops::Range;

/// A file, or memory, and what is wanted of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Input {
    /// Bytes before the data section.
    pub(crate) data_start: u64,
    /// Where the tensors lie, in the order of their bytes, one after the other from the start of the data section on.
    pub(crate) tensors: Vec<Range<u64>>,
    pub(crate) wanted: Wanted,
}

impl Input {
    /// How many bytes are read for it.
    pub(crate) fn bytes(&self) -> u64 {
        let end = self.tensors.last().map_or(self.data_start, |last| last.end);
        match self.wanted {
            Wanted { file_sha256: true, .. } => end,
            wanted if wanted == Wanted::default() => 0,
            _ => end - self.data_start,
        }
    }
}

/// Which sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Of each tensor.
    pub(crate) crc: bool,
    /// Of each tensor.
    pub(crate) blake3: bool,
    /// Of the data section.
    pub(crate) data_sha256: bool,
    /// Of all bytes.
    pub(crate) file_sha256: bool,
}

impl Wanted {
    fn of_tensors(self) -> bool {
        self.crc || self.blake3
    }

    fn in_order(self) -> bool {
        self.data_sha256 || self.file_sha256
    }
}

/// The sums of an input. What was not wanted is zero.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    /// In the order of [`Input::tensors`]; none if nothing was wanted of them.
    pub(crate) tensors: Vec<TensorSums>,
    pub(crate) data_sha256: Digest,
    pub(crate) file_sha256: Digest,
}

/// The sums of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TensorSums {
    pub(crate) crc: Crc,
    pub(crate) blake3: Digest,
}
