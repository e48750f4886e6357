//! What the bytes come to, beside what they should.

use super::super::shard::Shard;
use super::claims::Claims;
use super::Checks;
use crate::error::Error;
use crate::format::checksum::{integer_scalar, to_hex, CrcNum, Digest};
use crate::format::ChecksumError;
use crate::hashing::{Input, Sums, Wanted};
use crate::quote::excerpt;
use crate::storage::Scratch;

/// The checksums that there are of a shard.
pub(super) struct Known {
    claims: Claims,
    file_sha256: Option<Digest>,
    /// Its tensors in the order of their bytes.
    order: Vec<usize>,
}

impl Known {
    pub(super) fn new(shard: &Shard, claims: Claims, file_sha256: Option<Digest>) -> Result<Known, Error> {
        let mut order = Vec::new();
        order.try_reserve_exact(shard.header.len()).map_err(|_| shard.no_memory())?;
        order.extend(0..shard.header.len());
        // Usually they are in that order, which this sort notices; it allocates nothing.
        order.sort_unstable_by_key(|within| shard.header.tensor(*within).map(|tensor| (tensor.start, tensor.stop)));
        Ok(Known { claims, file_sha256, order })
    }
}

/// What has to be hashed of a shard.
///
/// # Errors
///
/// [`Error::Checksum`]: it has not what `checks` ask for, or nothing at all.
pub(super) fn input_of(shard: &Shard, known: &Known, checks: Checks) -> Result<Input, Error> {
    let missing = |what| Error::Checksum { path: shard.path_text(), source: ChecksumError::Missing { what } };
    let stated = &known.claims.stated;
    let has = Wanted {
        crc: stated.crc.is_some(),
        blake3: stated.blake3.is_some(),
        data_sha256: stated.sha256.is_some() || stated.sshs.is_some(),
        file_sha256: known.file_sha256.is_some(),
    };
    let all = checks.none();
    let wanted = Wanted {
        crc: has.crc && (all || checks.crc),
        blake3: has.blake3 && (all || checks.blake3),
        data_sha256: has.data_sha256 && (all || checks.sha256),
        file_sha256: has.file_sha256,
    };
    for (asked, has, what) in [
        (checks.crc, has.crc, "crc_num"),
        (checks.blake3, has.blake3, "BLAKE3 digests"),
        (checks.sha256, has.data_sha256, "modelspec.hash_sha256 or sshs_model_hash"),
        (checks.file_sha256, has.file_sha256, "SHA-256 of the file given"),
        (!shard.header.is_empty(), wanted != Wanted::default(), "checksum"),
    ] {
        if asked && !has {
            return Err(missing(what));
        }
    }
    let mut tensors = Vec::new();
    tensors.try_reserve_exact(shard.header.len()).map_err(|_| shard.no_memory())?;
    if wanted != Wanted::default() {
        let start = shard.data_start();
        for within in &known.order {
            let tensor = shard.header.tensor(*within).ok_or(NO_TENSOR)?;
            tensors.push(start + tensor.start..start + tensor.stop);
        }
    }
    Ok(Input { data_start: shard.data_start(), tensors, wanted })
}

const NO_TENSOR: Error = Error::Internal { what: "a header has fewer tensors than it says" };

/// What came out of one shard.
#[derive(Default)]
pub(super) struct Compared {
    pub(super) tensors: u64,
    pub(super) bad_tensors: u64,
    /// Its number in the shard.
    pub(super) first_bad_tensor: Option<usize>,
    pub(super) checks: Checks,
    pub(super) bad_checks: Checks,
    pub(super) first_error: Option<ChecksumError>,
}

impl Compared {
    fn bad(&mut self, check: fn(&mut Checks) -> &mut bool, error: ChecksumError) {
        *check(&mut self.bad_checks) = true;
        self.first_error.get_or_insert(error);
    }
}

/// Compares a shard's sums with what is known of it. The first error is the one that says most.
pub(super) fn compare(shard: &Shard, known: &Known, input: &Input, sums: &Sums) -> Result<Compared, Error> {
    let wanted = input.wanted;
    // Otherwise some would count as verified that nobody has looked at.
    let summed = if wanted.crc || wanted.blake3 { sums.tensors.len() } else { input.tensors.len() };
    if summed != input.tensors.len() || (wanted != Wanted::default() && summed != known.order.len()) {
        return Err(Error::Internal { what: "not every tensor of a shard has been summed" });
    }
    let mut compared = Compared {
        tensors: input.tensors.len() as u64,
        checks: Checks {
            crc: wanted.crc,
            sha256: wanted.data_sha256,
            blake3: wanted.blake3,
            file_sha256: wanted.file_sha256,
        },
        ..Compared::default()
    };
    let stated = &known.claims.stated;
    if let (true, Some(digests)) = (wanted.blake3, &stated.blake3) {
        if !known.claims.header_is_good {
            compared.bad(|checks| &mut checks.blake3, ChecksumError::Header);
        }
        let mut bad = Vec::new();
        for (within, sums) in known.order.iter().copied().zip(&sums.tensors) {
            if digests.tensors.get(within) != Some(&sums.blake3) {
                bad.try_reserve(1).map_err(|_| shard.no_memory())?;
                bad.push(within);
            }
        }
        compared.bad_tensors = bad.len() as u64;
        compared.first_bad_tensor = bad.into_iter().min();
        if let Some(within) = compared.first_bad_tensor {
            let tensor = excerpt(std::str::from_utf8(shard.header.name(within)).unwrap_or_default());
            compared.bad(|checks| &mut checks.blake3, ChecksumError::Tensor { tensor });
        }
    }
    if let (true, Some(stated)) = (wanted.crc, stated.crc) {
        let found = crc_num(shard, &known.order, sums)?;
        if !found.accepts(stated) {
            let [stated, found] = [stated, found.to_write()].map(|sum| sum.to_string());
            let what = "CRC-32 of names and tensors (crc_num)";
            compared.bad(|checks| &mut checks.crc, ChecksumError::Whole { what, stated, found });
        }
    }
    let whole =
        |what, stated: &Digest, found| ChecksumError::Whole { what, stated: to_hex(stated), found: to_hex(found) };
    for (stated, what) in [
        (&stated.sha256, "SHA-256 of the data (modelspec.hash_sha256)"),
        (&stated.sshs, "SHA-256 of the data (sshs_model_hash)"),
    ] {
        if let Some(stated) = stated.filter(|stated| wanted.data_sha256 && *stated != sums.data_sha256) {
            compared.bad(|checks| &mut checks.sha256, whole(what, &stated, &sums.data_sha256));
        }
    }
    if let Some(stated) = known.file_sha256.filter(|stated| wanted.file_sha256 && *stated != sums.file_sha256) {
        let error = whole("SHA-256 of the file", &stated, &sums.file_sha256);
        compared.bad(|checks| &mut checks.file_sha256, error);
    }
    Ok(compared)
}

fn crc_num(shard: &Shard, order: &[usize], sums: &Sums) -> Result<CrcNum, Error> {
    let mut by_name = Vec::new();
    by_name.try_reserve_exact(shard.header.len()).map_err(|_| shard.no_memory())?;
    by_name.extend(order.iter().copied().zip(&sums.tensors));
    by_name.sort_unstable_by_key(|(within, _)| shard.header.name(*within));
    let (mut crc, mut room) = (CrcNum::new(), Scratch::default());
    for (within, sums) in by_name {
        let tensor = shard.header.tensor(within).ok_or(NO_TENSOR)?;
        let mut scalar = None;
        if tensor.shape.is_empty() {
            let place = shard.data_start() + tensor.start;
            let bytes = room.read(&shard.storage, place, tensor.stop - tensor.start);
            let bytes = bytes.map_err(|source| shard.storage_error(None, source))?;
            scalar = integer_scalar(tensor.dtype, bytes);
        }
        crc.add(tensor.name, sums.crc, scalar);
    }
    Ok(crc)
}

#[cfg(test)]
mod tests {
    use super::super::claims::claims_of_all;
    use super::*;
    use crate::{Checkpoint, OpenOptions};

    #[test]
    fn compare_refuses_sums_that_are_not_of_every_tensor() {
        let header = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header, b"xy"].concat();
        let checkpoint = Checkpoint::open_memory(file, OpenOptions::default()).unwrap();
        let shards = checkpoint.shards.list();
        let known = Known::new(&shards[0], claims_of_all(shards).unwrap().remove(0), Some([0; 32])).unwrap();
        let mut input = input_of(&shards[0], &known, Checks::default()).unwrap();
        input.wanted.crc = true;
        for (sums, is_right) in [(0, false), (1, false), (2, true), (3, false)] {
            let sums = Sums { tensors: vec![Default::default(); sums], ..Sums::default() };
            assert_eq!(compare(&shards[0], &known, &input, &sums).is_ok(), is_right);
        }
    }
}
