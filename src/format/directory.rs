//! What a header says, before it is checked: names, dtypes, shapes, offsets, in the order of the header.

use super::Dtype;
use std::collections::TryReserveError;
use std::num::TryFromIntError;

/// Where a string lies in [`Directory::text`]. Headers end at 100 MB, so 32 bits do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub(super) start: u32,
    pub(super) len: u32,
}

impl Span {
    /// The string's bytes; empty if `text` is not the text of this span.
    #[inline]
    pub(super) fn of(self, text: &[u8]) -> &[u8] {
        let start = self.start as usize;
        text.get(start..start + self.len as usize).unwrap_or_default()
    }
}

/// One tensor as the header states it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(super) name: Span,
    pub(super) dtype: Dtype,
    /// Its shape is `dims[dims_start..][..rank]` of the directory.
    pub(super) dims_start: u32,
    pub(super) rank: u32,
    /// `data_offsets`: relative to the first byte after the header.
    pub(super) start: u64,
    pub(super) stop: u64,
}

/// The entries of one header, flat: four allocations however many tensors there are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Names, and metadata's keys and values, in UTF-8, each followed by a NUL: C strings where they lie.
    pub(super) text: Vec<u8>,
    pub(super) tensors: Vec<Entry>,
    pub(super) dims: Vec<u64>,
    /// Key and value of each `__metadata__` entry.
    pub(super) metadata: Vec<(Span, Span)>,
}

impl Directory {
    /// Appends a string to the text. Fails when there is no memory for it, or when the text exceeds 4 GiB, which no header does.
    pub(super) fn keep(&mut self, string: &[u8]) -> Result<Span, NoRoom> {
        let span = Span { start: u32::try_from(self.text.len())?, len: u32::try_from(string.len())? };
        self.text.try_reserve(string.len() + 1)?;
        self.text.extend_from_slice(string);
        self.text.push(0);
        Ok(span)
    }

    /// Appends a number to the shapes.
    pub(super) fn push_dim(&mut self, dim: u64) -> Result<(), NoRoom> {
        Ok(try_push(&mut self.dims, dim)?)
    }

    /// Appends a tensor whose shape is what has been pushed since there were `dims_start` numbers.
    pub(super) fn push_tensor(
        &mut self,
        name: Span,
        dtype: Dtype,
        dims_start: usize,
        (start, stop): (u64, u64),
    ) -> Result<(), NoRoom> {
        let rank = u32::try_from(self.dims.len() - dims_start)?;
        let dims_start = u32::try_from(dims_start)?;
        Ok(try_push(&mut self.tensors, Entry { name, dtype, dims_start, rank, start, stop })?)
    }

    /// Appends a metadata entry.
    pub(super) fn push_metadata(&mut self, key: Span, value: Span) -> Result<(), NoRoom> {
        Ok(try_push(&mut self.metadata, (key, value))?)
    }

    /// The name of tensor `index`; empty for an index that is none.
    pub(super) fn name(&self, index: usize) -> &[u8] {
        self.tensors.get(index).map_or(&[], |entry| entry.name.of(&self.text))
    }

    /// The shape of `entry`, in elements per dimension.
    pub(super) fn shape(&self, entry: &Entry) -> &[u64] {
        let start = entry.dims_start as usize;
        self.dims.get(start..start + entry.rank as usize).unwrap_or_default()
    }
}

/// There is no memory, or no index, for one more.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

impl From<TryReserveError> for NoRoom {
    fn from(_: TryReserveError) -> NoRoom {
        NoRoom
    }
}

impl From<TryFromIntError> for NoRoom {
    fn from(_: TryFromIntError) -> NoRoom {
        NoRoom
    }
}

/// `Vec::push` that reports what `push` would abort on: these vectors are as long as a stranger's header wants.
pub(super) fn try_push<T>(vec: &mut Vec<T>, value: T) -> Result<(), TryReserveError> {
    if vec.len() == vec.capacity() {
        vec.try_reserve(1)?;
    }
    vec.push(value);
    Ok(())
}
