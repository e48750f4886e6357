//! Directories by descriptor: what the system calls that end with `at` do, and no more.

use super::pread::FileId;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// Opens a thing to look at it or to go on from it, without rights to its content and without doing anything to it.
const LOOK: libc::c_int = libc::O_PATH | libc::O_CLOEXEC;

const READ: libc::c_int = libc::O_RDONLY | libc::O_NOCTTY | libc::O_CLOEXEC;

/// A directory, or while it is looked at any other thing, wherever its name leads by now.
#[derive(Debug)]
pub(super) struct At(OwnedFd);

/// What the system says about a thing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    pub(super) id: FileId,
    pub(super) mode: u32,
    pub(super) len: u64,
    /// Its time of modification, in seconds and nanoseconds.
    pub(super) modified: (i64, i64),
}

impl Status {
    /// What `path` leads to.
    pub(super) fn of_path(path: &Path) -> io::Result<Status> {
        status(libc::AT_FDCWD, &c_string(path.as_os_str())?, libc::AT_NO_AUTOMOUNT)
    }

    pub(super) fn of_file(file: &File) -> io::Result<Status> {
        let mut stat = MaybeUninit::uninit();
        // SAFETY: the descriptor is open, and `stat` has room for what the call writes.
        match unsafe { libc::fstat64(file.as_raw_fd(), stat.as_mut_ptr()) } {
            // SAFETY: fstat has succeeded, and so has filled `stat` in.
            0 => Ok(Status::of(&unsafe { stat.assume_init() })),
            _ => Err(io::Error::last_os_error()),
        }
    }

    // The types of these fields differ between architectures.
    #[allow(clippy::unnecessary_cast)]
    fn of(stat: &libc::stat64) -> Status {
        Status {
            id: FileId::new(stat.st_dev as u64, stat.st_ino as u64),
            mode: stat.st_mode as u32,
            len: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
        }
    }

    pub(super) fn is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }
}

impl At {
    /// A directory.
    pub(super) fn open(path: &Path) -> io::Result<At> {
        let path = c_string(path.as_os_str())?;
        open(libc::AT_FDCWD, &path, LOOK | libc::O_DIRECTORY).map(At)
    }

    /// What `name` is in this directory; a symbolic link as such.
    pub(super) fn step(&self, name: &OsStr) -> io::Result<At> {
        open(self.0.as_raw_fd(), &c_string(name)?, LOOK | libc::O_NOFOLLOW).map(At)
    }

    /// Opens for reading what `name` leads to. No controlling terminal comes of it.
    pub(super) fn open_file(&self, name: &OsStr, flags: libc::c_int) -> io::Result<File> {
        open(self.0.as_raw_fd(), &c_string(name)?, flags | READ).map(File::from)
    }

    /// As [`At::open_file`], if all of the way lies beneath this directory: `EXDEV` says that it does not (`openat2`, Linux 5.6).
    pub(super) fn open_beneath(&self, name: &OsStr, flags: libc::c_int) -> io::Result<File> {
        /// From linux/openat2.h.
        const RESOLVE_BENEATH: u64 = 0x08;
        let name = c_string(name)?;
        // flags, mode, resolve
        let how = [(flags | READ) as u64, 0, RESOLVE_BENEATH];
        retried(|| {
            // SAFETY: the descriptor is open, the name ends with a NUL, and `how` is what linux/openat2.h calls struct open_how.
            unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    self.0.as_raw_fd(),
                    name.as_ptr(),
                    how.as_ptr(),
                    std::mem::size_of_val(&how),
                ) as libc::c_int
            }
        })
        .map(File::from)
    }

    /// What `name` leads to; with `AT_SYMLINK_NOFOLLOW` a symbolic link as such.
    pub(super) fn look(&self, name: &OsStr, flags: libc::c_int) -> io::Result<Status> {
        status(self.0.as_raw_fd(), &c_string(name)?, flags | libc::AT_NO_AUTOMOUNT)
    }

    /// What this is itself.
    pub(super) fn status(&self) -> io::Result<Status> {
        status(self.0.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    /// The text of a symbolic link that was stepped to.
    pub(super) fn link_text(&self) -> io::Result<OsString> {
        let mut room = [0u8; libc::PATH_MAX as usize];
        // SAFETY: the descriptor is open, and the call writes no more than `room` has.
        let len = unsafe { libc::readlinkat(self.0.as_raw_fd(), c"".as_ptr(), room.as_mut_ptr().cast(), room.len()) };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        match room.get(..len) {
            Some(text) if len < room.len() => Ok(OsString::from_vec(text.to_vec())),
            _ => Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG)),
        }
    }

    /// Calls `each` with the names in this directory, and whether they are known to be regular files', until it fails.
    pub(super) fn for_each_name<E: From<io::Error>>(
        &self,
        mut each: impl FnMut(&OsStr, bool) -> Result<(), E>,
    ) -> Result<(), E> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let directory = open(self.0.as_raw_fd(), c".", flags)?;
        // Aligned as the entries are.
        let mut room = [MaybeUninit::<u64>::uninit(); 1024];
        loop {
            let size = std::mem::size_of_val(&room);
            // SAFETY: the descriptor is open, and the call writes no more than `room` has.
            let len = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), room.as_mut_ptr(), size) };
            let len = match usize::try_from(len) {
                Ok(0) => return Ok(()),
                Ok(len) => len.min(size),
                Err(_) => return Err(io::Error::last_os_error().into()),
            };
            // SAFETY: the call has written so many bytes.
            let mut entries = unsafe { std::slice::from_raw_parts(room.as_ptr().cast::<u8>(), len) };
            while let Some((name, is_file, rest)) = entry(entries) {
                entries = rest;
                if name != "." && name != ".." {
                    each(name, is_file)?;
                }
            }
        }
    }
}

/// The first entry of what getdents64(2) gives: its name, whether it says that it is a regular file, and what comes after it.
fn entry(entries: &[u8]) -> Option<(&OsStr, bool, &[u8])> {
    use std::mem::offset_of;
    let len = entries.get(offset_of!(libc::dirent64, d_reclen)..)?.first_chunk()?;
    let (entry, rest) = entries.split_at_checked(usize::from(u16::from_ne_bytes(*len)))?;
    let is_file = *entry.get(offset_of!(libc::dirent64, d_type))? == libc::DT_REG;
    let name = CStr::from_bytes_until_nul(entry.get(offset_of!(libc::dirent64, d_name)..)?).ok()?;
    Some((OsStr::from_bytes(name.to_bytes()), is_file, rest))
}

/// Opens a path for reading. No controlling terminal comes of it.
pub(super) fn open_path(path: &Path, flags: libc::c_int) -> io::Result<File> {
    open(libc::AT_FDCWD, &c_string(path.as_os_str())?, flags | READ).map(File::from)
}

fn status(directory: RawFd, name: &CStr, flags: libc::c_int) -> io::Result<Status> {
    let mut stat = MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: the descriptor is open, the name ends with a NUL, and `stat` has room for what the call writes.
    if unsafe { libc::fstatat64(directory, name.as_ptr(), stat.as_mut_ptr(), flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstatat has succeeded, and so has filled `stat` in.
    Ok(Status::of(&unsafe { stat.assume_init() }))
}

fn open(directory: RawFd, name: &CStr, flags: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is open, or stands for the current directory; the name ends with a NUL.
    retried(|| unsafe { libc::openat64(directory, name.as_ptr(), flags) })
}

fn retried(open: impl Fn() -> libc::c_int) -> io::Result<OwnedFd> {
    loop {
        match open() {
            // SAFETY: a descriptor that the system has just given, and nobody else's.
            descriptor @ 0.. => return Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// `InvalidInput` for a name with a NUL, which no file can have.
fn c_string(name: &OsStr) -> io::Result<CString> {
    CString::new(name.as_bytes()).map_err(io::Error::from)
}
