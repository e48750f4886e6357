//! From a path, or from memory, to a checkpoint.

use super::copies::Copies;
use super::names::Names;
use super::shard::{text, Shard};
use super::Checkpoint;
use crate::error::Error;
use crate::storage::{Memory, Storage, StorageOptions};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How to open a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// How each shard's bytes are reached.
    pub storage: StorageOptions,
}

impl Checkpoint {
    /// Opens a `.safetensors` file. Reads its header and nothing else.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]: the file is absent, not readable, or not a regular file. [`Error::Header`]: it breaks a rule of the
    /// format. [`Error::InvalidArgument`]: the path has a NUL.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Checkpoint, Error> {
        let path = path.as_ref();
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error::InvalidArgument { what: "the path has a NUL".to_owned() })?;
        match Storage::open(path, options.storage) {
            Ok(storage) => Checkpoint::over(c_path, storage),
            Err(source) => Err(Error::Storage { path: text(&c_path), tensor: None, source }),
        }
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
            Ok(storage) => Checkpoint::over(CString::default(), storage),
            Err(source) => Err(Error::Storage { path: String::new(), tensor: None, source }),
        }
    }

    fn over(path: CString, storage: Storage) -> Result<Checkpoint, Error> {
        let shard = Shard::open(path, storage)?;
        Ok(Checkpoint { shard, names: Names::default(), copies: Copies::default() })
    }
}
