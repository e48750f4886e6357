//! Which files a checkpoint is made of: from a folder or an index to its shards.

use super::shard::c_path;
use crate::error::{is_unfinished, Error, FolderError};
use crate::format::{index_len, Index};
use crate::quote::excerpt;
use crate::storage::{
    FileSystems, Folder, Listing, NotInFolder, Scratch, Storage, StorageError, StorageKind, StorageOptions,
};
use std::collections::BTreeSet;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};

/// MindSpore's name for an index.
const MINDSPORE_INDEX: &str = "param_name_map.json";

/// Where MindSpore puts what belongs to no layer. It is part of the checkpoint, though its index does not name it.
const MINDSPORE_EXTRA: &str = "hyper_param.safetensors";

/// So many folders are looked into for a checkpoint where one has none.
const MOST_FOLDERS: usize = 64;

/// So many of them are named.
const MOST_NAMED: usize = 3;

/// The files of a checkpoint, before they are opened. A name is resolved and opened in one step, so that no other file can take the place of
/// the one that was judged; and just before it is read, so that no more descriptors are open than shards that are.
#[derive(Debug)]
pub(super) struct Parts {
    folder: Folder,
    /// What was seen in the folder, if it was listed.
    listed: Listing,
    file_systems: FileSystems,
    /// What the index was read to, for headers to be read to.
    pub(super) scratch: Scratch,
    follow_links: bool,
    /// Of the index, or else of the folder: what asks for the shards.
    path: PathBuf,
    pub(super) index: Option<(CString, Index)>,
    /// First those that the index names, in its order; without an index, in byte order.
    names: Vec<OsString>,
    /// A shard beside an index that does not name it, if it is there and is none of the others.
    pub(super) may_have_extra: bool,
}

/// Whether a path is that of an index rather than that of a shard. Its name decides.
pub(super) fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// The parts of the checkpoint in a folder.
pub(super) fn in_folder(path: &Path, folder: Folder, follow_links: bool) -> Result<Parts, Error> {
    let listed = folder.list(is_of_interest).map_err(|source| storage_error(path, source))?;
    match choose(&listed.names) {
        Ok(Choice::Index(name)) => {
            let name = Path::new(name);
            let file = folder.open_file(name, follow_links, &listed);
            let file = file.map_err(|error| not_in_folder(error, &folder, path, name))?;
            let parts = parts_of(folder, path.join(name), name, file, follow_links)?;
            Ok(Parts { listed, ..parts })
        }
        Ok(Choice::Shards(chosen)) => Ok(Parts {
            follow_links,
            path: path.to_owned(),
            index: None,
            names: owned(chosen.iter().map(|name| name.as_os_str()))?,
            may_have_extra: false,
            folder,
            listed,
            file_systems: FileSystems::default(),
            scratch: Scratch::default(),
        }),
        Err(Refused::Missing { shard, more }) => {
            Err(Error::ShardMissing { path: text(path), shard, more, dangling: false })
        }
        Err(Refused::Folder(FolderError::Empty)) => Err(Error::Folder { path: text(path), source: why_empty(&folder) }),
        Err(Refused::Folder(source)) => Err(Error::Folder { path: text(path), source }),
        Err(Refused::NoMemory) => Err(Error::NoMemory),
    }
}

/// The parts of the checkpoint whose index lies at `path`, which may be a link to wherever: the caller has named it.
pub(super) fn at_index(path: &Path, follow_links: bool) -> Result<Parts, Error> {
    let name = path.file_name().map(Path::new).unwrap_or(path);
    let folder = open_folder(path.parent().unwrap_or(Path::new("")), path)?;
    let file = match folder.open_file(name, true, &Listing::default()) {
        Ok(file) => file,
        Err(NotInFolder::Missing { dangling: false }) => {
            let source = std::io::Error::from_raw_os_error(libc::ENOENT);
            return Err(storage_error(path, StorageError::io("open", source)));
        }
        Err(NotInFolder::Storage(source)) => return Err(storage_error(path, source)),
        Err(error) => return Err(not_in_folder(error, &folder, folder.path(), name)),
    };
    parts_of(folder, path.to_owned(), name, file, follow_links)
}

fn parts_of(folder: Folder, path: PathBuf, name: &Path, file: File, follow_links: bool) -> Result<Parts, Error> {
    let mut scratch = Scratch::default();
    let index = read_index(&path, file, &mut scratch)?;
    Ok(Parts {
        follow_links,
        names: owned(index.shards().map(OsStr::new))?,
        index: Some((c_path(&path)?, index)),
        may_have_extra: name == Path::new(MINDSPORE_INDEX),
        path,
        folder,
        listed: Listing::default(),
        file_systems: FileSystems::default(),
        scratch,
    })
}

impl Parts {
    /// Number of shards, without the extra one.
    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// Opens a shard. Gives also what the caller is told as its path.
    pub(super) fn open(&self, shard: usize, options: StorageOptions) -> Result<(CString, Storage), Error> {
        let name = self.names.get(shard).ok_or(Error::Internal { what: "a shard beyond the last one is opened" })?;
        self.open_name(Path::new(name), options)
    }

    /// Opens the extra shard; `None` if it is not there.
    pub(super) fn open_extra(&self, options: StorageOptions) -> Result<Option<(CString, Storage)>, Error> {
        match self.open_name(Path::new(MINDSPORE_EXTRA), options) {
            Err(Error::ShardMissing { dangling: false, .. }) => Ok(None),
            opened => opened.map(Some),
        }
    }

    fn open_name(&self, name: &Path, options: StorageOptions) -> Result<(CString, Storage), Error> {
        let file = self.folder.open_file(name, self.follow_links, &self.listed);
        let file = file.map_err(|error| not_in_folder(error, &self.folder, &self.path, name))?;
        let path = self.folder.join(name);
        let storage = Storage::of_file(file, options, &self.file_systems);
        let storage = storage.map_err(|source| storage_error(&path, source))?;
        Ok((c_path(&path)?, storage))
    }

    /// The error that two shards, by their numbers, are one file.
    pub(super) fn same_file(&self, shards: [usize; 2]) -> Error {
        let name =
            |shard: usize| self.names.get(shard).map(|name| excerpt(&name.to_string_lossy())).unwrap_or_default();
        let [first, second] = shards.map(name);
        Error::SameFile { path: text(&self.path), first, second }
    }

    /// An error of opening the shards, with what is known of all of them.
    pub(super) fn explain(&self, error: Error) -> Error {
        match error {
            Error::ShardMissing { .. } | Error::Header { .. } => self.missing(error),
            Error::Storage { source: StorageError::Io { source, .. }, .. }
                if source.raw_os_error() == Some(libc::EMFILE) =>
            {
                Error::TooFewDescriptors { path: text(&self.path), shards: self.len(), source }
            }
            error => error,
        }
    }
}

impl Parts {
    /// The error that shards are missing, if some are: where only some are there, one of those may well be damaged, too.
    fn missing(&self, error: Error) -> Error {
        let mut missing = self.names.iter().filter(|name| self.folder.lacks(Path::new(name)));
        let Some(first) = missing.next() else { return error };
        let (shard, more) = (excerpt(&first.to_string_lossy()), missing.count() as u64);
        let dangling =
            matches!(&error, Error::ShardMissing { shard: told, dangling: true, .. } if *told == shard && more == 0);
        Error::ShardMissing { path: text(&self.path), shard, more, dangling }
    }
}

fn owned<'n>(names: impl ExactSizeIterator<Item = &'n OsStr>) -> Result<Vec<OsString>, Error> {
    let mut owned = Vec::new();
    owned.try_reserve_exact(names.len()).map_err(|_| Error::NoMemory)?;
    for name in names {
        let mut copy = OsString::new();
        copy.try_reserve_exact(name.len()).map_err(|_| Error::NoMemory)?;
        copy.push(name);
        owned.push(copy);
    }
    Ok(owned)
}

fn read_index(path: &Path, file: File, scratch: &mut Scratch) -> Result<Index, Error> {
    let refused = |source| storage_error(path, source);
    let options = StorageOptions { kind: StorageKind::Read, ..StorageOptions::default() };
    let storage = Storage::of_file(file, options, &FileSystems::default()).map_err(refused)?;
    let index_error = |source| Error::Index { path: text(path), source };
    index_len(storage.size()).map_err(index_error)?;
    Index::parse(scratch.read(&storage, 0, storage.size()).map_err(refused)?).map_err(index_error)
}

/// Says in an error that it is `asked_by`.
fn open_folder(path: &Path, asked_by: &Path) -> Result<Folder, Error> {
    Folder::open(path).map_err(|source| storage_error(asked_by, source))
}

fn not_in_folder(error: NotInFolder, folder: &Folder, asked_by: &Path, name: &Path) -> Error {
    let (path, shard) = (text(asked_by), excerpt(&text(name)));
    match error {
        NotInFolder::Missing { dangling } => Error::ShardMissing { path, shard, more: 0, dangling },
        NotInFolder::Outside(how) => Error::ShardOutside { path, shard, how },
        NotInFolder::Storage(source) => storage_error(&folder.join(Path::new(&shard)), source),
    }
}

fn storage_error(path: &Path, source: StorageError) -> Error {
    Error::Storage { path: text(path), tensor: None, source }
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// What may have been meant instead of a folder that holds no checkpoint.
#[cold]
fn why_empty(folder: &Folder) -> FolderError {
    let is_download = |name: &OsStr| is_unfinished(&name.to_string_lossy());
    if let Some(name) = folder.list(is_download).ok().and_then(|listed| listed.names.into_iter().next()) {
        return FolderError::Unfinished { name: excerpt(&name.to_string_lossy()) };
    }
    let found = below(folder);
    match found.len() {
        0 => FolderError::Empty,
        len => {
            let named = found.iter().take(MOST_NAMED).map(|path| excerpt(&text(path)));
            FolderError::OnlyBelow { folders: named.collect(), more: len.saturating_sub(MOST_NAMED) }
        }
    }
}

/// The folders in a folder that hold a checkpoint, as for each rank or each part of a pipeline; else the folders in those, as in a
/// Hugging Face cache.
fn below(folder: &Folder) -> Vec<PathBuf> {
    let has_checkpoint = |names: &[OsString]| !matches!(choose(names), Err(Refused::Folder(FolderError::Empty)));
    let first = folder.folders(Path::new(""), MOST_FOLDERS, is_of_interest);
    let holds = |(path, names): &(PathBuf, Vec<OsString>)| has_checkpoint(names).then(|| path.clone());
    let found: Vec<_> = first.iter().filter_map(holds).collect();
    if !found.is_empty() {
        return found;
    }
    let second = first.iter().flat_map(|(path, _)| folder.folders(path, MOST_FOLDERS, is_of_interest));
    second.take(MOST_FOLDERS).filter_map(|below| holds(&below)).collect()
}

/// What to open in a folder.
#[derive(Debug, PartialEq, Eq)]
enum Choice<'n> {
    Index(&'n OsString),
    Shards(Vec<&'n OsString>),
}

/// Whether a file may be an index or a shard.
fn is_of_interest(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "json" || extension == "safetensors")
}

/// Why there is nothing to open in a folder.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Folder(FolderError),
    NoMemory,
    /// The first shard that is not there, and how many others are not.
    Missing {
        shard: String,
        more: u64,
    },
}

/// Chooses by names alone: an index; else numbered shards, all of them; else the only file.
fn choose(names: &[OsString]) -> Result<Choice<'_>, Refused> {
    let mut indices = names.iter().filter(|name| is_index_of_safetensors(name));
    match (indices.next(), indices.next()) {
        (None, _) => {}
        (Some(index), None) => return Ok(Choice::Index(index)),
        (Some(first), Some(second)) => return Err(ambiguous(first, second)),
    }
    let is_file = |name: &&OsString| Path::new(name).extension().is_some_and(|extension| extension == "safetensors");
    let mut files: Vec<&OsString> = Vec::new();
    files.try_reserve_exact(names.len()).map_err(|_| Refused::NoMemory)?;
    files.extend(names.iter().filter(is_file));
    // Beside other files it is the rest of their checkpoint; alone it is one.
    let extra = files.iter().position(|name| *name == MINDSPORE_EXTRA).filter(|_| files.len() > 1);
    let extra = extra.map(|at| files.remove(at));
    let Some(first) = files.first() else { return Err(Refused::Folder(FolderError::Empty)) };
    match Numbered::parse(first) {
        Some(numbered) => numbered.check_that_all_are_in(&files)?,
        None => match files.get(1) {
            None => {}
            Some(second) => return Err(ambiguous(first, second)),
        },
    }
    files.extend(extra);
    Ok(Choice::Shards(files))
}

/// Indices of PyTorch's, TensorFlow's and Flax's own formats often lie beside.
fn is_index_of_safetensors(name: &OsString) -> bool {
    let others = [".bin.index.json", ".h5.index.json", ".msgpack.index.json"];
    name == MINDSPORE_INDEX
        || name
            .to_str()
            .is_some_and(|name| name.ends_with(".index.json") && !others.iter().any(|other| name.ends_with(other)))
}

fn ambiguous(first: &OsString, second: &OsString) -> Refused {
    let candidates = [first, second].map(|name| excerpt(&name.to_string_lossy()));
    Refused::Folder(FolderError::Ambiguous { candidates })
}

/// The parts of a name such as `model-00001-of-00003.safetensors`.
#[derive(Debug, PartialEq, Eq)]
struct Numbered<'n> {
    stem: &'n str,
    number: &'n str,
    count: &'n str,
}

impl<'n> Numbered<'n> {
    fn parse(name: &'n OsString) -> Option<Numbered<'n>> {
        let (rest, count) = name.to_str()?.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (is_number(number) && is_number(count)).then_some(Numbered { stem, number, count })
    }

    /// Checks that `files` are the shards of this one's checkpoint, from 1 to their count.
    fn check_that_all_are_in(&self, files: &[&OsString]) -> Result<(), Refused> {
        let mut numbers = BTreeSet::new();
        for file in files {
            let Some(other) = Numbered::parse(file).filter(|other| {
                (other.stem, other.count, other.number.len()) == (self.stem, self.count, self.number.len())
            }) else {
                let first = files.first().unwrap_or(file);
                return Err(ambiguous(first, file));
            };
            // A number beyond 64 bits cannot be reached by counting.
            numbers.insert(other.number.parse::<u64>().unwrap_or(u64::MAX));
        }
        let count = self.count.parse::<u64>().unwrap_or(u64::MAX);
        match (1..=count).find(|number| !numbers.contains(number)) {
            Some(missing) => {
                let there = numbers.range(1..=count).count() as u64;
                let Numbered { stem, count: of, number } = self;
                let name = format!("{stem}-{missing:0width$}-of-{of}.safetensors", width = number.len());
                Err(Refused::Missing { shard: excerpt(&name), more: (count - there).saturating_sub(1) })
            }
            // What is numbered 0, or beyond the count.
            None if numbers.len() as u64 > count => match files {
                [first, .., last] => Err(ambiguous(first, last)),
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str]) -> Result<Vec<String>, Refused> {
        let mut names: Vec<OsString> = names.iter().map(OsString::from).collect();
        names.sort();
        let text = |name: &OsString| name.to_str().unwrap().to_owned();
        match choose(&names)? {
            Choice::Index(name) => Ok(vec![text(name)]),
            Choice::Shards(names) => Ok(names.into_iter().map(text).collect()),
        }
    }

    fn refused_for(names: &[&str]) -> [String; 2] {
        match chosen(names) {
            Err(Refused::Folder(FolderError::Ambiguous { candidates })) => candidates,
            other => panic!("{names:?}: {other:?}"),
        }
    }

    #[test]
    fn choose_takes_the_index() {
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        for index in ["model.safetensors.index.json", "param_name_map.json", "other.index.json"] {
            let names = [shards[0], shards[1], index, "config.json", "consolidated.safetensors"];
            assert_eq!(chosen(&names).unwrap(), [index]);
        }
        let with_others = ["model.safetensors.index.json", "pytorch_model.bin.index.json", "tf_model.h5.index.json"];
        assert_eq!(chosen(&with_others).unwrap(), ["model.safetensors.index.json"]);
        let two = ["model.safetensors.index.json", "param_name_map.json"];
        assert_eq!(refused_for(&two), two);
    }

    #[test]
    fn choose_takes_all_numbered_shards() {
        let shards =
            ["m-1-00001-of-00003.safetensors", "m-1-00002-of-00003.safetensors", "m-1-00003-of-00003.safetensors"];
        assert_eq!(chosen(&shards).unwrap(), shards);
        let missing = |shard: &str, more| Err(Refused::Missing { shard: shard.to_owned(), more });
        assert_eq!(chosen(&shards[..2]), missing(shards[2], 0));
        assert_eq!(chosen(&shards[1..]), missing(shards[0], 0));
        assert_eq!(chosen(&shards[1..2]), missing(shards[0], 1));
        assert_eq!(chosen(&["m-0-of-3.safetensors", "m-2-of-3.safetensors"]), missing("m-1-of-3.safetensors", 1));
        assert_eq!(chosen(&[shards[0], shards[2], "x.json"]), missing(shards[1], 0));
        assert_eq!(chosen(&["m-1-of-1.safetensors"]).unwrap().len(), 1);
        let huge = "m-1-of-99999999999999999999999.safetensors";
        assert_eq!(chosen(&[huge]), missing(&huge.replace("-1-", "-2-"), u64::MAX - 2));
        let beyond = ["m-0-of-1.safetensors", "m-1-of-1.safetensors"];
        assert_eq!(refused_for(&beyond), beyond);
    }

    #[test]
    fn choose_refuses_files_that_do_not_go_together() {
        for two in [
            ["a.safetensors", "b.safetensors"],
            ["consolidated.safetensors", "model-00001-of-00002.safetensors"],
            ["model-00001-of-00002.safetensors", "model-00001-of-00003.safetensors"],
            ["model-00001-of-00002.safetensors", "other-00002-of-00002.safetensors"],
            ["model-00001-of-00002.safetensors", "model-002-of-00002.safetensors"],
        ] {
            assert_eq!(refused_for(&two), two);
        }
    }

    #[test]
    fn choose_takes_the_only_file_and_what_mindspore_puts_beside() {
        assert_eq!(chosen(&["a.safetensors", "a.txt"]).unwrap(), ["a.safetensors"]);
        assert_eq!(chosen(&[MINDSPORE_EXTRA]).unwrap(), [MINDSPORE_EXTRA]);
        assert_eq!(chosen(&["part0.safetensors", MINDSPORE_EXTRA]).unwrap(), ["part0.safetensors", MINDSPORE_EXTRA]);
        for nothing in [&[][..], &["config.json", "model.bin"]] {
            assert_eq!(chosen(nothing), Err(Refused::Folder(FolderError::Empty)));
        }
    }

    #[test]
    fn is_index_goes_by_the_name() {
        assert!(is_index(Path::new("/m/model.safetensors.index.json")) && is_index(Path::new(MINDSPORE_INDEX)));
        assert!(!is_index(Path::new("model.safetensors")) && !is_index(Path::new("json")));
    }
}
