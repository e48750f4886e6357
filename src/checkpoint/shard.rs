//! One file: what its header says and where its bytes come from.

use crate::error::Error;
use crate::format::foreign::{recognise, TELLING_LEN};
use crate::format::{header_len, Header, HeaderError, PREFIX_LEN};
use crate::quote::excerpt;
use crate::storage::{ReadAhead, Scratch, Storage, StorageError};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A shard whose header has been found true to its file.
#[derive(Debug)]
pub(super) struct Shard {
    /// As given by the caller; empty for memory.
    pub(super) path: CString,
    pub(super) header: Header,
    pub(super) storage: Storage,
}

impl Shard {
    /// Reads and checks the header. It is copied into private memory before it is parsed, so that a file which changes
    /// underneath cannot change what was checked.
    pub(super) fn open(path: CString, storage: Storage, scratch: &mut Scratch) -> Result<Shard, Error> {
        match read_header(&storage, scratch) {
            Ok(header) => Ok(Shard { path, header, storage }),
            Err(Refused::Header(source)) => {
                Err(Error::Header { path: text(&path), source: recognised(source, &storage, scratch) })
            }
            Err(Refused::Storage(source)) => Err(Error::Storage { path: text(&path), tensor: None, source }),
        }
    }

    /// Does what the options ask for once all of the checkpoint has been found true: populates, locks.
    pub(super) fn make_resident(&self, read_ahead: &ReadAhead) -> Result<(), Error> {
        self.storage.make_resident(read_ahead).map_err(|source| self.storage_error(None, source))
    }

    /// Where the data section starts in the file.
    pub(super) fn data_start(&self) -> u64 {
        PREFIX_LEN as u64 + self.header.header_len() as u64
    }

    /// The error of having no memory for the shard's directory.
    pub(super) fn no_memory(&self) -> Error {
        let source = HeaderError::NoMemory { header_len: self.header.header_len() };
        Error::Header { path: self.path_text(), source }
    }

    pub(super) fn path_text(&self) -> String {
        text(&self.path)
    }

    pub(super) fn storage_error(&self, tensor: Option<&str>, source: StorageError) -> Error {
        Error::Storage { path: self.path_text(), tensor: tensor.map(excerpt), source }
    }
}

/// A path for C.
pub(super) fn c_path(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::InvalidArgument { what: "the path has a NUL".to_owned() })
}

pub(super) fn text(path: &CString) -> String {
    path.to_string_lossy().into_owned()
}

enum Refused {
    Header(HeaderError),
    Storage(StorageError),
}

/// A header of so many bytes is read with its length. Most systems read as much from the disk in any case.
const FIRST_READ: u64 = 8 * 1024;

fn read_header(storage: &Storage, scratch: &mut Scratch) -> Result<Header, Refused> {
    let file_len = storage.size();
    let start = scratch.read(storage, 0, file_len.min(FIRST_READ)).map_err(Refused::Storage)?;
    let header_len = header_len(start, file_len).map_err(Refused::Header)?;
    let header = match start.get(PREFIX_LEN..PREFIX_LEN + header_len) {
        Some(text) => Header::parse(text),
        None => {
            let text = scratch.read(storage, PREFIX_LEN as u64, header_len as u64).map_err(Refused::Storage)?;
            Header::parse(text)
        }
    }
    .map_err(Refused::Header)?;
    header.check_file_len(file_len).map_err(Refused::Header)?;
    Ok(header)
}

/// The error of a file without a header, with what the file is instead if its start tells.
#[cold]
fn recognised(error: HeaderError, storage: &Storage, scratch: &mut Scratch) -> HeaderError {
    use HeaderError::{Json, LengthBeyondFile, TooLarge, TooSmall, Utf8};
    if !matches!(error, TooSmall { .. } | TooLarge { .. } | LengthBeyondFile { .. } | Utf8 { .. } | Json { .. }) {
        return error;
    }
    // Where this fails, the error is told as it is.
    let start = scratch.read(storage, 0, storage.size().min(TELLING_LEN as u64));
    match start.ok().and_then(recognise) {
        Some(what) => HeaderError::Foreign { what, source: Box::new(error) },
        None => error,
    }
}
