//! From complete files to the steps that put them in their places, by what is there at that moment.

use super::entries::Entry;
use super::publish::{can_link, End, Halt, Move, Publication};
use super::shard::write_text;
use super::target::Indexed;
use super::{Found, Stage, Writer, WriterError};
use crate::error::Error;
use crate::format::encode::{encode_index, text_len};
use crate::storage::output::{Lock, Temporary};
use crate::storage::StorageError;
use std::ffi::{CStr, CString};
use std::io;
use std::time::Duration;

/// How long to wait for others that publish in the same folder. Each takes some milliseconds, or a few syncs.
const PATIENCE: Duration = Duration::from_secs(30);

impl Writer<'_> {
    /// Puts the files in their places, all or none as a reader sees it.
    ///
    /// After a failure it begins anew: who had to wait may have published meanwhile, and nothing but what is there now is true.
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        // Two writers of the same shards would mix theirs, and one of a file and one of shards would leave both.
        let locked = self.target.folder.lock(PATIENCE, || self.options.task.check().is_ok());
        self.options.task.check()?;
        let done = locked.map_err(Halt::Storage).and_then(|mut lock| self.publish_locked(&mut lock).map(|()| lock));
        let lock = done.map_err(|halt| match halt {
            Halt::Storage(source) if self.found == Found::Old => self.target.storage_error(source),
            Halt::Storage(source) => self.error(WriterError::Unfinished { source, found: self.found }),
            Halt::Sync(source) => self.broken(source),
            Halt::Writer(source) => self.error(source),
        })?;
        self.stage = Stage::Finished;
        // Their temporary names go with them.
        self.shards.clear();
        self.indices.clear();
        if self.is_by_index {
            // An index of a writer that died while it published has named some until now.
            self.target.remove_leftovers();
        }
        drop(lock);
        Ok(())
    }

    fn publish_locked(&mut self, lock: &mut Option<Lock>) -> Result<(), Halt> {
        let publication = self.plan()?;
        self.has_begun = true;
        publication.run(&self.target, !self.options.no_sync, &mut self.found, lock)
    }

    /// The steps.
    pub(super) fn plan(&mut self) -> Result<Publication, Halt> {
        // Of an earlier try.
        self.indices.clear();
        let mut files = self.moves()?;
        let is_one = files.len() == 1;
        let there = self.target.indexed()?;
        self.found = self.found(&files, there.as_ref());
        let has_index = there.is_some();
        let there = there.unwrap_or_default();
        // Those of an earlier try are kept in mind: their index may be gone.
        let of_index = there.named.iter().filter(|name| self.target.is_shard(name)).chain(&there.unnamed);
        remember(&mut self.obsolete, of_index)?;
        if is_one && !has_index {
            return Publication::of_one(files.pop().ok_or(Halt::Writer(WriterError::Internal("no file")))?);
        }
        self.is_by_index = true;
        let index = self.target.index_name()?;
        let new: Vec<CString> = listed(files.iter().map(|file| file.to.clone()))?;
        // Shards of one checkpoint are in byte order.
        let is_old = |name: &&CString| new.binary_search(name).is_err();
        let old: Vec<CString> = listed(self.obsolete.iter().filter(is_old).cloned())?;
        let single = self.target.folder.find(&self.target.name)?;
        let outdated = single.filter(|_| !is_one).map(|_| self.target.name.clone());
        let last = self.index_of_new(&new, &[])?;
        let mut end = End { index, listing: None, outdated, old, last, is_one };
        // What a reader who finds the index must not take for another checkpoint, and the next writer removes.
        let unnamed = listed(end.old.iter().chain(&new).chain(&end.outdated).cloned())?;

        // What has lost its temporary name has lost it where there are no links.
        let links = match files.first() {
            Some(first) if files.iter().all(|file| file.is_there) => can_link(&self.target, &first.from)?,
            _ => false,
        };
        if links {
            let between = self.index_of_temporaries(&files, &unnamed)?;
            let mut by = Vec::new();
            by.try_reserve_exact(files.len()).map_err(no_memory)?;
            for _ in &files {
                by.push(self.target.temporaries.next()?);
            }
            return Publication::by_links(files, by, between, end);
        }

        let is_named = |name: &CString| !there.is_known || there.named.binary_search(name).is_ok();
        let is_seen = has_index && files.iter().any(|file| !file.is_done && is_named(&file.to));
        let names_only_the_file = there.is_known && matches!(&there.named[..], [only] if *only == self.target.name);
        if is_one && is_seen && names_only_the_file && !self.target.needs_index() {
            let file = files.pop().ok_or(Halt::Writer(WriterError::Internal("no file")))?;
            return Publication::by_rename_without_index(file, end.index);
        }
        if !end.old.is_empty() || end.outdated.is_some() {
            let removed = listed(end.old.iter().chain(&end.outdated).cloned())?;
            end.listing = Some(self.index_of_new(&new, &removed)?);
        }
        // Shards that no index names yet can be seen where there is none; unless it can be made for what is there.
        let announced = match end.outdated.is_some() && !has_index {
            true => self.index_of_old(&unnamed)?,
            false => None,
        };
        if is_seen || (!has_index && announced.is_none()) {
            let between = self.index_of_temporaries(&files, &unnamed)?;
            return Publication::by_renames_seen(files, between, end);
        }
        Publication::by_renames_unseen(files, announced, end)
    }

    /// Where the files are and where they go.
    fn moves(&self) -> Result<Vec<Move>, StorageError> {
        let mut moves = Vec::new();
        moves.try_reserve_exact(self.shards.len()).map_err(|_| no_room::<Move>(self.shards.len()))?;
        for (number, shard) in self.shards.iter().enumerate() {
            let file = shard.file.as_ref().ok_or(StorageError::Internal("a shard without a file is published"))?;
            let to = self.target.file_name(number, self.shards.len())?;
            let (is_there, is_done) = (file.is_at(file.name())?, file.is_at(&to)?);
            if !is_there && !is_done {
                let source = io::Error::from_raw_os_error(libc::ENOENT);
                return Err(StorageError::io("find a temporary file, which somebody has removed", source));
            }
            if !is_done {
                // What is no file must not be replaced.
                self.target.folder.find(&to)?;
            }
            moves.push(Move { from: file.name().to_owned(), to, is_there, is_done });
        }
        Ok(moves)
    }

    /// What a reader finds: of an earlier try, if others have not published since.
    fn found(&self, files: &[Move], there: Option<&Indexed>) -> Found {
        let is_named = |name: &CString| there.is_some_and(|there| there.named.binary_search(name).is_ok());
        if files.iter().any(|file| !file.is_there && is_named(&file.from)) {
            return Found::Neither;
        }
        let is_new = match files {
            [file] => file.is_done || is_named(&file.from),
            [file, ..] => is_named(&file.from) || (file.is_done && is_named(&file.to)),
            [] => false,
        };
        match is_new {
            true => Found::New,
            false => Found::Old,
        }
    }

    /// Writes an index that calls the files by the names that they have now. Gives its temporary name.
    fn index_of_temporaries(&mut self, files: &[Move], unnamed: &[CString]) -> Result<CString, Halt> {
        let names = listed(files.iter().map(|file| match file.is_there {
            true => file.from.clone(),
            false => file.to.clone(),
        }))?;
        self.index_of_new(&names, unnamed)
    }

    /// Writes an index that calls the files by these names, and lists some that it does not name. Gives its temporary name.
    fn index_of_new(&mut self, names: &[CString], unnamed: &[CString]) -> Result<CString, Halt> {
        let mut order: Vec<&Entry<'_>> = Vec::new();
        order.try_reserve_exact(self.entries.len()).map_err(no_memory)?;
        order.extend(self.entries.iter());
        order.sort_unstable_by(|a, b| self.entries.by_name(a, b));
        let total = self.entries.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.nbytes));
        let names = texts(names)?;
        let name_of = |entry: &Entry<'_>| names.get(*self.layout.numbers.get(entry.shard)?).copied();
        if order.iter().any(|entry| name_of(entry).is_none()) {
            return Err(Halt::Writer(WriterError::Internal("a tensor without a file is published")));
        }
        let named = || order.iter().filter_map(|entry| Some((self.entries.name(entry), name_of(entry)?)));
        let file = self.write_index(total, named, unnamed)?;
        Ok(self.keep_index(file))
    }

    /// Writes an index that names the file that is there now, which shards will replace, and lists their names: so that a reader of the
    /// folder does not see these come. `None` if there is nothing that could be opened. Gives its temporary name.
    fn index_of_old(&mut self, unnamed: &[CString]) -> Result<Option<CString>, Halt> {
        let Some(header) = self.target.header()? else { return Ok(None) };
        let names = texts(std::slice::from_ref(&self.target.name))?;
        let Some(file) = names.first().copied() else { return Ok(None) };
        let named = || {
            let names = (0..header.len()).filter_map(|tensor| std::str::from_utf8(header.name(tensor)).ok());
            names.map(|name| (name, file))
        };
        // An index must name something.
        if header.is_empty() {
            return Ok(None);
        }
        let unnamed = listed(unnamed.iter().filter(|name| **name != self.target.name).cloned())?;
        let written = self.write_index(header.data_len(), named, &unnamed)?;
        Ok(Some(self.keep_index(written)))
    }

    fn keep_index(&mut self, file: Temporary) -> CString {
        let name = file.name().to_owned();
        self.indices.push(file);
        name
    }

    fn write_index<'a, N: Iterator<Item = (&'a str, &'a str)>>(
        &self,
        total: u64,
        named: impl Fn() -> N,
        unnamed: &'a [CString],
    ) -> Result<Temporary, Halt> {
        let is_private = self.is_private || self.mode.is_some();
        let file = Temporary::create(&self.target.folder, &self.target.temporaries, is_private)?;
        let unnamed = texts(unnamed)?;
        let unnamed = || unnamed.iter().copied();
        file.allocate(text_len(|text| encode_index(text, unnamed(), total, named())))?;
        write_text(&file, |text| encode_index(text, unnamed(), total, named()))?;
        self.settle(&file, &self.target.index_name()?)?;
        self.sync_file(&file).map_err(Halt::Sync)?;
        Ok(file)
    }

    /// It goes no further. What an index names stays; and nothing goes but what is this writer's own.
    pub(super) fn abandon(&mut self) {
        let lock = self.target.folder.lock(Duration::ZERO, || false);
        let there = self.target.indexed();
        let is_named = |name: &CStr| match &there {
            Ok(Some(there)) => there.named.binary_search_by(|named| named.as_c_str().cmp(name)).is_ok(),
            Ok(None) => false,
            // What is not known to be nobody's is left to the next writer.
            Err(_) => true,
        };
        let len = self.shards.len();
        for (number, file) in
            self.shards.iter_mut().enumerate().filter_map(|(n, shard)| Some((n, shard.file.as_mut()?)))
        {
            if is_named(file.name()) {
                file.keep();
            }
            // Where files cannot have two names, some have got theirs before there is an index. (Without the lock another writer could
            // put its own there between the look and the removal.)
            let Ok(name) = self.target.file_name(number, len) else { continue };
            let is_in_the_way = self.found == Found::Old && len > 1 && lock.is_ok() && !is_named(&name);
            if is_in_the_way && file.is_at(&name).unwrap_or(false) {
                let _ = self.target.folder.unlink(&name);
            }
        }
        // The index that has hidden these from readers of the folder: there was none before.
        if let (Found::Old, Ok(_), Ok(index)) = (self.found, &lock, self.target.index_name()) {
            if self.indices.iter().any(|file| file.is_at(&index).unwrap_or(false)) {
                let _ = self.target.folder.unlink(&index);
            }
        }
    }
}

/// Adds names to a list in byte order, each once.
fn remember<'n>(list: &mut Vec<CString>, names: impl Iterator<Item = &'n CString>) -> Result<(), Halt> {
    for name in names {
        list.try_reserve(1).map_err(no_memory)?;
        list.push(name.clone());
    }
    list.sort_unstable();
    list.dedup();
    Ok(())
}

/// A list that grows with the number of shards.
fn listed(names: impl Iterator<Item = CString>) -> Result<Vec<CString>, Halt> {
    let mut list = Vec::new();
    for name in names {
        list.try_reserve(1).map_err(no_memory)?;
        list.push(name);
    }
    Ok(list)
}

/// Names as an index has them.
fn texts(names: &[CString]) -> Result<Vec<&str>, Halt> {
    let mut list = Vec::new();
    list.try_reserve_exact(names.len()).map_err(no_memory)?;
    for name in names {
        list.push(
            name.to_str().map_err(|_| WriterError::Internal("a name that no index can have")).map_err(Halt::Writer)?,
        );
    }
    Ok(list)
}

fn no_memory(_: std::collections::TryReserveError) -> Halt {
    Halt::Writer(WriterError::NoMemory)
}

fn no_room<T>(len: usize) -> StorageError {
    StorageError::NoMemory { nbytes: (len as u64).saturating_mul(size_of::<T>() as u64) }
}
