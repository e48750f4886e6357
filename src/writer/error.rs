//! The ways in which what is to be written can be wrong.

use crate::format::{Dtype, MAX_HEADER_LEN, MAX_SHARDS};
use crate::quote::Quoted;
use crate::storage::StorageError;
use std::fmt::{self, Display};
use std::io;

/// What a reader finds at the place of a checkpoint that is being put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// What was there before.
    Old,
    /// All of the new checkpoint.
    New,
    /// An index that names files which are on their way: where files cannot have two names, shards are replaced by others of the same
    /// names, or come to where there was no checkpoint.
    Neither,
}

/// Why a checkpoint cannot be written.
#[derive(Debug)]
#[non_exhaustive]
pub enum WriterError {
    /// A name is kept for the format itself.
    ReservedName {
        /// The name.
        name: String,
    },
    /// A tensor of that name is there already.
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A metadata entry of that key is there already, or will be written by a checksum option.
    DuplicateMetadata {
        /// The key.
        key: String,
    },
    /// A tensor's name or a metadata key contains a NUL, which no C string can.
    NulInName {
        /// The name.
        name: String,
    },
    /// A name, a key or a value is not UTF-8.
    Utf8 {
        /// Which of them.
        what: &'static str,
        /// Position of the first byte that is wrong.
        position: usize,
    },
    /// The size of a tensor is not a 64-bit number.
    Overflow {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape as text, shortened when long.
        shape: String,
    },
    /// The elements of a 4- or 6-bit tensor do not fill whole bytes.
    PartialByte {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// The size that its elements need, in bits.
        bits: u64,
    },
    /// A tensor's data has another size than its dtype and shape need.
    Size {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape as text, shortened when long.
        shape: String,
        /// The size that dtype and shape need, in bytes.
        needed: u64,
        /// The size of the data, in bytes.
        given: u64,
    },
    /// A piece goes beyond the end of its tensor.
    TooMuch {
        /// The tensor.
        tensor: String,
        /// Its size in bytes.
        nbytes: u64,
        /// What was written before, in bytes.
        written: u64,
        /// The size of the piece, in bytes.
        piece: u64,
    },
    /// The header would be longer than a reader takes.
    HeaderTooLarge {
        /// Its length in bytes, as far as it is known: at least.
        header_len: u64,
    },
    /// The file would be larger than a file can be.
    FileTooLarge {
        /// The tensor with which it would.
        tensor: String,
    },
    /// There would be more shards than a checkpoint can have.
    TooManyShards,
    /// Something is added after the layout was fixed.
    Sealed {
        /// What was to be added.
        what: &'static str,
    },
    /// Everything is written and in place: there is nothing more to do.
    Finished,
    /// Tensors lack bytes.
    Incomplete {
        /// The first such tensor.
        tensor: String,
        /// How many bytes it lacks.
        missing: u64,
        /// How many such tensors there are.
        tensors: u64,
    },
    /// A piece is for a tensor that was never declared.
    NotFound {
        /// The name.
        name: String,
    },
    /// A piece is for a tensor that was added with its data.
    NotDeclared {
        /// The tensor.
        tensor: String,
    },
    /// What was written may not be on the disk, or not last, and no later success could change that.
    NotSynced {
        /// What was tried: "sync", "close".
        action: &'static str,
        /// What the system said.
        source: io::Error,
        /// What a reader finds.
        found: Found,
    },
    /// Putting the checkpoint in its place has failed in the middle. [`Writer::finish`](crate::Writer::finish) can be called again.
    Unfinished {
        /// What has failed.
        source: StorageError,
        /// What a reader finds until then: not [`Found::Old`].
        found: Found,
    },
    /// There was no memory for the directory.
    NoMemory,
    /// A state that cannot happen: a bug in this library.
    Internal(&'static str),
}

impl Display for WriterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use WriterError as E;
        match self {
            E::ReservedName { name } => write!(f, "no tensor can be called {}", Quoted(name)),
            E::DuplicateName { name } => write!(f, "there is a tensor {} already", Quoted(name)),
            E::DuplicateMetadata { key } => write!(f, "there is, or will be, metadata {} already", Quoted(key)),
            E::NulInName { name } => write!(f, "the name {} contains a NUL", Quoted(name)),
            E::Utf8 { what, position } => write!(f, "the {what} is not UTF-8 at its byte {position}"),
            E::Overflow { tensor, dtype, shape } => {
                write!(f, "tensor {} of {dtype} {shape} has a size beyond 64 bits", Quoted(tensor))
            }
            E::PartialByte { tensor, dtype, bits } => write!(
                f,
                "tensor {} of {dtype} takes {bits} bits, which is not a whole number of bytes",
                Quoted(tensor)
            ),
            E::Size { tensor, dtype, shape, needed, given } => {
                write!(f, "tensor {} of {dtype} {shape} needs {needed} bytes, {given} were given", Quoted(tensor))
            }
            E::TooMuch { tensor, nbytes, written, piece } => write!(
                f,
                "tensor {} has {nbytes} bytes: {piece} more after the {written} written are too many",
                Quoted(tensor)
            ),
            E::HeaderTooLarge { header_len } => {
                write!(f, "the header would have {header_len} bytes or more, the limit is {MAX_HEADER_LEN}")
            }
            E::FileTooLarge { tensor } => {
                write!(f, "with tensor {} the file would be larger than a file can be", Quoted(tensor))
            }
            E::TooManyShards => {
                write!(f, "max_shard_bytes is so small that there would be more than {MAX_SHARDS} shards")
            }
            E::Sealed { what } => {
                write!(f, "no {what} can be added any more: the first piece or finish has fixed where everything lies")
            }
            E::Finished => f.write_str("it is finished already"),
            E::Incomplete { tensor, missing, tensors: 1 } => {
                write!(f, "tensor {} lacks {missing} bytes", Quoted(tensor))
            }
            E::Incomplete { tensor, missing, tensors } => {
                write!(f, "tensor {} lacks {missing} bytes, and {} others lack some", Quoted(tensor), tensors - 1)
            }
            E::NotFound { name } => write!(f, "no tensor {} was declared", Quoted(name)),
            E::NotDeclared { tensor } => {
                write!(f, "tensor {} was added with its data: pieces are for declared ones", Quoted(tensor))
            }
            E::NotSynced { action, source, found } => {
                write!(f, "cannot {action}: {source}; ")?;
                f.write_str(match found {
                    Found::Old => "what was written may be lost: begin anew with another writer",
                    Found::New => "the new checkpoint is in place, but perhaps not after a crash of the system",
                    Found::Neither => {
                        "the index names files that are not in place, and what was written may be lost: begin anew with \
                         another writer"
                    }
                })
            }
            E::Unfinished { source, found: Found::Neither } => {
                write!(f, "{source}; the index names files that are not in place yet: finish again")
            }
            E::Unfinished { source, .. } => {
                write!(f, "{source}; the new checkpoint is in place, but not all files are in order: finish again")
            }
            E::NoMemory => f.write_str("no memory for the directory"),
            E::Internal(what) => write!(f, "a bug in safetensors_lazy, please report it: {what}"),
        }
    }
}

impl std::error::Error for WriterError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            WriterError::NotSynced { source, .. } => Some(source),
            WriterError::Unfinished { source, .. } => Some(source),
            _ => None,
        }
    }
}
