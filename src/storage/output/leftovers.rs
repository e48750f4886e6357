//! Temporary files whose writers have died.

use super::folder::{lock, Existing, OutputFolder};
use super::names::TemporaryNames;
use crate::storage::pread::FileId;
use std::ffi::CStr;

/// Removes the temporary files of an output that no living writer has locked, but for those to `keep`. What cannot be removed, and
/// where there are no locks everything, stays: this is tidying, and never a reason to fail.
pub(crate) fn remove_leftovers(folder: &OutputFolder, names: &TemporaryNames, keep: impl Fn(&CStr) -> bool) {
    let found = folder.names(|name| names.is_one(name)).unwrap_or_default();
    for name in found.iter().filter(|name| !keep(name)) {
        let leads_to = || match folder.find(name) {
            Ok(Some(Existing::File { id, .. })) => Some(id),
            _ => None,
        };
        // Looked at before it is opened, because opening a device can do things.
        if leads_to().is_none() {
            continue;
        }
        // Open for writing, because NFS gives such locks only then.
        let Ok(file) = folder.open_file(name, libc::O_RDWR | libc::O_NONBLOCK, 0) else { continue };
        let Ok(metadata) = file.metadata() else { continue };
        // Looked at under the lock: the writer may have finished, and another have taken the name.
        if lock(&file).is_ok() && leads_to() == Some(FileId::of(&metadata)) {
            let _ = folder.unlink(name);
        }
    }
}
