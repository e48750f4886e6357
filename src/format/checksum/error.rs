//! The ways in which checksums are missing, wrong or do not match.

use crate::quote::Quoted;
use std::fmt::{self, Display};

/// What is wrong with the checksums of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChecksumError {
    /// The file has no checksum of a kind that is asked for.
    Missing {
        /// What it has not.
        what: &'static str,
    },
    /// What the metadata has in the place of a checksum is none.
    Malformed {
        /// The metadata key.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// The header is not the one of which the metadata has the digest.
    Header,
    /// The bytes of a tensor are not those of which the metadata has the digest.
    Tensor {
        /// The tensor.
        tensor: String,
    },
    /// The bytes of a whole file, or of all its tensors, are not those of which there is a checksum.
    Whole {
        /// What was summed.
        what: &'static str,
        /// The checksum that was stated.
        stated: String,
        /// The checksum of what is there.
        found: String,
    },
    /// There was no memory for the digests of all tensors.
    NoMemory {
        /// Their number.
        tensors: usize,
    },
}

impl Display for ChecksumError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChecksumError::Missing { what } => write!(f, "there is no {what}"),
            ChecksumError::Malformed { key, reason } => write!(f, "metadata {}: {reason}", Quoted(key)),
            ChecksumError::Header => f.write_str("the header is not the one whose BLAKE3 digest it has"),
            ChecksumError::Tensor { tensor } => {
                write!(
                    f,
                    "tensor {} is damaged: its bytes are not those whose BLAKE3 digest the file has",
                    Quoted(tensor)
                )
            }
            ChecksumError::Whole { what, stated, found } => write!(f, "the {what} is {found}, not {stated}: damaged"),
            ChecksumError::NoMemory { tensors } => write!(f, "no memory for the digests of {tensors} tensors"),
        }
    }
}

impl std::error::Error for ChecksumError {}
