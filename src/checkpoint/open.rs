//! From a path, or from memory, to a checkpoint.

use super::agree::check_index;
use super::locate::{at_index, in_folder, is_index, Part, Parts};
use super::metadata::Metadata;
use super::names::Names;
use super::neighbours::Neighbours;
use super::shard::{c_path, text, Shard};
use super::shards::Shards;
use super::strays::Strays;
use super::verify::Verify;
use super::Checkpoint;
use crate::error::Error;
use crate::format::NameHasher;
use crate::residency::Ledger;
use crate::storage::{FileKind, Memory, ReadAhead, Scratch, Storage, StorageError, StorageOptions};
use crate::workers::{in_parallel, workers_for};
use std::ffi::CString;
use std::path::Path;

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
    /// Opens a checkpoint: reads the headers of its shards, several at once, and nothing else. The path leads to
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
        let c_path = c_path(path)?;
        let parts = if is_index(path) && !path.is_dir() {
            at_index(path, options.follow_links)?
        } else {
            match Storage::open(path, options.storage) {
                Ok(storage) => return Checkpoint::of_one(c_path, storage, options),
                Err(StorageError::NotAFile(FileKind::Folder)) => in_folder(path, options.follow_links)?,
                Err(source) => return Err(Error::Storage { path: text(&c_path), tensor: None, source }),
            }
        };
        Checkpoint::of_parts(&parts, options)
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

    fn of_parts(parts: &Parts, options: OpenOptions) -> Result<Checkpoint, Error> {
        let workers = workers_for(parts.shards.len());
        let hasher = NameHasher::default();
        let opened =
            in_parallel(parts.shards.len(), workers, |scratch: &mut Scratch, number| match parts.shards.get(number) {
                Some(part) => {
                    let shard = open_part(part, options.storage, scratch)?;
                    let hashes = hasher.hashes(&shard.header).ok_or_else(|| shard.no_memory())?;
                    Ok(Some((shard, hashes)))
                }
                None => Ok(None),
            })?;
        let (shards, hashes): (Vec<_>, Vec<_>) = opened.into_iter().flatten().unzip();
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

fn open_part(part: &Part, options: StorageOptions, scratch: &mut Scratch) -> Result<Shard, Error> {
    match Storage::open(&part.file.path, options) {
        Ok(storage) if storage.file_id() != Some(part.file.id) => Err(Error::ShardReplaced { path: text(&part.path) }),
        Ok(storage) => Shard::open(part.path.clone(), storage, scratch),
        Err(source) => Err(Error::Storage { path: text(&part.path), tensor: None, source }),
    }
}
