//! A checkpoint: one name space over the shards that hold its tensors.
//!
//! A checkpoint is, for now, one shard: a file or a file in memory.

mod bytes;
mod copies;
mod names;
mod open;
mod read;
mod shard;

pub use bytes::{TensorBytes, View};
pub use open::OpenOptions;

use crate::format::{Dtype, TensorInfo, PREFIX_LEN};
use crate::storage::StorageKind;
use copies::Copies;
use names::Names;
use shard::Shard;
use std::ffi::{c_char, CStr};

/// An open checkpoint.
///
/// It holds its own copy of the header, so what it says about tensors never changes, whatever happens to the file; the file may be
/// unlinked or renamed over. It may be used from any number of threads at once.
#[derive(Debug)]
pub struct Checkpoint {
    shard: Shard,
    names: Names,
    copies: Copies,
}

/// Sizes of a checkpoint, and how it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// Bytes of all shards.
    pub file_bytes: u64,
    /// Bytes of all headers, without the 8 bytes of their lengths.
    pub header_bytes: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// How the shards' bytes are reached: never [`StorageKind::Auto`].
    pub storage: StorageKind,
}

impl Checkpoint {
    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.shard.header.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.shard.header.is_empty()
    }

    /// Tensor `index`. Indices follow the order of the header.
    pub fn tensor(&self, index: usize) -> Option<Tensor<'_>> {
        let info = self.shard.header.tensor(index)?;
        Some(Tensor { info, index, data_start: self.shard.data_start() })
    }

    /// All tensors, in the order of their indices.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        (0..self.len()).filter_map(|index| self.tensor(index))
    }

    /// The index of the tensor called `name`, which may be any bytes. Takes constant time and does not allocate.
    pub fn find(&self, name: impl AsRef<[u8]>) -> Option<usize> {
        self.shard.header.find(name.as_ref())
    }

    /// The indices of the tensors whose names start with `prefix`, in byte order of the names. `None` if there is no memory for the
    /// order, which the first call makes; from then on a call takes logarithmic time and does not allocate.
    pub fn find_prefix(&self, prefix: impl AsRef<[u8]>) -> Option<&[usize]> {
        self.names.find_prefix(prefix.as_ref(), self.len(), |index| self.shard.header.name(index))
    }

    /// The names as C strings, in the order of the indices: valid as long as the checkpoint. `None` if there is no memory for the
    /// array, which the first call makes.
    pub fn c_names(&self) -> Option<&[*const c_char]> {
        self.names.c_names(self.len(), |index| self.shard.header.name(index))
    }

    /// Sizes, and how the checkpoint was opened.
    pub fn info(&self) -> Info {
        Info {
            file_bytes: self.shard.storage.size(),
            header_bytes: self.shard.header.header_len() as u64,
            tensor_bytes: self.shard.header.data_len(),
            storage: self.shard.storage.kind(),
        }
    }

    /// Number of entries in `__metadata__`.
    pub fn metadata_len(&self) -> usize {
        self.shard.header.metadata_len()
    }

    /// Key and value of metadata entry `index` in UTF-8, in the order of the header. A NUL follows the last byte of each.
    pub fn metadata(&self, index: usize) -> Option<(&[u8], &[u8])> {
        self.shard.header.metadata(index)
    }

    /// The value of metadata `key`, in UTF-8. Takes constant time and does not allocate. A NUL follows the last byte.
    pub fn metadata_get(&self, key: impl AsRef<[u8]>) -> Option<&[u8]> {
        let index = self.shard.header.find_metadata(key.as_ref())?;
        self.metadata(index).map(|(_, value)| value)
    }

    /// Number of shards.
    pub fn shard_len(&self) -> usize {
        1
    }

    /// Path of a shard, as it was given or found; empty for memory.
    pub fn shard_path(&self, shard: usize) -> Option<&CStr> {
        (shard == 0).then_some(&self.shard.path)
    }
}

/// What a checkpoint says about one of its tensors. Made by [`Checkpoint::tensor`].
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'c> {
    info: TensorInfo<'c>,
    index: usize,
    data_start: u64,
}

impl<'c> Tensor<'c> {
    /// Its index in the checkpoint.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its name.
    pub fn name(&self) -> &'c str {
        // The header was checked to be UTF-8 when it was opened.
        std::str::from_utf8(self.info.name).unwrap_or_default()
    }

    /// Its name in UTF-8. A NUL follows the last byte.
    pub fn name_bytes(&self) -> &'c [u8] {
        self.info.name
    }

    /// Its element type.
    pub fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    /// Its shape, in elements per dimension.
    pub fn shape(&self) -> &'c [u64] {
        self.info.shape
    }

    /// Its size in bytes.
    pub fn nbytes(&self) -> u64 {
        self.info.stop - self.info.start
    }

    /// The shard that it lies in.
    pub fn shard(&self) -> usize {
        0
    }

    /// Where it starts in its shard, in bytes from the start of the file.
    pub fn file_offset(&self) -> u64 {
        self.data_start + self.info.start
    }

    /// The largest power of two, up to a page of 4096, that divides its file offset: what its address in a mapping is aligned to.
    /// If its dtype needs more, [`Checkpoint::tensor_ptr`] makes an aligned copy.
    pub fn alignment(&self) -> u64 {
        1 << self.file_offset().trailing_zeros().min(12)
    }
}

impl Shard {
    /// Where the data section starts in the file.
    fn data_start(&self) -> u64 {
        PREFIX_LEN as u64 + self.header.header_len() as u64
    }
}
