//! Why bytes could not be reached.

use std::fmt::{self, Display};
use std::io;

/// Why a file could not be opened, mapped, read or written. Names no path: the layer above knows it.
#[derive(Debug)]
#[non_exhaustive]
pub enum StorageError {
    /// The system refused.
    Io {
        /// What was tried: "open", "read", "map", "write".
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The path leads to something that is not a regular file.
    NotAFile(FileKind),
    /// The file has become shorter than it was when it was opened.
    Truncated {
        /// First byte that was asked for.
        offset: u64,
        /// Number of bytes that were asked for.
        len: u64,
        /// Size of the file when it was opened, in bytes.
        opened_len: u64,
    },
    /// The file was written to since it was opened.
    Changed,
    /// There was no memory for a copy.
    NoMemory {
        /// Its size in bytes.
        nbytes: u64,
    },
    /// The options ask for what this storage cannot do.
    Unsupported(&'static str),
    /// A state that cannot happen: a bug in this library.
    Internal(&'static str),
}

impl StorageError {
    pub(crate) fn io(action: &'static str, source: io::Error) -> StorageError {
        StorageError::Io { action, source }
    }
}

/// What a path leads to that is no regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A directory.
    Folder,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A device.
    Device,
}

impl Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileKind::Folder => "a directory",
            FileKind::Fifo => "a FIFO",
            FileKind::Socket => "a socket",
            FileKind::Device => "a device",
        })
    }
}

impl Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StorageError::Io { action, source } => write!(f, "cannot {action}: {source}{}", LimitOn(source)),
            StorageError::NotAFile(kind) => write!(f, "not a file but {kind}"),
            StorageError::Truncated { offset, len, opened_len } => write!(
                f,
                "the file was truncated: its {len} bytes from {offset} on are not all there any more (it had {opened_len} when opened)"
            ),
            StorageError::Changed => f.write_str("the file was changed since it was opened"),
            StorageError::NoMemory { nbytes } => write!(f, "no memory for {nbytes} bytes"),
            StorageError::Unsupported(what) => f.write_str(what),
            StorageError::Internal(what) => write!(f, "a bug in safetensors_lazy, please report it: {what}"),
        }
    }
}

/// Which limit on open files was reached, behind a message that says so; else nothing.
pub(crate) struct LimitOn<'e>(pub(crate) &'e io::Error);

impl Display for LimitOn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(libc::EMFILE) => match descriptor_limit() {
                Some(limit) => write!(f, ": the limit of this process is {limit} (ulimit -n)"),
                None => f.write_str(": the limit is that of this process (ulimit -n)"),
            },
            Some(libc::ENFILE) => f.write_str(": the limit is that of the system (fs.file-max)"),
            _ => Ok(()),
        }
    }
}

/// How many descriptors this process may have; `None` if the system does not tell.
fn descriptor_limit() -> Option<u64> {
    let mut limit = std::mem::MaybeUninit::<libc::rlimit64>::uninit();
    // SAFETY: `limit` has room for what the call writes.
    match unsafe { libc::getrlimit64(libc::RLIMIT_NOFILE, limit.as_mut_ptr()) } {
        // SAFETY: getrlimit has succeeded, and so has filled `limit` in.
        0 => Some(unsafe { limit.assume_init() }.rlim_cur),
        _ => None,
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StorageError::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}
