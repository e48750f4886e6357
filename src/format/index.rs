//! The index of a sharded checkpoint.

/// The longest index that is accepted, in bytes.
pub const MAX_INDEX_LEN: u64 = 100_000_000;

/// Which shard holds which tensor.
#[derive(Debug)]
pub struct Index {}
