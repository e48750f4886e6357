//! Locks by which writers know of one another: flock(2).

use super::folder::checked;
use super::refused::is_refused;
use crate::storage::StorageError;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How long to wait between two looks at a lock.
const PAUSE: Duration = Duration::from_millis(5);

/// A lock that is held until this goes.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not do: a child that was forked meanwhile has the same open file, and the lock with it.
        // SAFETY: the descriptor is open. An error leaves the lock to closing.
        unsafe { libc::flock(self.0.as_raw_fd(), libc::LOCK_UN) };
    }
}

impl Lock {
    /// Waits until nobody else has the lock of an open file, but no longer than `patience`, nor longer than it `is_wanted`. `None` where
    /// there are no locks.
    pub(super) fn take(
        file: File,
        patience: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Result<Option<Lock>, StorageError> {
        let until = Instant::now() + patience;
        loop {
            match try_lock(&file) {
                Ok(Tried::Locked) => return Ok(Some(Lock(file))),
                Ok(Tried::NoLocks) => return Ok(None),
                Ok(Tried::Taken) if is_wanted() && Instant::now() < until => std::thread::sleep(PAUSE),
                Ok(Tried::Taken) => {
                    let source = io::Error::from_raw_os_error(libc::ETIMEDOUT);
                    return Err(StorageError::io("lock the folder, which somebody else has locked", source));
                }
                Err(error) => return Err(StorageError::io("lock the folder", error)),
            }
        }
    }
}

/// What became of a try to lock a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    Locked,
    /// Somebody else has it.
    Taken,
    /// The file system has none.
    NoLocks,
}

/// Takes the lock of an open file, if nobody else has it.
pub(super) fn try_lock(file: &File) -> io::Result<Tried> {
    loop {
        // SAFETY: the descriptor is open.
        let Err(error) = checked(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) else {
            return Ok(Tried::Locked);
        };
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EWOULDBLOCK) => return Ok(Tried::Taken),
            // EBADF: NFS locks a file, and so no folder, only if it is open for writing.
            Some(libc::ENOLCK | libc::EBADF) => return Ok(Tried::NoLocks),
            _ if is_refused(&error) => return Ok(Tried::NoLocks),
            _ => return Err(error),
        }
    }
}
