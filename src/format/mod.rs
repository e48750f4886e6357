//! The safetensors format: what the bytes of a header or of an index say and where the bytes of a slice lie.
//!
//! This layer knows bytes, no files. The rules are those of the format's description and of its reference
//! implementation (<https://github.com/huggingface/safetensors>, crate `safetensors` 0.8): the same headers are
//! accepted and refused, except that duplicate names and names with a NUL are always refused here.
//!
//! A header goes through four steps, one file each:
//!
//! ```text
//! scan       the form that writers write, read in one pass     \  text to
//! json       any other form, read by serde_json                /  directory
//! validate   offsets, sizes, overflow: the directory is true to its data section
//! names      a seeded hash index over the names of one or more headers; duplicates
//! ```
//!
//! `foreign` says what a file is that has no header. Besides: `encode` (headers and indices to be written), `index` (which shard holds which tensor), `slice` (ranges to runs of bytes), `split` and `layout` (ranks to ranges).
//!
//! `strings` stands between serde_json and those who read with it: it unescapes.
//!
//! The index of a sharded checkpoint is read by `index`, with what it shares with `json`, and what our own writer tells the next one in it by
//! `unnamed`. Checksums, and how a header carries them, are in
//! `checksum`.

pub(crate) mod checksum;
pub(crate) mod directory;
mod dtype;
pub(crate) mod encode;
mod error;
pub(crate) mod foreign;
mod header;
mod index;
mod json;
mod layout;
mod names;
mod scan;
mod slice;
mod split;
mod strings;
mod unnamed;
mod validate;

pub use checksum::{ChecksumError, BLAKE3_KEY, CRC_KEY, SHA256_KEY, SSHS_KEY};
pub use dtype::{Dtype, ParseDtypeError};
pub use error::{HeaderError, IndexError, RankError, SliceError};
pub(crate) use header::MAX_DIMENSIONS;
pub use header::{header_len, Header, TensorInfo, MAX_HEADER_LEN, PREFIX_LEN};
pub use index::{index_len, Index, MAX_INDEX_LEN, MAX_SHARDS};
pub use layout::Layout;
pub(crate) use names::{NameHasher, NamePart};
pub use names::{NameTable, NameTableError};
pub use slice::{Run, Runs, Slice, END};
pub use split::split_range;
pub(crate) use unnamed::{unnamed, UNNAMED_KEY};
pub(crate) use validate::{bits_of, shape_text};

/// The two readers of header text, apart. Not part of the public API: for fuzzing and benchmarks.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals {
    pub use super::directory::{Directory, Span};
    pub use super::json::parse as parse_json;
    pub use super::scan::scan;
    pub use super::validate::validate;
}
