//! Which part of a tensor belongs to which rank.

use super::RankError;
use std::ops::Range;

/// TODO
pub fn split_range(_dim: u64, rank: u32, world: u32) -> Result<Range<u64>, RankError> {
    Err(RankError::OutOfRange { rank: rank.into(), world: world.into() })
}

/// TODO
#[derive(Clone, Copy, Debug)]
pub struct Layout<'l> {
    /// TODO
    pub device_matrix: &'l [u64],
}
