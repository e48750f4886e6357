//! A folder whose files are named by strangers.

use super::at::At;
use super::beneath::{or_dot, Base, NotInFolder};
use super::StorageError;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A folder, as it was named and by descriptor: the descriptor is what counts.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    base: Base,
}

/// Of a folder with more names than this none is chosen.
const MOST_NAMES: usize = 65_536;

/// The longest name that the system looks up. Longer ones are not even copied.
const MOST_NAME_LEN: usize = libc::PATH_MAX as usize;

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Folder, StorageError> {
        // The folder of a bare file name is empty.
        let named = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let base = Base::open(named).map_err(|error| StorageError::io("open", error))?;
        Ok(Folder { path: path.to_owned(), base })
    }

    /// The folder's own path, as it was named.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file, as the caller of the library would write it.
    pub(crate) fn join(&self, name: &Path) -> PathBuf {
        self.path.join(name)
    }

    /// The names in the folder that are `wanted`, hidden files aside.
    pub(crate) fn list(&self, wanted: impl Fn(&OsStr) -> bool) -> Result<Listing, StorageError> {
        list(self.base.at(), wanted)
    }

    /// Opens the file that `name` leads to, which lies in the folder or below it. Links may lead out of it only with `follow_links`, or
    /// into the store of a Hugging Face cache that the folder belongs to. What `listed` knows need not be looked at again.
    pub(crate) fn open_file(&self, name: &Path, follow_links: bool, listed: &Listing) -> Result<File, NotInFolder> {
        // Without a slash at its end, which the system would take for a directory's name.
        let name = name.components().as_path();
        match name.as_os_str().len() < MOST_NAME_LEN {
            true => self.base.open_file(name, follow_links, listed.has_file(name)),
            false => Err(NotInFolder::Missing { dangling: false }),
        }
    }

    /// Whether `name` leads nowhere.
    pub(crate) fn lacks(&self, name: &Path) -> bool {
        let name = name.components().as_path();
        name.as_os_str().len() >= MOST_NAME_LEN
            || self.base.look(name, 0).is_err_and(|error| matches!(error.into(), NotInFolder::Missing { .. }))
    }

    /// The folders in the one called `below`, which may be this one: hidden ones and links aside, in byte order, at most `most` of them;
    /// and for each the names in it that are `wanted`. What cannot be listed is left out.
    pub(crate) fn folders(
        &self,
        below: &Path,
        most: usize,
        wanted: fn(&OsStr) -> bool,
    ) -> Vec<(PathBuf, Vec<OsString>)> {
        let Ok(at) = self.base.at().step(or_dot(below)) else { return Vec::new() };
        let is_folder =
            |name: &OsStr| at.look(name, libc::AT_SYMLINK_NOFOLLOW).is_ok_and(|status| status.is(libc::S_IFDIR));
        let names_in = |name: OsString| Some((below.join(&name), list(&at.step(&name).ok()?, wanted).ok()?.names));
        let folders = list(&at, is_folder).unwrap_or_default().names;
        folders.into_iter().take(most).filter_map(names_in).collect()
    }
}

/// Names in a folder.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// In byte order.
    pub(crate) names: Vec<OsString>,
    /// Whether each was seen to be a regular file, where the system says so in the same call.
    are_files: Vec<bool>,
}

impl Listing {
    /// Whether `name` was seen to be a regular file.
    fn has_file(&self, name: &Path) -> bool {
        let at = self.names.binary_search_by(|listed| listed.as_os_str().cmp(name.as_os_str()));
        at.ok().and_then(|at| self.are_files.get(at)).is_some_and(|is_file| *is_file)
    }
}

fn list(at: &At, wanted: impl Fn(&OsStr) -> bool) -> Result<Listing, StorageError> {
    let mut found: Vec<(OsString, bool)> = Vec::new();
    at.for_each_name(|name, is_file| {
        if name.as_encoded_bytes().starts_with(b".") || !wanted(name) {
            return Ok(());
        }
        if found.len() >= MOST_NAMES {
            return Err(Unlisted(StorageError::Unsupported("the directory has too many files to choose from")));
        }
        found.try_reserve(1).map_err(|_| Unlisted(no_memory(found.len())))?;
        found.push((name.to_owned(), is_file));
        Ok(())
    })
    .map_err(|Unlisted(error)| error)?;
    found.sort_unstable();
    let mut listing = Listing::default();
    listing.names.try_reserve_exact(found.len()).map_err(|_| no_memory(found.len()))?;
    listing.are_files.try_reserve_exact(found.len()).map_err(|_| no_memory(found.len()))?;
    for (name, is_file) in found {
        listing.names.push(name);
        listing.are_files.push(is_file);
    }
    Ok(listing)
}

fn no_memory(names: usize) -> StorageError {
    StorageError::NoMemory { nbytes: (names * size_of::<(OsString, bool)>()) as u64 }
}

/// Why a folder cannot be listed.
struct Unlisted(StorageError);

impl From<io::Error> for Unlisted {
    fn from(error: io::Error) -> Unlisted {
        Unlisted(StorageError::io("list", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::pread::Reader;
    use crate::storage::{FileId, StorageError};
    use std::fs;
    use std::os::unix::fs::symlink;

    /// The folder as the kernel resolves names in it, and as they are walked where it does not.
    fn both_ways(path: &Path) -> [Folder; 2] {
        let [kernel, walked] = [(); 2].map(|()| Folder::open(path).unwrap());
        walked.base.forbid_openat2();
        [kernel, walked]
    }

    fn id(path: &Path) -> FileId {
        FileId::of(&fs::metadata(path).unwrap())
    }

    /// Which file is opened.
    fn found(folder: &Folder, name: &str, follow_links: bool) -> Result<FileId, NotInFolder> {
        folder
            .open_file(Path::new(name), follow_links, &Listing::default())
            .map(|file| FileId::of(&file.metadata().unwrap()))
    }

    fn how_outside(folder: &Folder, name: &str) -> &'static str {
        match found(folder, name, false) {
            Err(NotInFolder::Outside(how)) => how,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn open_file_stays_in_the_folder() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("model");
        fs::create_dir_all(path.join("sub/deep")).unwrap();
        for file in ["secret", "model/a", "model/sub/b", "model/sub/deep/c"] {
            fs::write(above.path().join(file), "").unwrap();
        }
        for (text, link) in [
            ("sub/b", "inside"),
            ("sub", "sub_again"),
            ("../../a", "sub/deep/up"),
            ("../model/sub/b", "out_and_back"),
            ("../secret", "outside"),
            ("nowhere", "dangling"),
            ("../nowhere", "dangling_outside"),
            ("loop", "loop"),
            ("/etc", "etc"),
        ] {
            symlink(text, path.join(link)).unwrap();
        }
        symlink(above.path(), path.join("folder_outside")).unwrap();
        symlink(path.join("sub"), path.join("absolute")).unwrap();

        for folder in both_ways(&path) {
            for (name, file) in [
                ("a", "a"),
                ("./sub/b", "sub/b"),
                ("sub//b/", "sub/b"),
                ("inside", "sub/b"),
                ("sub_again/deep/c", "sub/deep/c"),
                ("sub_again/deep/up", "a"),
                ("out_and_back", "sub/b"),
                ("absolute/deep/up", "a"),
                ("folder_outside/model/a", "a"),
            ] {
                assert_eq!(found(&folder, name, false).unwrap(), id(&path.join(file)), "{name}");
            }
            for name in ["absent", "a\0", "sub/absent", "a/b", &"x".repeat(300), &"x/".repeat(5000)] {
                let outcome = found(&folder, name, false);
                assert!(matches!(outcome, Err(NotInFolder::Missing { dangling: false })), "{name}: {outcome:?}");
                assert!(folder.lacks(Path::new(name)));
            }
            for name in ["dangling", "dangling_outside"] {
                let outcome = found(&folder, name, false);
                assert!(matches!(outcome, Err(NotInFolder::Missing { dangling: true })), "{name}: {outcome:?}");
                assert!(folder.lacks(Path::new(name)));
            }
            assert_eq!(how_outside(&folder, "/etc/passwd"), "is an absolute path");
            assert_eq!(how_outside(&folder, "../secret"), "leads upwards (..)");
            assert_eq!(how_outside(&folder, "sub/../a"), "leads upwards (..)");
            for name in ["outside", "folder_outside/secret", "etc/passwd"] {
                assert!(how_outside(&folder, name).contains("ST_OPEN_FOLLOW_LINKS"), "{name}");
                assert!(found(&folder, name, true).is_ok(), "{name}");
            }
            for follow_links in [false, true] {
                let outcome = found(&folder, "loop", follow_links);
                let Err(NotInFolder::Storage(StorageError::Io { source, .. })) = outcome else { panic!("{outcome:?}") };
                assert_eq!(source.raw_os_error(), Some(libc::ELOOP));
                for name in ["", "sub", "sub_again"] {
                    let outcome = found(&folder, name, follow_links);
                    assert!(
                        matches!(outcome, Err(NotInFolder::Storage(StorageError::NotAFile(_)))),
                        "{name}: {outcome:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn open_file_is_beneath_the_folder_that_was_opened() {
        let above = tempfile::tempdir().unwrap();
        let [model, other] = ["model", "other"].map(|name| above.path().join(name));
        for path in [&model, &other] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("a"), "").unwrap();
        }
        let first = id(&model.join("a"));
        for folder in both_ways(&model) {
            fs::rename(&model, above.path().join("moved")).unwrap();
            fs::rename(&other, &model).unwrap();
            assert_eq!(found(&folder, "a", false).unwrap(), first);
            fs::rename(&model, &other).unwrap();
            fs::rename(above.path().join("moved"), &model).unwrap();
        }
    }

    #[test]
    fn open_file_follows_the_links_of_a_hugging_face_cache() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--a--b");
        fs::create_dir_all(model.join("blobs/deeper")).unwrap();
        fs::create_dir_all(model.join("snapshots/0123/vae")).unwrap();
        for file in ["blobs/f00d", "blobs/deeper/f00d", "refs"] {
            fs::write(model.join(file), "").unwrap();
        }
        symlink("../refs", model.join("blobs/out")).unwrap();
        symlink("../../blobs/f00d", model.join("snapshots/0123/a")).unwrap();
        symlink(model.join("blobs/f00d"), model.join("snapshots/0123/absolute")).unwrap();
        symlink("../../../blobs/f00d", model.join("snapshots/0123/vae/a")).unwrap();
        symlink("../../blobs/deeper/f00d", model.join("snapshots/0123/deeper")).unwrap();
        symlink("../../refs", model.join("snapshots/0123/refs")).unwrap();
        symlink("../../blobs/out", model.join("snapshots/0123/out")).unwrap();
        symlink("../../blobs", model.join("snapshots/0123/store")).unwrap();
        let blob = id(&model.join("blobs/f00d"));
        for folder in both_ways(&model.join("snapshots/0123")) {
            for name in ["a", "absolute", "vae/a", "store/f00d"] {
                assert_eq!(found(&folder, name, false).unwrap(), blob, "{name}");
            }
            for name in ["deeper", "refs", "out", "store"] {
                how_outside(&folder, name);
            }
        }
        for folder in both_ways(&model.join("snapshots/0123/vae")) {
            assert_eq!(found(&folder, "a", false).unwrap(), blob);
        }
        // A link does not make a folder the store.
        fs::rename(model.join("blobs"), model.join("elsewhere")).unwrap();
        symlink("elsewhere", model.join("blobs")).unwrap();
        for folder in both_ways(&model.join("snapshots/0123")) {
            how_outside(&folder, "a");
        }
    }

    /// What the listing says may be outdated.
    #[test]
    fn open_file_believes_no_listing() {
        let above = tempfile::tempdir().unwrap();
        let path = above.path().join("model");
        fs::create_dir(&path).unwrap();
        for file in ["secret", "model/a", "model/b", "model/c"] {
            fs::write(above.path().join(file), "").unwrap();
        }
        for folder in both_ways(&path) {
            let listed = folder.list(|_| true).unwrap();
            for name in ["a", "b", "c"] {
                fs::remove_file(path.join(name)).unwrap();
            }
            symlink("../secret", path.join("a")).unwrap();
            fs::create_dir(path.join("b")).unwrap();
            let open = |name: &str| folder.open_file(Path::new(name), false, &listed);
            assert!(matches!(open("a"), Err(NotInFolder::Outside(_))));
            assert!(matches!(
                open("b").map(Reader::new),
                Ok(Err(StorageError::NotAFile(_))) | Err(NotInFolder::Storage(_))
            ));
            assert!(matches!(open("c"), Err(NotInFolder::Missing { dangling: false })));
            fs::remove_dir(path.join("b")).unwrap();
            fs::remove_file(path.join("a")).unwrap();
            for name in ["a", "b", "c"] {
                fs::write(path.join(name), "").unwrap();
            }
        }
    }

    #[test]
    fn open_file_leaves_other_things_closed() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = std::ffi::CString::new(folder.path().join("fifo").to_str().unwrap()).unwrap();
        // SAFETY: a path that ends with a NUL.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        symlink("fifo", folder.path().join("link")).unwrap();
        for folder in both_ways(folder.path()) {
            for (name, follow_links) in [("fifo", false), ("fifo", true), ("link", false), ("link", true)] {
                let outcome = found(&folder, name, follow_links);
                assert!(matches!(outcome, Err(NotInFolder::Storage(StorageError::NotAFile(_)))), "{name}: {outcome:?}");
            }
        }
    }

    #[test]
    fn names_are_sorted_without_hidden_ones() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["b", ".hidden", "a"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/c"), "").unwrap();
        symlink("sub", folder.path().join("sub_again")).unwrap();
        let opened = Folder::open(folder.path()).unwrap();
        assert_eq!(opened.list(|_| true).unwrap().names, ["a", "b", "sub", "sub_again"]);
        assert_eq!(opened.folders(Path::new(""), 9, |_| true), [("sub".into(), vec!["c".into()])]);
        assert_eq!(opened.folders(Path::new("sub"), 9, |_| true), []);
        assert_eq!(opened.folders(Path::new(""), 0, |_| true), []);
        assert!(Folder::open(&folder.path().join("absent")).is_err());
        assert!(Folder::open(&folder.path().join("a")).is_err());
    }
}
