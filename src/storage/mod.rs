//! Where a shard's bytes come from: a mapping, positional reads, or the caller's memory.
//!
//! This layer knows files, no tensors. Whatever the kind, bytes can be read with an error instead of a signal
//! ([`Storage::read_exact_at`]); a mapping and memory can besides be pointed into ([`Storage::pointer`]). Files that are written are in
//! `output`.

mod at;
mod beneath;
mod buffer;
mod cached;
mod direct;
mod error;
mod folder;
mod fs;
mod mapping;
mod memory;
pub(crate) mod output;
mod pages;
mod pread;
mod read_ahead;
mod scatter;
mod uring;

pub(crate) use beneath::NotInFolder;
pub(crate) use buffer::{Buffer, Scratch};
pub(crate) use direct::{Direct, PAGE};
pub(crate) use error::LimitOn;
pub use error::{FileKind, StorageError};
pub(crate) use folder::{Folder, Listing};
pub(crate) use fs::FileSystems;
pub use memory::Memory;
pub(crate) use pread::FileId;
pub(crate) use read_ahead::ReadAhead;
pub(crate) use scatter::{Part, Scatter};
pub(crate) use uring::{Completed, Queue};

pub(crate) use pages::physical_memory;

use mapping::Mapping;
use pread::Reader;
use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::Path;
use std::ptr::NonNull;

/// How the bytes of a file are reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StorageKind {
    /// Mapped, unless the file lies on a network or FUSE file system or the mapping is refused: then read.
    #[default]
    Auto,
    /// Mapped: pointers without a copy, pages shared with every process that maps the file.
    Mmap,
    /// Read by positional reads into memory of the library's own: errors instead of SIGBUS.
    Read,
    /// Memory of the caller's.
    Memory,
}

/// What to do besides opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageOptions {
    /// How the file's bytes are reached.
    pub kind: StorageKind,
    /// Private writable pages: what is written through a pointer stays in this process, the file is never changed.
    pub copy_on_write: bool,
    /// Read all of the file in when opening: into the mapping, or ahead into the page cache where there is no mapping.
    pub populate: bool,
    /// Keep the mapping in physical memory (`mlock`). Needs a mapping, and `RLIMIT_MEMLOCK` large enough.
    pub lock: bool,
}

/// The bytes of one shard.
#[derive(Debug)]
pub struct Storage {
    bytes: Bytes,
    options: StorageOptions,
}

#[derive(Debug)]
enum Bytes {
    /// Reads go through the file even here: a read of a file that was truncated is an error, a touch of its mapping is a SIGBUS.
    Mapped(Reader, Mapping),
    Read(Reader),
    Memory(Memory),
}

impl Storage {
    /// Opens a file. Nothing is read yet.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: the file is absent, not allowed, or not a regular file; a mapping is asked for and refused.
    pub fn open(path: &Path, options: StorageOptions) -> Result<Storage, StorageError> {
        Storage::of_reader(Reader::open(path)?, options, &FileSystems::default())
    }

    /// As [`Storage::open`], of a file that is open for reading. What is known of file systems need not be asked for again.
    pub(crate) fn of_file(file: File, options: StorageOptions, known: &FileSystems) -> Result<Storage, StorageError> {
        Storage::of_reader(Reader::new(file)?, options, known)
    }

    fn of_reader(reader: Reader, options: StorageOptions, known: &FileSystems) -> Result<Storage, StorageError> {
        let map = |reader: &Reader| Mapping::new(reader.file(), reader.len(), options.copy_on_write);
        let bytes = match options.kind {
            StorageKind::Memory => return Err(StorageError::Unsupported("a file cannot be opened as memory")),
            StorageKind::Read => Bytes::Read(reader),
            StorageKind::Mmap => match map(&reader) {
                Ok(mapping) => Bytes::Mapped(reader, mapping),
                Err(error) => return Err(StorageError::io("map", error)),
            },
            StorageKind::Auto if reader.is_remote_by(|reader| known.of(reader)) => Bytes::Read(reader),
            StorageKind::Auto => match map(&reader) {
                Ok(mapping) => Bytes::Mapped(reader, mapping),
                Err(_) => Bytes::Read(reader),
            },
        };
        Ok(Storage { bytes, options })
    }

    /// Takes memory instead of a file.
    ///
    /// # Errors
    ///
    /// [`StorageError::Unsupported`] if the options ask for a file's kind of storage.
    pub fn memory(memory: Memory, options: StorageOptions) -> Result<Storage, StorageError> {
        match options.kind {
            StorageKind::Auto | StorageKind::Memory => Ok(Storage { bytes: Bytes::Memory(memory), options }),
            StorageKind::Mmap | StorageKind::Read => {
                Err(StorageError::Unsupported("memory cannot be opened as a file"))
            }
        }
    }

    /// Does what the options ask for once the header has been found true: populates, locks. Without a mapping, populating is left to
    /// `read_ahead`.
    ///
    /// # Errors
    ///
    /// [`StorageError`]: pages could not be read or locked.
    pub(crate) fn make_resident(&self, read_ahead: &ReadAhead) -> Result<(), StorageError> {
        if self.options.populate {
            match &self.bytes {
                Bytes::Mapped(reader, mapping) => mapping.populate(reader)?,
                Bytes::Read(reader) => read_ahead.ask(reader.file(), 0..reader.len()),
                Bytes::Memory(_) => {}
            }
        }
        if self.options.lock {
            match &self.bytes {
                Bytes::Mapped(_, mapping) => mapping.lock()?,
                Bytes::Read(_) | Bytes::Memory(_) => {
                    return Err(StorageError::Unsupported("only a mapping can be locked into memory"))
                }
            }
        }
        Ok(())
    }

    /// Which file it is; `None` for memory.
    pub(crate) fn file_id(&self) -> Option<FileId> {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => Some(reader.id()),
            Bytes::Memory(_) => None,
        }
    }

    /// The kind that was chosen: never [`StorageKind::Auto`].
    pub fn kind(&self) -> StorageKind {
        match &self.bytes {
            Bytes::Mapped(..) => StorageKind::Mmap,
            Bytes::Read(_) => StorageKind::Read,
            Bytes::Memory(_) => StorageKind::Memory,
        }
    }

    /// Whether memory that this storage points to may be written to.
    pub fn is_writable(&self) -> bool {
        self.options.copy_on_write
    }

    /// The number of bytes when it was opened.
    pub fn size(&self) -> u64 {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => reader.len(),
            Bytes::Memory(memory) => memory.len() as u64,
        }
    }

    /// Reads `dst.len()` bytes from `offset` on. All of `dst` is initialised when this returns `Ok`.
    ///
    /// Over a mapping this reads the file, not the pages: what was written through a copy-on-write pointer is not seen.
    ///
    /// # Errors
    ///
    /// [`StorageError::Truncated`] if the file ends before, [`StorageError::Io`] if the system says so. Never a signal.
    pub fn read_exact_at(&self, dst: &mut [MaybeUninit<u8>], offset: u64) -> Result<(), StorageError> {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => reader.read_exact_at(dst, offset),
            Bytes::Memory(memory) => memory.read_exact_at(dst, offset),
        }
    }

    /// As [`Storage::read_exact_at`], leaving the page cache as it is where the system can: for reading more than fits it.
    pub(crate) fn read_around_cache(&self, dst: &mut [MaybeUninit<u8>], offset: u64) -> Result<(), StorageError> {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => reader.read_around_cache(dst, offset),
            Bytes::Memory(memory) => memory.read_exact_at(dst, offset),
        }
    }

    /// Reads `parts`, one after the other in the file, from `offset` on.
    ///
    /// # Errors
    ///
    /// As [`Storage::read_exact_at`]; the content of all parts is unspecified then.
    ///
    /// # Safety
    ///
    /// Each part that is wanted can be written to for its length, and nobody else touches it.
    pub(crate) unsafe fn read_parts(
        &self,
        parts: impl Iterator<Item = Part>,
        offset: u64,
        scatter: &mut Scatter,
    ) -> Result<(), StorageError> {
        match &self.bytes {
            // SAFETY: the caller's promise.
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => unsafe { reader.read_parts(parts, offset, scatter) },
            Bytes::Memory(memory) => {
                let mut at = offset;
                for Part { to, len } in parts {
                    if let Some(to) = to {
                        // SAFETY: the caller's promise; any bytes are uninitialised ones.
                        let dst = unsafe { std::slice::from_raw_parts_mut(to.as_ptr().cast(), len) };
                        memory.read_exact_at(dst, at)?;
                    }
                    at = at.saturating_add(len as u64);
                }
                Ok(())
            }
        }
    }

    /// Whether page faults, and reads of few bytes, are a bad way to reach the bytes: the file lies on a network or FUSE file system.
    pub(crate) fn is_remote(&self) -> bool {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => reader.is_remote(),
            Bytes::Memory(_) => false,
        }
    }

    /// The file, to be read around the page cache. `None` for memory, and where the system refuses.
    pub(crate) fn open_direct(&self) -> Option<Direct> {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => Direct::open(reader),
            Bytes::Memory(_) => None,
        }
    }

    /// Number of bytes that there were when it was opened.
    pub(crate) fn len(&self) -> u64 {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => reader.len(),
            Bytes::Memory(memory) => memory.len() as u64,
        }
    }

    /// How many of `bytes` are in the page cache. `None` for memory, and where the system does not tell.
    pub(crate) fn cached(&self, bytes: Range<u64>) -> Option<u64> {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => cached::cached(reader.file(), bytes),
            Bytes::Memory(_) => None,
        }
    }

    /// Whether the file is, as far as the system tells, as it was when it was opened.
    ///
    /// # Errors
    ///
    /// [`StorageError::Changed`]: it has another size or time of modification; [`StorageError::Io`]: the system does not tell.
    pub(crate) fn check_unchanged(&self) -> Result<(), StorageError> {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => reader.check_unchanged(),
            Bytes::Memory(_) => Ok(()),
        }
    }

    /// Reads `len` bytes from `offset` on into memory of their own. All of it is initialised.
    pub(crate) fn read(&self, offset: u64, len: u64) -> Result<Buffer, StorageError> {
        let mut buffer = Buffer::new(len)?;
        self.read_exact_at(buffer.as_uninit_mut(), offset)?;
        Ok(buffer)
    }

    /// Asks for `bytes` to be read into the page cache, without waiting for them. Only advice.
    pub(crate) fn read_ahead(&self, by: &ReadAhead, bytes: Range<u64>) {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => by.ask(reader.file(), bytes),
            Bytes::Memory(_) => {}
        }
    }

    /// Takes the pages of a mapping that lie wholly in `bytes` out of this process's memory. They come back, from the page cache or
    /// the disk, when they are touched; pages of a copy-on-write mapping that were written to are never lost.
    pub fn drop_pages(&self, bytes: Range<u64>) {
        if let Bytes::Mapped(_, mapping) = &self.bytes {
            mapping.drop_pages(bytes);
        }
    }

    /// Asks the system to take `bytes` out of the page cache, where no process has them mapped. Only advice.
    pub fn drop_cached(&self, bytes: Range<u64>) {
        match &self.bytes {
            Bytes::Mapped(reader, _) | Bytes::Read(reader) => reader.drop_cached(bytes),
            Bytes::Memory(_) => {}
        }
    }

    /// What of the file may have come into this process's memory with `bytes` when these were touched: the system maps neighbours that
    /// it has at hand.
    pub(crate) fn mapped_with(&self, bytes: Range<u64>) -> Range<u64> {
        match &self.bytes {
            Bytes::Mapped(_, mapping) => mapping.mapped_with(bytes),
            Bytes::Read(_) | Bytes::Memory(_) => bytes,
        }
    }

    /// Tells the system that pages will be dropped one by one.
    pub(crate) fn expect_drops(&self) {
        if let Bytes::Mapped(_, mapping) = &self.bytes {
            mapping.forbid_huge_pages();
        }
    }

    /// What of a file has to leave the page cache for `bytes` to leave it: their pages, and what lies before them in the folio that
    /// they may share with it. (What lies behind may have been read ahead.)
    pub(crate) fn cached_with(bytes: Range<u64>) -> Range<u64> {
        pages::blocks_around(bytes.clone()).start..pages::pages_around(bytes).end
    }

    /// How many of `bytes` are in physical memory on this process's account, through the mapping: 0 where there is none, `None` where
    /// the system does not tell.
    pub fn resident(&self, bytes: Range<u64>) -> Option<u64> {
        match &self.bytes {
            Bytes::Mapped(_, mapping) => mapping.resident(bytes),
            Bytes::Read(_) | Bytes::Memory(_) => Some(0),
        }
    }

    /// Whether pages are locked into memory.
    pub fn is_locked(&self) -> bool {
        self.options.lock
    }

    /// Where the `len` bytes from `offset` on lie in memory, if they do: valid as long as this storage lives. `None` for files that
    /// are read, for positions outside, and over borrowed memory when pages must be private.
    pub fn pointer(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        match &self.bytes {
            Bytes::Mapped(_, mapping) => mapping.pointer(offset, len),
            Bytes::Memory(memory) if !self.options.copy_on_write => memory.pointer(offset, len),
            Bytes::Memory(_) | Bytes::Read(_) => None,
        }
    }
}
