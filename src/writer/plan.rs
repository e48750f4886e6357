//! From complete files to the steps that put them in their places, by what is there at that moment.

use super::entries::Entry;
use super::publish::{can_link, Halt, Move, Publication};
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
        let locked = self.lock(PATIENCE);
        self.options.task.check()?;
        let done = locked.map_err(Halt::Storage).and_then(|lock| self.publish_locked().map(|()| lock));
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
        if self.is_sharded() {
            // An index of a writer that died while it published has named some until now.
            self.target.remove_leftovers();
        }
        drop(lock);
        Ok(())
    }

    fn is_sharded(&self) -> bool {
        self.options.max_shard_bytes > 0
    }

    /// Two writers of the same shards would mix theirs.
    fn lock(&self, patience: Duration) -> Result<Option<Lock>, StorageError> {
        match self.is_sharded() {
            true => self.target.folder.lock(patience, || self.options.task.check().is_ok()),
            false => Ok(None),
        }
    }

    fn publish_locked(&mut self) -> Result<(), Halt> {
        let publication = self.plan()?;
        self.has_begun = true;
        publication.run(&self.target.folder, !self.options.no_sync, &mut self.found)
    }

    /// The steps.
    pub(super) fn plan(&mut self) -> Result<Publication, Halt> {
        // Of an earlier try.
        self.indices.clear();
        let (index, mut has_index, mut there) = (self.target.index_name(), false, Indexed::default());
        if self.is_sharded() {
            has_index = self.target.folder.find(&index)?.is_some();
            there = self.target.indexed()?;
        }
        let (mut files, replaces) = self.moves()?;
        self.found = self.found(&files, &there, has_index);
        // Those of an earlier try are kept in mind: their index may be gone.
        let Indexed { named, unnamed } = there;
        self.obsolete.extend(named.into_iter().filter(|name| self.target.is_shard(name)).chain(unnamed));
        self.obsolete.sort_unstable();
        self.obsolete.dedup();
        if files.len() == 1 && !has_index {
            return files.pop().map(Publication::of_one).ok_or(Halt::Writer(WriterError::NoMemory));
        }

        // What has lost its temporary name has lost it where there are no links.
        let links = match files.first() {
            Some(first) if files.iter().all(|file| file.is_there) => can_link(&self.target, &first.from)?,
            _ => false,
        };
        let by = || self.target.temporaries.next();
        if files.len() == 1 {
            let names: Vec<CString> = files.iter().map(|file| file.to.clone()).collect();
            let between = self.index(&names, &self.obsolete)?;
            let from = between.name().to_owned();
            let file = files.pop().ok_or(Halt::Writer(WriterError::NoMemory))?;
            let publication = Publication::of_one_for_several(file, links.then(by), from, index, self.obsolete.clone());
            self.indices.push(between);
            return Ok(publication);
        }
        let new: Vec<CString> = files.iter().map(|file| file.to.clone()).collect();
        // Shards of one checkpoint are in byte order.
        let old: Vec<CString> = self.obsolete.iter().filter(|name| new.binary_search(name).is_err()).cloned().collect();
        let last = self.index(&new, &[])?;
        let to_index = Move { from: last.name().to_owned(), to: index, is_there: true, is_done: false };
        if !links {
            self.indices.push(last);
            let replaces = replaces || self.found == Found::New;
            return Ok(Publication::of_several_without_links(files, to_index, old, replaces));
        }
        let temporary: Vec<CString> = files.iter().map(|file| file.from.clone()).collect();
        let unnamed: Vec<CString> = old.iter().chain(&new).cloned().collect();
        let between = self.index(&temporary, &unnamed)?;
        let by = files.iter().map(|_| by()).collect();
        let publication = Publication::of_several(files, by, between.name().to_owned(), to_index, old);
        self.indices.extend([last, between]);
        Ok(publication)
    }

    /// Where the files are and where they go, and whether anything is in the way.
    fn moves(&self) -> Result<(Vec<Move>, bool), StorageError> {
        let mut replaces = false;
        let mut moves = Vec::new();
        for (number, shard) in self.shards.iter().enumerate() {
            let Some(file) = &shard.file else { continue };
            let to = self.target.file_name(number, self.shards.len());
            let (is_there, is_done) = (file.is_at(file.name())?, file.is_at(&to)?);
            if !is_there && !is_done {
                let source = io::Error::from_raw_os_error(libc::ENOENT);
                return Err(StorageError::io("find a temporary file, which somebody has removed", source));
            }
            replaces |= !is_done && self.target.folder.find(&to)?.is_some();
            moves.push(Move { from: file.name().to_owned(), to, is_there, is_done });
        }
        Ok((moves, replaces))
    }

    /// What a reader finds: of an earlier try, if others have not published since.
    fn found(&self, files: &[Move], there: &Indexed, has_index: bool) -> Found {
        let is_new = match files {
            [file] => file.is_done,
            [file, ..] => there.named.binary_search(&file.from).is_ok(),
            [] => false,
        };
        match self.found {
            _ if is_new => Found::New,
            Found::Neither if !has_index => Found::Neither,
            _ => Found::Old,
        }
    }

    /// Writes an index that calls the files by these names, and lists some that it does not name.
    fn index(&self, names: &[CString], unnamed: &[CString]) -> Result<Temporary, Halt> {
        let no_memory = |_| Halt::Writer(WriterError::NoMemory);
        let is_private = self.is_private || self.mode.is_some();
        let file = Temporary::create(&self.target.folder, &self.target.temporaries, is_private)?;
        let mut order: Vec<&Entry<'_>> = Vec::new();
        order.try_reserve_exact(self.entries.len()).map_err(no_memory)?;
        order.extend(self.entries.iter());
        order.sort_unstable_by(|a, b| self.entries.by_name(a, b));
        let total = self.entries.iter().fold(0u64, |sum, entry| sum.saturating_add(entry.nbytes));
        let names: Vec<&str> = names.iter().filter_map(|name| name.to_str().ok()).collect();
        let name_of = |entry: &Entry<'_>| names.get(*self.layout.numbers.get(entry.shard)?).copied();
        let named = || order.iter().filter_map(|entry| Some((self.entries.name(entry), name_of(entry)?)));
        let unnamed = || unnamed.iter().filter_map(|name| name.to_str().ok());
        file.allocate(text_len(|text| encode_index(text, unnamed(), total, named())))?;
        write_text(&file, |text| encode_index(text, unnamed(), total, named()))?;
        self.settle(&file, &self.target.index_name())?;
        self.sync_file(&file).map_err(Halt::Sync)?;
        Ok(file)
    }

    /// It goes no further. What an index names stays; and nothing goes but what is this writer's own.
    pub(super) fn abandon(&mut self) {
        let lock = self.lock(Duration::ZERO);
        let there = self.target.indexed();
        let is_named = |name: &CStr| match &there {
            Ok(there) => there.named.binary_search_by(|named| named.as_c_str().cmp(name)).is_ok(),
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
            let name = self.target.file_name(number, len);
            let is_in_the_way = self.found == Found::Old && len > 1 && lock.is_ok() && !is_named(&name);
            if is_in_the_way && file.is_at(&name).unwrap_or(false) {
                let _ = self.target.folder.unlink(&name);
            }
        }
    }
}
