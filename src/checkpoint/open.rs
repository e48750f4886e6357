//! From a path, or from memory, to a checkpoint.

use super::agree::check_index;
use super::locate::{at_index, in_folder, is_index, Parts};
use super::metadata::Metadata;
use super::names::Names;
use super::neighbours::Neighbours;
use super::shard::{c_path, text, Shard};
use super::shards::Shards;
use super::strays::Strays;
use super::verify::Verify;
use super::Checkpoint;
use crate::effort::with_threads_if_worth;
use crate::error::Error;
use crate::format::NameHasher;
use crate::path::check_len;
use crate::residency::Ledger;
use crate::storage::{FileId, FileKind, Folder, Memory, ReadAhead, Scratch, Storage, StorageError, StorageOptions};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// How to open a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// How each shard's bytes are reached.
    pub storage: StorageOptions,
    /// Let symbolic links in a checkpoint's folder lead out of it. (Those of a Hugging Face cache may always lead to its store.)
    pub follow_links: bool,
    /// The most bytes of tensors that may be held in memory; 0 is no limit. [`Checkpoint::pin`] tells how it is kept.
    pub budget: u64,
    /// When its bytes are compared with its checksums. Except for [`Verify::None`], reads also look whether the file was changed.
    pub verify: Verify,
}

impl Checkpoint {
    /// Opens a checkpoint: reads the headers of its shards, several at once where that pays, and nothing else. The path leads to
    ///
    /// - a `.safetensors` file;
    /// - an index, whose name ends with `.json`: Hugging Face's `*.index.json` or MindSpore's `param_name_map.json`, to which a
    ///   `hyper_param.safetensors` beside it belongs too;
    /// - a folder that holds one index, or all of the shards `*-00001-of-0000N.safetensors`, or one `.safetensors` file.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]: a file is absent, not readable, or not a regular file. [`Error::Header`]: one breaks a rule of the
    /// format. [`Error::Index`], [`Error::IndexMismatch`], [`Error::ShardMissing`], [`Error::ShardOutside`],
    /// [`Error::DuplicateName`], [`Error::Folder`]: the parts do not make a checkpoint. [`Error::Checksum`]: what
    /// [`OpenOptions::verify`] asks for is missing, or does not match. [`Error::InvalidArgument`]: the path has a
    /// NUL.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Checkpoint, Error> {
        let path = path.as_ref();
        check_len(path)?;
        let c_path = c_path(path)?;
        let at_path = |source| Error::Storage { path: text(&c_path), tensor: None, source };
        // What the name suggests is tried first, and saves a look.
        let folder = match path.extension().is_some_and(|extension| extension == "safetensors") {
            true => None,
            false => folder_at(path).map_err(at_path)?,
        };
        let parts = match folder {
            Some(folder) => in_folder(path, folder, options.follow_links)?,
            None if is_index(path) => at_index(path, options.follow_links)?,
            None => match Storage::open(path, options.storage) {
                Ok(storage) => return Checkpoint::of_one(c_path, storage, options),
                Err(StorageError::NotAFile(FileKind::Folder)) => {
                    in_folder(path, Folder::open(path).map_err(at_path)?, options.follow_links)?
                }
                Err(source) => return Err(at_path(source)),
            },
        };
        Checkpoint::of_parts(parts, options)
    }

    /// Opens a safetensors file that is in memory. Its header is copied, its tensors are not.
    ///
    /// # Errors
    ///
    /// [`Error::Header`] as for [`Checkpoint::open`]; [`Error::Storage`] for options that need a file.
    ///
    /// ```
    /// use safetensors_lazy::{Checkpoint, OpenOptions};
    ///
    /// let checkpoint = Checkpoint::open_memory(b"\x02\0\0\0\0\0\0\0{}".to_vec(), OpenOptions::default())?;
    /// assert!(checkpoint.is_empty());
    /// # Ok::<(), safetensors_lazy::Error>(())
    /// ```
    pub fn open_memory(memory: impl Into<Memory>, options: OpenOptions) -> Result<Checkpoint, Error> {
        match Storage::memory(memory.into(), options.storage) {
            Ok(storage) => Checkpoint::of_one(CString::default(), storage, options),
            Err(source) => Err(Error::Storage { path: String::new(), tensor: None, source }),
        }
    }

    fn of_one(path: CString, storage: Storage, options: OpenOptions) -> Result<Checkpoint, Error> {
        let shard = Shard::open(path, storage, &mut Scratch::default())?;
        let shards = Shards::new(vec![shard]).ok_or(Error::NoMemory)?;
        let names = Names::of_one(&shards)?;
        Checkpoint::over(shards, names, options)
    }

    fn of_parts(mut parts: Parts, options: OpenOptions) -> Result<Checkpoint, Error> {
        let scratch = std::mem::take(&mut parts.scratch);
        let hasher = NameHasher::default();
        let files = Files::default();
        let read = |scratch: &mut Scratch, path, storage| {
            let shard = Shard::open(path, storage, scratch)?;
            let hashes = hasher.hashes(&shard.header).ok_or_else(|| shard.no_memory())?;
            Ok((shard, hashes))
        };
        let open = |scratch: &mut Scratch, number: usize| {
            let (path, storage) = parts.open(number, options.storage)?;
            match storage.file_id().and_then(|file| files.insert(file, number)) {
                Some(other) => Err(parts.same_file([number.min(other), number.max(other)])),
                None => read(scratch, path, storage),
            }
        };
        let expected = parts.index.as_ref().map_or(0, |(_, index)| index.len() as u64 * HEADER_BYTES_PER_TENSOR);
        let header_len = |(shard, _): &(Shard, Vec<u64>)| shard.header.header_len() as u64;
        let opened = with_threads_if_worth(parts.len(), scratch, expected, header_len, open);
        let opened = opened.map_err(|error| parts.explain(error))?;

        let mut shards = Vec::new();
        let mut hashes = Vec::new();
        // The extra one, too.
        for reserved in [shards.try_reserve_exact(opened.len() + 1), hashes.try_reserve_exact(opened.len() + 1)] {
            reserved.map_err(|_| Error::NoMemory)?;
        }
        for (shard, of_shard) in opened {
            shards.push(shard);
            hashes.push(of_shard);
        }
        if parts.may_have_extra {
            if let Some((path, storage)) = parts.open_extra(options.storage)? {
                // Unless the index names it, however it spells it.
                if storage.file_id().and_then(|file| files.insert(file, parts.len())).is_none() {
                    let (shard, of_shard) = read(&mut Scratch::default(), path, storage)?;
                    shards.push(shard);
                    hashes.push(of_shard);
                }
            }
        }
        let shards = Shards::new(shards).ok_or(Error::NoMemory)?;
        let names = Names::of_many(&shards, hasher, &hashes)?;
        drop(hashes);
        if let Some((path, index)) = &parts.index {
            check_index(&text(path), index, &shards, &names)?;
        }
        Checkpoint::over(shards, names, options)
    }

    fn over(shards: Shards, names: Names, options: OpenOptions) -> Result<Checkpoint, Error> {
        let metadata = Metadata::new(&shards)?;
        let ledger = Ledger::new(shards.len(), options.budget);
        let neighbours = Neighbours::new(shards.list().len()).ok_or(Error::NoMemory)?;
        let mut checkpoint = Checkpoint {
            shards,
            names,
            metadata,
            ledger,
            neighbours,
            read_ahead: ReadAhead::default(),
            strays: Strays::default(),
            watches_changes: false,
            first_use: None,
        };
        checkpoint.set_budget(options.budget)?;
        for shard in checkpoint.shards.list() {
            shard.make_resident(&checkpoint.read_ahead)?;
        }
        checkpoint.verify_as(options.verify)?;
        Ok(checkpoint)
    }
}

/// The folder that `path` leads to; `None` if it leads to something else, or nowhere.
fn folder_at(path: &Path) -> Result<Option<Folder>, StorageError> {
    // An empty path leads nowhere: only beside an index it means the current directory.
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    match Folder::open(path) {
        Err(StorageError::Io { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOTDIR | libc::ENOENT)) => {
            Ok(None)
        }
        opened => opened.map(Some),
    }
}

/// What a header has about a tensor: its dtype, its shape, its offsets, and mostly a longer name.
const HEADER_BYTES_PER_TENSOR: u64 = 64;

/// The files of the shards that have been opened, and the shards' numbers. Each shard is another file: a stranger may spell one file in
/// a thousand ways, and have its header read as often.
#[derive(Default)]
struct Files(Mutex<BTreeMap<FileId, usize>>);

impl Files {
    /// Gives the shard that has the file already, if one has.
    fn insert(&self, file: FileId, shard: usize) -> Option<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(file, shard)
    }
}
