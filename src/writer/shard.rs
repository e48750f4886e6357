//! One file of a checkpoint while it is written.

use super::data::Data;
use super::entries::{Entries, Metadata};
use super::layout::ShardLayout;
use super::target::Target;
use crate::storage::output::{Order, Temporary};
use crate::storage::StorageError;
use std::io::{self, Write};

/// Bytes of a text that are written at once.
const PIECE: usize = 256 * 1024;

/// A file that is not there yet, and how far it is.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) layout: ShardLayout,
    pub(super) file: Option<Temporary>,
    is_allocated: bool,
    /// Whether the tensors that were added have been written.
    pub(super) is_filled: bool,
}

impl Shard {
    pub(super) fn new(layout: ShardLayout) -> Shard {
        Shard { layout, file: None, is_allocated: false, is_filled: false }
    }

    /// Sees to it that the file is there, in its full length. `made` is one that has been made already.
    pub(super) fn prepare(
        &mut self,
        target: &Target,
        is_private: bool,
        made: &mut Option<Temporary>,
    ) -> Result<(), StorageError> {
        let file = match self.file.take().or_else(|| made.take()) {
            Some(file) => file,
            None => Temporary::create(&target.folder, &target.temporaries, is_private)?,
        };
        let file = self.file.insert(file);
        if !self.is_allocated {
            file.allocate(self.layout.file_len())?;
            self.is_allocated = true;
        }
        Ok(())
    }

    /// Its bytes; `None` before it is prepared.
    pub(super) fn data<'w, 'd>(&'w self, entries: &'w Entries<'d>, starts: &'w [u64]) -> Option<Data<'w, 'd>> {
        Some(Data { entries, starts, layout: &self.layout, file: self.file.as_ref()? })
    }
}

impl Data<'_, '_> {
    /// Writes everything before the data to the file.
    pub(super) fn write_header(
        &self,
        metadata: &Metadata,
        checksums: &[(&'static str, String)],
    ) -> Result<(), StorageError> {
        write_text(self.file, |to| self.encode_header(to, metadata, checksums))
    }

    /// Writes everything before the data.
    pub(super) fn encode_header(
        &self,
        to: &mut impl Write,
        metadata: &Metadata,
        checksums: &[(&'static str, String)],
    ) -> io::Result<()> {
        let checksums = checksums.iter().map(|(key, value)| (*key, value.as_str()));
        self.layout.write_header(to, self.entries, self.starts, metadata.iter().chain(checksums))
    }
}

/// Writes a text from the start of a file on.
pub(super) fn write_text(
    file: &Temporary,
    write: impl FnOnce(&mut From0<'_>) -> io::Result<()>,
) -> Result<(), StorageError> {
    let mut to = From0 { file, position: 0, held: Vec::new(), failed: None };
    // Not a `BufWriter`, which ends the process if there is no memory.
    to.held.try_reserve_exact(PIECE).map_err(|_| StorageError::NoMemory { nbytes: PIECE as u64 })?;
    let outcome = write(&mut to).and_then(|()| to.flush());
    match (to.failed, outcome) {
        (Some(failed), _) => Err(failed),
        (None, Err(source)) => Err(StorageError::Io { action: "write", source }),
        (None, Ok(())) => Ok(()),
    }
}

/// Writes from the start of a file on, [`PIECE`] bytes at once.
pub(super) struct From0<'f> {
    file: &'f Temporary,
    position: u64,
    /// What has not been written yet.
    held: Vec<u8>,
    /// Why it writes no more.
    failed: Option<StorageError>,
}

impl Write for From0<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.held.len() == PIECE {
            self.flush()?;
        }
        let taken = bytes.get(..bytes.len().min(PIECE - self.held.len())).unwrap_or_default();
        self.held.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = match self.file.order() {
            Order::Any => self.file.write_all_at(&self.held, self.position),
            _ => self.file.append(&self.held, self.position),
        };
        if let Err(error) = written {
            self.failed = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        self.position += self.held.len() as u64;
        self.held.clear();
        Ok(())
    }
}
