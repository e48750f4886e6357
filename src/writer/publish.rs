//! From complete files under temporary names to a checkpoint, in steps between which a reader, or a crash, finds one whole generation of it.
//!
//! One file is renamed over the old one. Several, with an index, cannot be; but the index can, and it names whatever is true:
//!
//! ```text
//! several files                                    one file in the place of several
//!
//! an index comes to its place that names the       the file comes to its place, by a link and a rename
//!   temporary files, and lists what it does not
//! each file gets its own name besides, by a link   an index comes to its place that names it, and lists
//!   and a rename; old shards go                      what it does not
//! the index comes to its place                     old shards go
//! the temporary names go                           the index and the temporary name go
//! ```
//!
//! The folder is synced between the lines. Until the last one each file has its temporary name: so after a failure everything can be done
//! again from the start, whatever others have done meanwhile.

use super::error::{Found, WriterError};
use super::target::Target;
use crate::storage::output::OutputFolder;
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
    /// What is done so far must last before what follows.
    Sync,
    /// As `Unlink`, of what no index names any more: never a reason to fail.
    Tidy(CString),
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
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) steps: Vec<Step>,
}

impl Publication {
    /// One file.
    pub(super) fn of_one(file: Move) -> Publication {
        Publication::of(file.step(None).into_iter().chain([Step::Now(Found::New), Step::Sync]))
    }

    /// One file in the place of several. `between` is an index that names it, `old` are their shards.
    pub(super) fn of_one_for_several(
        file: Move,
        by: Option<CString>,
        between: CString,
        index: CString,
        old: Vec<CString>,
    ) -> Publication {
        let first = file.step(by).into_iter().chain([Step::Now(Found::New), Step::Sync]);
        let second = [Step::Rename { from: between, to: index.clone() }, Step::Sync];
        let third = old.into_iter().map(Step::Tidy).chain([Step::Sync]);
        Publication::of(first.chain(second).chain(third).chain([Step::Unlink(index), Step::Sync]))
    }

    /// Several files. `links` are names for the time between, `between` is an index that names the temporary files.
    pub(super) fn of_several(
        files: Vec<Move>,
        links: Vec<CString>,
        between: CString,
        index: Move,
        old: Vec<CString>,
    ) -> Publication {
        let first = [Step::Rename { from: between, to: index.to.clone() }, Step::Now(Found::New), Step::Sync];
        let second = files.into_iter().zip(links).filter_map(|(file, by)| file.step(Some(by)));
        let third = old.into_iter().map(Step::Tidy).chain([Step::Sync]);
        let last = [Step::Rename { from: index.from, to: index.to }, Step::Sync];
        Publication::of(first.into_iter().chain(second).chain(third).chain(last))
    }

    /// Several files, where a file cannot have two names. If there are others of these names, there is no index between the first step and
    /// the last: a crash there leaves the checkpoint in pieces.
    pub(super) fn of_several_without_links(
        files: Vec<Move>,
        index: Move,
        old: Vec<CString>,
        replaces: bool,
    ) -> Publication {
        let gone = [Step::Unlink(index.to.clone()), Step::Now(Found::Neither), Step::Sync];
        let first = gone.into_iter().filter(|_| replaces);
        let second = files.into_iter().filter_map(|file| file.step(None)).chain([Step::Sync]);
        let last = [Step::Rename { from: index.from, to: index.to }, Step::Now(Found::New), Step::Sync];
        Publication::of(first.chain(second).chain(last).chain(old.into_iter().map(Step::Tidy)))
    }

    fn of(steps: impl Iterator<Item = Step>) -> Publication {
        Publication { steps: steps.collect() }
    }

    /// Goes through the steps. `found` is always what a reader finds.
    pub(super) fn run(&self, folder: &OutputFolder, sync: bool, found: &mut Found) -> Result<(), Halt> {
        for step in &self.steps {
            match step {
                // What is no file must not be replaced, also if it has come only now.
                Step::Rename { from, to } => folder.find(to).and_then(|_| folder.rename(from, to))?,
                Step::Place { from, by, to } => place(folder, from, by, to)?,
                Step::Unlink(name) => folder.unlink(name)?,
                Step::Sync if sync => folder.sync().map_err(Halt::Sync)?,
                Step::Sync => {}
                Step::Tidy(name) => drop(folder.unlink(name)),
                Step::Now(now) => *found = *now,
            }
        }
        Ok(())
    }
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
    let link = target.temporaries.next();
    match target.folder.link(file, &link) {
        Ok(()) => {
            // If not, it is left to the next writer.
            let _ = target.folder.unlink(&link);
            Ok(true)
        }
        // What file systems say that have no links, or whose rules forbid this one.
        Err(StorageError::Io { source, .. })
            if matches!(
                source.raw_os_error(),
                Some(
                    libc::EPERM
                        | libc::EACCES
                        | libc::ENOSYS
                        | libc::EOPNOTSUPP
                        | libc::EINVAL
                        | libc::EMLINK
                        | libc::EXDEV
                )
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
