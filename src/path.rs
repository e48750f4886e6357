//! Paths that callers give.

use crate::error::Error;
use crate::storage::StorageError;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// So much of a path that is too long is shown.
const SHOWN: usize = 128;

/// Refuses a path that the system would refuse for its length, before anything copies it: how long it is, the caller decides.
pub(crate) fn check_len(path: &Path) -> Result<(), Error> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() < libc::PATH_MAX as usize {
        return Ok(());
    }
    let start = String::from_utf8_lossy(bytes.get(..SHOWN).unwrap_or_default());
    let source = StorageError::io("open", io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    Err(Error::Storage { path: format!("{start}..."), tensor: None, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_len_refuses_what_the_system_refuses() {
        let fits = "x/".repeat(2047) + "y";
        assert!(check_len(Path::new("")).is_ok() && check_len(Path::new(&fits)).is_ok());
        let too_long = fits + "z";
        let refused = std::fs::File::open(&too_long).unwrap_err();
        let Err(Error::Storage { path, source: StorageError::Io { source, .. }, .. }) = check_len(Path::new(&too_long))
        else {
            panic!("a path of {} bytes passes", too_long.len())
        };
        assert_eq!(source.raw_os_error(), refused.raw_os_error());
        assert_eq!(path.len(), SHOWN + 3);
    }
}
