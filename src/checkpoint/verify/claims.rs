//! What the headers say, and whether they are themselves what they say.

use super::super::shard::Shard;
use crate::effort::with_threads_if_worth;
use crate::error::Error;
use crate::format::checksum::{header_digest, Stated};
use crate::format::{ChecksumError, PREFIX_LEN};
use crate::storage::Scratch;

/// The checksums that a shard carries.
#[derive(Debug)]
pub(super) struct Claims {
    pub(super) stated: Stated,
    /// Whether the header has the digest that it states, if it does.
    pub(super) header_is_good: bool,
}

/// Those of all shards, in their order. Reads the headers anew where they have digests: what is kept of them is not their bytes.
///
/// # Errors
///
/// [`Error::Checksum`]: a checksum is malformed; [`Error::Storage`]; [`Error::NoMemory`].
pub(super) fn claims_of_all(shards: &[Shard]) -> Result<Vec<Claims>, Error> {
    let headers = shards.iter().map(Shard::data_start).fold(0, u64::saturating_add);
    with_threads_if_worth(
        shards.len(),
        Scratch::default(),
        headers,
        |_| 0,
        |scratch: &mut Scratch, number| {
            claims_of(shards.get(number).ok_or(Error::Internal { what: "there is no shard of a number" })?, scratch)
        },
    )
}

/// # Errors
///
/// As for [`claims_of_all`], and [`Error::Checksum`] if a header is not what it says.
pub(super) fn check_headers(shards: &[Shard]) -> Result<(), Error> {
    let claims = claims_of_all(shards)?;
    shards.iter().zip(&claims).try_for_each(|(shard, claims)| claims.check_header(shard))
}

impl Claims {
    pub(super) fn check_header(&self, shard: &Shard) -> Result<(), Error> {
        match self.header_is_good {
            true => Ok(()),
            false => Err(Error::Checksum { path: shard.path_text(), source: ChecksumError::Header }),
        }
    }
}

fn claims_of(shard: &Shard, scratch: &mut Scratch) -> Result<Claims, Error> {
    let stated = Stated::of(&shard.header).map_err(|source| Error::Checksum { path: shard.path_text(), source })?;
    let Some(digests) = &stated.blake3 else { return Ok(Claims { stated, header_is_good: true }) };
    let head =
        scratch.read(&shard.storage, 0, shard.data_start()).map_err(|source| shard.storage_error(None, source))?;
    let found = head.split_at_checked(PREFIX_LEN).and_then(|(prefix, text)| header_digest(prefix, text));
    let header_is_good = found == Some(digests.header);
    Ok(Claims { stated, header_is_good })
}
