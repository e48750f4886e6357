//! The digest of the header itself.

use super::{Digest, BLAKE3_KEY};
use std::ops::Range;

/// Number of hexadecimal digits of a digest.
const DIGITS: usize = 64;

/// The digest of a header: of the 8 bytes of its length and of its text, while the digits of this digest are `0`. `None` if the text
/// has no such digits.
pub(crate) fn header_digest(prefix: &[u8], text: &[u8]) -> Option<Digest> {
    let digits = digits(text)?;
    let (before, after) = (text.get(..digits.start)?, text.get(digits.end..)?);
    let mut hasher = blake3::Hasher::new();
    hasher.update(prefix).update(before).update(&[b'0'; DIGITS]).update(after);
    Some(hasher.finalize().into())
}

/// Where the digits lie: behind the key as every writer of JSON without spaces writes it. Inside of a string there is a `\` before a
/// quotation mark; and where there is none, only a metadata key is followed by a string of that many digits.
fn digits(text: &[u8]) -> Option<Range<usize>> {
    let key = format!("\"{BLAKE3_KEY}\":\"");
    let is_key = |at: &usize| text.get(at.wrapping_sub(1)) != Some(&b'\\');
    let found = text.windows(key.len()).enumerate().filter(|(_, window)| *window == key.as_bytes());
    let at = found.map(|(at, _)| at).find(is_key)?;
    let digits = at + key.len()..at + key.len() + DIGITS;
    text.get(digits.clone())?.iter().all(u8::is_ascii_hexdigit).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(digest: &str) -> Vec<u8> {
        format!(r#"{{"__metadata__":{{"a":"\"safetensors_lazy.blake3\":\"","safetensors_lazy.blake3":"{digest}"}}}}"#)
            .into()
    }

    #[test]
    fn header_digest_is_that_of_zeroed_digits() {
        let zeros = text(&"0".repeat(64));
        let expected: Digest = blake3::hash(&[b"\x55\0\0\0\0\0\0\0", &zeros[..]].concat()).into();
        for digits in ["0".repeat(64), "f7".repeat(32)] {
            assert_eq!(header_digest(b"\x55\0\0\0\0\0\0\0", &text(&digits)), Some(expected));
        }
    }

    #[test]
    fn header_digest_is_not_fooled_by_strings() {
        let key = BLAKE3_KEY;
        let other = "5".repeat(64);
        for decoy in
            [format!(r#""\"{key}":"{other}","#), format!(r#""{key}\"":"{other}","#), format!(r#""a":"\"{key}","#)]
        {
            let with = |digits: &str| format!(r#"{{"__metadata__":{{{decoy}"{key}":"{digits}"}}}}"#).into_bytes();
            let zeros = with(&"0".repeat(64));
            assert_eq!(header_digest(b"", &with(&"a".repeat(64))), Some(blake3::hash(&zeros).into()), "{decoy}");
        }
    }

    #[test]
    fn header_digest_needs_digits() {
        for text in [&text("")[..], &text(&"0".repeat(63)), &text(&"x".repeat(64)), b"{}", b""] {
            assert_eq!(header_digest(b"", text), None);
        }
    }
}
