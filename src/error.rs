//! Every way to fail, with the file, the tensor and the numbers involved.

use crate::format::{Dtype, HeaderError, SliceError};
use crate::quote::Quoted;
use crate::storage::StorageError;
use std::fmt::{self, Display};

/// What went wrong, and where. Its `Display` is one line.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file is not a safetensors file, or damaged.
    Header {
        /// Path of the file; empty for memory.
        path: String,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// A file's bytes could not be reached.
    Storage {
        /// Path of the file; empty for memory.
        path: String,
        /// The tensor whose bytes they are; `None` when it is the file as a whole.
        tensor: Option<String>,
        /// What happened.
        source: StorageError,
    },
    /// Ranges do not make a slice of a tensor.
    Slice {
        /// Path of the file; empty for memory.
        path: String,
        /// The tensor.
        tensor: String,
        /// What is wrong with the ranges.
        source: SliceError,
    },
    /// There is no tensor of that index.
    NoSuchTensor {
        /// The index.
        index: usize,
        /// Number of tensors in the checkpoint.
        len: usize,
    },
    /// The destination of a read is smaller than what is read.
    BufferTooSmall {
        /// The tensor.
        tensor: String,
        /// Size of what is read, in bytes.
        needed: u64,
        /// Size of the destination in bytes.
        given: u64,
    },
    /// A tensor has more dimensions than a view can hold.
    RankTooLarge {
        /// The tensor.
        tensor: String,
        /// Its number of dimensions.
        rank: usize,
        /// The most that fit.
        limit: usize,
    },
    /// A tensor cannot be expressed in the form asked for.
    Unsupported {
        /// The tensor.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// What it cannot be.
        what: &'static str,
    },
    /// An argument is not one that the function takes.
    InvalidArgument {
        /// What is wrong with it.
        what: String,
    },
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Header { path, source } => write!(f, "{}{source}", In(path)),
            Error::Storage { path, tensor: None, source } => write!(f, "{}{source}", In(path)),
            Error::Storage { path, tensor: Some(tensor), source } => {
                write!(f, "{}tensor {}: {source}", In(path), Quoted(tensor))
            }
            Error::Slice { path, tensor, source } => write!(f, "{}tensor {}: {source}", In(path), Quoted(tensor)),
            Error::NoSuchTensor { index, len } => write!(f, "there is no tensor {index} among {len}"),
            Error::BufferTooSmall { tensor, needed, given } => {
                write!(f, "tensor {} needs {needed} bytes, the destination has {given}", Quoted(tensor))
            }
            Error::RankTooLarge { tensor, rank, limit } => {
                write!(f, "tensor {} has {rank} dimensions, a view holds at most {limit}", Quoted(tensor))
            }
            Error::Unsupported { tensor, dtype, what } => {
                write!(f, "tensor {} of {dtype} cannot be {what}", Quoted(tensor))
            }
            Error::InvalidArgument { what } => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Header { source, .. } => Some(source),
            Error::Storage { source, .. } => Some(source),
            Error::Slice { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The file that a message is about, in front of it. Memory has no name.
struct In<'a>(&'a str);

impl Display for In<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            "" => Ok(()),
            path => write!(f, "{}: ", Quoted(path)),
        }
    }
}
