//! Checksums: how they are computed from bytes, and how a header carries them.
//!
//! ```text
//! crc        CRC-32 of parts, joined; MindSpore's rule
//! tree       BLAKE3 of parts, joined
//! stated     what a header's metadata says
//! seal       the digest of the header itself
//! hex        digests as text
//! error      the ways in which they are missing, wrong or do not match
//! ```
//!
//! Three kinds are kept in `__metadata__`, where any reader still opens the file:
//!
//! - [`CRC_KEY`]: MindSpore's. A CRC-32 (that of zlib) over names and bytes of all tensors in byte order of the names, as a decimal number.
//! - [`SHA256_KEY`]: that of the [model metadata specification](https://github.com/Stability-AI/ModelSpec). The SHA-256 of the data section,
//!   in hexadecimal, with or without `0x`. kohya's sd-scripts, and programs that follow them, write the same as [`SSHS_KEY`].
//! - [`BLAKE3_KEY`]: our own, which tells which tensor is bad. Digests of 64 hexadecimal digits with a space between them: first that of the
//!   header, then that of each tensor's bytes, in byte order of their names. The header's is that of all bytes before the data section
//!   while its own 64 digits are `0`.

mod crc;
mod error;
mod hex;
mod seal;
mod stated;
mod tree;

pub(crate) use crc::{integer_scalar, Crc, CrcNum};
pub use error::ChecksumError;
pub(crate) use hex::{from_hex, to_hex};
pub(crate) use seal::header_digest;
pub(crate) use stated::Stated;
pub(crate) use tree::{subtree, Tree};

/// The metadata key of MindSpore's CRC.
pub const CRC_KEY: &str = "crc_num";

/// The metadata key of the SHA-256 of the data section.
pub const SHA256_KEY: &str = "modelspec.hash_sha256";

/// The metadata key of the same SHA-256 in files that kohya's sd-scripts wrote.
pub const SSHS_KEY: &str = "sshs_model_hash";

/// The metadata key of our digests.
pub const BLAKE3_KEY: &str = "safetensors_lazy.blake3";

/// A digest of 256 bits.
pub(crate) type Digest = [u8; 32];
