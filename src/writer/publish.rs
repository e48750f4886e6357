//! From complete files under temporary names to a checkpoint, in steps between which a reader, or a crash, finds one whole generation of it.
//!
//! A file without an index is renamed over the old one. Everything else goes by way of the index, which names whatever is true. It is never
//! let name a file whose bytes change, and is there for as long as a reader of the folder would find something else without it:
//!
//! ```text
//! an index comes to its place that names the temporary files, and lists what it does not
//! each file gets its own name besides, by a link and a rename
//! old shards go, and a file at the path that shards replace
//! the index comes to its place; if there is one file, and a reader of the folder finds that, it goes again
//! the temporary names go
//! ```
//!
//! The folder is synced between the lines. Until the last one each file has its temporary name: so after a failure everything can be done
//! again from the start, whatever others have done meanwhile.
//!
//! Without links files are renamed, for which the index must name none of them: neither as they are called now nor as they will be. If the
//! current one does (it names shards that are replaced by namesakes, say), there is a moment in which the index names files that are on their
//! way, and nobody can open it ([`Found::Neither`]).

use super::error::{Found, WriterError};
use super::target::Target;
use crate::storage::output::{cannot_link, Lock, OutputFolder};
use crate::storage::StorageError;
use std::ffi::{CStr, CString};

/// One change of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Rename {
        from: CString,
        to: CString,
    },
    /// Gives `from` a second name, in the place of what has it now; `by` is a name for the time between.
    Place {
        from: CString,
        by: CString,
        to: CString,
    },
    Unlink(CString),
    /// Others may publish from here on.
    Unlock,
    /// What is done so far must last before what follows.
    Sync,
    /// As `Unlink`, of what no index names any more: never a reason to fail.
    Tidy(CString),
    /// As `Tidy`, of an index, if a reader of the folder finds the file without it.
    Retire(CString),
    /// This is what a reader finds from here on.
    Now(Found),
}

/// A file, and the name that it will have.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) from: CString,
    pub(super) to: CString,
    /// Whether it is under the name that it comes from.
    pub(super) is_there: bool,
    /// Whether it has the other name already, instead or besides.
    pub(super) is_done: bool,
}

impl Move {
    /// The step that does it, unless it is done. `by`: a name for the time between, where files can have two.
    fn step(self, by: Option<CString>) -> Option<Step> {
        let Move { from, to, is_done, .. } = self;
        match by {
            _ if is_done => None,
            Some(by) => Some(Step::Place { from, by, to }),
            None => Some(Step::Rename { from, to }),
        }
    }
}

/// All steps.
#[derive(Debug, Default)]
pub(super) struct Publication {
    pub(super) steps: Vec<Step>,
}

impl Publication {
    /// One file, where there is no index.
    pub(super) fn of_one(file: Move) -> Result<Publication, Halt> {
        // Whoever waits for the lock need not wait for the disk.
        Publication::default().and(file.step(None))?.and([Step::Now(Found::New), Step::Unlock, Step::Sync])
    }

    /// Files that can have two names. `links` are names for the time between; `between` is an index that names the temporary files.
    pub(super) fn by_links(
        files: Vec<Move>,
        links: Vec<CString>,
        between: CString,
        end: End,
    ) -> Result<Publication, Halt> {
        let first = [Step::Rename { from: between, to: end.index.clone() }, Step::Now(Found::New), Step::Sync];
        let places = files.into_iter().zip(links).filter_map(|(file, by)| file.step(Some(by)));
        Publication::default().and(first)?.and(places)?.and([Step::Sync])?.and_end(end)
    }

    /// Files that cannot have two names, where a reader does not see that they get theirs: no index names them, and it stays.
    pub(super) fn by_renames_unseen(
        files: Vec<Move>,
        announced: Option<CString>,
        end: End,
    ) -> Result<Publication, Halt> {
        let first = announced.map(|from| [Step::Rename { from, to: end.index.clone() }, Step::Sync]);
        let renames = files.into_iter().filter_map(|file| file.step(None));
        Publication::default().and(first.into_iter().flatten())?.and(renames)?.and([Step::Sync])?.and_end(end)
    }

    /// One such file in the place of the only one that the index names: without the index either of them is a checkpoint.
    pub(super) fn by_rename_without_index(file: Move, index: CString) -> Result<Publication, Halt> {
        let first = [Step::Unlink(index), Step::Sync];
        Publication::default().and(first)?.and(file.step(None))?.and([Step::Now(Found::New), Step::Sync])
    }

    /// Such files, where the index names some of what they replace. `between` is an index that names the temporary files: while they leave
    /// these names nobody can open it, rather than open some of each.
    pub(super) fn by_renames_seen(files: Vec<Move>, between: CString, end: End) -> Result<Publication, Halt> {
        let to = end.index.clone();
        let first = [Step::Rename { from: between, to }, Step::Now(Found::New), Step::Sync, Step::Now(Found::Neither)];
        let renames = files.into_iter().filter_map(|file| file.step(None));
        Publication::default().and(first)?.and(renames)?.and([Step::Sync])?.and_end(end)
    }

    /// Appends steps.
    fn and(mut self, steps: impl IntoIterator<Item = Step>) -> Result<Publication, Halt> {
        for step in steps {
            self.steps.try_reserve(1).map_err(|_| Halt::Writer(WriterError::NoMemory))?;
            self.steps.push(step);
        }
        Ok(self)
    }

    fn and_end(self, end: End) -> Result<Publication, Halt> {
        let End { index, listing, outdated, old, last, is_one } = end;
        let comes = |from| [Step::Rename { from, to: index.clone() }, Step::Now(Found::New), Step::Sync];
        let removes = outdated.is_some() || !old.is_empty();
        // Where nothing can be removed it stays, and is true.
        let gone = is_one.then(|| [Step::Retire(index.clone()), Step::Sync]);
        self.and(listing.map(comes).into_iter().flatten())?
            .and(outdated.map(Step::Unlink))?
            .and(old.into_iter().map(Step::Tidy))?
            .and(removes.then_some(Step::Sync))?
            .and(comes(last))?
            .and(gone.into_iter().flatten())
    }

    /// Goes through the steps. `found` is always what a reader finds; `lock` is of the folder.
    pub(super) fn run(
        &self,
        target: &Target,
        sync: bool,
        found: &mut Found,
        lock: &mut Option<Lock>,
    ) -> Result<(), Halt> {
        let folder = &target.folder;
        for step in &self.steps {
            match step {
                // What is no file must not be replaced, also if it has come only now.
                Step::Rename { from, to } => folder.find(to).and_then(|_| folder.rename(from, to))?,
                Step::Place { from, by, to } => place(folder, from, by, to)?,
                Step::Unlink(name) => folder.unlink(name)?,
                Step::Unlock => drop(lock.take()),
                Step::Sync if sync => folder.sync().map_err(Halt::Sync)?,
                Step::Sync => {}
                Step::Tidy(name) => drop(folder.unlink(name)),
                Step::Retire(_) if target.needs_index() => {}
                Step::Retire(index) => drop(folder.unlink(index)),
                Step::Now(now) => *found = *now,
            }
        }
        Ok(())
    }
}

/// How a publication by an index ends, when all files have their names.
#[derive(Debug)]
pub(super) struct End {
    /// The name of the index.
    pub(super) index: CString,
    /// An index that names the files, and lists what is still to be removed. Not needed if the index names them already, or if there is
    /// nothing.
    pub(super) listing: Option<CString>,
    /// The file at the path, if it is none of the new ones. It must go, or a reader of the path would find it beside the index.
    pub(super) outdated: Option<CString>,
    /// Old shards.
    pub(super) old: Vec<CString>,
    /// The index that names the files and nothing else.
    pub(super) last: CString,
    /// Whether even that one goes, if it can be done without.
    pub(super) is_one: bool,
}

/// By a link and a rename, so that there is never nothing of that name.
fn place(folder: &OutputFolder, from: &CStr, by: &CStr, to: &CStr) -> Result<(), StorageError> {
    folder.find(to)?;
    folder.link(from, by)?;
    folder.rename(by, to).inspect_err(|_| drop(folder.unlink(by)))
}

/// Why a publication goes no further for now.
#[derive(Debug)]
pub(super) enum Halt {
    /// Something could not be done.
    Storage(StorageError),
    /// A sync has failed, after which nothing can be known.
    Sync(StorageError),
    /// The files could not even be described.
    Writer(WriterError),
}

impl From<StorageError> for Halt {
    fn from(error: StorageError) -> Halt {
        Halt::Storage(error)
    }
}

/// Whether files of this folder can have two names: tried with one of them.
pub(super) fn can_link(target: &Target, file: &CStr) -> Result<bool, StorageError> {
    #[cfg(test)]
    if tests::NO_LINKS.get() {
        return Ok(false);
    }
    let link = target.temporaries.next()?;
    match target.folder.link(file, &link) {
        Ok(()) => {
            // If not, it is left to the next writer.
            let _ = target.folder.unlink(&link);
            Ok(true)
        }
        Err(StorageError::Io { source, .. }) if cannot_link(&source) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
