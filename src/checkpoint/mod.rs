//! A checkpoint: one name space over the shards that hold its tensors.
//!
//! ```text
//! locate     from a path to the files of the shards: folders, indices
//! open       opens them, several at once
//! shards     the shards, through which tensors are numbered
//! names      one table over the names of all shards
//! agree      whether an index and the shards say the same
//! metadata   the metadata of all shards as one
//! bytes      where tensors lie, or copied to where they should go
//! loading    what loading many of them needs to know
//! resident   what is in memory: held, let go, read ahead
//! neighbours which tensors lie beside one another
//! strays     pages that come into memory beside tensors
//! verify     whether the bytes are those of which there are checksums
//! ```

mod agree;
mod bytes;
mod loading;
mod locate;
mod metadata;
mod names;
mod neighbours;
mod open;
mod read;
mod resident;
mod shard;
mod shards;
mod strays;
mod verify;

pub use bytes::{TensorBytes, View};
pub(crate) use loading::Place;
pub use open::OpenOptions;
pub use resident::{Pinned, Residency};
pub use verify::{Checks, Report, Verify, VerifyOptions};

use crate::format::{Dtype, TensorInfo};
use crate::residency::Ledger;
use crate::storage::{ReadAhead, StorageKind};
use metadata::Metadata;
use names::Names;
use neighbours::Neighbours;
use shard::Shard;
use shards::Shards;
use std::ffi::{c_char, CStr};
use std::ops::Range;
use strays::Strays;
use verify::FirstUse;

/// An open checkpoint.
///
/// It holds its own copy of the header, so what it says about tensors never changes, whatever happens to the file; the file may be
/// unlinked or renamed over. It may be used from any number of threads at once.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Shards,
    names: Names,
    metadata: Metadata,
    ledger: Ledger,
    neighbours: Neighbours,
    read_ahead: ReadAhead,
    strays: Strays,
    /// Reads look whether the file has changed.
    watches_changes: bool,
    first_use: Option<FirstUse>,
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
    /// How the shards' bytes are reached: never [`StorageKind::Auto`]. If some are mapped and some are read, this says read.
    pub storage: StorageKind,
    /// How many metadata entries were left out because an earlier shard has another value for their key. Checksums do not count: each
    /// shard has its own.
    pub metadata_conflicts: u64,
}

impl Checkpoint {
    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tensor `index`. Indices follow the order of the shards, and within each that of its header.
    pub fn tensor(&self, index: usize) -> Option<Tensor<'_>> {
        let (shard, number, within) = self.shards.locate(index)?;
        let info = shard.header.tensor(within)?;
        Some(Tensor { info, index, shard, number })
    }

    /// All tensors, in the order of their indices.
    pub fn tensors(&self) -> impl Iterator<Item = Tensor<'_>> {
        (0..self.len()).filter_map(|index| self.tensor(index))
    }

    /// The index of the tensor called `name`, which may be any bytes. Takes constant time and does not allocate.
    pub fn find(&self, name: impl AsRef<[u8]>) -> Option<usize> {
        self.names.find(&self.shards, name.as_ref())
    }

    /// The indices of the tensors whose names start with `prefix`, in byte order of the names. `None` if there is no memory for the
    /// order, which the first call makes; from then on a call takes logarithmic time and does not allocate.
    pub fn find_prefix(&self, prefix: impl AsRef<[u8]>) -> Option<&[usize]> {
        self.names.find_prefix(&self.shards, prefix.as_ref())
    }

    /// The names as C strings, in the order of the indices: valid as long as the checkpoint. `None` if there is no memory for the
    /// array, which the first call makes.
    pub fn c_names(&self) -> Option<&[*const c_char]> {
        self.names.c_names(&self.shards)
    }

    /// Sizes, and how the checkpoint was opened.
    pub fn info(&self) -> Info {
        let shards = self.shards.list();
        let kinds = || shards.iter().map(|shard| shard.storage.kind());
        let sum = |bytes: fn(&Shard) -> u64| shards.iter().map(bytes).fold(0, u64::saturating_add);
        Info {
            file_bytes: sum(|shard| shard.storage.size()),
            header_bytes: sum(|shard| shard.header.header_len() as u64),
            tensor_bytes: sum(|shard| shard.header.data_len()),
            storage: kinds().find(|kind| *kind == StorageKind::Read).or(kinds().next()).unwrap_or(StorageKind::Memory),
            metadata_conflicts: self.metadata.conflicts(),
        }
    }

    /// Number of entries in the metadata: that of all shards (`__metadata__` of each header), each key once. Where shards have
    /// different values for a key, the first one counts; [`Info::metadata_conflicts`] tells how often that was so.
    pub fn metadata_len(&self) -> usize {
        self.metadata.len()
    }

    /// Key and value of metadata entry `index` in UTF-8, in the order of the shards and their headers. A NUL follows the last byte
    /// of each.
    pub fn metadata(&self, index: usize) -> Option<(&[u8], &[u8])> {
        self.metadata.get(&self.shards, index)
    }

    /// The value of metadata `key`, in UTF-8. Takes constant time and does not allocate. A NUL follows the last byte.
    pub fn metadata_get(&self, key: impl AsRef<[u8]>) -> Option<&[u8]> {
        self.metadata.find(&self.shards, key.as_ref())
    }

    /// Number of shards.
    pub fn shard_len(&self) -> usize {
        self.shards.list().len()
    }

    /// Path of a shard, as it was given or found; empty for memory.
    pub fn shard_path(&self, shard: usize) -> Option<&CStr> {
        self.shards.list().get(shard).map(|shard| &*shard.path)
    }
}

/// What a checkpoint says about one of its tensors. Made by [`Checkpoint::tensor`].
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'c> {
    info: TensorInfo<'c>,
    index: usize,
    shard: &'c Shard,
    number: usize,
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
        self.number
    }

    /// Where it starts in its shard, in bytes from the start of the file.
    pub fn file_offset(&self) -> u64 {
        self.shard.data_start() + self.info.start
    }

    /// Where its bytes lie in its shard.
    pub(crate) fn file_range(&self) -> Range<u64> {
        let start = self.file_offset();
        start..start + self.nbytes()
    }

    /// The largest power of two, up to a page of 4096, that divides its file offset: what its address in a mapping is aligned to.
    /// If its dtype needs more, [`Checkpoint::tensor_ptr`] makes an aligned copy.
    pub fn alignment(&self) -> u64 {
        1 << self.file_offset().trailing_zeros().min(12)
    }
}
