//! A file read at given positions.

use super::at::{self, Status};
use super::fs::FileSystem;
use super::{FileKind, StorageError};
use std::fs::{File, Metadata};
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::Arc;

/// Which file it is, under whatever name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    pub(super) fn of(metadata: &Metadata) -> FileId {
        FileId::new(metadata.dev(), metadata.ino())
    }

    pub(super) fn new(device: u64, inode: u64) -> FileId {
        FileId { device, inode }
    }

    /// Stands for the file system that the file lies on.
    pub(super) fn device(self) -> u64 {
        self.device
    }
}

const UNKNOWN: u8 = 0;
const LOCAL: u8 = 1;
const REMOTE: u8 = 2;

/// A regular file, open for reading, and its size at that moment.
#[derive(Debug)]
pub(super) struct Reader {
    file: Arc<File>,
    id: FileId,
    len: u64,
    /// Its time of modification when it was opened, in seconds and nanoseconds.
    modified: (i64, i64),
    /// What [`Reader::is_remote`] has found: [`UNKNOWN`], [`LOCAL`] or [`REMOTE`]. No lock, which a child could inherit.
    remote: AtomicU8,
    /// Whether the system knows reads that leave the page cache as it is (Linux 6.14, on some file systems).
    reads_around_cache: AtomicBool,
}

impl Reader {
    pub(super) fn open(path: &Path) -> Result<Reader, StorageError> {
        Reader::new(open_regular(
            || Status::of_path(path).map(|status| status.mode),
            |flags| at::open_path(path, flags),
        )?)
    }

    /// Of a file that is open for reading.
    pub(super) fn new(file: File) -> Result<Reader, StorageError> {
        let status = Status::of_file(&file).map_err(|error| StorageError::io("open", error))?;
        check_type(status.mode)?;
        Ok(Reader {
            id: status.id,
            len: status.len,
            modified: status.modified,
            file: Arc::new(file),
            remote: AtomicU8::new(UNKNOWN),
            reads_around_cache: AtomicBool::new(true),
        })
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file lies on a network or FUSE file system. Looked up once.
    pub(super) fn is_remote(&self) -> bool {
        self.is_remote_by(|reader| FileSystem::of(&reader.file))
    }

    /// The same; `look` finds out the kind of file system.
    pub(super) fn is_remote_by(&self, look: impl FnOnce(&Reader) -> FileSystem) -> bool {
        match self.remote.load(Ordering::Relaxed) {
            UNKNOWN => {
                let is_remote = look(self) == FileSystem::Remote;
                self.remote.store(if is_remote { REMOTE } else { LOCAL }, Ordering::Relaxed);
                is_remote
            }
            known => known == REMOTE,
        }
    }

    /// Fills `dst` from `offset` on.
    pub(super) fn read_exact_at(&self, dst: &mut [MaybeUninit<u8>], offset: u64) -> Result<(), StorageError> {
        self.fill(dst, offset, read_at)
    }

    /// As [`Reader::read_exact_at`], leaving the page cache as it is if the system knows how.
    pub(super) fn read_around_cache(&self, dst: &mut [MaybeUninit<u8>], offset: u64) -> Result<(), StorageError> {
        if self.reads_around_cache.load(Ordering::Relaxed) {
            match self.fill(dst, offset, read_around_cache_at) {
                Err(StorageError::Io { source, .. }) if is_refusal(&source) => {
                    self.reads_around_cache.store(false, Ordering::Relaxed);
                }
                outcome => return outcome,
            }
        }
        self.read_exact_at(dst, offset)
    }

    /// # Errors
    ///
    /// [`StorageError::Changed`] if it has another size or time of modification than when it was opened.
    pub(super) fn check_unchanged(&self) -> Result<(), StorageError> {
        let now = Status::of_file(&self.file).map_err(|error| StorageError::io("look at", error))?;
        match (now.len, now.modified) == (self.len, self.modified) {
            true => Ok(()),
            false => Err(StorageError::Changed),
        }
    }

    fn fill(&self, dst: &mut [MaybeUninit<u8>], offset: u64, read: ReadAt) -> Result<(), StorageError> {
        let (len, opened_len) = (dst.len() as u64, self.len);
        fill(&self.file, dst, offset, read, || StorageError::Truncated { offset, len, opened_len })
    }

    /// Reads the whole file, for the page cache to have it.
    pub(super) fn read_through(&self) -> Result<(), StorageError> {
        let mut scratch = [MaybeUninit::uninit(); 64 * 1024];
        let mut offset = 0;
        while offset < self.len {
            let len = (self.len - offset).min(scratch.len() as u64);
            self.read_exact_at(scratch.get_mut(..len as usize).unwrap_or_default(), offset)?;
            offset += len;
        }
        Ok(())
    }

    /// Asks for bytes to leave the page cache. Pages that a process has mapped stay. Only advice: a system that refuses loses
    /// memory, not data.
    pub(super) fn drop_cached(&self, bytes: Range<u64>) {
        let len = bytes.end.saturating_sub(bytes.start);
        // A length of 0 would mean to the end of the file.
        let (Ok(start), Ok(len @ 1..)) = (libc::off64_t::try_from(bytes.start), libc::off64_t::try_from(len)) else {
            return;
        };
        // SAFETY: the descriptor is open; the call touches no memory of ours.
        unsafe { libc::posix_fadvise64(self.file.as_raw_fd(), start, len, libc::POSIX_FADV_DONTNEED) };
    }
}

/// Fills `dst` from `offset` on, however many calls that takes.
pub(super) fn read_exact_at(
    file: &File,
    dst: &mut [MaybeUninit<u8>],
    offset: u64,
    truncated: impl FnOnce() -> StorageError,
) -> Result<(), StorageError> {
    fill(file, dst, offset, read_at, truncated)
}

/// A call that reads some bytes. Gives the number of bytes at the front of the room that are now initialised; 0 at the end of the file.
type ReadAt = fn(&File, &mut [MaybeUninit<u8>], u64) -> io::Result<usize>;

fn fill(
    file: &File,
    dst: &mut [MaybeUninit<u8>],
    offset: u64,
    read: ReadAt,
    truncated: impl FnOnce() -> StorageError,
) -> Result<(), StorageError> {
    let mut rest = dst;
    let mut position = offset;
    while !rest.is_empty() {
        match read(file, rest, position) {
            Ok(0) => return Err(truncated()),
            Ok(n) => {
                rest = rest.get_mut(n..).unwrap_or_default();
                position = position.saturating_add(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StorageError::io("read", error)),
        }
    }
    Ok(())
}

/// One `pread`.
fn read_at(file: &File, dst: &mut [MaybeUninit<u8>], offset: u64) -> io::Result<usize> {
    // Beyond what a position can be, no file has bytes.
    let Ok(offset) = libc::off64_t::try_from(offset) else { return Ok(0) };
    // SAFETY: `dst` is memory that may be written to for its whole length, which is all that the kernel writes; uninitialised bytes are
    // fine for it. The descriptor is open.
    let n = unsafe { libc::pread64(file.as_raw_fd(), dst.as_mut_ptr().cast(), dst.len(), offset) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// As [`read_at`], for pages that are not in the page cache not to stay there.
fn read_around_cache_at(file: &File, dst: &mut [MaybeUninit<u8>], offset: u64) -> io::Result<usize> {
    /// From linux/fs.h.
    const RWF_DONTCACHE: i32 = 0x80;
    let Ok(offset) = libc::off64_t::try_from(offset) else { return Ok(0) };
    let part = libc::iovec { iov_base: dst.as_mut_ptr().cast(), iov_len: dst.len() };
    // SAFETY: `part` is all of `dst`, memory that may be written to; the descriptor is open.
    let n = unsafe { libc::preadv64v2(file.as_raw_fd(), &raw const part, 1, offset, RWF_DONTCACHE) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel, the file system or a filter of system calls refuses a flag of a read.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::EPERM))
}

/// Opens a regular file for reading, and nothing else. `look` gives the mode of what lies where `open`, which is given
/// flags, will open it.
pub(super) fn open_regular(
    look: impl FnOnce() -> io::Result<u32>,
    open: impl Fn(libc::c_int) -> io::Result<File>,
) -> Result<File, StorageError> {
    let refused = |error| StorageError::io("open", error);
    // Before it is opened, because opening a device can do things; the reader looks again, because another may be there by now.
    check_type(look().map_err(refused)?)?;
    // Nor may a FIFO that has just taken the file's place make us wait for a writer.
    match open(libc::O_NONBLOCK) {
        // A lease on the file, as file servers take them, is given up while a blocking open waits.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => open(0),
        opened => opened,
    }
    .map_err(refused)
}

/// # Errors
///
/// [`StorageError::NotAFile`], unless the mode of a thing says that it is a regular file.
pub(super) fn check_type(mode: u32) -> Result<(), StorageError> {
    Err(StorageError::NotAFile(match mode & libc::S_IFMT {
        libc::S_IFREG => return Ok(()),
        libc::S_IFDIR => FileKind::Folder,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        _ => FileKind::Device,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn read(reader: &Reader, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        let mut dst = vec![MaybeUninit::uninit(); len];
        reader.read_exact_at(&mut dst, offset)?;
        // SAFETY: `read_exact_at` returned Ok.
        Ok(dst.into_iter().map(|byte| unsafe { byte.assume_init() }).collect())
    }

    #[test]
    fn read_exact_at_gives_bytes_or_says_truncated() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"0123456789").unwrap();
        let reader = Reader::open(file.path()).unwrap();
        assert_eq!(read(&reader, 3, 4).unwrap(), b"3456");
        assert_eq!(read(&reader, 10, 0).unwrap(), b"");
        for (offset, len) in [(3, 8), (10, 1), (1 << 40, 1), (u64::MAX, 1)] {
            assert!(matches!(read(&reader, offset, len), Err(StorageError::Truncated { .. })), "{offset} {len}");
        }
        file.as_file().set_len(5).unwrap();
        assert_eq!(read(&reader, 3, 2).unwrap(), b"34");
        assert!(matches!(read(&reader, 3, 3), Err(StorageError::Truncated { opened_len: 10, .. })));
    }

    #[test]
    fn open_tells_files_from_other_things() {
        let what = |path: &str| match Reader::open(Path::new(path)) {
            Err(StorageError::NotAFile(kind)) => kind,
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(what("/"), FileKind::Folder);
        assert_eq!(what("/dev/null"), FileKind::Device);
        let error = Reader::open(Path::new("/nonexistent/file")).unwrap_err();
        assert!(matches!(error, StorageError::Io { source, .. } if source.raw_os_error() == Some(libc::ENOENT)));
    }
}
