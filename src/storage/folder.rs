//! A folder whose files are named by strangers.

use super::{FileId, StorageError};
use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};

/// A folder, as it was named.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Absolute, without symbolic links. Found out where links are to be judged, and not before: a process may be in a folder to which
    /// it could not find the way from the root.
    real: OnceCell<PathBuf>,
}

/// A file of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) id: FileId,
}

/// Why a name does not lead to a file of a folder.
#[derive(Debug)]
pub(crate) enum NotInFolder {
    /// There is nothing of that name.
    Missing,
    /// It leads out of the folder, in the way that this says.
    Outside(&'static str),
    /// The system refused to say.
    Storage(StorageError),
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Folder, StorageError> {
        let folder = Folder { path: path.to_owned(), real: OnceCell::new() };
        std::fs::metadata(folder.named()).map_err(|error| StorageError::io("open", error))?;
        Ok(folder)
    }

    /// The path to open it by: that of the folder of a bare file name is empty.
    fn named(&self) -> &Path {
        if self.path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &self.path
        }
    }

    fn real(&self) -> io::Result<&Path> {
        match self.real.get() {
            Some(real) => Ok(real),
            None => std::fs::canonicalize(self.named()).map(|real| &**self.real.get_or_init(|| real)),
        }
    }

    /// The folder's own path, as it was named.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file, as the caller of the library would write it.
    pub(crate) fn join(&self, name: &Path) -> PathBuf {
        self.path.join(name)
    }

    /// The names in the folder that are `wanted`, hidden files aside, in byte order; no more than `most` of them.
    pub(crate) fn names(&self, most: usize, wanted: impl Fn(&OsStr) -> bool) -> Result<Vec<OsString>, StorageError> {
        let refused = |error| StorageError::io("list", error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.named()).map_err(refused)? {
            let name = entry.map_err(refused)?.file_name();
            if name.as_encoded_bytes().starts_with(b".") || !wanted(&name) {
                continue;
            }
            if names.len() >= most {
                return Err(StorageError::Unsupported("the folder has too many files to choose from"));
            }
            names.push(name);
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Where `name` leads: a path without symbolic links after the folder's own, which lies in the folder or below it. Links may lead
    /// out of it only with `follow_links`, or into the store of a Hugging Face cache that the folder belongs to.
    ///
    /// What lies there when it is opened must be the file that was found, or the folder has been changed meanwhile.
    pub(crate) fn resolve(&self, name: &Path, follow_links: bool) -> Result<Found, NotInFolder> {
        if name.has_root() {
            return Err(NotInFolder::Outside("is an absolute path"));
        }
        if name.components().any(|component| component == Component::ParentDir) {
            return Err(NotInFolder::Outside("leads upwards (..)"));
        }
        if let Some(found) = self.find_without_links(name)? {
            return Ok(found);
        }
        let folder = self.real()?;
        let path = std::fs::canonicalize(folder.join(name))?;
        match path.starts_with(folder) || follow_links || is_in_store(folder, &path) {
            true => Ok(Found { id: FileId::of(&std::fs::symlink_metadata(&path)?), path }),
            false => Err(NotInFolder::Outside("leads out of the folder by a symbolic link")),
        }
    }

    /// Where `name`, which leads only downwards, leads; `None` if a step on the way is a symbolic link.
    fn find_without_links(&self, name: &Path) -> io::Result<Option<Found>> {
        let mut path = self.named().to_owned();
        let mut last = std::fs::metadata(&path)?;
        for step in name.components() {
            path.push(step);
            last = std::fs::symlink_metadata(&path)?;
            if last.is_symlink() {
                return Ok(None);
            }
        }
        Ok(Some(Found { id: FileId::of(&last), path }))
    }
}

impl From<io::Error> for NotInFolder {
    fn from(error: io::Error) -> NotInFolder {
        // A name with a NUL, or too long, or below a file, is none that a file can have.
        let no_such_name = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG));
        match no_such_name || error.kind() == io::ErrorKind::InvalidInput {
            true => NotInFolder::Missing,
            false => NotInFolder::Storage(StorageError::io("open", error)),
        }
    }
}

/// Whether a file lies in the store of the Hugging Face cache that a folder belongs to: there `<model>/snapshots/<revision>/` is made of
/// links into `<model>/blobs/` (huggingface_hub, "Understand caching").
fn is_in_store(folder: &Path, file: &Path) -> bool {
    let is_snapshots = |path: &&Path| path.file_name() == Some(OsStr::new("snapshots"));
    let snapshots = folder.ancestors().skip(1).find(is_snapshots);
    let store = snapshots.and_then(Path::parent).map(|model| model.join("blobs"));
    store.is_some() && file.parent() == store.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn how_outside(folder: &Folder, name: &str) -> &'static str {
        match folder.resolve(Path::new(name), false) {
            Err(NotInFolder::Outside(how)) => how,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn resolve_stays_in_the_folder() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("model");
        fs::create_dir_all(path.join("sub")).unwrap();
        for file in ["secret", "model/a", "model/sub/b"] {
            fs::write(above.path().join(file), "").unwrap();
        }
        symlink("sub/b", path.join("inside")).unwrap();
        symlink("../secret", path.join("outside")).unwrap();
        symlink(above.path(), path.join("folder_outside")).unwrap();
        symlink("nowhere", path.join("dangling")).unwrap();

        let folder = Folder::open(&path).unwrap();
        let real = fs::canonicalize(&path).unwrap();
        let resolve = |name: &str| folder.resolve(Path::new(name), false);
        assert_eq!(resolve("a").unwrap().path, path.join("a"));
        assert_eq!(resolve("./sub/b").unwrap().path, path.join("sub/b"));
        assert_eq!(resolve("inside").unwrap().path, real.join("sub/b"));
        for name in ["absent", "dangling", "a\0", "sub/absent", "a/b", &"x".repeat(300)] {
            assert!(matches!(resolve(name), Err(NotInFolder::Missing)), "{name}");
        }
        assert_eq!(how_outside(&folder, "/etc/passwd"), "is an absolute path");
        assert_eq!(how_outside(&folder, "../secret"), "leads upwards (..)");
        assert_eq!(how_outside(&folder, "sub/../a"), "leads upwards (..)");
        for name in ["outside", "folder_outside/secret"] {
            assert!(how_outside(&folder, name).contains("symbolic link"), "{name}");
            assert!(folder.resolve(Path::new(name), true).is_ok(), "{name}");
        }
    }

    #[test]
    fn resolve_follows_the_links_of_a_hugging_face_cache() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--a--b");
        fs::create_dir_all(model.join("blobs/deeper")).unwrap();
        fs::create_dir_all(model.join("snapshots/0123/vae")).unwrap();
        for file in ["blobs/f00d", "blobs/deeper/f00d", "refs"] {
            fs::write(model.join(file), "").unwrap();
        }
        symlink("../../blobs/f00d", model.join("snapshots/0123/a")).unwrap();
        symlink("../../../blobs/f00d", model.join("snapshots/0123/vae/a")).unwrap();
        symlink("../../blobs/deeper/f00d", model.join("snapshots/0123/deeper")).unwrap();
        symlink("../../refs", model.join("snapshots/0123/refs")).unwrap();
        let folder = Folder::open(&model.join("snapshots/0123")).unwrap();
        assert!(folder.resolve(Path::new("a"), false).unwrap().path.ends_with("blobs/f00d"));
        assert!(Folder::open(&model.join("snapshots/0123/vae")).unwrap().resolve(Path::new("a"), false).is_ok());
        for name in ["deeper", "refs"] {
            how_outside(&folder, name);
        }
    }

    #[test]
    fn names_are_sorted_without_hidden_ones() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["b", ".hidden", "a"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        assert_eq!(Folder::open(folder.path()).unwrap().names(9, |_| true).unwrap(), ["a", "b"]);
        assert!(Folder::open(&folder.path().join("absent")).is_err());
    }
}
