//! A file that is not there yet.

use super::folder::{checked, Existing, OutputFolder};
use super::lock::{try_lock, Tried};
use super::names::TemporaryNames;
use super::order::{Order, Progress};
use super::refused::{is_position_refused, is_refused, is_unsupported, means_nothing_at_close};
use super::write::{append, write_all_at, DontCache};
use crate::storage::pread::{read_exact_at, FileId};
use crate::storage::StorageError;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// How often a name is tried that another file has.
const ATTEMPTS: usize = 100;

/// What is said of a write that would need another order.
const ONLY_FROM_FRONT: &str =
    "this file system takes the bytes of a file in their order only, and these are not the next ones: add the \
     tensors with their data, or write them in the order in which they lie in the file, and without checksums";

/// What was tried when the system has refused it, and an order is the likely reason.
const OUT_OF_ORDER: &str =
    "write at a place of the writer's choice, which this file system may have only in the order of the bytes";

/// A file under a temporary name, which goes when this does, unless it is kept. (The file itself stays if it has another name besides, or
/// instead.)
///
/// Its lock, which ends with the process, tells others that its writer is alive. In a child of that process it removes nothing.
#[derive(Debug)]
pub(crate) struct Temporary {
    folder: Arc<OutputFolder>,
    file: File,
    id: FileId,
    name: CString,
    /// Whether its name is somebody else's to remove.
    is_kept: bool,
    dont_cache: DontCache,
    progress: Progress,
}

impl Temporary {
    /// Makes one. `is_private` where it will replace a file whose permissions it gets in the end, and must not be more open before.
    pub(crate) fn create(
        folder: &Arc<OutputFolder>,
        names: &TemporaryNames,
        is_private: bool,
    ) -> Result<Temporary, StorageError> {
        let refused = |error| StorageError::io("create a temporary file", error);
        for _ in 0..ATTEMPTS {
            let name = names.next()?;
            let mode = if is_private { 0o600 } else { 0o666 };
            let open = |access| folder.open_file(&name, access | libc::O_CREAT | libc::O_EXCL, mode);
            let file = match open(libc::O_RDWR) {
                // Where files are only written, or only read, at a time.
                Err(error) if is_unsupported(&error) => open(libc::O_WRONLY).map_err(|_| error),
                opened => opened,
            };
            let file = match file {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(refused(error)),
            };
            let looked =
                file.metadata().map(|metadata| FileId::of(&metadata)).and_then(|id| Ok((id, try_lock(&file)?)));
            let (id, locked) = match looked {
                Ok(looked) => looked,
                Err(error) => {
                    let _ = folder.unlink(&name);
                    return Err(refused(error));
                }
            };
            let (folder, dont_cache, progress) = (Arc::clone(folder), DontCache::default(), Progress::new());
            let temporary = Temporary { folder, file, id, name, is_kept: false, dont_cache, progress };
            // Whoever removes leftovers may have been quicker than the lock: then the name is gone, or about to go.
            if locked != Tried::Taken && temporary.is_at(&temporary.name)? {
                return Ok(temporary);
            }
        }
        Err(refused(io::Error::from_raw_os_error(libc::EEXIST)))
    }

    /// Whether a name leads to this file.
    pub(crate) fn is_at(&self, name: &CStr) -> Result<bool, StorageError> {
        Ok(matches!(self.folder.find(name)?, Some(Existing::File { id, .. }) if id == self.id))
    }

    /// Its temporary name, which it may have lost to another one.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// Makes the file `len` bytes long, and has the disk put so much aside, where it can: that it is full is found now, and not after
    /// hours of writing.
    pub(crate) fn allocate(&self, len: u64) -> Result<(), StorageError> {
        let refused = |error| StorageError::io("allocate", error);
        let too_large = || refused(io::Error::from_raw_os_error(libc::EFBIG));
        let len = libc::off64_t::try_from(len).map_err(|_| too_large())?;
        // To go beyond this limit would be a signal.
        if len as u64 > file_size_limit() {
            return Err(too_large());
        }
        loop {
            // SAFETY: the descriptor is open.
            let allocated = checked(unsafe { libc::fallocate64(self.file.as_raw_fd(), 0, 0, len) });
            match allocated.map_err(|error| (error.raw_os_error(), error)) {
                Ok(()) => return Ok(()),
                Err((Some(libc::EINTR), _)) => {}
                Err((_, error)) if is_refused(&error) => return self.lengthen(len as u64),
                Err((_, error)) => {
                    // What was put aside is of use to whoever mends the cause.
                    let _ = self.file.set_len(0);
                    return Err(refused(error));
                }
            }
        }
    }

    /// Makes the file so long without asking for room on the disk. Where not even that is to be had it grows as it is written, and most
    /// likely it can only be appended to.
    fn lengthen(&self, len: u64) -> Result<(), StorageError> {
        match self.file.set_len(len) {
            Err(error) if is_refused(&error) => {
                self.progress.set_order(Order::Suspected);
                Ok(())
            }
            done => done.map_err(|error| StorageError::io("allocate", error)),
        }
    }

    /// In which order it takes its bytes. What is written in another one than from front to back may still be refused if it is not
    /// [`Order::Any`].
    pub(crate) fn order(&self) -> Order {
        self.progress.order()
    }

    /// How many bytes have been appended.
    pub(crate) fn end(&self) -> u64 {
        self.progress.end()
    }

    /// Something was written around the page cache, at a position of its own.
    pub(crate) fn touch(&self) {
        self.progress.touch();
    }

    /// Writes through the page cache; a large piece leaves it as soon as it is on the disk, where the system can do that.
    ///
    /// # Errors
    ///
    /// If this is the first write, and was refused because of its position, the order of the file is [`Order::Front`] from now on.
    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        let order = self.order();
        if bytes.is_empty() {
            return Ok(());
        }
        if order != Order::Any && offset == self.end() {
            return self.append(bytes, offset);
        }
        if order == Order::Front {
            return Err(StorageError::Unsupported(ONLY_FROM_FRONT));
        }
        match write_all_at(&self.file, bytes, offset, Some(&self.dont_cache)) {
            Ok(()) => {
                self.progress.touch();
                self.progress.set_order(Order::Any);
                Ok(())
            }
            Err(error) if order == Order::Suspected => Err(StorageError::io(OUT_OF_ORDER, error)),
            Err(error) if is_position_refused(&error) && self.progress.is_empty() => {
                self.progress.set_order(Order::Front);
                match offset {
                    0 => self.append(bytes, offset),
                    _ => Err(StorageError::io(OUT_OF_ORDER, error)),
                }
            }
            Err(error) => Err(StorageError::io("write", error)),
        }
    }

    /// Appends bytes whose place is `offset`, but for those that were appended before, which are the same.
    pub(crate) fn append(&self, bytes: &[u8], offset: u64) -> Result<(), StorageError> {
        let skipped = self.end().checked_sub(offset).ok_or(StorageError::Unsupported(ONLY_FROM_FRONT))?;
        let rest = bytes.get(usize::try_from(skipped).unwrap_or(usize::MAX)..).unwrap_or_default();
        append(&self.file, rest, |n| self.progress.appended(n)).map_err(|error| StorageError::io("write", error))
    }

    /// Reads what was written.
    pub(crate) fn read_exact_at(&self, dst: &mut [u8], offset: u64) -> Result<(), StorageError> {
        let len = dst.len() as u64;
        // SAFETY: a byte is a byte that may be uninitialised, and reading leaves none of them so.
        let dst = unsafe { std::slice::from_raw_parts_mut(dst.as_mut_ptr().cast::<MaybeUninit<u8>>(), dst.len()) };
        read_exact_at(&self.file, dst, offset, || StorageError::Truncated { offset, len, opened_len: 0 })
    }

    /// A way around the page cache; `None` where there is none.
    pub(crate) fn direct(&self) -> Option<Direct> {
        let file = self.folder.open_file(&self.name, libc::O_WRONLY | libc::O_DIRECT, 0).ok()?;
        let is_same = FileId::of(&file.metadata().ok()?) == self.id;
        is_same.then(|| Direct { file, is_refused: AtomicBool::new(false) })
    }

    /// Gives it the permissions of the file that it replaces.
    pub(crate) fn set_mode(&self, mode: u32) -> Result<(), StorageError> {
        let refused = |error| StorageError::io("set the permissions", error);
        // Where all files have the same ones, asking for others is an error.
        let now = self.file.metadata().map_err(refused)?.permissions().mode() & 0o7777;
        if now == mode {
            return Ok(());
        }
        match self.file.set_permissions(std::fs::Permissions::from_mode(mode)) {
            // Nobody can do with the new file what the old one did not let them do.
            Err(error) if is_refused(&error) && now & !mode == 0 => Ok(()),
            done => done.map_err(refused),
        }
    }

    /// Has everything written reach the disk, if the caller `waits`; and sees to it that errors are told that come only when a file is
    /// closed, as they do where that is the moment in which its bytes leave for a server.
    pub(crate) fn sync(&self, waits: bool) -> Result<(), StorageError> {
        if waits {
            match self.file.sync_all() {
                Err(error) if !is_unsupported(&error) => return Err(StorageError::io("sync", error)),
                _ => {}
            }
        }
        // To close the file itself would be to give its lock away before it is in its place; but each of its descriptors is asked.
        // SAFETY: the descriptor is open.
        let second = unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 0) };
        if second < 0 {
            // No descriptor is left to ask with.
            return Ok(());
        }
        // SAFETY: the descriptor is open, and this function's own. It is closed whatever this returns.
        match checked(unsafe { libc::close(second) }) {
            Err(error) if !means_nothing_at_close(&error) => Err(StorageError::io("close", error)),
            _ => Ok(()),
        }
    }

    /// From now on its name is not this one's to remove.
    pub(crate) fn keep(&mut self) {
        self.is_kept = true;
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_kept && self.folder.is_of_this_process() {
            // There is nobody to tell. That there is nothing of that name any more is as good.
            let _ = self.folder.unlink(&self.name);
        }
    }
}

/// A second descriptor of a temporary file, whose writes go around the page cache.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    /// Whether the file system has refused such a write.
    is_refused: AtomicBool,
}

impl Direct {
    /// Writes a piece; everything is aligned to [`DIRECT_ALIGNMENT`](super::DIRECT_ALIGNMENT). `Ok(false)` if this way is closed: the
    /// piece has to go through the page cache.
    pub(crate) fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<bool, StorageError> {
        if self.is_refused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match write_all_at(&self.file, bytes, offset, None) {
            Ok(()) => Ok(true),
            // EFAULT: memory that can be read but not be lent to a disk, such as a device's.
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) || is_refused(&error) => {
                self.is_refused.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(StorageError::io("write", error)),
        }
    }
}

/// The largest size that a file may get.
fn file_size_limit() -> u64 {
    let mut limit = MaybeUninit::<libc::rlimit64>::uninit();
    // SAFETY: `limit` has room for what the call writes.
    match unsafe { libc::getrlimit64(libc::RLIMIT_FSIZE, limit.as_mut_ptr()) } {
        // SAFETY: the call has succeeded, and so has filled `limit` in.
        0 => unsafe { limit.assume_init() }.rlim_cur,
        _ => u64::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::output::remove_leftovers;
    use crate::storage::Buffer;
    use std::os::unix::ffi::OsStrExt;

    fn folder(path: &std::path::Path) -> Arc<OutputFolder> {
        Arc::new(OutputFolder::open(&CString::new(path.as_os_str().as_bytes()).unwrap()).unwrap())
    }

    #[test]
    fn a_temporary_goes_unless_it_is_kept() {
        let path = tempfile::tempdir().unwrap();
        let (folder, names) = (folder(path.path()), TemporaryNames::of(b"a"));
        let mut file = Temporary::create(&folder, &names, true).unwrap();
        let name = file.name().to_owned();
        let mode = || match folder.find(&name) {
            Ok(Some(Existing::File { mode, .. })) => Some(mode),
            _ => None,
        };
        assert_eq!(mode(), Some(0o600));
        file.set_mode(0o640).unwrap();
        assert_eq!(mode(), Some(0o640));
        // Its lock keeps it.
        remove_leftovers(&folder, &names, || Ok(Vec::new()));
        assert!(mode().is_some());
        file.keep();
        drop(file);
        remove_leftovers(&folder, &names, || Ok(vec![name.clone()]));
        assert!(mode().is_some());
        remove_leftovers(&folder, &names, || Ok(Vec::new()));
        assert!(mode().is_none());
        let file = Temporary::create(&folder, &names, false).unwrap();
        let name = file.name().to_owned();
        drop(file);
        assert_eq!(folder.find(&name).unwrap(), None);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let path = tempfile::tempdir().unwrap();
        let file = Temporary::create(&folder(path.path()), &TemporaryNames::of(b"a"), false).unwrap();
        file.allocate(5 << 20).unwrap();
        assert_eq!(file.file.metadata().unwrap().len(), 5 << 20);
        let bytes = vec![7; 3 << 20];
        file.write_all_at(&bytes, 1 << 20).unwrap();
        let mut read = vec![1; 5 << 20];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read[..1 << 20].iter().chain(&read[4 << 20..]).all(|byte| *byte == 0));
        assert!(read[1 << 20..4 << 20] == bytes);
        assert!(matches!(file.read_exact_at(&mut read, 1), Err(StorageError::Truncated { .. })));
        assert!(file.allocate(u64::MAX).is_err() && file.write_all_at(b"1", u64::MAX).is_err());
        file.sync(true).unwrap();
    }

    /// As a file system does that opens files for such writes, and then refuses them.
    #[test]
    fn a_refused_write_around_the_page_cache_closes_that_way() {
        let path = tempfile::tempdir().unwrap();
        let file = Temporary::create(&folder(path.path()), &TemporaryNames::of(b"a"), false).unwrap();
        let Some(direct) = file.direct() else { return };
        let mut block = Buffer::new(1 << 20).unwrap();
        block.as_mut_slice().fill(7);
        assert!(direct.write_all_at(block.as_mut_slice(), 0).unwrap());
        if !direct.write_all_at(&block.as_mut_slice()[1..512], 1).unwrap() {
            assert!(!direct.write_all_at(block.as_mut_slice(), 0).unwrap());
        }
        let mut read = vec![0; 1 << 20];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read.iter().all(|byte| *byte == 7));
    }
}
