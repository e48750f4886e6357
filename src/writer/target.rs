//! What the files of a checkpoint are called, and the folder that they go to.

use crate::error::Error;
use crate::format::{unnamed, Index, IndexError, MAX_INDEX_LEN};
use crate::storage::output::{remove_leftovers, Existing, OutputFolder, TemporaryNames};
use crate::storage::StorageError;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// How checkpoints end.
const END: &[u8] = b".safetensors";

/// Digits of a shard's number.
const DIGITS: usize = 5;

/// What an index says of files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Indexed {
    /// Those that it names, in byte order.
    pub(super) named: Vec<CString>,
    /// Those that its writer had still to put in place, or to remove: all are called like shards of this checkpoint.
    pub(super) unnamed: Vec<CString>,
}

/// Where a checkpoint goes.
#[derive(Debug)]
pub(super) struct Target {
    /// As it was given, for messages.
    pub(super) path: String,
    pub(super) folder: Arc<OutputFolder>,
    /// The name of the file, if it is one.
    pub(super) name: CString,
    /// The name without its `.safetensors`.
    stem: Vec<u8>,
    /// Whether there may be several files, and an index.
    is_sharded: bool,
    pub(super) temporaries: TemporaryNames,
}

impl Target {
    /// Looks at where a path leads, and finds early what could not be written.
    pub(super) fn open(path: &Path, is_sharded: bool) -> Result<Target, Error> {
        let bytes = path.as_os_str().as_bytes();
        let text = path.to_string_lossy().into_owned();
        let refused = |what: &str| Error::InvalidArgument { what: format!("the path {what}") };
        let (folder, name) = match bytes.iter().rposition(|byte| *byte == b'/') {
            Some(0) => (&b"/"[..], bytes.get(1..).unwrap_or_default()),
            Some(slash) => bytes
                .split_at_checked(slash)
                .map_or((bytes, &b""[..]), |(folder, rest)| (folder, rest.get(1..).unwrap_or_default())),
            None => (&b"."[..], bytes),
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(refused("has no name of a file at its end"));
        }
        if is_sharded && std::str::from_utf8(name).is_err() {
            return Err(refused("is not UTF-8, and an index could not name its shards"));
        }
        let folder = CString::new(folder).map_err(|_| refused("has a NUL"))?;
        let c_name = CString::new(name).map_err(|_| refused("has a NUL"))?;
        let storage = |source| Error::Storage { path: text.clone(), tensor: None, source };
        let folder = Arc::new(OutputFolder::open(&folder).map_err(storage)?);
        let target = Target {
            path: text.clone(),
            folder,
            stem: name.strip_suffix(END).filter(|stem| !stem.is_empty()).unwrap_or(name).to_owned(),
            is_sharded,
            temporaries: TemporaryNames::of(name),
            name: c_name,
        };
        target.folder.find(&target.name).map_err(storage)?;
        if is_sharded {
            target.folder.find(&target.index_name()).map_err(storage)?;
            target.folder.find(&target.shard_name(0, 1)).map_err(storage)?;
        }
        target.remove_leftovers();
        Ok(target)
    }

    /// Removes what writers of the same checkpoint have left behind that have died; but not what an index names that one of them has put
    /// in place.
    pub(super) fn remove_leftovers(&self) {
        remove_leftovers(&self.folder, &self.temporaries, || Ok(self.indexed()?.named));
    }

    /// What file `number` of `len` is called.
    pub(super) fn file_name(&self, number: usize, len: usize) -> CString {
        match len {
            1 => self.name.clone(),
            _ => self.shard_name(number, len),
        }
    }

    /// The name of shard `number` of `len`.
    pub(super) fn shard_name(&self, number: usize, len: usize) -> CString {
        self.named(format!("-{:0DIGITS$}-of-{len:0DIGITS$}", number + 1).as_bytes(), b"")
    }

    /// The name of the index.
    pub(super) fn index_name(&self) -> CString {
        self.named(b"", b".index.json")
    }

    fn named(&self, number: &[u8], end: &[u8]) -> CString {
        // There is no NUL in any part.
        CString::new([&self.stem, number, END, end].concat()).unwrap_or_default()
    }

    /// Whether a file is called like a shard of this checkpoint.
    pub(super) fn is_shard(&self, name: &CStr) -> bool {
        let number = name.to_bytes().strip_prefix(self.stem.as_slice()).and_then(|rest| rest.strip_suffix(END));
        let is_number = |digits: &[u8]| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_digit);
        number.and_then(|number| number.strip_prefix(b"-")).is_some_and(|number| {
            number.len() == 2 * DIGITS + 4
                && number.get(..DIGITS).is_some_and(is_number)
                && number.get(DIGITS..DIGITS + 4) == Some(b"-of-")
                && number.get(DIGITS + 4..).is_some_and(is_number)
        })
    }

    /// What the index on the disk says. Nothing if there is none, or none that can be understood.
    pub(super) fn indexed(&self) -> Result<Indexed, StorageError> {
        let Some(text) = self.folder.read(&self.index_name(), MAX_INDEX_LEN)? else { return Ok(Indexed::default()) };
        let index = match Index::parse(&text) {
            Ok(index) => index,
            Err(IndexError::NoMemory { len }) => return Err(StorageError::NoMemory { nbytes: len }),
            Err(IndexError::Internal(what)) => return Err(StorageError::Internal(what)),
            Err(_) => return Ok(Indexed::default()),
        };
        let named = index.shards().filter_map(|name| CString::new(name).ok());
        let unnamed = unnamed(&text).map_err(|error| match error {
            IndexError::Internal(what) => StorageError::Internal(what),
            _ => StorageError::NoMemory { nbytes: text.len() as u64 },
        })?;
        let unnamed = unnamed.into_iter().filter_map(|name| CString::new(name).ok());
        Ok(Indexed { named: listed(named)?, unnamed: listed(unnamed.filter(|name| self.is_shard(name)))? })
    }

    /// The permissions of the regular file of a name, if there is one.
    pub(super) fn mode_of(&self, name: &CStr) -> Result<Option<u32>, StorageError> {
        Ok(match self.folder.find(name)? {
            Some(Existing::File { mode, .. }) => Some(mode),
            Some(Existing::Link) | None => None,
        })
    }

    /// The permissions that the files of the old checkpoint have in common; `None` where there is none. For files whose names are new.
    pub(super) fn common_mode(&self) -> Result<Option<u32>, StorageError> {
        let common = |of: Option<u32>, names: &[CString]| {
            let modes = names.iter().filter_map(|name| self.mode_of(name).ok().flatten());
            of.into_iter().chain(modes).reduce(|a, b| a & b)
        };
        let index = if self.is_sharded { self.mode_of(&self.index_name())? } else { None };
        if index.is_some() {
            return Ok(common(index, &self.indexed()?.named));
        }
        let single = self.mode_of(&self.name)?;
        if single.is_some() || !self.is_sharded {
            return Ok(single);
        }
        let shards = self.folder.names(|name| self.is_shard(name)).map_err(|error| StorageError::io("list", error))?;
        Ok(common(None, &shards))
    }

    pub(super) fn storage_error(&self, source: StorageError) -> Error {
        Error::Storage { path: self.path.clone(), tensor: None, source }
    }
}

/// A list as long as whoever wrote an index has made it.
fn listed(names: impl Iterator<Item = CString>) -> Result<Vec<CString>, StorageError> {
    let mut list = Vec::new();
    for name in names {
        list.try_reserve(1).map_err(|_| StorageError::NoMemory { nbytes: size_of::<CString>() as u64 })?;
        list.push(name);
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> Target {
        Target::open(&tempfile::tempdir().unwrap().path().join(name), true).unwrap()
    }

    #[test]
    fn names_are_those_of_hugging_face() {
        let model = target("model.safetensors");
        assert_eq!(model.shard_name(0, 12), c"model-00001-of-00012.safetensors".to_owned());
        assert_eq!(model.index_name(), c"model.safetensors.index.json".to_owned());
        assert_eq!(target("model").shard_name(1, 2), c"model-00002-of-00002.safetensors".to_owned());
        assert_eq!(target(".safetensors").shard_name(1, 2), c".safetensors-00002-of-00002.safetensors".to_owned());
    }

    #[test]
    fn shards_are_known_by_their_names() {
        let model = target("model.safetensors");
        assert!(model.is_shard(c"model-00001-of-00012.safetensors"));
        for other in [
            c"model.safetensors",
            c"model-0001-of-00012.safetensors",
            c"model-00001-of-00012.safetensors2",
            c"other-00001-of-00012.safetensors",
            c"model-00001-if-00012.safetensors",
            c"model-0000x-of-00012.safetensors",
            c"model-00001-of-00012-of-00012.safetensors",
            c"../model-00001-of-00012.safetensors",
        ] {
            assert!(!model.is_shard(other), "{other:?}");
        }
    }

    #[test]
    fn paths_without_a_file_name_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let refused = |path: &[u8]| Target::open(Path::new(std::ffi::OsStr::from_bytes(path)), false).unwrap_err();
        for path in ["", "/", ".", "..", "a/", "a/.", "a/..", "a\0b", "a\0/b"] {
            assert!(matches!(refused(path.as_bytes()), Error::InvalidArgument { .. }), "{path:?}");
        }
        let absent = folder.path().join("absent/a");
        let is_not_a_file = |error| matches!(error, Error::Storage { source: StorageError::NotAFile(_), .. });
        assert!(matches!(
            refused(absent.as_os_str().as_bytes()),
            Error::Storage { source: StorageError::Io { source, .. }, .. } if source.raw_os_error() == Some(libc::ENOENT)
        ));
        assert!(is_not_a_file(refused(folder.path().join("sub").as_os_str().as_bytes())));
        std::fs::create_dir(folder.path().join("a.safetensors.index.json")).unwrap();
        let sharded = folder.path().join("a");
        assert!(is_not_a_file(Target::open(&sharded, true).unwrap_err()));
        assert!(Target::open(&sharded, false).is_ok());
        let long = folder.path().join("x".repeat(250));
        assert!(Target::open(&long, false).is_ok() && Target::open(&long, true).is_err());
    }
}
