//! Checksums in the metadata.

use super::data::{Bounce, Bytes, Data};
use super::entries::Metadata;
use super::options::Checksums;
use super::target::Target;
use crate::error::Error;
use crate::format::checksum::{integer_scalar, to_hex, CrcNum, Digest};
use crate::format::{BLAKE3_KEY, CRC_KEY, SHA256_KEY};
use crate::hashing::{pass, Input, Source, TensorSums, Wanted};
use crate::storage::StorageError;
use crate::task::Task;
use crate::workers::workers_for;
use std::ops::Range;

/// What is said of a tensor whose bytes are nowhere.
const NO_PLACE: StorageError = StorageError::Internal("a tensor has no place in its file");

/// Digits of a digest.
const DIGITS: usize = 64;

/// A metadata entry.
pub(super) type Entry = (&'static str, String);

/// The metadata entries that are written for checksums, after the user's own: their keys, and the length of the longest value that they
/// can have with `tensors` tensors. Values are ASCII that JSON need not escape.
pub(super) fn reserved(checksums: Checksums, tensors: usize) -> Vec<(&'static str, u64)> {
    let entries = [
        (checksums.crc, CRC_KEY, 10),
        (checksums.sha256, SHA256_KEY, 66),
        (checksums.blake3, BLAKE3_KEY, (tensors as u64).saturating_mul(65).saturating_add(64)),
    ];
    entries.into_iter().filter(|(is_wanted, ..)| *is_wanted).map(|(_, key, len)| (key, len)).collect()
}

/// Whether a metadata key will be written for a checksum.
pub(super) fn is_reserved(checksums: Checksums, key: &str) -> bool {
    reserved(checksums, 0).iter().any(|(reserved, _)| *reserved == key)
}

/// How many bytes are read for the checksums of a file with so many bytes of tensors.
pub(super) fn bytes(checksums: Checksums, data_len: u64) -> u64 {
    match checksums == Checksums::default() {
        true => 0,
        false => data_len,
    }
}

/// The metadata entries for the checksums of a shard, in the order of [`reserved`], and none longer than it says.
pub(super) fn values(
    checksums: Checksums,
    data: &Data<'_, '_>,
    metadata: &Metadata,
    target: &Target,
    task: &Task,
) -> Result<Vec<Entry>, Error> {
    let mut values = Vec::new();
    if checksums == Checksums::default() {
        return Ok(values);
    }
    let hashed = Hashed { data, target };
    let wanted =
        Wanted { crc: checksums.crc, blake3: checksums.blake3, data_sha256: checksums.sha256, file_sha256: false };
    let order = &data.layout.order;
    let mut tensors = Vec::new();
    tensors.try_reserve_exact(order.len()).map_err(|_| Error::NoMemory)?;
    for tensor in order {
        tensors.push(data.place(*tensor).ok_or_else(|| target.storage_error(NO_PLACE))?.0);
    }
    let input = Input { data_start: data.layout.data_start(), tensors, wanted };
    // Tensors are counted when they are written.
    let sums = pass(&hashed, &[input], workers_for(usize::MAX), |bytes, _| task.done(bytes, 0))?;
    let missing = StorageError::Internal("the checksums of a file were not made");
    // Those of tensors are made only where they are wanted.
    let of_tensors = if checksums.crc || checksums.blake3 { order.len() } else { 0 };
    let sums = sums.first().filter(|sums| sums.tensors.len() >= of_tensors);
    let sums = sums.ok_or_else(|| target.storage_error(missing))?;

    let mut by_name = Vec::new();
    by_name.try_reserve_exact(order.len()).map_err(|_| Error::NoMemory)?;
    by_name.extend(order.iter().copied().zip(&sums.tensors));
    by_name.sort_unstable_by_key(|(tensor, _)| data.name(*tensor));
    if checksums.crc {
        values.push((CRC_KEY, hashed.crc_num(&by_name)?.to_write().to_string()));
    }
    if checksums.sha256 {
        values.push((SHA256_KEY, format!("0x{}", to_hex(&sums.data_sha256))));
    }
    if checksums.blake3 {
        values.push((BLAKE3_KEY, digests(&by_name)?));
        let sealed = header_digest(data, metadata, &values, target)?;
        if let Some((_, digests)) = values.last_mut() {
            digests.replace_range(..DIGITS, &to_hex(&sealed));
        }
    }
    Ok(values)
}

/// The value of our digests, with zeros for that of the header.
fn digests(by_name: &[(usize, &TensorSums)]) -> Result<String, Error> {
    let mut text = String::new();
    text.try_reserve_exact(DIGITS + by_name.len() * (DIGITS + 1)).map_err(|_| Error::NoMemory)?;
    text.extend(std::iter::repeat_n('0', DIGITS));
    for (_, sums) in by_name {
        text.push(' ');
        text.push_str(&to_hex(&sums.blake3));
    }
    Ok(text)
}

/// The digest of the header that will be written but for its own digits.
fn header_digest(data: &Data<'_, '_>, metadata: &Metadata, values: &[Entry], target: &Target) -> Result<Digest, Error> {
    let mut hasher = blake3::Hasher::new();
    let failed = |_| target.storage_error(StorageError::Internal("a header could not be hashed"));
    data.encode_header(&mut hasher, metadata, values).map_err(failed)?;
    Ok(hasher.finalize().into())
}

/// The bytes of a shard, as the hashing wants them.
struct Hashed<'w, 'd> {
    data: &'w Data<'w, 'd>,
    target: &'w Target,
}

impl Source for Hashed<'_, '_> {
    type Room = Bounce;

    fn bytes<'a>(&'a self, _: usize, place: Range<u64>, room: &'a mut Bounce) -> Result<&'a [u8], Error> {
        self.data.read(place, false, room).map_err(|source| self.target.storage_error(source))
    }
}

impl Hashed<'_, '_> {
    fn crc_num(&self, by_name: &[(usize, &TensorSums)]) -> Result<CrcNum, Error> {
        let (mut crc, mut room) = (CrcNum::new(), Bounce::default());
        for (tensor, sums) in by_name {
            let known = self.data.is_scalar(*tensor).zip(self.data.place(*tensor));
            let ((dtype, is_scalar), (place, _)) = known.ok_or_else(|| self.target.storage_error(NO_PLACE))?;
            let scalar = match is_scalar {
                true => integer_scalar(dtype, self.bytes(0, place, &mut room)?),
                false => None,
            };
            crc.add(self.data.name(*tensor), sums.crc, scalar);
        }
        Ok(crc)
    }
}
