//! The index of a sharded checkpoint.

/// The longest index that is accepted, in bytes.
pub const MAX_INDEX_LEN: u64 = 100_000_000;

/// Which shard holds which tensor.
#[derive(Debug)]
pub struct Index {}
impl Index {
    /// stub
    pub fn parse(_: &[u8]) -> Result<Index, crate::format::IndexError> {
        Ok(Index {})
    }
    /// stub
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &str> {
        [].into_iter()
    }
    /// stub
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], usize)> {
        [].into_iter()
    }
}
