//! What the files of a checkpoint are called, and the folder that they go to.

use crate::error::Error;
use crate::format::{header_len, unnamed, Header, Index, IndexError, MAX_INDEX_LEN, PREFIX_LEN};
use crate::path::check_len;
use crate::storage::output::{remove_leftovers, Existing, OutputFolder, TemporaryNames};
use crate::storage::StorageError;
use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// How checkpoints end.
const END: &[u8] = b".safetensors";

/// The longest name that a file can have.
const MAX_NAME_LEN: usize = 255;

/// Digits of a shard's number.
const DIGITS: usize = 5;

/// What an index says of files.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Indexed {
    /// Whether it could be understood. Otherwise it may name anything.
    pub(super) is_known: bool,
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
    /// Whether an index could name the file. Where it cannot, no index is of its checkpoint.
    is_utf8: bool,
    pub(super) temporaries: TemporaryNames,
}

impl Target {
    /// Looks at where a path leads, and finds early what could not be written.
    pub(super) fn open(path: &Path, is_sharded: bool) -> Result<Target, Error> {
        check_len(path)?;
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
            is_utf8: std::str::from_utf8(name).is_ok(),
            temporaries: TemporaryNames::of(name),
            name: c_name,
        };
        target.folder.find(&target.name).map_err(storage)?;
        if is_sharded {
            target.index_name().and_then(|name| target.folder.find(&name)).map_err(storage)?;
            target.shard_name(0, 1).and_then(|name| target.folder.find(&name)).map_err(storage)?;
        }
        target.remove_leftovers();
        Ok(target)
    }

    /// Removes what writers of the same checkpoint have left behind that have died; but not what an index names that one of them has put
    /// in place.
    pub(super) fn remove_leftovers(&self) {
        remove_leftovers(&self.folder, &self.temporaries, || Ok(self.indexed()?.unwrap_or_default().named));
    }

    /// What file `number` of `len` is called.
    pub(super) fn file_name(&self, number: usize, len: usize) -> Result<CString, StorageError> {
        match len {
            1 => Ok(self.name.clone()),
            _ => self.shard_name(number, len),
        }
    }

    /// The name of shard `number` of `len`.
    pub(super) fn shard_name(&self, number: usize, len: usize) -> Result<CString, StorageError> {
        self.named(format!("-{:0DIGITS$}-of-{len:0DIGITS$}", number + 1).as_bytes(), b"")
    }

    /// The name of the index.
    pub(super) fn index_name(&self) -> Result<CString, StorageError> {
        self.named(b"", b".index.json")
    }

    fn named(&self, number: &[u8], end: &[u8]) -> Result<CString, StorageError> {
        CString::new([&self.stem, number, END, end].concat())
            .map_err(|_| StorageError::Internal("the name of an output has a NUL"))
    }

    /// Whether a reader of the folder finds the file by an index only: because it is not called like a checkpoint, or because there are
    /// others beside it that are.
    pub(super) fn needs_index(&self) -> bool {
        let is_listed = |name: &CStr| name.to_bytes().ends_with(END) && !name.to_bytes().starts_with(b".");
        if self.name.to_bytes().starts_with(b".") {
            // Readers of folders see neither.
            return false;
        }
        let others = self.folder.names(|name| is_listed(name) && name != self.name.as_c_str());
        !is_listed(&self.name) || !others.is_ok_and(|others| others.is_empty())
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

    /// What is at the place of the index. What is no file is in nobody's way who writes a single one.
    fn find_index(&self) -> Result<Option<Existing>, StorageError> {
        if !self.is_utf8 {
            return Ok(None);
        }
        match self.folder.find(&self.index_name()?) {
            Err(StorageError::NotAFile(_)) if !self.is_sharded => Ok(None),
            // Its name is longer than the file's.
            Err(StorageError::Io { source, .. })
                if !self.is_sharded && source.raw_os_error() == Some(libc::ENAMETOOLONG) =>
            {
                Ok(None)
            }
            found => found,
        }
    }

    /// What the index on the disk says; `None` if there is none.
    pub(super) fn indexed(&self) -> Result<Option<Indexed>, StorageError> {
        match self.find_index()? {
            None => return Ok(None),
            Some(Existing::Link) => return Ok(Some(Indexed::default())),
            Some(Existing::File { .. }) => {}
        }
        let Some(text) = self.folder.read(&self.index_name()?, MAX_INDEX_LEN)? else {
            return Ok(Some(Indexed::default()));
        };
        let index = match Index::parse(&text) {
            Ok(index) => index,
            Err(IndexError::NoMemory { len }) => return Err(StorageError::NoMemory { nbytes: len }),
            Err(IndexError::Internal(what)) => return Err(StorageError::Internal(what)),
            Err(_) => return Ok(Some(Indexed::default())),
        };
        // What has a longer name, or one with a NUL, is no file of this folder.
        let c_name = |name: &str| CString::new(Some(name).filter(|name| name.len() <= MAX_NAME_LEN)?).ok();
        let named = listed(index.shards().filter_map(c_name))?;
        let unnamed = unnamed(&text).map_err(|error| match error {
            IndexError::Internal(what) => StorageError::Internal(what),
            _ => StorageError::NoMemory { nbytes: text.len() as u64 },
        })?;
        let unnamed = listed(unnamed.iter().filter_map(|name| c_name(name)).filter(|name| self.is_shard(name)))?;
        let is_known = named.len() == index.shards().len();
        Ok(Some(Indexed { is_known, named, unnamed }))
    }

    /// The header of the file that is at the path now. `None` if there is none, or nothing that a reader would take for one.
    pub(super) fn header(&self) -> Result<Option<Header>, StorageError> {
        let prefix = self.folder.read_start(&self.name, PREFIX_LEN as u64)?;
        let Some((len, prefix)) = prefix else { return Ok(None) };
        let Ok(text_len) = header_len(&prefix, len) else { return Ok(None) };
        let read = self.folder.read_start(&self.name, (PREFIX_LEN + text_len) as u64)?;
        let text = read.as_ref().and_then(|(_, bytes)| bytes.get(PREFIX_LEN..));
        Ok(text.and_then(|text| Header::parse(text).ok()))
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
        let index = match self.find_index()? {
            Some(Existing::File { mode, .. }) => Some(mode),
            Some(Existing::Link) | None => None,
        };
        if index.is_some() {
            let mut named = self.indexed()?.unwrap_or_default().named;
            named.push(self.name.clone());
            return Ok(common(index, &named));
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
        assert_eq!(model.shard_name(0, 12).unwrap(), c"model-00001-of-00012.safetensors".to_owned());
        assert_eq!(model.index_name().unwrap(), c"model.safetensors.index.json".to_owned());
        assert_eq!(target("model").shard_name(1, 2).unwrap(), c"model-00002-of-00002.safetensors".to_owned());
        assert_eq!(
            target(".safetensors").shard_name(1, 2).unwrap(),
            c".safetensors-00002-of-00002.safetensors".to_owned()
        );
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
