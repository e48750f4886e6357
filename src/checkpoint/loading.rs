//! What loading many tensors needs to know of them.

use super::verify::GoOn;
use super::Checkpoint;
use crate::error::Error;
use crate::format::Slice;
use crate::quote::excerpt;
use crate::storage::{Storage, StorageError};
use std::ops::Range;

/// Where a slice of a tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) shard: usize,
    /// Where the tensor starts in the shard's file.
    pub(crate) start: u64,
    pub(crate) slice: Slice,
    /// Whether the slice is all of the tensor.
    pub(crate) is_whole: bool,
}

impl Checkpoint {
    /// # Errors
    ///
    /// As for [`Checkpoint::tensor_read`]: no such tensor, wrong ranges.
    pub(crate) fn place(&self, index: usize, ranges: &[Range<u64>]) -> Result<Place, Error> {
        let tensor = self.tensor_at(index)?;
        let slice = self.slice(&tensor, ranges)?;
        let is_whole = slice.nbytes() == tensor.nbytes();
        Ok(Place { shard: tensor.shard(), start: tensor.file_offset(), slice, is_whole })
    }

    /// The bytes of each shard.
    pub(crate) fn storages(&self) -> impl ExactSizeIterator<Item = &Storage> {
        self.shards.list().iter().map(|shard| &shard.storage)
    }

    /// The bytes of one shard.
    pub(crate) fn storage(&self, shard: usize) -> Option<&Storage> {
        self.shards.list().get(shard).map(|shard| &shard.storage)
    }

    /// The error of having no room for tensor `index`.
    pub(crate) fn buffer_too_small(&self, index: usize, needed: u64, given: u64) -> Error {
        let name = self.tensor(index).map_or("", |tensor| tensor.name());
        Error::BufferTooSmall { tensor: excerpt(name), needed, given }
    }

    /// The error of not having read tensor `index`.
    pub(crate) fn read_error(&self, index: usize, source: StorageError) -> Error {
        match self.tensor_at(index) {
            Ok(tensor) => tensor.shard.storage_error(Some(tensor.name()), source),
            Err(error) => error,
        }
    }

    /// After all of a tensor was read to memory, and before it is handed out: what [`Checkpoint::tensor_read`] checks then. `go_on` ends
    /// that, by an error.
    ///
    /// # Errors
    ///
    /// [`Error::Checksum`]; [`Error::Storage`]: the file was changed.
    pub(crate) fn check_whole(&self, index: usize, bytes: &[u8], go_on: GoOn<'_>) -> Result<(), Error> {
        let tensor = self.tensor_at(index)?;
        self.check_unchanged(&tensor)?;
        self.check_read(&tensor, bytes, go_on)
    }

    /// The same for a part of a tensor, which the caller will see all of, part by part: to check that, it is read once more.
    pub(crate) fn check_piece(&self, index: usize, go_on: GoOn<'_>) -> Result<(), Error> {
        let tensor = self.tensor_at(index)?;
        self.check_unchanged(&tensor)?;
        self.check_first_use_unless(&tensor, go_on)
    }

    /// The same for a slice, of which no checksum is known.
    pub(crate) fn check_slice(&self, index: usize) -> Result<(), Error> {
        self.check_unchanged(&self.tensor_at(index)?)
    }
}
