//! Which files a checkpoint is made of: from a folder or an index to its shards.

use super::shard::c_path;
use crate::error::{Error, FolderError};
use crate::format::{index_len, Index, MAX_SHARDS};
use crate::quote::excerpt;
use crate::storage::{Folder, Found, NotInFolder, Scratch, Storage, StorageError, StorageKind, StorageOptions};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsStr, OsString};
use std::path::Path;

/// MindSpore's name for an index.
const MINDSPORE_INDEX: &str = "param_name_map.json";

/// Where MindSpore puts what belongs to no layer. It is part of the checkpoint, though its index does not name it.
const MINDSPORE_EXTRA: &str = "hyper_param.safetensors";

/// The files of a checkpoint.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) index: Option<(CString, Index)>,
    /// First those that the index names, in its order; without an index, in byte order of their names.
    pub(super) shards: Vec<Part>,
}

/// One shard before it is opened.
#[derive(Debug)]
pub(super) struct Part {
    /// What the caller is told.
    pub(super) path: CString,
    pub(super) file: Found,
}

/// Whether a path is that of an index rather than that of a shard. Its name decides.
pub(super) fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// The parts of the checkpoint in a folder.
pub(super) fn in_folder(path: &Path, follow_links: bool) -> Result<Parts, Error> {
    let folder = open_folder(path)?;
    let names = folder.names(MAX_SHARDS, is_of_interest).map_err(|source| storage_error(path, source))?;
    match choose(&names) {
        Ok(Choice::Index(name)) => of_index(&folder, Path::new(name), follow_links),
        Ok(Choice::Shards(names)) => {
            Ok(Parts { index: None, shards: parts_at(&folder, path, names.iter().map(Path::new), follow_links)? })
        }
        Err(Refused::Missing(shard)) => Err(Error::ShardMissing { path: text(path), shard }),
        Err(Refused::Folder(source)) => Err(Error::Folder { path: text(path), source }),
    }
}

/// The parts of the checkpoint whose index lies at `path`.
pub(super) fn at_index(path: &Path, follow_links: bool) -> Result<Parts, Error> {
    let name = path.file_name().map(Path::new).unwrap_or(path);
    let folder = open_folder(path.parent().unwrap_or(Path::new("")))?;
    let index = read_index(path, path)?;
    parts_of(&folder, path, name, index, follow_links)
}

fn of_index(folder: &Folder, name: &Path, follow_links: bool) -> Result<Parts, Error> {
    let path = folder.join(name);
    let file = folder.resolve(name, follow_links).map_err(|error| not_in_folder(error, folder, folder.path(), name))?;
    let index = read_index(&path, &file.path)?;
    parts_of(folder, &path, name, index, follow_links)
}

fn parts_of(folder: &Folder, path: &Path, name: &Path, index: Index, follow_links: bool) -> Result<Parts, Error> {
    let mut shards = parts_at(folder, path, index.shards().map(Path::new), follow_links)?;
    if name == Path::new(MINDSPORE_INDEX) {
        match part(folder, path, Path::new(MINDSPORE_EXTRA), follow_links) {
            // However a map that names it spells it.
            Ok(extra) if shards.iter().any(|shard| shard.file.id == extra.file.id) => {}
            Ok(extra) => shards.push(extra),
            Err(Error::ShardMissing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Parts { index: Some((c_path(path)?, index)), shards })
}

/// The parts of these names, each another file: a stranger may spell one file in a thousand ways, and have its header read as often.
fn parts_at<'n>(
    folder: &Folder,
    asked_by: &Path,
    names: impl ExactSizeIterator<Item = &'n Path>,
    follow_links: bool,
) -> Result<Vec<Part>, Error> {
    let mut parts: Vec<Part> = Vec::new();
    parts.try_reserve_exact(names.len().saturating_add(1)).map_err(|_| Error::NoMemory)?;
    let mut seen = BTreeMap::new();
    for name in names {
        let part = part(folder, asked_by, name, follow_links)?;
        if let Some(first) = seen.insert(part.file.id, name) {
            let [first, second] = [first, name].map(|name| excerpt(&text(name)));
            return Err(Error::SameFile { path: text(asked_by), first, second });
        }
        parts.push(part);
    }
    Ok(parts)
}

fn part(folder: &Folder, asked_by: &Path, name: &Path, follow_links: bool) -> Result<Part, Error> {
    match folder.resolve(name, follow_links) {
        Ok(file) => Ok(Part { path: c_path(&folder.join(name))?, file }),
        Err(error) => Err(not_in_folder(error, folder, asked_by, name)),
    }
}

fn read_index(path: &Path, file: &Path) -> Result<Index, Error> {
    let refused = |source| storage_error(path, source);
    let options = StorageOptions { kind: StorageKind::Read, ..StorageOptions::default() };
    let storage = Storage::open(file, options).map_err(refused)?;
    let index_error = |source| Error::Index { path: text(path), source };
    index_len(storage.size()).map_err(index_error)?;
    let mut scratch = Scratch::default();
    Index::parse(scratch.read(&storage, 0, storage.size()).map_err(refused)?).map_err(index_error)
}

fn open_folder(path: &Path) -> Result<Folder, Error> {
    Folder::open(path).map_err(|source| storage_error(path, source))
}

fn not_in_folder(error: NotInFolder, folder: &Folder, asked_by: &Path, name: &Path) -> Error {
    let (path, shard) = (text(asked_by), excerpt(&text(name)));
    match error {
        NotInFolder::Missing => Error::ShardMissing { path, shard },
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
    Missing(String),
}

/// Chooses by names alone: an index; else numbered shards, all of them; else the only file.
fn choose(names: &[OsString]) -> Result<Choice<'_>, Refused> {
    let indices: Vec<&OsString> = names.iter().filter(|name| is_index_of_safetensors(name)).collect();
    match indices[..] {
        [] => {}
        [index] => return Ok(Choice::Index(index)),
        [first, second, ..] => return Err(ambiguous(first, second)),
    }
    let is_file = |name: &&OsString| Path::new(name).extension().is_some_and(|extension| extension == "safetensors");
    let mut files: Vec<&OsString> = names.iter().filter(is_file).collect();
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
                let Numbered { stem, count, number } = self;
                Err(Refused::Missing(excerpt(&format!(
                    "{stem}-{missing:0width$}-of-{count}.safetensors",
                    width = number.len()
                ))))
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
        assert_eq!(chosen(&shards[..2]), Err(Refused::Missing(shards[2].to_owned())));
        assert_eq!(chosen(&shards[1..]), Err(Refused::Missing(shards[0].to_owned())));
        assert_eq!(chosen(&[shards[0], shards[2], "x.json"]), Err(Refused::Missing(shards[1].to_owned())));
        assert_eq!(chosen(&["m-1-of-1.safetensors"]).unwrap().len(), 1);
        let huge = "m-1-of-99999999999999999999999.safetensors";
        assert_eq!(chosen(&[huge]), Err(Refused::Missing(huge.replace("-1-", "-2-"))));
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
