//! Calls that a file system does not have, or that a sandbox does not allow.

use std::io;

/// Whether an error says that a call is not to be had here, rather than that it failed: file systems without it (FUSE, CIFS, object
/// stores behind a mount) say so in several ways, and sandboxes (seccomp, SELinux) in two more.
pub(super) fn is_refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY | libc::ENODEV)
    )
}

/// The same of a write at a position: ESPIPE is said by what has no positions.
pub(super) fn is_position_refused(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESPIPE) || is_refused(error)
}

/// Whether files cannot have two names here, or this file no further one.
pub(crate) fn cannot_link(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMLINK | libc::EXDEV)) || is_refused(error)
}

/// Whether an error says that there is no such call here; EPERM and EACCES, which others can take back, are none of these. So a sync that a
/// sandbox forbids is an error: it takes away the promise that a checkpoint lasts, and whoever can do without says so by an option.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
}

/// Whether an error of close(2) says nothing of what was written: all others tell of bytes that are lost.
pub(super) fn means_nothing_at_close(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_disk_are_no_refusals() {
        for real in [libc::EIO, libc::ENOSPC, libc::EDQUOT, libc::EFBIG, libc::EBADF, libc::ENOMEM] {
            let error = io::Error::from_raw_os_error(real);
            assert!(!is_refused(&error) && !is_position_refused(&error), "{error}");
            assert!(!is_unsupported(&error) && !means_nothing_at_close(&error), "{error}");
        }
        for refused in [libc::EPERM, libc::ENOSYS, libc::EOPNOTSUPP, libc::EINVAL] {
            let error = io::Error::from_raw_os_error(refused);
            assert!(is_refused(&error) && is_position_refused(&error));
            assert_eq!(is_unsupported(&error), refused != libc::EPERM);
            assert_eq!(means_nothing_at_close(&error), refused == libc::ENOSYS);
        }
    }
}
