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
    /// Where it starts in the shard's file; of a slice with gaps, where the tensor does.
    pub(crate) start: u64,
    pub(crate) nbytes: u64,
    /// Set if the slice is not one run.
    pub(crate) scattered: Option<Box<Slice>>,
    /// Whether the slice is all of the tensor.
    pub(crate) is_whole: bool,
}

impl Checkpoint {
    /// # Errors
    ///
    /// As for [`Checkpoint::tensor_read`]: no such tensor, wrong ranges.
    pub(crate) fn place(&self, index: usize, ranges: &[Range<u64>]) -> Result<Place, Error> {
        let tensor = self.tensor_at(index)?;
        let (shard, start) = (tensor.shard(), tensor.file_offset());
        if ranges.is_empty() {
            return Ok(Place { shard, start, nbytes: tensor.nbytes(), scattered: None, is_whole: true });
        }
        let slice = self.slice(&tensor, ranges)?;
        let nbytes = slice.nbytes();
        let is_whole = nbytes == tensor.nbytes();
        let (start, scattered) = match slice.is_contiguous() {
            true => (start + slice.offset(), None),
            false => (start, Some(Box::new(slice))),
        };
        Ok(Place { shard, start, nbytes, scattered, is_whole })
    }

    /// Whether one of the files lies on a network or FUSE file system.
    pub(crate) fn is_remote(&self) -> bool {
        self.storages().any(Storage::is_remote)
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

    /// Whether what was read has to be checked before it is handed out.
    pub(crate) fn checks_reads(&self) -> bool {
        self.watches_changes || self.first_use.is_some()
    }

    /// Whether the file of a tensor is as it was, where that is wanted to be known.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]: the file was changed.
    pub(crate) fn check_unchanged_of(&self, index: usize) -> Result<(), Error> {
        self.check_unchanged(&self.tensor_at(index)?)
    }

    /// After all of a tensor was read to memory from an unchanged file, and before it is handed out: what [`Checkpoint::tensor_read`]
    /// checks then. `go_on` ends that, by an error.
    ///
    /// # Errors
    ///
    /// [`Error::Checksum`].
    pub(crate) fn check_whole(&self, index: usize, bytes: &[u8], go_on: GoOn<'_>) -> Result<(), Error> {
        self.check_read(&self.tensor_at(index)?, bytes, go_on)
    }

    /// The same for a part of a tensor, which the caller will see all of, part by part: to check that, it is read once more.
    pub(crate) fn check_piece(&self, index: usize, go_on: GoOn<'_>) -> Result<(), Error> {
        self.check_first_use_unless(&self.tensor_at(index)?, go_on)
    }
}
