//! Checksums in the metadata. HOOK: [`values`] is to be filled in; everything around it is in place.

use super::data::Data;
use super::error::WriterError;
use super::options::Checksums;
use crate::error::Error;

/// The key of the CRC.
const CRC: &str = "crc_num";

/// The key of the SHA-256.
const SHA256: &str = "modelspec.hash_sha256";

/// The key of the BLAKE3s.
const BLAKE3: &str = "safetensors_lazy.blake3";

/// The metadata entries that are written for checksums, after the user's own: their keys, and the length of the longest value that they
/// can have with `tensors` tensors. Values are ASCII that JSON need not escape.
pub(super) fn reserved(checksums: Checksums, tensors: usize) -> Vec<(&'static str, u64)> {
    let entries = [
        (checksums.crc, CRC, 10),
        (checksums.sha256, SHA256, 66),
        (checksums.blake3, BLAKE3, (tensors as u64).saturating_mul(65).saturating_add(64)),
    ];
    entries.into_iter().filter(|(is_wanted, ..)| *is_wanted).map(|(_, key, len)| (key, len)).collect()
}

/// Whether a metadata key will be written for a checksum.
pub(super) fn is_reserved(checksums: Checksums, key: &str) -> bool {
    reserved(checksums, 0).iter().any(|(reserved, _)| *reserved == key)
}

/// The metadata entries for the checksums of a shard, in the order of [`reserved`], and none longer than it says. Their bytes are had
/// through [`Bytes::read`](super::data::Bytes::read).
pub(super) fn values(checksums: Checksums, _data: &Data<'_, '_>) -> Result<Vec<(&'static str, String)>, Refused> {
    match checksums == Checksums::default() {
        true => Ok(Vec::new()),
        false => Err(Refused::Writer(WriterError::Unsupported("checksums cannot be written yet"))),
    }
}

/// Why there are no values: an error of the writer's own, which lacks only the path, or another.
#[derive(Debug)]
pub(super) enum Refused {
    /// The writer's own.
    Writer(WriterError),
    /// One of reading, or a cancelled task.
    #[allow(dead_code, reason = "for whoever fills `values` in")]
    Other(Error),
}
