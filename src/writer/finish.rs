//! From what was added to files that are complete, and on the disk.

use super::data::Data;
use super::entries::{Entry, Source};
use super::fill::{self, Failed};
use super::in_order::is_in_order;
use super::layout::{lay_out, Rules};
use super::shard::Shard;
use super::{checksums, Stage, Writer, WriterError};
use crate::error::Error;
use crate::quote::excerpt;
use crate::storage::output::Temporary;
use crate::storage::StorageError;
use std::ffi::CStr;
use std::ops::Range;

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
        let mut made = Vec::new();
        made.try_reserve_exact(shards.len()).map_err(|_| self.error(WriterError::NoMemory))?;
        made.extend(shards.into_iter().map(Shard::new));
        self.shards = made;
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
        // Of those that are not filled: their numbers, and what is to be written.
        let mut runs: Vec<(usize, Vec<Range<u64>>)> = Vec::new();
        runs.try_reserve_exact(self.shards.len()).map_err(|_| self.error(WriterError::NoMemory))?;
        for number in (0..).zip(&self.shards).filter(|(_, shard)| !shard.is_filled).map(|(number, _)| number) {
            let of_shard = fill::runs(&self.data(number)?).map_err(|source| self.target.storage_error(source))?;
            runs.push((number, of_shard));
        }
        let total =
            runs.iter().flat_map(|(_, runs)| runs).fold(0u64, |sum, run| sum.saturating_add(run.end - run.start));
        let hashed = |shard: &Shard| checksums::bytes(self.options.checksums, shard.layout.data_len());
        let hashed = self.shards.iter().map(hashed).fold(total, u64::saturating_add);
        self.options.task.begin(hashed, self.entries.len() as u64);
        for (number, runs) in runs {
            self.fill_shard(number, &runs, total >= fill::LARGE)?;
            if let Some(shard) = self.shards.get_mut(number) {
                shard.is_filled = true;
            }
        }
        let task = &self.options.task;
        // Those without bytes, and those that were written before.
        let done = task.progress().items_done;
        task.done(0, (self.entries.len() as u64).saturating_sub(done))
    }

    fn fill_shard(&self, number: usize, runs: &[Range<u64>], is_large: bool) -> Result<(), Error> {
        let data = self.data(number)?;
        if !is_in_order(&data) {
            match fill::fill(&data, runs, is_large, &self.options.task) {
                Ok(()) => return Ok(()),
                Err(Failed::Cancelled(cancelled)) => return Err(cancelled),
                // The first write was refused for its position.
                Err(Failed::Storage(_)) if is_in_order(&data) => {}
                Err(Failed::Storage(source)) => return Err(self.target.storage_error(source)),
            }
        }
        self.fill_in_order(&data)
    }

    /// The bytes of a shard that is prepared.
    pub(super) fn data(&self, number: usize) -> Result<Data<'_, '_>, Error> {
        let data = self.shards.get(number).and_then(|shard| shard.data(&self.entries, &self.layout.starts));
        data.ok_or_else(|| self.error(WriterError::Internal("a shard was not prepared")))
    }

    fn headers(&self) -> Result<(), Error> {
        for number in 0..self.shards.len() {
            let data = self.data(number)?;
            if is_in_order(&data) && data.file.end() >= data.layout.data_start() {
                continue;
            }
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
            let file = shard.file.as_ref().ok_or_else(|| self.error(WriterError::Internal("a shard has no file")))?;
            let name =
                self.target.file_name(number, self.shards.len()).map_err(|source| self.target.storage_error(source))?;
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
        file.sync(!self.options.no_sync)
    }
}
