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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, Dtype, OpenOptions, Writer, WriterOptions};
    use std::path::Path;

    /// A writer of `len` shards whose bytes are all the same, right before it publishes them.
    fn prepared<'d>(path: &Path, len: usize, bytes: &'d [u8; 8]) -> Writer<'d> {
        let options = WriterOptions { max_shard_bytes: 8, no_sync: true, ..WriterOptions::default() };
        let mut writer = Writer::create(path, options).unwrap();
        for i in 0..len {
            writer.add(format!("t{i}"), Dtype::U8, &[8], bytes).unwrap();
        }
        writer.prepare().unwrap();
        writer.fill().unwrap();
        writer.headers().unwrap();
        writer.sync().unwrap();
        let plan = writer.plan().unwrap();
        writer.publication = Some(plan);
        writer
    }

    fn publish(path: &Path, len: usize, bytes: &[u8; 8]) {
        prepared(path, len, bytes).publish().unwrap();
    }

    /// The generation that a reader finds: the number of shards, and the byte that they all have.
    fn found(path: &Path) -> (usize, u8) {
        let checkpoint = Checkpoint::open(path, OpenOptions::default()).unwrap();
        let bytes: Vec<u8> = (0..checkpoint.len())
            // SAFETY: nobody changes the files.
            .flat_map(|index| unsafe { checkpoint.tensor_ptr(index).unwrap().as_slice() }.to_vec())
            .collect();
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mix of generations: {bytes:?}");
        (checkpoint.len(), bytes[0])
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Stops after each step in turn. Whatever the writer does then, the index names one whole generation, and the next writer
    /// leaves nothing of the others.
    #[test]
    fn at_each_step_there_is_one_whole_generation() {
        for (old, new) in [(3, 3), (3, 4), (4, 3), (3, 2), (0, 3)] {
            let mut steps = 0;
            for stop in 0.. {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("model.safetensors");
                let index = folder.path().join("model.safetensors.index.json");
                if old > 0 {
                    publish(&path, old, &[1; 8]);
                }
                for ends in ["dies", "gives up", "goes on"] {
                    if index.exists() && found(&index).1 != 1 || ends == "goes on" {
                        let _ = std::fs::remove_dir_all(folder.path());
                        std::fs::create_dir(folder.path()).unwrap();
                        if old > 0 {
                            publish(&path, old, &[1; 8]);
                        }
                    }
                    let mut writer = prepared(&path, new, &[2; 8]);
                    let publication = writer.publication.as_mut().unwrap();
                    steps = publication.steps.len();
                    let rest = publication.steps.split_off(stop.min(steps));
                    writer.publication.as_mut().unwrap().run(&writer.target.folder, false).unwrap();
                    let check = || {
                        if index.exists() || old > 0 {
                            assert!([(old, 1), (new, 2)].contains(&found(&index)), "{old} {new} {stop} {ends}");
                        }
                    };
                    check();
                    match ends {
                        "goes on" => {
                            writer.publication.as_mut().unwrap().steps.extend(rest);
                            writer.publish().unwrap();
                            assert_eq!(found(&index), (new, 2));
                            assert_eq!(names(folder.path()).len(), new + 1);
                            continue;
                        }
                        "dies" => {
                            // Its locks go, and its files stay.
                            writer.publication = None;
                            writer.shards.iter_mut().filter_map(|shard| shard.file.as_mut()).for_each(Temporary::keep);
                            writer.indices.iter_mut().for_each(Temporary::keep);
                            drop(writer);
                        }
                        _ => drop(writer),
                    }
                    check();
                    // Another one that only begins must not take away what the index names.
                    drop(Writer::create(&path, WriterOptions::default()).unwrap());
                    check();
                }
                publish(&path, 3, &[3; 8]);
                assert_eq!(found(&index), (3, 3));
                assert!(
                    names(folder.path()).iter().all(|name| !name.ends_with(".st-tmp")),
                    "{:?}",
                    names(folder.path())
                );
                if stop >= steps {
                    break;
                }
            }
            assert!(steps > 4);
        }
    }

    #[test]
    fn one_file_takes_the_place_of_shards() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        publish(&path, 3, &[1; 8]);
        publish(&path, 1, &[2; 8]);
        assert_eq!(found(&path), (1, 2));
        assert_eq!(names(folder.path()), ["model.safetensors"]);
    }

    #[test]
    fn shards_replace_others_without_links() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        publish(&path, 3, &[1; 8]);
        let mut writer = prepared(&path, 3, &[2; 8]);
        let moves =
            |from: &Option<Temporary>, to: CString| Move { from: from.as_ref().unwrap().name().unwrap().into(), to };
        let shards = writer.shards.iter().enumerate();
        let files = shards.map(|(number, shard)| moves(&shard.file, writer.target.shard_name(number, 3))).collect();
        let index = Move { from: writer.indices[0].name().unwrap().into(), to: writer.target.index_name() };
        writer.publication = Some(Publication::of_replacing_without_links(files, index, Vec::new()));
        writer.publish().unwrap();
        drop(writer);
        assert_eq!(found(folder.path()), (3, 2));
        assert_eq!(names(folder.path()).len(), 4);
    }

    #[test]
    fn what_is_no_file_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut writer = prepared(&path, 1, &[1; 8]);
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(writer.publish(), Err(crate::Error::Storage { source: StorageError::NotAFile(_), .. })));
        std::fs::remove_dir(&path).unwrap();
        writer.finish().unwrap();
        assert_eq!(found(&path), (1, 1));
    }
}
