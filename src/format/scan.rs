//! One pass over a header in the form that writers write; any other form is left to [`super::json`].
//!
//! Practically all files come from the reference implementation's writer, which puts no space between tokens and writes
//! `dtype`, `shape`, `data_offsets` in that order. Reading just this form needs no general JSON parser: each token is
//! compared with what must stand there, and strings are found eight bytes at a time. At the first byte that differs
//! (white space, an escape, another key order, anything wrong) the scan gives up and says nothing, so that
//! errors are worded, and rules decided, in one place only. What it accepts, `json` accepts with the same result: the
//! fuzz target `header` holds the two together.

use super::directory::{Directory, Span};
use super::Dtype;

/// A tensor needs about this many bytes of header with names as they are; a first guess of how many there are.
const TYPICAL_ENTRY_LEN: usize = 112;

/// The directory of `text`; `None` when it is not in the form that writers write, or there is no memory. The strings of the directory
/// have not been checked to be UTF-8; everything else that is accepted is ASCII.
pub fn scan(text: &[u8]) -> Option<Directory> {
    let mut scanner = Scanner { rest: text };
    let mut directory = Directory::default();
    let guess = text.len() / TYPICAL_ENTRY_LEN;
    directory.text.try_reserve(text.len() / 2).ok()?;
    directory.tensors.try_reserve(guess).ok()?;
    directory.dims.try_reserve(guess.checked_mul(2)?).ok()?;

    let mut metadata_seen = false;
    scanner.expect(b"{")?;
    if !scanner.accept(b"}") {
        loop {
            let name = scanner.string()?;
            scanner.expect(b":")?;
            if name == b"__metadata__" {
                if std::mem::replace(&mut metadata_seen, true) {
                    return None;
                }
                scanner.metadata(&mut directory)?;
            } else {
                let name = directory.keep(name).ok()?;
                scanner.tensor(name, &mut directory)?;
            }
            if !scanner.accept(b",") {
                break;
            }
        }
        scanner.expect(b"}")?;
    }
    // Writers pad with spaces up to a multiple of 8 bytes or more.
    scanner.rest.iter().all(|byte| *byte == b' ').then_some(directory)
}

/// What is left of a text.
pub(super) struct Scanner<'a> {
    pub(super) rest: &'a [u8],
}

impl<'a> Scanner<'a> {
    #[inline]
    pub(super) fn accept(&mut self, token: &[u8]) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    #[inline]
    fn expect(&mut self, token: &[u8]) -> Option<()> {
        self.accept(token).then_some(())
    }

    /// A string without escapes; what it gives is without the quotes.
    #[inline]
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        self.expect(b"\"")?;
        let (string, rest) = self.rest.split_at_checked(plain_len(self.rest))?;
        self.rest = rest;
        self.expect(b"\"")?;
        Some(string)
    }

    /// A non-negative integer as JSON spells it: no sign, no leading zero, at most 64 bits.
    #[inline]
    pub(super) fn integer(&mut self) -> Option<u64> {
        let mut rest = self.rest;
        let mut value = 0u64;
        while let Some(digits) = rest.first_chunk().and_then(|word| eight_digits(u64::from_le_bytes(*word))) {
            value = value.checked_mul(100_000_000)?.checked_add(digits)?;
            rest = rest.get(8..)?;
        }
        while let Some((digit @ b'0'..=b'9', after)) = rest.split_first() {
            value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
            rest = after;
        }
        let len = self.rest.len() - rest.len();
        if len == 0 || (len > 1 && self.rest.first() == Some(&b'0')) {
            return None;
        }
        self.rest = rest;
        Some(value)
    }

    #[inline]
    fn tensor(&mut self, name: Span, directory: &mut Directory) -> Option<()> {
        self.expect(b"{\"dtype\":")?;
        let dtype = Dtype::from_name(self.string()?)?;
        self.expect(b",\"shape\":[")?;
        let dims_start = directory.dims.len();
        if !self.accept(b"]") {
            loop {
                directory.push_dim(self.integer()?).ok()?;
                if !self.accept(b",") {
                    break;
                }
            }
            self.expect(b"]")?;
        }
        self.expect(b",\"data_offsets\":[")?;
        let start = self.integer()?;
        self.expect(b",")?;
        let stop = self.integer()?;
        self.expect(b"]}")?;
        directory.push_tensor(name, dtype, dims_start, (start, stop)).ok()
    }

    fn metadata(&mut self, directory: &mut Directory) -> Option<()> {
        self.expect(b"{")?;
        if self.accept(b"}") {
            return Some(());
        }
        loop {
            let key = directory.keep(self.string()?).ok()?;
            self.expect(b":")?;
            let value = directory.keep(self.string()?).ok()?;
            directory.push_metadata(key, value).ok()?;
            if !self.accept(b",") {
                return self.expect(b"}");
            }
        }
    }
}

/// How many bytes come before the first quote, backslash or control character (or the end).
#[inline]
fn plain_len(bytes: &[u8]) -> usize {
    let mut words = bytes.chunks_exact(8);
    for (number, word) in words.by_ref().enumerate() {
        let special = word.first_chunk().map_or(0, |word| special_bytes(u64::from_le_bytes(*word)));
        if special != 0 {
            return number * 8 + (special.trailing_zeros() / 8) as usize;
        }
    }
    let tail = words.remainder();
    let plain = tail.iter().position(|b| matches!(b, b'"' | b'\\' | 0..0x20)).unwrap_or(tail.len());
    bytes.len() - tail.len() + plain
}

/// Sets the top bit of each byte of `word` that is a quote, a backslash or below 0x20. Bytes above the lowest such byte may be
/// flagged wrongly, because a borrow runs upwards; the lowest never is.
/// ("Determine if a word has a byte less than n", Bit Twiddling Hacks, S. E. Anderson.)
#[inline]
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = 0x8080_8080_8080_8080;
    let less = |word: u64, n: u64| word.wrapping_sub(ONES * n) & !word;
    // With bit 1 flipped, a quote (0x22) is 0x20, and what was below 0x20 still is.
    (less(word ^ (ONES * 2), 0x21) | less(word ^ (ONES * u64::from(b'\\')), 1)) & TOPS
}

/// The number that eight ASCII digits spell, the first of them in the lowest byte of `word`; `None` if one is no digit.
///
/// Neighbours are added up pairwise: eight digits to four numbers below 100, to two below 10,000, to one.
#[inline]
fn eight_digits(word: u64) -> Option<u64> {
    const SIXES: u64 = 0x0606_0606_0606_0606;
    const HIGH: u64 = 0xf0f0_f0f0_f0f0_f0f0;
    const ZEROS: u64 = 0x3030_3030_3030_3030;
    // A digit's upper half is 3, and stays 3 when 6 is added to it.
    if word & HIGH != ZEROS || word.wrapping_add(SIXES) & HIGH != ZEROS {
        return None;
    }
    let ones = word - ZEROS;
    let pairs = (ones.wrapping_mul(1 + (10 << 8)) >> 8) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs.wrapping_mul(1 + (100 << 16)) >> 16) & 0x0000_ffff_0000_ffff;
    Some(fours.wrapping_mul(1 + (10_000 << 32)) >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_len_stops_at_each_special_byte_wherever_it_stands() {
        for special in (0..0x20).chain([b'"', b'\\']) {
            for at in 0..40 {
                for fill in [b'a', 0x7f, 0x80, 0xff, b'!', b'#', b'[', b']', 0x20] {
                    let mut bytes = vec![fill; 40];
                    bytes[at] = special;
                    assert_eq!(plain_len(&bytes), at, "{special:#x} at {at} in {fill:#x}");
                }
            }
        }
        assert_eq!(plain_len(&[b'a'; 21]), 21);
        assert_eq!(plain_len(b""), 0);
    }

    #[test]
    fn integer_reads_what_json_allows() {
        let read = |text: &str| Scanner { rest: text.as_bytes() }.integer();
        assert_eq!(read("0,"), Some(0));
        for number in [7u64, 10, 99_999_999, 100_000_000, 123_456_789, 1_234_567_890_123_456, 12_345_678_901_234_567] {
            assert_eq!(read(&number.to_string()), Some(number));
            assert_eq!(read(&format!("{number},12345678")), Some(number));
        }
        assert_eq!(read("18446744073709551615]"), Some(u64::MAX));
        for wrong in [
            "",
            "18446744073709551616",
            "99999999999999999999",
            "00",
            "01",
            "012345678",
            "00000000",
            "-1",
            "+1",
            "a",
            "]",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn eight_digits_takes_digits_only() {
        assert_eq!(eight_digits(u64::from_le_bytes(*b"12345678")), Some(12_345_678));
        assert_eq!(eight_digits(u64::from_le_bytes(*b"00000000")), Some(0));
        assert_eq!(eight_digits(u64::from_le_bytes(*b"99999999")), Some(99_999_999));
        for at in 0..8 {
            for wrong in (0..=255u8).filter(|byte| !byte.is_ascii_digit()) {
                for fill in [b'0', b'9'] {
                    let mut digits = [fill; 8];
                    digits[at] = wrong;
                    assert_eq!(eight_digits(u64::from_le_bytes(digits)), None, "{wrong:#x} at {at}");
                }
            }
        }
    }

    #[test]
    fn scan_reads_the_canonical_form() {
        let text = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"I8","shape":[],"data_offsets":[24,25]}}  "#;
        let directory = scan(text).unwrap();
        let [a, b] = directory.tensors[..] else { panic!("{directory:?}") };
        let text = &directory.text;
        assert_eq!(text, b"format\0pt\0a\0b\0");
        assert_eq!((a.name.of(text), a.dtype, directory.shape(&a)), (&b"a"[..], Dtype::F32, &[2, 3][..]));
        assert_eq!((b.name.of(text), b.dtype, directory.shape(&b)), (&b"b"[..], Dtype::I8, &[][..]));
        assert_eq!((b.start, b.stop), (24, 25));
        let [(key, value)] = directory.metadata[..] else { panic!("{directory:?}") };
        assert_eq!((key.of(text), value.of(text)), (&b"format"[..], &b"pt"[..]));
        assert!(scan(b"{}").unwrap().tensors.is_empty());
    }

    #[test]
    fn scan_leaves_every_other_form_to_json() {
        for other in [
            "",
            " {}",
            "{}\n",
            "{}x",
            "[]",
            "{\"a\":1}",
            r#"{"a":{"shape":[],"dtype":"I8","data_offsets":[0,1]}}"#,
            r#"{"a":{"dtype":"I8","shape":[],"data_offsets":[0,1]},}"#,
            r#"{"a":{"dtype":"I8","shape":[1,],"data_offsets":[0,1]}}"#,
            r#"{"a":{"dtype":"I8","shape":[],"data_offsets":[0,1,2]}}"#,
            r#"{"a":{"dtype":"I8","shape":[],"data_offsets":[0,1],"x":0}}"#,
            r#"{"\u0061":{"dtype":"I8","shape":[],"data_offsets":[0,1]}}"#,
            r#"{"__metadata__":{},"__metadata__":{}}"#,
            r#"{"__metadata__":null}"#,
        ] {
            assert_eq!(scan(other.as_bytes()), None, "{other}");
        }
    }
}
