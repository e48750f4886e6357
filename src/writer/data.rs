//! The bytes of a shard's tensors, wherever they are.

use super::entries::{Entries, Source};
use super::layout::ShardLayout;
use crate::format::Dtype;
use crate::storage::output::{Temporary, DIRECT_ADDRESS};
use crate::storage::{Buffer, StorageError};
use std::ops::Range;

/// The data section of a shard: in the memory of whoever added the tensors, or in the file where they were streamed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Data<'w, 'd> {
    pub(super) entries: &'w Entries<'d>,
    pub(super) starts: &'w [u64],
    pub(super) layout: &'w ShardLayout,
    pub(super) file: &'w Temporary,
}

/// Memory for bytes that do not lie together anywhere. Grows to the longest range that is read.
#[derive(Debug, Default)]
pub(super) struct Bounce(Option<Buffer>);

impl Bounce {
    fn room(&mut self, len: u64) -> Result<&mut [u8], StorageError> {
        if self.0.as_ref().is_none_or(|buffer| (buffer.len() as u64) < len) {
            // The old one goes first.
            self.0 = None;
            self.0 = Some(Buffer::new(len)?);
        }
        let bytes = self.0.as_mut().and_then(|buffer| buffer.as_mut_slice().get_mut(..len as usize));
        bytes.ok_or(StorageError::Internal("a block of memory is shorter than it was asked to be"))
    }
}

/// A wrong layout is a bug, and is told as one.
const NO_SUCH_BYTES: &str = "bytes of a file to be written are of no tensor";

/// Whether bytes can be written from where they are.
fn can_stay(bytes: &[u8], must_be_aligned: bool) -> bool {
    !must_be_aligned || bytes.as_ptr() as usize % DIRECT_ADDRESS == 0
}

/// Bytes that belong into a file.
pub(super) trait Bytes {
    /// The bytes of `range`, which counts from the start of the file. Where they lie together in memory they are not copied, unless they
    /// must be aligned and are not.
    fn read<'s>(
        &'s self,
        range: Range<u64>,
        must_be_aligned: bool,
        bounce: &'s mut Bounce,
    ) -> Result<&'s [u8], StorageError>;
}

/// A piece of a tensor, and where it begins in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'b> {
    pub(super) bytes: &'b [u8],
    pub(super) start: u64,
}

impl Bytes for Piece<'_> {
    fn read<'s>(
        &'s self,
        range: Range<u64>,
        must_be_aligned: bool,
        bounce: &'s mut Bounce,
    ) -> Result<&'s [u8], StorageError> {
        let (start, stop) = (range.start.saturating_sub(self.start), range.end.saturating_sub(self.start));
        let bytes = self.bytes.get(start as usize..stop as usize).ok_or(StorageError::Internal(NO_SUCH_BYTES))?;
        if can_stay(bytes, must_be_aligned) {
            return Ok(bytes);
        }
        let room = bounce.room(bytes.len() as u64)?;
        room.copy_from_slice(bytes);
        Ok(room)
    }
}

impl Bytes for Data<'_, '_> {
    fn read<'s>(
        &'s self,
        range: Range<u64>,
        must_be_aligned: bool,
        bounce: &'s mut Bounce,
    ) -> Result<&'s [u8], StorageError> {
        if let Some(bytes) = self.in_place(&range).filter(|bytes| can_stay(bytes, must_be_aligned)) {
            return Ok(bytes);
        }
        let room = bounce.room(range.end.saturating_sub(range.start))?;
        let mut rest = &mut *room;
        let mut position = range.start;
        for tensor in self.tensors_from(position) {
            if rest.is_empty() {
                break;
            }
            let Some((at, source)) = self.place(*tensor) else { continue };
            let stop = at.end.min(range.end);
            let Some(len) = stop.checked_sub(position).filter(|len| *len > 0) else { continue };
            let Some((to, others)) = rest.split_at_mut_checked(len as usize) else { break };
            match source {
                Source::Added(bytes) => {
                    let skipped = position.saturating_sub(at.start) as usize;
                    let from = bytes.get(skipped..).and_then(|bytes| bytes.get(..to.len()));
                    to.copy_from_slice(from.ok_or(StorageError::Internal(NO_SUCH_BYTES))?);
                }
                Source::Declared { .. } => self.file.read_exact_at(to, position)?,
            }
            (rest, position) = (others, stop);
        }
        // What lay in the room before must not get into a file.
        match position == range.end {
            true => Ok(room),
            false => Err(StorageError::Internal(NO_SUCH_BYTES)),
        }
    }
}

impl<'d> Data<'_, 'd> {
    /// Where a range lies in one piece of somebody's memory, if it does.
    fn in_place(&self, range: &Range<u64>) -> Option<&'d [u8]> {
        let tensor = self.tensors_from(range.start).first()?;
        match self.place(*tensor)? {
            (at, Source::Added(bytes)) if range.end <= at.end => {
                let (start, stop) = (range.start.checked_sub(at.start)?, range.end.checked_sub(at.start)?);
                bytes.get(start as usize..stop as usize)
            }
            _ => None,
        }
    }

    /// The tensors that end after `position`, in the order of their bytes.
    fn tensors_from(&self, position: u64) -> &[usize] {
        let order = &self.layout.order;
        let before = order.partition_point(|tensor| self.place(*tensor).is_none_or(|(at, _)| at.end <= position));
        order.get(before..).unwrap_or_default()
    }

    /// How many tensors end in a range, after its start.
    pub(super) fn ends_in(&self, range: &Range<u64>) -> u64 {
        (self.tensors_from(range.start).len() - self.tensors_from(range.end).len()) as u64
    }

    /// Where a tensor lies in the file, and where its bytes come from.
    pub(super) fn place(&self, tensor: usize) -> Option<(Range<u64>, Source<'d>)> {
        let entry = self.entries.get(tensor)?;
        let start = self.layout.data_start().checked_add(*self.starts.get(tensor)?)?;
        Some((start..start.checked_add(entry.nbytes)?, entry.source))
    }
    /// The name of a tensor.
    pub(super) fn name(&self, tensor: usize) -> &[u8] {
        self.entries.get(tensor).map_or(&[], |entry| self.entries.name(entry).as_bytes())
    }

    /// The element type of a tensor, and whether it has no dimensions.
    pub(super) fn is_scalar(&self, tensor: usize) -> Option<(Dtype, bool)> {
        let entry = self.entries.get(tensor)?;
        Some((entry.dtype, self.entries.described(entry, 0).shape.is_empty()))
    }
}
