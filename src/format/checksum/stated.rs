//! What a header's metadata says.

use super::{from_hex, ChecksumError, Digest, BLAKE3_KEY, CRC_KEY, SHA256_KEY, SSHS_KEY};
use crate::format::Header;
use crate::quote::excerpt;

/// The checksums that a header carries.
#[derive(Debug, Default)]
pub(crate) struct Stated {
    /// MindSpore's, of names and bytes.
    pub(crate) crc: Option<u32>,
    /// Of the data section: the value of [`SHA256_KEY`].
    pub(crate) sha256: Option<Digest>,
    /// The same: the value of [`SSHS_KEY`].
    pub(crate) sshs: Option<Digest>,
    pub(crate) blake3: Option<Digests>,
}

/// The value of [`BLAKE3_KEY`].
#[derive(Debug)]
pub(crate) struct Digests {
    /// Of the header.
    pub(crate) header: Digest,
    /// Of each tensor, in the order of the header.
    pub(crate) tensors: Box<[Digest]>,
}

impl Stated {
    /// # Errors
    ///
    /// `Malformed` or `NoMemory` of [`ChecksumError`].
    pub(crate) fn of(header: &Header) -> Result<Stated, ChecksumError> {
        let mut stated = Stated::default();
        for (key, value) in (0..header.metadata_len()).filter_map(|i| header.metadata(i)) {
            if key == CRC_KEY.as_bytes() {
                stated.crc = Some(crc(value)?);
            } else if key == SHA256_KEY.as_bytes() {
                stated.sha256 = sha256(SHA256_KEY, value)?;
            } else if key == SSHS_KEY.as_bytes() {
                stated.sshs = sha256(SSHS_KEY, value)?;
            } else if key == BLAKE3_KEY.as_bytes() {
                stated.blake3 = Some(digests(header, value)?);
            }
        }
        Ok(stated)
    }
}

fn malformed(key: &'static str, expected: &str, value: &[u8]) -> ChecksumError {
    let value = excerpt(std::str::from_utf8(value).unwrap_or_default());
    ChecksumError::Malformed { key, reason: format!("{expected} is expected, not {value:?}") }
}

fn crc(value: &[u8]) -> Result<u32, ChecksumError> {
    let text = std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    text.and_then(|text| text.parse().ok()).ok_or_else(|| malformed(CRC_KEY, "a decimal number of 32 bits", value))
}

/// Nothing, as some programs write it, is no digest.
fn sha256(key: &'static str, value: &[u8]) -> Result<Option<Digest>, ChecksumError> {
    if value.is_empty() {
        return Ok(None);
    }
    let digits = value.strip_prefix(b"0x").unwrap_or(value);
    from_hex(digits).map(Some).ok_or_else(|| malformed(key, "a digest of 64 digits", value))
}

fn digests(header: &Header, value: &[u8]) -> Result<Digests, ChecksumError> {
    let malformed = || malformed(BLAKE3_KEY, "a digest of the header and one of each tensor", value);
    let no_memory = || ChecksumError::NoMemory { tensors: header.len() };
    // We write small letters, and what differs from what we wrote is damaged.
    if value.iter().any(u8::is_ascii_uppercase) {
        return Err(malformed());
    }
    let mut listed = value.split(|byte| *byte == b' ').map(from_hex);
    let first = listed.next().flatten().ok_or_else(malformed)?;

    let mut by_name: Vec<usize> = Vec::new();
    by_name.try_reserve_exact(header.len()).map_err(|_| no_memory())?;
    by_name.extend(0..header.len());
    by_name.sort_unstable_by_key(|index| header.name(*index));

    let mut tensors = Vec::new();
    tensors.try_reserve_exact(header.len()).map_err(|_| no_memory())?;
    tensors.resize(header.len(), [0; 32]);
    for index in by_name {
        let digest = listed.next().flatten().ok_or_else(malformed)?;
        if let Some(place) = tensors.get_mut(index) {
            *place = digest;
        }
    }
    match listed.next() {
        None => Ok(Digests { header: first, tensors: tensors.into_boxed_slice() }),
        Some(_) => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(metadata: &str) -> Result<Stated, ChecksumError> {
        let empty = |name| format!(r#""{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        let text = format!(r#"{{"__metadata__":{{{metadata}}},{},{}}}"#, empty("b"), empty("a"));
        Stated::of(&Header::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn of_reads_what_is_there() {
        let none = stated("").unwrap();
        assert!(none.crc.is_none() && none.sha256.is_none() && none.blake3.is_none());
        let digits = "ab".repeat(32);
        for prefix in ["", "0x"] {
            let stated =
                stated(&format!(r#""crc_num":"4294967295","modelspec.hash_sha256":"{prefix}{digits}""#)).unwrap();
            assert_eq!((stated.crc, stated.sha256), (Some(u32::MAX), Some([0xab; 32])));
        }
        assert_eq!(stated(r#""modelspec.hash_sha256":"""#).unwrap().sha256, None);
        let sshs = stated(&format!(r#""sshs_model_hash":"{digits}""#)).unwrap();
        assert_eq!((sshs.sha256, sshs.sshs), (None, Some([0xab; 32])));
        assert_eq!(stated(r#""sshs_model_hash":"""#).unwrap().sshs, None);
    }

    #[test]
    fn of_gives_digests_in_the_order_of_the_header() {
        let [h, a, b] = ["00", "0a", "0b"].map(|pair| pair.repeat(32));
        let digests = stated(&format!(r#""{BLAKE3_KEY}":"{h} {a} {b}""#)).unwrap().blake3.unwrap();
        assert_eq!((digests.header, &*digests.tensors), ([0; 32], &[[0x0b; 32], [0x0a; 32]][..]));
    }

    #[test]
    fn of_refuses_what_is_no_checksum() {
        let d = "00".repeat(32);
        for (key, value) in [
            (CRC_KEY, String::new()),
            (CRC_KEY, "4294967296".into()),
            (CRC_KEY, "-1".into()),
            (CRC_KEY, "+1".into()),
            (SHA256_KEY, "0x".into()),
            (SHA256_KEY, d[1..].into()),
            (SSHS_KEY, d[1..].into()),
            (SSHS_KEY, "None".into()),
            (BLAKE3_KEY, String::new()),
            (BLAKE3_KEY, d.clone()),
            (BLAKE3_KEY, format!("{d} {d} {}A", &d[1..])),
            (BLAKE3_KEY, format!("{d} {d}")),
            (BLAKE3_KEY, format!("{d} {d} {d} {d}")),
            (BLAKE3_KEY, format!("{d}  {d} {d}")),
            (BLAKE3_KEY, format!("{d} {d} {d} ")),
        ] {
            let refused = stated(&format!(r#""{key}":"{value}""#));
            assert!(matches!(&refused, Err(ChecksumError::Malformed { key: k, .. }) if *k == key), "{key} {value}");
        }
    }
}
