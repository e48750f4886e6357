//! The folder of an output, by descriptor.

use super::lock::Lock;
use super::refused::{is_refused, is_unsupported};
use crate::process::Process;
use crate::storage::pread::FileId;
use crate::storage::{FileKind, StorageError};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

/// The permissions of a mode. Not set-user-ID, set-group-ID and sticky: those were meant for the very bytes that had them.
const PERMISSIONS: u32 = 0o777;

/// A folder that files are made in. All names are those of files in it.
#[derive(Debug)]
pub(crate) struct OutputFolder {
    folder: File,
    /// Whose temporary files lie here: a child of that process has a copy of everything, and nothing to tidy up.
    process: Process,
}

/// What is found under a name. Symbolic links are not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Existing {
    /// A regular file.
    File {
        /// Its permissions: who may read, write and execute it, and nothing that a program could be run by.
        mode: u32,
        /// Which file it is.
        id: FileId,
    },
    /// A symbolic link.
    Link,
}

impl OutputFolder {
    pub(crate) fn open(path: &CStr) -> Result<OutputFolder, StorageError> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let file = open(libc::AT_FDCWD, path, flags, 0).map_err(|error| StorageError::io("open the folder", error))?;
        let process = Process::this().ok_or(StorageError::NoMemory { nbytes: size_of::<Process>() as u64 })?;
        Ok(OutputFolder { folder: file, process })
    }

    /// Whether the process that runs is the one that opened the folder, and no child of it.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process.is_this()
    }

    /// Opens a file, or makes one, as the flags say.
    pub(super) fn open_file(&self, name: &CStr, flags: libc::c_int, mode: u32) -> io::Result<File> {
        open(self.folder.as_raw_fd(), name, flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NOCTTY, mode)
    }

    /// Reads a file whole; `None` if there is none. No more than `most` bytes, and none that is not regular.
    pub(crate) fn read(&self, name: &CStr, most: u64) -> Result<Option<Vec<u8>>, StorageError> {
        match self.open_to_read(name)? {
            Some((file, len)) if len <= most => Ok(Some(read(file, len)?)),
            _ => Ok(None),
        }
    }

    /// The first bytes of a file, `most` of them if there are as many, and the length of all of it; `None` if there is none, or none that
    /// is regular.
    pub(crate) fn read_start(&self, name: &CStr, most: u64) -> Result<Option<(u64, Vec<u8>)>, StorageError> {
        match self.open_to_read(name)? {
            Some((file, len)) => Ok(Some((len, read(file, len.min(most))?))),
            None => Ok(None),
        }
    }

    fn open_to_read(&self, name: &CStr) -> Result<Option<(File, u64)>, StorageError> {
        if !matches!(self.find(name)?, Some(Existing::File { .. })) {
            return Ok(None);
        }
        let refused = |error| StorageError::io("read", error);
        let file = self.open_file(name, libc::O_RDONLY | libc::O_NONBLOCK, 0).map_err(refused)?;
        let len = file.metadata().map_err(refused)?.len();
        Ok(Some((file, len)))
    }

    /// What there is of that name; `None` if nothing.
    ///
    /// # Errors
    ///
    /// [`StorageError::NotAFile`] for what is neither a regular file nor a symbolic link.
    pub(crate) fn find(&self, name: &CStr) -> Result<Option<Existing>, StorageError> {
        let mut stat = MaybeUninit::<libc::stat64>::uninit();
        // SAFETY: the descriptor is open, the name ends with a NUL, and `stat` has room for what the call writes.
        let done = unsafe {
            libc::fstatat64(self.folder.as_raw_fd(), name.as_ptr(), stat.as_mut_ptr(), libc::AT_SYMLINK_NOFOLLOW)
        };
        if let Err(error) = checked(done) {
            return match error.raw_os_error() {
                Some(libc::ENOENT) => Ok(None),
                _ => Err(StorageError::io("look at what would be replaced", error)),
            };
        }
        // SAFETY: the call has succeeded, and so has filled `stat` in.
        let stat = unsafe { stat.assume_init() };
        Err(StorageError::NotAFile(match stat.st_mode & libc::S_IFMT {
            libc::S_IFREG => {
                let id = FileId::new(stat.st_dev, stat.st_ino);
                return Ok(Some(Existing::File { mode: stat.st_mode & PERMISSIONS, id }));
            }
            libc::S_IFLNK => return Ok(Some(Existing::Link)),
            libc::S_IFDIR => FileKind::Folder,
            libc::S_IFIFO => FileKind::Fifo,
            libc::S_IFSOCK => FileKind::Socket,
            _ => FileKind::Device,
        }))
    }

    pub(crate) fn rename(&self, from: &CStr, to: &CStr) -> Result<(), StorageError> {
        let folder = self.folder.as_raw_fd();
        // SAFETY: the descriptor is open, and the names end with NULs.
        checked(unsafe { libc::renameat(folder, from.as_ptr(), folder, to.as_ptr()) }).map_err(|error| {
            // EACCES and EPERM are also those of a folder that is somebody else's.
            let is_impossible = error.raw_os_error() == Some(libc::EEXIST) || is_refused(&error);
            let action = match is_impossible && error.raw_os_error() != Some(libc::EACCES) {
                true => "rename: this file system, or a sandbox, does not let a file be replaced atomically",
                false => "rename",
            };
            StorageError::io(action, error)
        })
    }

    /// Gives a file a second name.
    pub(crate) fn link(&self, from: &CStr, to: &CStr) -> Result<(), StorageError> {
        let folder = self.folder.as_raw_fd();
        // SAFETY: the descriptor is open, and the names end with NULs.
        checked(unsafe { libc::linkat(folder, from.as_ptr(), folder, to.as_ptr(), 0) })
            .map_err(|error| StorageError::io("link", error))
    }

    /// Takes a name away. That there is none is fine.
    pub(crate) fn unlink(&self, name: &CStr) -> Result<(), StorageError> {
        // SAFETY: the descriptor is open, and the name ends with a NUL.
        match checked(unsafe { libc::unlinkat(self.folder.as_raw_fd(), name.as_ptr(), 0) }) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(StorageError::io("unlink", error)),
            _ => Ok(()),
        }
    }

    /// Makes what was done to names last.
    pub(crate) fn sync(&self) -> Result<(), StorageError> {
        match self.folder.sync_all() {
            // Some file systems cannot sync folders, and need not.
            Err(error) if !is_unsupported(&error) && error.raw_os_error() != Some(libc::EROFS) => {
                Err(StorageError::io("sync the folder", error))
            }
            _ => Ok(()),
        }
    }

    /// Waits until no other writer, of this process or another, publishes several files here; the lock lasts as long as the result. No
    /// longer than `patience`, and no longer than it `is_wanted`. `None` where there are no locks.
    pub(crate) fn lock(&self, patience: Duration, is_wanted: impl Fn() -> bool) -> Result<Option<Lock>, StorageError> {
        // A descriptor of its own: others of this process have to wait too.
        let own = self.open_again().map_err(|error| StorageError::io("open the folder to lock it", error))?;
        Lock::take(own, patience, is_wanted)
    }

    fn open_again(&self) -> io::Result<File> {
        open(self.folder.as_raw_fd(), c".", libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)
    }

    /// The names that are `wanted`, all of them.
    pub(crate) fn names(&self, wanted: impl Fn(&CStr) -> bool) -> io::Result<Vec<CString>> {
        let own = self.open_again()?;
        // SAFETY: an open descriptor of a folder, which the stream takes over if there is one.
        let stream = unsafe { libc::fdopendir(own.as_raw_fd()) };
        if stream.is_null() {
            return Err(io::Error::last_os_error());
        }
        std::mem::forget(own);
        let mut names = Vec::new();
        let outcome = loop {
            // SAFETY: this thread's own; 0 tells the end of the list from an error.
            unsafe { *libc::__errno_location() = 0 };
            // SAFETY: the stream is open.
            let entry = unsafe { libc::readdir64(stream) };
            if entry.is_null() {
                let error = io::Error::last_os_error();
                break if error.raw_os_error() == Some(0) { Ok(()) } else { Err(error) };
            }
            // SAFETY: an entry lives until the next one is read, and its name ends with a NUL.
            let name = unsafe { CStr::from_ptr((&raw const (*entry).d_name).cast()) };
            if !wanted(name) {
                continue;
            }
            if names.try_reserve(1).is_err() {
                break Err(io::ErrorKind::OutOfMemory.into());
            }
            names.push(name.to_owned());
        };
        // SAFETY: the stream is open, and not used any more; its descriptor is closed with it.
        unsafe { libc::closedir(stream) };
        outcome.map(|()| names)
    }
}

/// The first `len` bytes.
fn read(file: File, len: u64) -> Result<Vec<u8>, StorageError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize).map_err(|_| StorageError::NoMemory { nbytes: len })?;
    io::Read::read_to_end(&mut io::Read::take(file, len), &mut bytes)
        .map_err(|error| StorageError::io("read", error))?;
    Ok(bytes)
}

fn open(folder: RawFd, name: &CStr, flags: libc::c_int, mode: u32) -> io::Result<File> {
    loop {
        // SAFETY: the folder is open, or stands for the current one; the name ends with a NUL.
        let descriptor = unsafe { libc::openat64(folder, name.as_ptr(), flags, mode) };
        match checked(descriptor) {
            // SAFETY: the descriptor is open, and nobody else's.
            Ok(()) => return Ok(unsafe { File::from_raw_fd(descriptor) }),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) fn checked(outcome: libc::c_int) -> io::Result<()> {
    match outcome {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn find_tells_things_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = CString::new(folder.path().as_os_str().as_bytes()).unwrap();
        std::fs::write(folder.path().join("file"), "12").unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        std::os::unix::fs::symlink("file", folder.path().join("link")).unwrap();
        let output = OutputFolder::open(&path).unwrap();
        assert!(matches!(output.find(c"file"), Ok(Some(Existing::File { mode, .. })) if mode & 0o600 == 0o600));
        assert_eq!(output.find(c"link").unwrap(), Some(Existing::Link));
        assert_eq!(output.find(c"absent").unwrap(), None);
        assert!(matches!(output.find(c"sub"), Err(StorageError::NotAFile(FileKind::Folder))));
        assert_eq!(output.read(c"file", 2).unwrap().unwrap(), b"12");
        assert_eq!(output.read(c"file", 1).unwrap(), None);
        assert_eq!(output.read(c"link", 9).unwrap(), None);
        let mut names = output.names(|name| name != c"." && name != c"..").unwrap();
        names.sort();
        assert_eq!(names, [c"file".to_owned(), c"link".to_owned(), c"sub".to_owned()]);
        output.unlink(c"absent").unwrap();
        assert!(matches!(OutputFolder::open(c"/dev/null"), Err(StorageError::Io { .. })));
    }

    #[test]
    fn lock_waits_until_told_otherwise_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let path = CString::new(folder.path().as_os_str().as_bytes()).unwrap();
        let (one, other) = (OutputFolder::open(&path).unwrap(), OutputFolder::open(&path).unwrap());
        let timed_out = |error: StorageError| matches!(error, StorageError::Io { source, .. } if source.raw_os_error() == Some(libc::ETIMEDOUT));
        let held = one.lock(Duration::from_secs(60), || true).unwrap();
        assert!(held.is_some());
        assert!(timed_out(other.lock(Duration::from_secs(60), || false).unwrap_err()));
        assert!(timed_out(other.lock(Duration::from_millis(20), || true).unwrap_err()));
        drop(held);
        assert!(other.lock(Duration::ZERO, || true).unwrap().is_some());
    }

    /// As a child has it that was forked while the folder was locked.
    #[test]
    fn lock_goes_though_another_has_the_same_open_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = CString::new(folder.path().as_os_str().as_bytes()).unwrap();
        let output = OutputFolder::open(&path).unwrap();
        let file = output.open_again().unwrap();
        let inherited = file.try_clone().unwrap();
        drop(Lock::take(file, Duration::ZERO, || true).unwrap().unwrap());
        assert!(output.lock(Duration::ZERO, || true).unwrap().is_some());
        drop(inherited);
    }
}
