//! How a checkpoint is written.

use crate::error::Error;
use crate::task::Task;
use std::sync::Arc;

/// How to write a checkpoint.
#[derive(Clone, Debug, Default)]
pub struct WriterOptions {
    /// Let tensors lie in the order in which they were added. Otherwise they lie as the reference implementation has them: by dtype, the
    /// last of [`Dtype::ALL`](crate::Dtype::ALL) first, then by name.
    pub insertion_order: bool,
    /// Do not wait until the disk has everything. After a crash of the system the file may be damaged, the old one gone.
    pub no_sync: bool,
    /// What is written into the metadata for readers to verify the file by.
    pub checksums: Checksums,
    /// What the start of the data is a multiple of: a power of two from 8 to 65536, or 0, which is 8.
    pub alignment: u32,
    /// The most bytes of tensors in a shard; 0 for one file. A tensor that is larger has a shard of its own.
    pub max_shard_bytes: u64,
    /// Tells how far [`Writer::finish`](crate::Writer::finish) is, and cancels it.
    pub task: Arc<Task>,
}

/// Which checksums are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checksums {
    /// `crc_num`, as MindSpore writes it.
    pub crc: bool,
    /// `modelspec.hash_sha256`, over the data of all tensors.
    pub sha256: bool,
    /// `safetensors_lazy.blake3`: of the header, and of each tensor.
    pub blake3: bool,
}

const ALIGNMENTS: std::ops::RangeInclusive<u32> = 8..=65536;

impl WriterOptions {
    /// The alignment that is meant.
    pub(super) fn checked_alignment(&self) -> Result<u64, Error> {
        match self.alignment {
            0 => Ok(u64::from(*ALIGNMENTS.start())),
            given if given.is_power_of_two() && ALIGNMENTS.contains(&given) => Ok(u64::from(given)),
            given => Err(Error::InvalidArgument {
                what: format!("alignment is {given}, which is no power of two from 8 to 65536"),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alignment_is_a_power_of_two_in_bounds() {
        let checked = |alignment| WriterOptions { alignment, ..WriterOptions::default() }.checked_alignment().ok();
        assert_eq!([0, 8, 64, 65536].map(checked), [Some(8), Some(8), Some(64), Some(65536)]);
        assert_eq!([1, 4, 7, 9, 65535, 131_072, u32::MAX].map(checked), [None; 7]);
    }
}
