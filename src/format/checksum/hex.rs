//! Digests as text.

use super::Digest;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// 64 lower-case digits.
pub(crate) fn to_hex(digest: &Digest) -> String {
    digest.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| digit_of(digit) as char).collect()
}

/// The digest that exactly 64 digits of either case stand for.
pub(crate) fn from_hex(text: &[u8]) -> Option<Digest> {
    let text: &[u8; 64] = text.try_into().ok()?;
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(text.chunks_exact(2)) {
        for digit in pair {
            *byte = *byte << 4 | (*digit as char).to_digit(16)? as u8;
        }
    }
    Some(digest)
}

fn digit_of(value: u8) -> u8 {
    DIGITS.get(usize::from(value)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_hex_and_from_hex_are_inverse() {
        let digest = std::array::from_fn(|i| (i * 37) as u8);
        let text = to_hex(&digest);
        assert!(text.starts_with("00254a6f"), "{text}");
        assert_eq!(from_hex(text.as_bytes()), Some(digest));
        assert_eq!(from_hex(text.to_uppercase().as_bytes()), Some(digest));
    }

    #[test]
    fn from_hex_takes_nothing_else() {
        let text = to_hex(&[0xab; 32]);
        for bad in ["", &text[1..], &format!("{text}0"), &text.replacen('a', "g", 1), &text.replacen("ab", "+1", 1)] {
            assert_eq!(from_hex(bad.as_bytes()), None, "{bad}");
        }
    }
}
