//! From what was added to files that are complete, and on the disk.

use super::entries::{Entry, Source};
use super::fill::{self, Failed};
use super::layout::{lay_out, Rules};
use super::shard::Shard;
use super::{checksums, Stage, Writer, WriterError};
use crate::error::Error;
use crate::quote::excerpt;
use crate::storage::output::Temporary;
use crate::storage::StorageError;
use std::ffi::CStr;

impl Writer<'_> {
    /// Fixes where everything lies.
    pub(super) fn seal(&mut self) -> Result<(), Error> {
        if !self.shards.is_empty() {
            return Ok(());
        }
        self.stage = Stage::Sealed;
        let rules = Rules {
            insertion_order: self.options.insertion_order,
            alignment: self.alignment,
            checksums: self.options.checksums,
        };
        let laid_out = self
            .dealer
            .numbers()
            .and_then(|numbers| lay_out(&self.entries, &self.metadata, numbers, rules))
            .map_err(|source| self.error(source))?;
        let (layout, shards) = laid_out;
        self.layout = layout;
        self.shards = shards.into_iter().map(Shard::new).collect();
        Ok(())
    }

    /// Sees to it that all files are there, in their full length.
    pub(super) fn prepare(&mut self) -> Result<(), Error> {
        if matches!(self.stage, Stage::Prepared | Stage::Written) {
            return Ok(());
        }
        self.seal()?;
        for shard in &mut self.shards {
            let prepared = shard.prepare(&self.target, self.is_private, &mut self.first);
            prepared.map_err(|source| self.target.storage_error(source))?;
        }
        self.first = None;
        self.stage = Stage::Prepared;
        Ok(())
    }

    /// Whether every tensor has its bytes.
    pub(super) fn complete(&self) -> Result<(), WriterError> {
        let missing = |entry: &Entry<'_>| match entry.source {
            Source::Declared { written } => entry.nbytes.saturating_sub(written),
            Source::Added(_) => 0,
        };
        let mut lacking = self.entries.iter().filter(|entry| missing(entry) > 0);
        match lacking.next() {
            Some(first) => Err(WriterError::Incomplete {
                tensor: excerpt(self.entries.name(first)),
                missing: missing(first),
                tensors: 1 + lacking.count() as u64,
            }),
            None => Ok(()),
        }
    }

    /// Sees to it that all files are complete, and that the disk has them.
    pub(super) fn write_out(&mut self) -> Result<(), Error> {
        if !matches!(self.stage, Stage::Written) {
            self.fill()?;
            self.headers()?;
            self.sync()?;
            self.stage = Stage::Written;
        }
        Ok(())
    }

    /// Writes the tensors that were added.
    fn fill(&mut self) -> Result<(), Error> {
        let (entries, starts, target, task) = (&self.entries, &self.layout.starts, &self.target, &self.options.task);
        let mut runs = Vec::new();
        for shard in self.shards.iter().filter(|shard| !shard.is_filled) {
            let of_shard = shard.data(entries, starts).map(|data| fill::runs(&data)).unwrap_or_else(|| Ok(Vec::new()));
            runs.push(of_shard.map_err(|source| target.storage_error(source))?);
        }
        let total = runs.iter().flatten().fold(0u64, |sum, run| sum.saturating_add(run.end - run.start));
        let hashed = |shard: &Shard| checksums::bytes(self.options.checksums, shard.layout.data_len());
        let hashed = self.shards.iter().map(hashed).fold(total, u64::saturating_add);
        task.begin(hashed, entries.len() as u64);
        for (shard, runs) in self.shards.iter_mut().filter(|shard| !shard.is_filled).zip(&runs) {
            if let Some(data) = shard.data(entries, starts) {
                fill::fill(&data, runs, total >= fill::LARGE, task).map_err(|failed| match failed {
                    Failed::Storage(source) => target.storage_error(source),
                    Failed::Cancelled(cancelled) => cancelled,
                })?;
            }
            shard.is_filled = true;
        }
        // Those without bytes, and those that were written before.
        let done = task.progress().items_done;
        task.done(0, (entries.len() as u64).saturating_sub(done))
    }

    fn headers(&self) -> Result<(), Error> {
        for shard in &self.shards {
            let Some(data) = shard.data(&self.entries, &self.layout.starts) else { continue };
            let (checksums, task) = (self.options.checksums, &self.options.task);
            let values = checksums::values(checksums, &data, &self.metadata, &self.target, task)?;
            data.write_header(&self.metadata, &values).map_err(|source| self.target.storage_error(source))?;
        }
        Ok(())
    }

    /// Gives files the permissions of those that they replace, and waits until the disk has them.
    fn sync(&mut self) -> Result<(), Error> {
        self.mode = self.target.common_mode().map_err(|source| self.target.storage_error(source))?;
        for (number, shard) in self.shards.iter().enumerate() {
            self.options.task.check()?;
            let Some(file) = &shard.file else { continue };
            let name = self.target.file_name(number, self.shards.len());
            // As late as possible: what is for reading only is harder to tidy up after.
            self.settle(file, &name).map_err(|source| self.target.storage_error(source))?;
            if let Err(source) = self.sync_file(file) {
                return Err(self.broken(source));
            }
        }
        Ok(())
    }

    /// Gives a file the permissions of the one that it replaces.
    pub(super) fn settle(&self, file: &Temporary, name: &CStr) -> Result<(), StorageError> {
        match self.target.mode_of(name)?.or(self.mode) {
            Some(mode) => file.set_mode(mode),
            None => Ok(()),
        }
    }

    pub(super) fn sync_file(&self, file: &Temporary) -> Result<(), StorageError> {
        if self.options.no_sync {
            Ok(())
        } else {
            file.sync()
        }
    }
}
