//! From temporary files to a checkpoint, in steps between which a reader, or a crash, finds one whole generation of it.
//!
//! One file is renamed over the old one. Several, with an index, cannot be; but the index can, and it names whatever is true:
//!
//! ```text
//! no shard is called like an old one      some shard is
//!
//! rename the shards                       rename an index to its place that names the temporary files
//! rename the index to its place           give each file, by a link and a rename, its own name besides
//!                                         rename the index to its place; take the temporary names away
//! ```
//!
//! The folder is synced between the lines.

use super::target::Target;
use crate::storage::output::{OutputFolder, Temporary};
use crate::storage::StorageError;
use std::ffi::{CStr, CString};

/// One change of the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Rename {
        from: CString,
        to: CString,
    },
    /// Gives `from` a second name, which may be there from a try before.
    Link {
        from: CString,
        to: CString,
    },
    Unlink(CString),
    /// What is done so far must last before what follows.
    Sync,
    /// As `Unlink`, of what no index names any more: never a reason to fail.
    Tidy(CString),
}

/// All steps, and how many of them are done.
#[derive(Debug)]
pub(super) struct Publication {
    steps: Vec<Step>,
    done: usize,
    /// From so many steps on a reader finds the new checkpoint.
    in_place_from: usize,
    /// If it goes no further while steps are done, but fewer than `in_place_from`.
    if_abandoned: IfAbandoned,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfAbandoned {
    /// Files that have been renamed are in nobody's way, and are taken away.
    TakeBack,
    /// Temporary files are named by an index, and stay.
    Keep,
    /// There is no way back.
    Leave,
}

/// A file, and the name that it will have.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) from: CString,
    pub(super) to: CString,
}

impl Publication {
    /// One file. Of a sharded checkpoint that it replaces the index and then the shards go, `old`.
    pub(super) fn of_one(file: Move, index: Option<CString>, old: Vec<CString>) -> Publication {
        let mut steps = vec![Step::Rename { from: file.from, to: file.to }, Step::Sync];
        if let Some(index) = index {
            steps.extend([Step::Unlink(index), Step::Sync]);
        }
        steps.extend(old.into_iter().map(Step::Tidy));
        Publication { steps, done: 0, in_place_from: 1, if_abandoned: IfAbandoned::Leave }
    }

    /// Several files with names that no file has.
    pub(super) fn of_new(files: Vec<Move>, index: Move, old: Vec<CString>) -> Publication {
        let mut steps: Vec<Step> = files.into_iter().map(|Move { from, to }| Step::Rename { from, to }).collect();
        steps.extend([Step::Sync, Step::Rename { from: index.from, to: index.to }]);
        Publication::ending(steps, old, IfAbandoned::TakeBack)
    }

    /// Several files, some of which replace others. `links` are names for the time between, `between` the index that names the temporary
    /// files.
    pub(super) fn of_replacing(
        files: Vec<Move>,
        links: Vec<CString>,
        between: CString,
        index: Move,
        old: Vec<CString>,
    ) -> Publication {
        let mut steps = vec![Step::Rename { from: between, to: index.to.clone() }, Step::Sync];
        let mut temporary = Vec::new();
        for (Move { from, to }, link) in files.into_iter().zip(links) {
            steps.push(Step::Link { from: from.clone(), to: link.clone() });
            steps.push(Step::Rename { from: link.clone(), to });
            temporary.extend([from, link]);
        }
        steps.extend([Step::Sync, Step::Rename { from: index.from, to: index.to }]);
        temporary.extend(old);
        Publication::ending(steps, temporary, IfAbandoned::Keep)
    }

    /// Several files, some of which replace others, where a file cannot have two names. Between the first step and the last there is no
    /// index: a crash there leaves the checkpoint in pieces.
    pub(super) fn of_replacing_without_links(files: Vec<Move>, index: Move, old: Vec<CString>) -> Publication {
        let mut steps = vec![Step::Unlink(index.to.clone()), Step::Sync];
        steps.extend(files.into_iter().map(|Move { from, to }| Step::Rename { from, to }));
        steps.extend([Step::Sync, Step::Rename { from: index.from, to: index.to }]);
        Publication::ending(steps, old, IfAbandoned::Leave)
    }

    /// The last step of these puts the checkpoint in place.
    fn ending(mut steps: Vec<Step>, tidy: Vec<CString>, if_abandoned: IfAbandoned) -> Publication {
        let in_place_from = steps.len();
        steps.push(Step::Sync);
        steps.extend(tidy.into_iter().map(Step::Tidy));
        Publication { steps, done: 0, in_place_from, if_abandoned }
    }

    /// Goes on from where it is. A step that fails is the next one to be tried.
    pub(super) fn run(&mut self, folder: &OutputFolder, sync: bool) -> Result<(), Stopped> {
        while let Some(step) = self.steps.get(self.done) {
            let is_sync = *step == Step::Sync;
            match step.run(folder, sync) {
                Ok(()) => self.done += 1,
                Err(source) => return Err(Stopped { source, is_sync, in_place: self.is_in_place() }),
            }
        }
        Ok(())
    }

    /// Whether a reader finds the new checkpoint.
    pub(super) fn is_in_place(&self) -> bool {
        self.done >= self.in_place_from
    }

    /// It goes no further.
    pub(super) fn abandon(
        &self,
        folder: &OutputFolder,
        files: impl Iterator<Item = impl std::ops::DerefMut<Target = Temporary>>,
    ) {
        if self.done == 0 || self.is_in_place() {
            return;
        }
        match self.if_abandoned {
            IfAbandoned::TakeBack => {
                for step in self.steps.iter().take(self.done) {
                    if let Step::Rename { to, .. } = step {
                        let _ = folder.unlink(to);
                    }
                }
            }
            IfAbandoned::Keep => files.for_each(|mut file| file.keep()),
            IfAbandoned::Leave => {}
        }
    }
}

/// Why a publication goes no further for now.
#[derive(Debug)]
pub(super) struct Stopped {
    pub(super) source: StorageError,
    /// Whether it is a sync that failed, after which nothing can be known.
    pub(super) is_sync: bool,
    /// Whether a reader finds the new checkpoint.
    pub(super) in_place: bool,
}

impl Step {
    fn run(&self, folder: &OutputFolder, sync: bool) -> Result<(), StorageError> {
        match self {
            // What is no file must not be replaced, also if it has come only now.
            Step::Rename { from, to } => folder.find(to).and_then(|_| folder.rename(from, to)),
            Step::Link { from, to } => folder.unlink(to).and_then(|()| folder.link(from, to)),
            Step::Unlink(name) => folder.unlink(name),
            Step::Sync if sync => folder.sync(),
            Step::Sync => Ok(()),
            Step::Tidy(name) => {
                let _ = folder.unlink(name);
                Ok(())
            }
        }
    }
}

/// Whether files of this folder can have two names: tried with one of them.
pub(super) fn can_link(target: &Target, file: &CStr) -> bool {
    let link = target.temporaries.next();
    let can = target.folder.link(file, &link).is_ok();
    if can {
        let _ = target.folder.unlink(&link);
    }
    can
}
