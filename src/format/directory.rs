//! What a header's text says, before it is checked: names, dtypes, shapes, offsets, in the order of the header.

use super::Dtype;
use std::collections::TryReserveError;

/// Where a string lies in the text that a directory belongs to. Headers end at 100 MB, so 32 bits do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub(super) start: u32,
    pub(super) len: u32,
}

impl Span {
    /// The span of `len` bytes at `start`; `None` beyond 4 GiB, where no header reaches.
    pub(super) fn new(start: usize, len: usize) -> Option<Span> {
        let (start, len) = (u32::try_from(start).ok()?, u32::try_from(len).ok()?);
        start.checked_add(len)?;
        Some(Span { start, len })
    }

    /// Position of the first byte after the string.
    pub(super) fn end(self) -> usize {
        self.start as usize + self.len as usize
    }

    /// The string's bytes; empty if `text` is not the text of this span.
    pub(super) fn of(self, text: &[u8]) -> &[u8] {
        text.get(self.start as usize..self.end()).unwrap_or_default()
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

/// The entries of one header, flat: three allocations however many tensors there are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Directory {
    pub(super) tensors: Vec<Entry>,
    pub(super) dims: Vec<u64>,
    /// Key and value of each `__metadata__` entry.
    pub(super) metadata: Vec<(Span, Span)>,
}

impl Directory {
    /// The shape of `entry`, in elements per dimension.
    pub(super) fn shape(&self, entry: &Entry) -> &[u64] {
        let start = entry.dims_start as usize;
        self.dims.get(start..start + entry.rank as usize).unwrap_or_default()
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
