//! The ways in which a header, a slice, an index of shards or a layout over ranks can be wrong.

use super::header::described_len;
use super::{Dtype, MAX_HEADER_LEN, MAX_INDEX_LEN};
use crate::quote::Quoted;
use std::fmt::{self, Display};

/// Why a file is refused. Each variant has its own `ST_ERR_*` number in the C API.
///
/// No field has 128 bits: such a field aligns every `Result` that carries this error to 16 bytes, and rustc 1.95 (LLVM 22) was seen
/// to copy one by an aligned instruction to a place that is not aligned, which ends the process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file has no room for the 8 bytes that give the header's length.
    TooSmall {
        /// Size of the file in bytes.
        file_len: u64,
    },
    /// The header is longer than [`MAX_HEADER_LEN`].
    TooLarge {
        /// The length that the file states, in bytes.
        header_len: u64,
    },
    /// The header would end after the file does.
    LengthBeyondFile {
        /// The length that the file states, in bytes.
        header_len: u64,
        /// Size of the file in bytes.
        file_len: u64,
    },
    /// The header is not UTF-8.
    Utf8 {
        /// Position in the header of the first byte that is wrong.
        position: usize,
    },
    /// The header is not JSON: a syntax error, a number out of range, or nested too deeply.
    Json {
        /// What the JSON parser says, with line and column.
        reason: String,
    },
    /// The header is JSON, but not an object of tensor descriptions.
    Structure {
        /// The tensor at fault; `None` when it is the header as a whole.
        tensor: Option<String>,
        /// What was found and what was expected.
        reason: String,
    },
    /// `__metadata__` is not an object from strings to strings.
    Metadata {
        /// What was found and what was expected.
        reason: String,
    },
    /// A tensor's `dtype` is none of the 22.
    Dtype {
        /// The tensor at fault.
        tensor: String,
        /// The dtype that the header states.
        dtype: String,
    },
    /// Two tensors have the same name. (The format forbids it; the reference implementation keeps the last one.)
    DuplicateName {
        /// The name.
        name: String,
    },
    /// Two entries of `__metadata__` have the same key, or there are two `__metadata__`.
    DuplicateMetadata {
        /// The key.
        key: String,
    },
    /// A tensor's name or a metadata key contains a NUL, which no C string can.
    NulInName {
        /// The name.
        name: String,
    },
    /// A tensor's offsets end before they start.
    OffsetsReversed {
        /// The tensor at fault.
        tensor: String,
        /// Its first offset.
        start: u64,
        /// Its second offset.
        stop: u64,
    },
    /// No tensor owns the bytes before this one.
    OffsetsGap {
        /// The tensor after the gap.
        tensor: String,
        /// Its first offset.
        start: u64,
        /// Where the data before it ends.
        expected: u64,
    },
    /// A tensor shares bytes with the one before it.
    OffsetsOverlap {
        /// The tensor that starts too early.
        tensor: String,
        /// Its first offset.
        start: u64,
        /// Where the data before it ends.
        expected: u64,
    },
    /// The size of a tensor is not a 64-bit number.
    Overflow {
        /// The tensor at fault.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape as text, shortened when long.
        shape: String,
    },
    /// The elements of a 4- or 6-bit tensor do not fill whole bytes.
    PartialByte {
        /// The tensor at fault.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// The size that its elements need, in bits.
        bits: u64,
    },
    /// A tensor's offsets span another size than its dtype and shape need.
    Size {
        /// The tensor at fault.
        tensor: String,
        /// Its element type.
        dtype: Dtype,
        /// Its shape as text, shortened when long.
        shape: String,
        /// The size that dtype and shape need, in bytes.
        needed: u64,
        /// The size that the offsets span, in bytes.
        spanned: u64,
    },
    /// The file is shorter than its header says: the end is missing.
    Truncated {
        /// Length of the header in bytes, without its prefix.
        header_len: usize,
        /// Length of the data that the header describes, in bytes.
        data_len: u64,
        /// Size of the file in bytes.
        file_len: u64,
    },
    /// The file is longer than its header says.
    TrailingBytes {
        /// The size that the header describes, in bytes.
        expected_len: u64,
        /// Size of the file in bytes.
        file_len: u64,
    },
    /// The file is of another format, or not written: the start of the file says so.
    Foreign {
        /// What the file is, and what to do about it.
        what: String,
        /// The rule that it breaks.
        source: Box<HeaderError>,
    },
    /// There was no memory for the directory.
    NoMemory {
        /// Length of the header in bytes.
        header_len: usize,
    },
    /// A state that cannot happen: a bug in this library.
    Internal(&'static str),
}

impl HeaderError {
    /// Whether a file that lacks its end, or all but its length, breaks this rule.
    pub(crate) fn may_be_cut_off(&self) -> bool {
        match self {
            HeaderError::TooSmall { .. } | HeaderError::LengthBeyondFile { .. } | HeaderError::Truncated { .. } => true,
            HeaderError::Foreign { source, .. } => {
                source.may_be_cut_off() || matches!(**source, HeaderError::Json { .. })
            }
            _ => false,
        }
    }
}

impl Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use HeaderError as E;
        match self {
            E::TooSmall { file_len } => {
                write!(f, "{file_len} bytes are too few for a safetensors file, which starts with an 8-byte length")
            }
            E::TooLarge { header_len } => {
                write!(f, "the header claims {header_len} bytes, more than the limit of {MAX_HEADER_LEN}")
            }
            E::LengthBeyondFile { header_len, file_len } => write!(
                f,
                "the header claims {header_len} bytes, but the file has only {file_len} in all: cut off, or not safetensors"
            ),
            E::Utf8 { position } => write!(f, "the header is not UTF-8 at its byte {position}"),
            E::Json { reason } => write!(f, "the header is not JSON: {reason}"),
            E::Structure { tensor: Some(tensor), reason } => write!(f, "tensor {}: {reason}", Quoted(tensor)),
            E::Structure { tensor: None, reason } => write!(f, "the header is not an object of tensors: {reason}"),
            E::Metadata { reason } => write!(f, "__metadata__ must map strings to strings: {reason}"),
            E::Dtype { tensor, dtype } => {
                write!(f, "tensor {} has the unknown dtype {}", Quoted(tensor), Quoted(dtype))
            }
            E::DuplicateName { name } => write!(f, "the name {} occurs twice", Quoted(name)),
            E::DuplicateMetadata { key } => write!(f, "the metadata key {} occurs twice", Quoted(key)),
            E::NulInName { name } => write!(f, "the name {} contains a NUL", Quoted(name)),
            E::OffsetsReversed { tensor, start, stop } => {
                write!(f, "tensor {} ends at data offset {stop} before it starts at {start}", Quoted(tensor))
            }
            E::OffsetsGap { tensor, start, expected } => write!(
                f,
                "tensor {} starts at data offset {start}, but the data before it ends at {expected}: {} bytes belong to no tensor",
                Quoted(tensor),
                start.saturating_sub(*expected)
            ),
            E::OffsetsOverlap { tensor, start, expected } => write!(
                f,
                "tensor {} starts at data offset {start}, but the data before it ends at {expected}: they overlap by {} bytes",
                Quoted(tensor),
                expected.saturating_sub(*start)
            ),
            E::Overflow { tensor, dtype, shape } => {
                write!(f, "tensor {} of {dtype} {shape} has a size beyond 64 bits", Quoted(tensor))
            }
            E::PartialByte { tensor, dtype, bits } => write!(
                f,
                "tensor {} of {dtype} takes {bits} bits, which is not a whole number of bytes",
                Quoted(tensor)
            ),
            E::Size { tensor, dtype, shape, needed, spanned } => write!(
                f,
                "tensor {} of {dtype} {shape} needs {needed} bytes, but its data_offsets span {spanned}",
                Quoted(tensor)
            ),
            E::Truncated { header_len, data_len, file_len } => write!(
                f,
                "the file is cut off: it has {file_len} bytes, its header describes {}, so that {} are missing",
                described_len(*header_len, *data_len),
                described_len(*header_len, *data_len).saturating_sub(u128::from(*file_len))
            ),
            E::TrailingBytes { expected_len, file_len } => write!(
                f,
                "the file has {file_len} bytes, its header describes only {expected_len}: the rest belongs to no tensor"
            ),
            E::Foreign { what, .. } => f.write_str(what),
            E::NoMemory { header_len } => write!(f, "no memory for the directory of a header of {header_len} bytes"),
            E::Internal(what) => write!(f, "a bug in safetensors_lazy, please report it: {what}"),
        }
    }
}

impl std::error::Error for HeaderError {}

/// Why ranges do not make a slice of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SliceError {
    /// More ranges than the tensor has dimensions.
    TooManyRanges {
        /// The ranges given.
        ranges: usize,
        /// The tensor's dimensions.
        rank: usize,
    },
    /// A range ends after its dimension, or before it starts.
    OutOfRange {
        /// The dimension, counted from 0.
        dimension: usize,
        /// First element of the range.
        start: u64,
        /// The element after the last one of the range.
        stop: u64,
        /// Length of the dimension in elements.
        len: u64,
    },
    /// A run of a 4- or 6-bit slice starts or ends inside a byte.
    PartialByte {
        /// The element type.
        dtype: Dtype,
    },
    /// The size of the tensor is not a 64-bit number of bits. (No tensor of an open checkpoint is that large.)
    Overflow,
    /// There was no memory for the numbers of each dimension.
    NoMemory {
        /// The tensor's dimensions.
        rank: usize,
    },
}

impl Display for SliceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SliceError::TooManyRanges { ranges, rank } => {
                write!(f, "{ranges} ranges were given for a tensor of {rank} dimensions")
            }
            SliceError::OutOfRange { dimension, start, stop, len } => {
                write!(f, "[{start}, {stop}) is not a range of dimension {dimension}, which has {len} elements")
            }
            SliceError::PartialByte { dtype } => {
                write!(f, "the slice cuts {dtype} elements inside a byte; it must start and end on byte boundaries")
            }
            SliceError::Overflow => f.write_str("the size of the tensor is beyond 64 bits"),
            SliceError::NoMemory { rank } => write!(f, "no memory for a slice of {rank} dimensions"),
        }
    }
}

impl std::error::Error for SliceError {}

/// Why the index of a sharded checkpoint is refused. Each variant has its own `ST_ERR_*` number in the C API.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IndexError {
    /// The index is longer than [`MAX_INDEX_LEN`].
    TooLarge {
        /// Its size in bytes.
        len: u64,
    },
    /// The index is not UTF-8.
    Utf8 {
        /// Position of the first byte that is wrong.
        position: usize,
    },
    /// The index is not JSON, or nested too deeply.
    Json {
        /// What the JSON parser says, with line and column.
        reason: String,
    },
    /// The index is JSON, but no map from names of tensors to shards.
    Structure {
        /// What was found and what was expected.
        reason: String,
    },
    /// A tensor, or the map itself, occurs twice.
    Duplicate {
        /// Its name.
        name: String,
    },
    /// There was no memory for the index.
    NoMemory {
        /// Its size in bytes.
        len: u64,
    },
    /// A state that cannot happen: a bug in this library.
    Internal(&'static str),
}

impl Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IndexError::TooLarge { len } => {
                write!(f, "the index has {len} bytes, more than the limit of {MAX_INDEX_LEN}")
            }
            IndexError::Utf8 { position } => write!(f, "the index is not UTF-8 at its byte {position}"),
            IndexError::Json { reason } => write!(f, "the index is not JSON: {reason}"),
            IndexError::Structure { reason } => write!(f, "not an index of shards: {reason}"),
            IndexError::Duplicate { name } => write!(f, "the index has {} twice", Quoted(name)),
            IndexError::NoMemory { len } => write!(f, "no memory for an index of {len} bytes"),
            IndexError::Internal(what) => write!(f, "a bug in safetensors_lazy, please report it: {what}"),
        }
    }
}

impl std::error::Error for IndexError {}

/// Why a tensor cannot be divided over ranks as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RankError {
    /// A rank is not below the number of ranks.
    OutOfRange {
        /// The rank.
        rank: u64,
        /// The number of ranks.
        world: u64,
    },
    /// A layout contradicts itself or the tensor.
    Layout {
        /// In what way.
        reason: String,
    },
    /// A layout cuts a dimension into parts that are not equal.
    NotDivisible {
        /// The dimension, counted from 0.
        dimension: usize,
        /// What is to be cut, in elements.
        len: u64,
        /// Into so many parts.
        parts: u64,
    },
    /// There was no memory for the ranges.
    NoMemory {
        /// The tensor's number of dimensions.
        rank: usize,
    },
    /// A state that cannot happen: a bug in this library.
    Internal(&'static str),
}

impl Display for RankError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RankError::OutOfRange { rank, world } => write!(f, "there is no rank {rank} among {world}"),
            RankError::Layout { reason } => f.write_str(reason),
            RankError::NotDivisible { dimension, len, parts } => {
                write!(f, "{len} elements of dimension {dimension} cannot be cut into {parts} equal parts")
            }
            RankError::NoMemory { rank } => write!(f, "no memory for the ranges of {rank} dimensions"),
            RankError::Internal(what) => write!(f, "a bug in safetensors_lazy, please report it: {what}"),
        }
    }
}

impl std::error::Error for RankError {}

#[cfg(test)]
mod tests {
    #[test]
    fn errors_are_aligned_to_64_bits() {
        assert!(align_of::<crate::error::Error>() <= align_of::<u64>());
        assert!(align_of::<super::HeaderError>() <= align_of::<u64>());
    }
}
