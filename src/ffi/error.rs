//! `st_status` and `st_error`: the only translation of [`Error`].

use crate::error::{Error, FolderError};
use crate::format::{ChecksumError, HeaderError, IndexError, RankError, SliceError};
use crate::storage::StorageError;
use crate::writer::WriterError;
use std::ffi::c_char;
use std::fmt::{self, Write};

/// The outcome of a call: ST_OK or one of ST_ERR_*. Numbers from 1 to 99 are kept for outcomes that are not errors.
pub type st_status = i32;

/// It worked.
pub const ST_OK: st_status = 0;

/// Everything was delivered (st_load_next). Not an error.
pub const ST_DONE: st_status = 1;
/// Nothing has arrived in time (st_load_next). Not an error.
pub const ST_TIMEOUT: st_status = 2;
/// An argument is NULL that must not be, or has a value or flag that this library does not know.
pub const ST_ERR_INVALID_ARGUMENT: st_status = 100;
/// There is no tensor, or metadata, or dtype, of that name.
pub const ST_ERR_NOT_FOUND: st_status = 101;
/// An index is not below the number of things it counts, or a range leaves its dimension.
pub const ST_ERR_OUT_OF_RANGE: st_status = 102;
/// The destination is smaller than what should go there.
pub const ST_ERR_BUFFER_TOO_SMALL: st_status = 103;
/// Elements are needed without gaps, and these have some. (Only the C++ header returns this.)
pub const ST_ERR_NOT_CONTIGUOUS: st_status = 104;
/// Elements of 4 or 6 bits would be cut inside a byte. (In the C++ header also: a pointer is not aligned for the type.)
pub const ST_ERR_MISALIGNED: st_status = 105;
/// The request makes sense, but this tensor, storage or file cannot fulfil it.
pub const ST_ERR_UNSUPPORTED: st_status = 106;
/// A tensor does not fit into the budget beside what is in use: release something, or raise the budget.
pub const ST_ERR_BUDGET: st_status = 107;
/// A tensor is in use, and what is in use is never evicted.
pub const ST_ERR_IN_USE: st_status = 108;
/// A dimension cannot be cut into as many equal parts as a layout asks for.
pub const ST_ERR_NOT_DIVISIBLE: st_status = 109;
/// The call's task, or the load, was cancelled.
pub const ST_ERR_CANCELLED: st_status = 110;
/// A bug in this library. Please report it with the message.
pub const ST_ERR_INTERNAL: st_status = 199;

/// The system refused; st_error.os_error is its errno. An absent file is this with ENOENT.
pub const ST_ERR_IO: st_status = 200;
/// There was no memory for a directory or a copy.
pub const ST_ERR_NO_MEMORY: st_status = 201;
/// The path leads to a FIFO, a socket or a device, or that of a shard, or of what is written, to a directory.
pub const ST_ERR_NOT_A_FILE: st_status = 202;
/// The file is shorter than its header says, or has become shorter since it was opened.
pub const ST_ERR_TRUNCATED: st_status = 203;
/// The file was written to since it was opened. (Noticed only by what verifies: see st_open_options.verify.)
pub const ST_ERR_FILE_CHANGED: st_status = 204;

/// The file has fewer than 8 bytes.
pub const ST_ERR_HEADER_TOO_SMALL: st_status = 300;
/// The header claims, or would have, more than 100,000,000 bytes.
pub const ST_ERR_HEADER_TOO_LARGE: st_status = 301;
/// The header claims more bytes than the file has: it was cut off, or is not a safetensors file.
pub const ST_ERR_HEADER_LENGTH: st_status = 302;
/// The header, or a text that should be written into one, is not UTF-8.
pub const ST_ERR_HEADER_UTF8: st_status = 303;
/// The header is not JSON, or nested too deeply.
pub const ST_ERR_HEADER_JSON: st_status = 304;
/// The header is JSON, but a tensor's description lacks a field, has one twice, or has one of the wrong type.
pub const ST_ERR_HEADER_STRUCTURE: st_status = 305;
/// __metadata__ is not an object from strings to strings.
pub const ST_ERR_HEADER_METADATA: st_status = 306;
/// A tensor's dtype is unknown.
pub const ST_ERR_HEADER_DTYPE: st_status = 307;
/// Two tensors have the same name.
pub const ST_ERR_DUPLICATE_NAME: st_status = 308;
/// Two metadata entries have the same key.
pub const ST_ERR_DUPLICATE_METADATA: st_status = 309;
/// A tensor's name or a metadata key contains a NUL.
pub const ST_ERR_NUL_IN_NAME: st_status = 310;
/// A tensor's data ends before it starts.
pub const ST_ERR_OFFSETS_REVERSED: st_status = 311;
/// Bytes between two tensors, or before the first, belong to none.
pub const ST_ERR_OFFSETS_GAP: st_status = 312;
/// Two tensors share bytes.
pub const ST_ERR_OFFSETS_OVERLAP: st_status = 313;
/// The size of a tensor, or of a file that is written, does not fit 64 bits.
pub const ST_ERR_TENSOR_OVERFLOW: st_status = 314;
/// The elements of a tensor of 4 or 6 bits do not fill whole bytes.
pub const ST_ERR_TENSOR_PARTIAL_BYTE: st_status = 315;
/// A tensor's offsets span, or a writer is given, another size than its dtype and shape need.
pub const ST_ERR_TENSOR_SIZE: st_status = 316;
/// The file is longer than its header says.
pub const ST_ERR_TRAILING_BYTES: st_status = 317;

/// The index of a sharded checkpoint has more than 100,000,000 bytes.
pub const ST_ERR_INDEX_TOO_LARGE: st_status = 400;
/// The index is not UTF-8.
pub const ST_ERR_INDEX_UTF8: st_status = 401;
/// The index is not JSON, or nested too deeply.
pub const ST_ERR_INDEX_JSON: st_status = 402;
/// The index is JSON, but no map from names of tensors to shards.
pub const ST_ERR_INDEX_STRUCTURE: st_status = 403;
/// The index has a tensor, or the map itself, twice.
pub const ST_ERR_INDEX_DUPLICATE: st_status = 404;
/// The index names a tensor that its shard lacks, or lacks a tensor that a shard has.
pub const ST_ERR_INDEX_MISMATCH: st_status = 405;
/// A shard that the index, or the numbers in the names of the others, asks for is not there; or the index is a symbolic link that leads
/// nowhere, whether it was found in a folder or is itself what was to be opened.
pub const ST_ERR_SHARD_MISSING: st_status = 406;
/// The path of a shard is absolute, or leads outside of the checkpoint's folder; or that of an index which was found in the folder does.
/// See ST_OPEN_FOLLOW_LINKS.
pub const ST_ERR_SHARD_OUTSIDE: st_status = 407;
/// The folder has no index and no .safetensors file. The message names folders below it that have.
pub const ST_ERR_FOLDER_EMPTY: st_status = 408;
/// The folder has several indices, or several files that are not the shards of one checkpoint.
pub const ST_ERR_FOLDER_AMBIGUOUS: st_status = 409;
/// Two names of shards lead to the same file.
pub const ST_ERR_SHARD_TWICE: st_status = 410;

/// The file has no checksum of a kind that is asked for, or none at all.
pub const ST_ERR_CHECKSUM_MISSING: st_status = 500;
/// The bytes are not those of which the file, or the caller, has the checksum: they are damaged.
pub const ST_ERR_CHECKSUM_MISMATCH: st_status = 501;
/// What the file has in the place of a checksum is none: it is no number, or not of as many tensors.
pub const ST_ERR_CHECKSUM_MALFORMED: st_status = 502;

/// No tensor can have that name: it is the format's own.
pub const ST_ERR_RESERVED_NAME: st_status = 600;
/// The layout of what is written is fixed: nothing can be added any more.
pub const ST_ERR_SEALED: st_status = 601;
/// A tensor that was declared lacks bytes.
pub const ST_ERR_INCOMPLETE: st_status = 602;

/// Nothing more can arrive before staged memory is recycled: the caller holds too much of it.
pub const ST_ERR_STAGING_FULL: st_status = 700;

/// Where a failed call leaves the details. It lies in the caller's memory, refers to no other, and needs neither initialising nor
/// freeing; its size never changes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_error {
    /// What the call returned.
    pub status: st_status,
    /// errno where the operating system refused; otherwise 0.
    pub os_error: i32,
    /// One line of UTF-8 that names the file, the tensor and the numbers involved. Always NUL-terminated; cut to fit, never
    /// inside a character. Names from the file are quoted, with control characters escaped.
    pub message: [c_char; 504],
}

/// Returns the name of a status as it is spelled in this header, for example "ST_ERR_NOT_FOUND"; NULL for a number that is none. The
/// string lives for ever.
#[no_mangle]
pub extern "C" fn st_status_name(status: st_status) -> *const c_char {
    let named = STATUS_NAMES.iter().find(|(number, _)| *number == status);
    named.map_or(std::ptr::null(), |(_, name)| name.as_ptr())
}

const STATUS_NAMES: [(st_status, &std::ffi::CStr); 56] = [
    (ST_OK, c"ST_OK"),
    (ST_DONE, c"ST_DONE"),
    (ST_TIMEOUT, c"ST_TIMEOUT"),
    (ST_ERR_INVALID_ARGUMENT, c"ST_ERR_INVALID_ARGUMENT"),
    (ST_ERR_NOT_FOUND, c"ST_ERR_NOT_FOUND"),
    (ST_ERR_OUT_OF_RANGE, c"ST_ERR_OUT_OF_RANGE"),
    (ST_ERR_BUFFER_TOO_SMALL, c"ST_ERR_BUFFER_TOO_SMALL"),
    (ST_ERR_NOT_CONTIGUOUS, c"ST_ERR_NOT_CONTIGUOUS"),
    (ST_ERR_MISALIGNED, c"ST_ERR_MISALIGNED"),
    (ST_ERR_UNSUPPORTED, c"ST_ERR_UNSUPPORTED"),
    (ST_ERR_BUDGET, c"ST_ERR_BUDGET"),
    (ST_ERR_IN_USE, c"ST_ERR_IN_USE"),
    (ST_ERR_NOT_DIVISIBLE, c"ST_ERR_NOT_DIVISIBLE"),
    (ST_ERR_CANCELLED, c"ST_ERR_CANCELLED"),
    (ST_ERR_INTERNAL, c"ST_ERR_INTERNAL"),
    (ST_ERR_IO, c"ST_ERR_IO"),
    (ST_ERR_NO_MEMORY, c"ST_ERR_NO_MEMORY"),
    (ST_ERR_NOT_A_FILE, c"ST_ERR_NOT_A_FILE"),
    (ST_ERR_TRUNCATED, c"ST_ERR_TRUNCATED"),
    (ST_ERR_FILE_CHANGED, c"ST_ERR_FILE_CHANGED"),
    (ST_ERR_HEADER_TOO_SMALL, c"ST_ERR_HEADER_TOO_SMALL"),
    (ST_ERR_HEADER_TOO_LARGE, c"ST_ERR_HEADER_TOO_LARGE"),
    (ST_ERR_HEADER_LENGTH, c"ST_ERR_HEADER_LENGTH"),
    (ST_ERR_HEADER_UTF8, c"ST_ERR_HEADER_UTF8"),
    (ST_ERR_HEADER_JSON, c"ST_ERR_HEADER_JSON"),
    (ST_ERR_HEADER_STRUCTURE, c"ST_ERR_HEADER_STRUCTURE"),
    (ST_ERR_HEADER_METADATA, c"ST_ERR_HEADER_METADATA"),
    (ST_ERR_HEADER_DTYPE, c"ST_ERR_HEADER_DTYPE"),
    (ST_ERR_DUPLICATE_NAME, c"ST_ERR_DUPLICATE_NAME"),
    (ST_ERR_DUPLICATE_METADATA, c"ST_ERR_DUPLICATE_METADATA"),
    (ST_ERR_NUL_IN_NAME, c"ST_ERR_NUL_IN_NAME"),
    (ST_ERR_OFFSETS_REVERSED, c"ST_ERR_OFFSETS_REVERSED"),
    (ST_ERR_OFFSETS_GAP, c"ST_ERR_OFFSETS_GAP"),
    (ST_ERR_OFFSETS_OVERLAP, c"ST_ERR_OFFSETS_OVERLAP"),
    (ST_ERR_TENSOR_OVERFLOW, c"ST_ERR_TENSOR_OVERFLOW"),
    (ST_ERR_TENSOR_PARTIAL_BYTE, c"ST_ERR_TENSOR_PARTIAL_BYTE"),
    (ST_ERR_TENSOR_SIZE, c"ST_ERR_TENSOR_SIZE"),
    (ST_ERR_TRAILING_BYTES, c"ST_ERR_TRAILING_BYTES"),
    (ST_ERR_INDEX_TOO_LARGE, c"ST_ERR_INDEX_TOO_LARGE"),
    (ST_ERR_INDEX_UTF8, c"ST_ERR_INDEX_UTF8"),
    (ST_ERR_INDEX_JSON, c"ST_ERR_INDEX_JSON"),
    (ST_ERR_INDEX_STRUCTURE, c"ST_ERR_INDEX_STRUCTURE"),
    (ST_ERR_INDEX_DUPLICATE, c"ST_ERR_INDEX_DUPLICATE"),
    (ST_ERR_INDEX_MISMATCH, c"ST_ERR_INDEX_MISMATCH"),
    (ST_ERR_SHARD_MISSING, c"ST_ERR_SHARD_MISSING"),
    (ST_ERR_SHARD_OUTSIDE, c"ST_ERR_SHARD_OUTSIDE"),
    (ST_ERR_FOLDER_EMPTY, c"ST_ERR_FOLDER_EMPTY"),
    (ST_ERR_FOLDER_AMBIGUOUS, c"ST_ERR_FOLDER_AMBIGUOUS"),
    (ST_ERR_SHARD_TWICE, c"ST_ERR_SHARD_TWICE"),
    (ST_ERR_CHECKSUM_MISSING, c"ST_ERR_CHECKSUM_MISSING"),
    (ST_ERR_CHECKSUM_MISMATCH, c"ST_ERR_CHECKSUM_MISMATCH"),
    (ST_ERR_CHECKSUM_MALFORMED, c"ST_ERR_CHECKSUM_MALFORMED"),
    (ST_ERR_RESERVED_NAME, c"ST_ERR_RESERVED_NAME"),
    (ST_ERR_SEALED, c"ST_ERR_SEALED"),
    (ST_ERR_INCOMPLETE, c"ST_ERR_INCOMPLETE"),
    (ST_ERR_STAGING_FULL, c"ST_ERR_STAGING_FULL"),
];

impl st_error {
    /// Writes it to `err`, unless that is NULL, and gives its status.
    ///
    /// # Safety
    ///
    /// `err` is NULL or valid for writes.
    pub(super) unsafe fn give(self, err: *mut st_error) -> st_status {
        let status = self.status;
        if !err.is_null() {
            // SAFETY: the caller's promise.
            unsafe { err.write(self) };
        }
        status
    }
}

impl From<&Error> for st_error {
    fn from(error: &Error) -> st_error {
        st_error::new(status_of(error), os_error_of(error), error)
    }
}

impl st_error {
    pub(super) fn internal() -> st_error {
        st_error::new(ST_ERR_INTERNAL, 0, &"a bug in safetensors_lazy: please report it")
    }

    fn new(status: st_status, os_error: i32, message: &dyn fmt::Display) -> st_error {
        let mut error = st_error { status, os_error, message: [0; 504] };
        // The only error is that of a full buffer, which is how a long message is cut.
        let _ = write!(Line { room: &mut error.message, len: 0 }, "{message}");
        error
    }

    /// The message, for tests of this crate.
    #[cfg(test)]
    pub(super) fn text(&self) -> &str {
        // SAFETY: `new` leaves a NUL at the end.
        unsafe { std::ffi::CStr::from_ptr(self.message.as_ptr()) }.to_str().unwrap()
    }
}

/// Writes one line of text into an array, leaving its last byte 0.
struct Line<'a> {
    room: &'a mut [c_char; 504],
    len: usize,
}

impl Write for Line<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            let character = if character.is_control() { ' ' } else { character };
            let mut utf8 = [0; 4];
            let utf8 = character.encode_utf8(&mut utf8).as_bytes();
            let end = self.len + utf8.len();
            let Some(room) = self.room.get_mut(self.len..end).filter(|_| end < 504) else { return Err(fmt::Error) };
            for (to, from) in room.iter_mut().zip(utf8) {
                *to = *from as c_char;
            }
            self.len = end;
        }
        Ok(())
    }
}

fn status_of(error: &Error) -> st_status {
    match error {
        Error::Header { source, .. } => status_of_header(source),
        Error::Storage { source, .. } => status_of_storage(source),
        Error::Slice { source, .. } => match source {
            SliceError::TooManyRanges { .. } | SliceError::OutOfRange { .. } => ST_ERR_OUT_OF_RANGE,
            SliceError::PartialByte { .. } => ST_ERR_MISALIGNED,
            SliceError::Overflow => ST_ERR_TENSOR_OVERFLOW,
            SliceError::NoMemory { .. } => ST_ERR_NO_MEMORY,
        },
        Error::Index { source, .. } => match source {
            IndexError::TooLarge { .. } => ST_ERR_INDEX_TOO_LARGE,
            IndexError::Utf8 { .. } => ST_ERR_INDEX_UTF8,
            IndexError::Json { .. } => ST_ERR_INDEX_JSON,
            IndexError::Structure { .. } => ST_ERR_INDEX_STRUCTURE,
            IndexError::Duplicate { .. } => ST_ERR_INDEX_DUPLICATE,
            IndexError::NoMemory { .. } => ST_ERR_NO_MEMORY,
            IndexError::Internal(_) => ST_ERR_INTERNAL,
        },
        Error::IndexMismatch { .. } => ST_ERR_INDEX_MISMATCH,
        Error::ShardMissing { .. } => ST_ERR_SHARD_MISSING,
        Error::ShardOutside { .. } => ST_ERR_SHARD_OUTSIDE,
        Error::TooFewDescriptors { .. } => ST_ERR_IO,
        Error::SameFile { .. } => ST_ERR_SHARD_TWICE,
        Error::DuplicateName { .. } => ST_ERR_DUPLICATE_NAME,
        Error::Folder { source, .. } => match source {
            FolderError::Empty | FolderError::OnlyBelow { .. } | FolderError::Unfinished { .. } => ST_ERR_FOLDER_EMPTY,
            FolderError::Ambiguous { .. } => ST_ERR_FOLDER_AMBIGUOUS,
        },
        Error::Budget { .. } => ST_ERR_BUDGET,
        Error::InUse { .. } => ST_ERR_IN_USE,
        Error::NotInUse { .. } | Error::TooManyPins { .. } => ST_ERR_INVALID_ARGUMENT,
        Error::Rank(source) => match source {
            RankError::OutOfRange { .. } => ST_ERR_OUT_OF_RANGE,
            RankError::Layout { .. } => ST_ERR_INVALID_ARGUMENT,
            RankError::NotDivisible { .. } => ST_ERR_NOT_DIVISIBLE,
            RankError::NoMemory { .. } => ST_ERR_NO_MEMORY,
            RankError::Internal(_) => ST_ERR_INTERNAL,
        },
        Error::Checksum { source, .. } => match source {
            ChecksumError::Missing { .. } => ST_ERR_CHECKSUM_MISSING,
            ChecksumError::Malformed { .. } => ST_ERR_CHECKSUM_MALFORMED,
            ChecksumError::Header | ChecksumError::Tensor { .. } | ChecksumError::Whole { .. } => {
                ST_ERR_CHECKSUM_MISMATCH
            }
            ChecksumError::NoMemory { .. } => ST_ERR_NO_MEMORY,
        },
        Error::Writer { source, .. } => status_of_writer(source),
        Error::NoSuchTensor { .. } => ST_ERR_OUT_OF_RANGE,
        Error::BufferTooSmall { .. } => ST_ERR_BUFFER_TOO_SMALL,
        Error::RankTooLarge { .. } | Error::Unsupported { .. } => ST_ERR_UNSUPPORTED,
        Error::Cancelled => ST_ERR_CANCELLED,
        Error::StagingFull { .. } => ST_ERR_STAGING_FULL,
        Error::NoMemory => ST_ERR_NO_MEMORY,
        Error::Internal { .. } => ST_ERR_INTERNAL,
        Error::InvalidArgument { .. } => ST_ERR_INVALID_ARGUMENT,
    }
}

fn status_of_header(error: &HeaderError) -> st_status {
    match error {
        HeaderError::TooSmall { .. } => ST_ERR_HEADER_TOO_SMALL,
        HeaderError::TooLarge { .. } => ST_ERR_HEADER_TOO_LARGE,
        HeaderError::LengthBeyondFile { .. } => ST_ERR_HEADER_LENGTH,
        HeaderError::Utf8 { .. } => ST_ERR_HEADER_UTF8,
        HeaderError::Json { .. } => ST_ERR_HEADER_JSON,
        HeaderError::Structure { .. } => ST_ERR_HEADER_STRUCTURE,
        HeaderError::Metadata { .. } => ST_ERR_HEADER_METADATA,
        HeaderError::Dtype { .. } => ST_ERR_HEADER_DTYPE,
        HeaderError::DuplicateName { .. } => ST_ERR_DUPLICATE_NAME,
        HeaderError::DuplicateMetadata { .. } => ST_ERR_DUPLICATE_METADATA,
        HeaderError::NulInName { .. } => ST_ERR_NUL_IN_NAME,
        HeaderError::OffsetsReversed { .. } => ST_ERR_OFFSETS_REVERSED,
        HeaderError::OffsetsGap { .. } => ST_ERR_OFFSETS_GAP,
        HeaderError::OffsetsOverlap { .. } => ST_ERR_OFFSETS_OVERLAP,
        HeaderError::Overflow { .. } => ST_ERR_TENSOR_OVERFLOW,
        HeaderError::PartialByte { .. } => ST_ERR_TENSOR_PARTIAL_BYTE,
        HeaderError::Size { .. } => ST_ERR_TENSOR_SIZE,
        HeaderError::Truncated { .. } => ST_ERR_TRUNCATED,
        HeaderError::TrailingBytes { .. } => ST_ERR_TRAILING_BYTES,
        HeaderError::Foreign { source, .. } => status_of_header(source),
        HeaderError::NoMemory { .. } => ST_ERR_NO_MEMORY,
        HeaderError::Internal(_) => ST_ERR_INTERNAL,
    }
}

fn status_of_storage(error: &StorageError) -> st_status {
    match error {
        StorageError::Io { source, .. } if source.raw_os_error() == Some(libc::ENOMEM) => ST_ERR_NO_MEMORY,
        StorageError::Io { .. } => ST_ERR_IO,
        StorageError::NotAFile(_) => ST_ERR_NOT_A_FILE,
        StorageError::Truncated { .. } => ST_ERR_TRUNCATED,
        StorageError::Changed => ST_ERR_FILE_CHANGED,
        StorageError::NoMemory { .. } => ST_ERR_NO_MEMORY,
        StorageError::Unsupported(_) => ST_ERR_UNSUPPORTED,
        StorageError::Internal(_) => ST_ERR_INTERNAL,
    }
}

fn status_of_writer(error: &WriterError) -> st_status {
    match error {
        WriterError::ReservedName { .. } => ST_ERR_RESERVED_NAME,
        WriterError::DuplicateName { .. } => ST_ERR_DUPLICATE_NAME,
        WriterError::DuplicateMetadata { .. } => ST_ERR_DUPLICATE_METADATA,
        WriterError::NulInName { .. } => ST_ERR_NUL_IN_NAME,
        WriterError::Utf8 { .. } => ST_ERR_HEADER_UTF8,
        WriterError::Overflow { .. } | WriterError::FileTooLarge { .. } => ST_ERR_TENSOR_OVERFLOW,
        WriterError::PartialByte { .. } => ST_ERR_TENSOR_PARTIAL_BYTE,
        WriterError::Size { .. } | WriterError::TooMuch { .. } => ST_ERR_TENSOR_SIZE,
        WriterError::HeaderTooLarge { .. } => ST_ERR_HEADER_TOO_LARGE,
        WriterError::Sealed { .. } | WriterError::Finished => ST_ERR_SEALED,
        WriterError::Incomplete { .. } => ST_ERR_INCOMPLETE,
        WriterError::NotFound { .. } => ST_ERR_NOT_FOUND,
        WriterError::NotDeclared { .. } => ST_ERR_INVALID_ARGUMENT,
        WriterError::NotSynced { .. } => ST_ERR_IO,
        WriterError::Unfinished { source, .. } => status_of_storage(source),
        WriterError::TooManyShards => ST_ERR_UNSUPPORTED,
        WriterError::NoMemory => ST_ERR_NO_MEMORY,
        WriterError::Internal(_) => ST_ERR_INTERNAL,
    }
}

fn os_error_of(error: &Error) -> i32 {
    let source = match error {
        Error::Storage { source: StorageError::Io { source, .. }, .. }
        | Error::TooFewDescriptors { source, .. }
        | Error::Writer {
            source:
                WriterError::NotSynced { source, .. }
                | WriterError::Unfinished { source: StorageError::Io { source, .. }, .. },
            ..
        } => source,
        _ => return 0,
    };
    source.raw_os_error().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn st_error_has_its_size_for_ever() {
        assert_eq!((size_of::<st_error>(), align_of::<st_error>()), (512, 4));
    }

    #[test]
    fn message_is_cut_between_characters_and_ends_with_nul() {
        for pad in 0..4 {
            let error = st_error::new(1, 2, &format!("{}{}", "x".repeat(pad), "权".repeat(300)));
            let text = error.text();
            assert!((500..=503).contains(&text.len()), "{}", text.len());
            assert!(text.trim_start_matches('x').chars().all(|c| c == '权'));
        }
        assert_eq!(st_error::new(1, 2, &"x".repeat(503)).text().len(), 503);
        assert_eq!(st_error::new(1, 2, &"a\nb\0c\u{7f}").text(), "a b c ");
    }

    #[test]
    fn st_status_name_knows_every_number_once() {
        let mut numbers: Vec<_> = STATUS_NAMES.iter().map(|(number, _)| *number).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), STATUS_NAMES.len());
        assert!(numbers.is_sorted());
        assert!(st_status_name(-1).is_null() && st_status_name(3).is_null());
    }
}
