//! From a name in a directory to an open file beneath it, in one step with the opening: whoever swaps entries meanwhile changes
//! which file beneath it is opened, and never whether it lies there.
//!
//! The kernel does this (`openat2`). Where it does not, or a symbolic link leads up or is absolute, the name is walked here: each step
//! from the descriptor of the last one, each link read and walked in turn. Directories are known by device and inode, never by path, so
//! that a way which leaves the directory may come back to it.

use super::at::{At, Status};
use super::pread::{open_regular, FileId};
use super::{FileKind, StorageError};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Component, Path};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::OnceLock;

/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;

/// How often the kernel is asked again that could not tell, since something was renamed meanwhile, and a walk is begun again.
const TRIES: usize = 16;

/// Above so many directories no cache is looked for.
const MOST_ANCESTORS: usize = 64;

/// A directory that files are opened beneath.
#[derive(Debug)]
pub(super) struct Base {
    at: At,
    /// Asked for when a link leads out.
    id: OnceLock<FileId>,
    /// The kernel does not know `openat2`, or a filter of system calls forbids it.
    without_openat2: AtomicBool,
    /// The store of the Hugging Face cache that the directory belongs to. Looked for when a link leads out.
    store: OnceLock<Option<FileId>>,
}

const BY_A_LINK: &str =
    "leads out of the directory by a symbolic link, which is followed with ST_OPEN_FOLLOW_LINKS only";

/// Why a name does not lead to a file of a directory.
#[derive(Debug)]
pub(crate) enum NotInFolder {
    /// Nothing has that name.
    Missing {
        /// A symbolic link has it, which leads nowhere.
        dangling: bool,
    },
    /// It leads out of the directory, in the way that this says.
    Outside(&'static str),
    /// The system refused to say, or it is no regular file.
    Storage(StorageError),
}

impl Base {
    pub(super) fn open(path: &Path) -> io::Result<Base> {
        let at = At::open(path)?;
        Ok(Base { at, id: OnceLock::new(), without_openat2: AtomicBool::new(false), store: OnceLock::new() })
    }

    pub(super) fn at(&self) -> &At {
        &self.at
    }

    /// Opens the regular file that `name` leads to, which lies in the directory or below it. Links may lead out of it only with
    /// `follow_links`, or into the store of a Hugging Face cache that the directory belongs to.
    ///
    /// `was_file`: it was seen to be a regular file a moment ago.
    pub(super) fn open_file(&self, name: &Path, follow_links: bool, was_file: bool) -> Result<File, NotInFolder> {
        if name.has_root() {
            return Err(NotInFolder::Outside("is an absolute path"));
        }
        if name.components().any(|component| component == Component::ParentDir) {
            return Err(NotInFolder::Outside("leads upwards (..)"));
        }
        let look = || match was_file {
            true => Ok(libc::S_IFREG),
            false => self.look(name, 0).map(|status| status.mode),
        };
        let opened = match follow_links {
            true => open_regular(look, |flags| self.at.open_file(or_dot(name), flags)).map_err(NotInFolder::from),
            false => self.open_beneath(name, look),
        };
        opened.map_err(|error| match error {
            NotInFolder::Missing { .. } => NotInFolder::Missing { dangling: self.is_link(name) },
            other => other,
        })
    }

    /// What `name` leads to, wherever that lies.
    pub(super) fn look(&self, name: &Path, flags: libc::c_int) -> io::Result<Status> {
        self.at.look(or_dot(name), flags)
    }

    /// As where the kernel does not know `openat2`.
    #[cfg(test)]
    pub(super) fn forbid_openat2(&self) {
        self.without_openat2.store(true, Relaxed);
    }

    fn id(&self) -> io::Result<FileId> {
        match self.id.get() {
            Some(id) => Ok(*id),
            None => self.at.status().map(|status| *self.id.get_or_init(|| status.id)),
        }
    }

    fn is_link(&self, name: &Path) -> bool {
        self.look(name, libc::AT_SYMLINK_NOFOLLOW).is_ok_and(|status| status.is(libc::S_IFLNK))
    }

    fn open_beneath(&self, name: &Path, look: impl FnOnce() -> io::Result<u32>) -> Result<File, NotInFolder> {
        if !self.without_openat2.load(Relaxed) {
            match open_regular(look, |flags| self.ask_kernel(name, flags)) {
                Ok(file) => return Ok(file),
                Err(StorageError::Io { source, .. }) if self.is_undecided(&source) => {}
                // What was looked at may lie outside.
                Err(StorageError::NotAFile(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        for _ in 1..TRIES {
            match self.walk(name) {
                // A link has taken the place of the file that was just seen.
                Err(NotInFolder::Storage(StorageError::Io { source, .. }))
                    if source.raw_os_error() == Some(libc::ELOOP) => {}
                outcome => return outcome,
            }
        }
        self.walk(name)
    }

    fn ask_kernel(&self, name: &Path, flags: libc::c_int) -> io::Result<File> {
        let mut outcome = self.at.open_beneath(or_dot(name), flags);
        for _ in 1..TRIES {
            match &outcome {
                // Of a lease the second open, without O_NONBLOCK, will take care; here it is the same number.
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
                _ => break,
            }
            outcome = self.at.open_beneath(or_dot(name), flags);
        }
        outcome
    }

    /// Whether the kernel left it open where a name leads.
    fn is_undecided(&self, error: &io::Error) -> bool {
        match error.raw_os_error() {
            Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::EOPNOTSUPP | libc::E2BIG) => {
                self.without_openat2.store(true, Relaxed);
                true
            }
            Some(libc::EXDEV | libc::EAGAIN | libc::ELOOP) => true,
            _ => false,
        }
    }

    fn walk(&self, name: &Path) -> Result<File, NotInFolder> {
        let mut rest = Rest::default();
        rest.push(name);
        let mut place = Place::Inside(Vec::new());
        let mut links = 0;
        while let Some(step) = rest.0.pop() {
            if step == ".." {
                place = self.above(place)?;
                continue;
            }
            let next = self.directory(&place).step(&step)?;
            let status = next.status()?;
            if status.is(libc::S_IFDIR) {
                place = self.below(place, next, status.id)?;
            } else if status.is(libc::S_IFLNK) {
                links += 1;
                if links > MOST_LINKS {
                    return Err(StorageError::io("open", io::Error::from_raw_os_error(libc::ELOOP)).into());
                }
                let text = next.link_text()?;
                if Path::new(&text).has_root() {
                    place = self.enter(At::open(Path::new("/"))?)?;
                }
                rest.push(Path::new(&text));
            } else if !rest.0.is_empty() {
                return Err(NotInFolder::Missing { dangling: false });
            } else if let Place::Outside(_) = place {
                return Err(NotInFolder::Outside(BY_A_LINK));
            } else {
                // Beneath the directory, or in the store: nor may the last step be a link by now.
                let directory = self.directory(&place);
                let opened =
                    open_regular(|| Ok(status.mode), |flags| directory.open_file(&step, flags | libc::O_NOFOLLOW));
                return Ok(opened?);
            }
        }
        match place {
            Place::Inside(_) => Err(StorageError::NotAFile(FileKind::Folder).into()),
            Place::Store(_) | Place::Outside(_) => Err(NotInFolder::Outside(BY_A_LINK)),
        }
    }

    fn directory<'p>(&'p self, place: &'p Place) -> &'p At {
        match place {
            Place::Inside(below) => below.last().unwrap_or(&self.at),
            Place::Store(at) | Place::Outside(at) => at,
        }
    }

    fn above(&self, place: Place) -> io::Result<Place> {
        match place {
            Place::Inside(mut below) if !below.is_empty() => {
                below.pop();
                Ok(Place::Inside(below))
            }
            place => self.enter(self.directory(&place).step(OsStr::new(".."))?),
        }
    }

    fn below(&self, place: Place, next: At, id: FileId) -> io::Result<Place> {
        match place {
            Place::Inside(mut below) => {
                below.push(next);
                Ok(Place::Inside(below))
            }
            Place::Store(_) | Place::Outside(_) => self.known(next, id),
        }
    }

    fn enter(&self, at: At) -> io::Result<Place> {
        let id = at.status()?.id;
        self.known(at, id)
    }

    fn known(&self, at: At, id: FileId) -> io::Result<Place> {
        Ok(match () {
            () if id == self.id()? => Place::Inside(Vec::new()),
            () if self.store() == Some(id) => Place::Store(at),
            () => Place::Outside(at),
        })
    }

    /// The store of the Hugging Face cache that the directory belongs to: there `<model>/snapshots/<revision>/` is made of links into
    /// `<model>/blobs/` (huggingface_hub, "Understand caching").
    fn store(&self) -> Option<FileId> {
        *self.store.get_or_init(|| self.find_store().ok().flatten())
    }

    fn find_store(&self) -> io::Result<Option<FileId>> {
        let up = |at: &At| at.step(OsStr::new(".."));
        let mut at = up(&self.at)?;
        let mut id = at.status()?.id;
        for _ in 0..MOST_ANCESTORS {
            let above = up(&at)?;
            let above_id = above.status()?.id;
            let inside = |name: &str| above.look(OsStr::new(name), libc::AT_SYMLINK_NOFOLLOW);
            if inside("snapshots").is_ok_and(|snapshots| snapshots.id == id) {
                return Ok(inside("blobs").ok().filter(|blobs| blobs.is(libc::S_IFDIR)).map(|blobs| blobs.id));
            }
            if above_id == id {
                break;
            }
            (at, id) = (above, above_id);
        }
        Ok(None)
    }
}

/// Where a walk has come to.
enum Place {
    /// The directory, or below it: the descriptors on the way down, so that `..` goes back whatever has been renamed.
    Inside(Vec<At>),
    Store(At),
    Outside(At),
}

/// The steps that are left, the next one last.
#[derive(Default)]
struct Rest(Vec<OsString>);

impl Rest {
    fn push(&mut self, path: &Path) {
        let step = |component: Component<'_>| match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
            Component::ParentDir | Component::Normal(_) => Some(component.as_os_str().to_owned()),
        };
        self.0.extend(path.components().rev().filter_map(step));
    }
}

/// The system does not know the empty name, by which a directory means itself.
pub(super) fn or_dot(name: &Path) -> &OsStr {
    match name.as_os_str() {
        empty if empty.is_empty() => OsStr::new("."),
        name => name,
    }
}

impl From<io::Error> for NotInFolder {
    fn from(error: io::Error) -> NotInFolder {
        StorageError::io("open", error).into()
    }
}

impl From<StorageError> for NotInFolder {
    fn from(error: StorageError) -> NotInFolder {
        match &error {
            StorageError::Io { source, .. } if is_no_such_name(source) => NotInFolder::Missing { dangling: false },
            _ => NotInFolder::Storage(error),
        }
    }
}

/// A name with a NUL, or too long, or below a file, is none that a file can have.
fn is_no_such_name(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ENAMETOOLONG))
        || (error.raw_os_error().is_none() && error.kind() == io::ErrorKind::InvalidInput)
}
