//! Writing files from front to back, by one thread, where they can be written in no other way.
//!
//! Checksums of streamed tensors cannot be had there: they lie before the bytes that they are of. And streamed tensors have to come in the
//! order in which they lie in the file, with all of their bytes; what was added lies in memory, and is written between them.

use super::checksums::{self, Entry as Checksum};
use super::data::Data;
use super::entries::{Metadata, Source};
use super::fill::Failed;
use super::{Checksums, Writer};
use crate::error::Error;
use crate::storage::output::Order;
use crate::storage::StorageError;

/// What is appended between two looks at the task.
const PIECE: usize = 4 << 20;

impl Data<'_, '_> {
    /// Appends what lies before `until` and is here, as far as nothing is missing on the way. `done` is told of bytes, and of tensors that are
    /// complete.
    fn append_until<E: From<StorageError>>(
        &self,
        until: u64,
        metadata: &Metadata,
        checksums: &[Checksum],
        mut done: impl FnMut(u64, u64) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.file.end() < self.layout.data_start() {
            self.write_header(metadata, checksums)?;
        }
        for tensor in &self.layout.order {
            let (at, source) =
                self.place(*tensor).ok_or(StorageError::Internal("a tensor has no place in its file"))?;
            if at.end <= self.file.end() {
                continue;
            }
            let Source::Added(bytes) = source else { break };
            if at.start >= until {
                break;
            }
            let mut start = at.start;
            for piece in bytes.chunks(PIECE) {
                self.file.append(piece, start)?;
                start = start.saturating_add(piece.len() as u64);
                done(piece.len() as u64, u64::from(start == at.end))?;
            }
        }
        Ok(())
    }
}

impl Writer<'_> {
    /// Sees to it that a piece of a tensor that goes to `start` is the next one of a file that takes its bytes in their order, if that can
    /// be. Otherwise writing it will say why not.
    pub(super) fn make_next(&self, data: &Data<'_, '_>, start: u64) -> Result<(), StorageError> {
        if self.options.checksums != Checksums::default() {
            return Ok(());
        }
        data.append_until(start, &self.metadata, &[], |_, _| Ok(()))
    }

    /// Writes all of a file in its order, but for what was streamed.
    pub(super) fn fill_in_order(&self, data: &Data<'_, '_>) -> Result<(), Error> {
        let (checksums, task, target) = (self.options.checksums, &self.options.task, &self.target);
        let values = checksums::values(checksums, data, &self.metadata, target, task)?;
        let until = data.layout.file_len();
        data.append_until(until, &self.metadata, &values, |bytes, tensors| {
            task.done(bytes, tensors).map_err(Failed::Cancelled)
        })
        .map_err(|failed| match failed {
            Failed::Storage(source) => target.storage_error(source),
            Failed::Cancelled(cancelled) => cancelled,
        })?;
        match data.file.end() == until {
            true => Ok(()),
            false => {
                Err(target
                    .storage_error(StorageError::Internal("a file that was written in its order has not all bytes")))
            }
        }
    }
}

/// Whether a file is written so.
pub(super) fn is_in_order(data: &Data<'_, '_>) -> bool {
    data.file.order() != Order::Any
}
