//! Temporary files whose writers have died.

use super::folder::{Existing, OutputFolder};
use super::lock::{try_lock, Tried};
use super::names::TemporaryNames;
use crate::storage::pread::FileId;
use crate::storage::StorageError;
use std::ffi::CString;
use std::fs::File;

/// How many files are looked at together: as many descriptors are open.
const AT_ONCE: usize = 64;

/// Removes the temporary files of an output that no living writer has locked, but for those that are `named`, in byte order, which is asked for only
/// if there are any. What cannot be removed, and everything where there are no locks or where it is not known what is named, stays: this
/// is tidying, and never a reason to fail.
pub(crate) fn remove_leftovers(
    folder: &OutputFolder,
    names: &TemporaryNames,
    named: impl Fn() -> Result<Vec<CString>, StorageError>,
) {
    let found = folder.names(|name| names.is_one(name)).unwrap_or_default();
    for some in found.chunks(AT_ONCE) {
        let mut dead = Vec::new();
        for name in some {
            dead.extend(Dead::of(folder, name, &dead));
        }
        if dead.is_empty() {
            continue;
        }
        // Asked only now, when all of these are locked: before that their writers could still have had them named, and died.
        let Ok(keep) = named() else { return };
        for Dead { name, .. } in dead.iter().filter(|dead| keep.binary_search(dead.name).is_err()) {
            let _ = folder.unlink(name);
        }
    }
}

/// A file that no living writer has.
struct Dead<'n> {
    name: &'n CString,
    id: FileId,
    /// Locked.
    _file: File,
}

impl<'n> Dead<'n> {
    /// The file of that name, if it is one. `others` are such files.
    fn of(folder: &OutputFolder, name: &'n CString, others: &[Dead<'_>]) -> Option<Dead<'n>> {
        let leads_to = || match folder.find(name) {
            Ok(Some(Existing::File { id, .. })) => Some(id),
            _ => None,
        };
        // Looked at before it is opened, because opening a device can do things.
        leads_to()?;
        let open = |access| folder.open_file(name, access | libc::O_NONBLOCK, 0);
        // For writing, because NFS gives such locks only then; but it may have got the permissions of a file that is for reading only.
        let file = match open(libc::O_RDWR) {
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => open(libc::O_RDONLY),
            opened => opened,
        };
        let file = file.ok()?;
        let id = FileId::of(&file.metadata().ok()?);
        // A file can have two of these names; then it is locked already.
        let is_dead = others.iter().any(|other| other.id == id) || matches!(try_lock(&file), Ok(Tried::Locked));
        // Looked at under the lock: the writer may have finished, and another have taken the name.
        (is_dead && leads_to() == Some(id)).then_some(Dead { name, id, _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    const NAME: &str = ".a.0123456789abcdef.st-tmp";

    fn folder_with_a_leftover() -> (tempfile::TempDir, OutputFolder, TemporaryNames) {
        let path = tempfile::tempdir().unwrap();
        std::fs::write(path.path().join(NAME), "left").unwrap();
        let folder = OutputFolder::open(&CString::new(path.path().as_os_str().as_bytes()).unwrap()).unwrap();
        (path, folder, TemporaryNames::of(b"a"))
    }

    #[test]
    fn nothing_goes_while_it_is_not_known_what_is_named() {
        let (path, folder, names) = folder_with_a_leftover();
        remove_leftovers(&folder, &names, || Err(StorageError::Changed));
        assert!(path.path().join(NAME).exists());
        remove_leftovers(&folder, &names, || Ok(Vec::new()));
        assert!(!path.path().join(NAME).exists());
    }

    #[test]
    fn files_of_two_names_lose_both() {
        let (path, folder, names) = folder_with_a_leftover();
        let other = path.path().join(NAME.replace('0', "1"));
        std::fs::hard_link(path.path().join(NAME), &other).unwrap();
        remove_leftovers(&folder, &names, || Ok(Vec::new()));
        assert!(!path.path().join(NAME).exists() && !other.exists());
    }

    #[test]
    fn leftovers_that_are_for_reading_only_go() {
        let (path, folder, names) = folder_with_a_leftover();
        let file = path.path().join(NAME);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o444)).unwrap();
        // Permissions mean nothing to root; but a thread can be somebody else to the file system.
        for owned in [path.path(), &file] {
            let _ = std::os::unix::fs::chown(owned, Some(65534), None);
        }
        let thread = std::thread::spawn(move || {
            // SAFETY: changes who this thread is to the file system, and nothing else.
            unsafe { libc::setfsuid(65534) };
            remove_leftovers(&folder, &names, || Ok(Vec::new()));
        });
        thread.join().unwrap();
        assert!(!file.exists());
    }
}
