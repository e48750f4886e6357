//! CRC-32 of parts, joined; and MindSpore's rule.

use crate::format::Dtype;
use crc32fast::Hasher;

/// The CRC-32 of a run of bytes, and their number: what it takes to join it with that of the bytes which follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crc {
    sum: u32,
    len: u64,
}

impl Crc {
    pub(crate) fn of(bytes: &[u8]) -> Crc {
        Crc { sum: crc32fast::hash(bytes), len: bytes.len() as u64 }
    }

    /// That of these bytes and those of `next` after them.
    pub(crate) fn then(self, next: Crc) -> Crc {
        // The number of bytes before does not matter, and adding it up could overflow.
        let mut joined = Hasher::new_with_initial_len(self.sum, 0);
        joined.combine(&Hasher::new_with_initial_len(next.sum, next.len));
        // The length counts only when this is what follows something. More than 64 bits of it take MindSpore's scalars, below.
        Crc { sum: joined.finalize(), len: self.len.wrapping_add(next.len) }
    }

    /// That of `len` zero bytes, in logarithmic time.
    pub(crate) fn of_zeros(len: u64) -> Crc {
        let mut power = Crc::of(&[0]);
        let mut zeros = Crc::default();
        for bit in 0..u64::BITS {
            if len >> bit & 1 == 1 {
                zeros = zeros.then(power);
            }
            power = power.then(power);
        }
        zeros
    }

    pub(crate) fn sum(self) -> u32 {
        self.sum
    }
}

/// MindSpore's `crc_num`, over tensors in byte order of their names.
///
/// For a scalar of an integer type MindSpore does not take its bytes but as many zero bytes as its value (it calls Python's `bytes(n)`).
/// Other programs that follow the rule take the bytes, so either sum is right for such a file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CrcNum {
    by_rule: Crc,
    /// As MindSpore sums; `None` when it cannot, because a scalar is negative.
    by_mindspore: Option<Crc>,
}

impl CrcNum {
    pub(crate) fn new() -> CrcNum {
        CrcNum { by_rule: Crc::default(), by_mindspore: Some(Crc::default()) }
    }

    /// The next tensor: its name, its bytes, and its value if it is a scalar of an integer type.
    pub(crate) fn add(&mut self, name: &[u8], bytes: Crc, scalar: Option<i128>) {
        let name = Crc::of(name);
        self.by_rule = self.by_rule.then(name).then(bytes);
        let as_mindspore = match scalar.map(u64::try_from) {
            None => Some(bytes),
            Some(Ok(value)) => Some(Crc::of_zeros(value)),
            Some(Err(_)) => None,
        };
        self.by_mindspore = self.by_mindspore.and_then(|sum| Some(sum.then(name).then(as_mindspore?)));
    }

    /// What to write: what MindSpore accepts, if there is such a sum.
    pub(crate) fn to_write(self) -> u32 {
        self.by_mindspore.unwrap_or(self.by_rule).sum()
    }

    pub(crate) fn accepts(self, stated: u32) -> bool {
        self.by_rule.sum() == stated || self.by_mindspore.is_some_and(|sum| sum.sum() == stated)
    }
}

/// The value of a scalar of an integer type: little-endian, of as many bytes as the type has.
pub(crate) fn integer_scalar(dtype: Dtype, bytes: &[u8]) -> Option<i128> {
    let signed = match dtype {
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => true,
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => false,
        _ => return None,
    };
    let is_negative = signed && bytes.last().is_some_and(|byte| byte >> 7 == 1);
    let mut wide = [if is_negative { 0xff } else { 0 }; 16];
    wide.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i128::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_is_that_of_zlib() {
        assert_eq!(Crc::of(b"123456789").sum(), 0xcbf4_3926);
        assert_eq!(Crc::of(b"").sum(), 0);
    }

    #[test]
    fn then_joins_at_every_place() {
        let bytes: Vec<u8> = (0..1000u32).map(|i| (i % 251) as u8).collect();
        for at in [0, 1, 2, 63, 64, 500, 999, 1000] {
            assert_eq!(Crc::of(&bytes[..at]).then(Crc::of(&bytes[at..])), Crc::of(&bytes), "{at}");
        }
    }

    #[test]
    fn of_zeros_is_that_of_zeros() {
        for len in [0, 1, 2, 7, 64, 1000, 65_537] {
            assert_eq!(Crc::of_zeros(len), Crc::of(&vec![0; len as usize]), "{len}");
        }
        assert_eq!(Crc::of_zeros(u64::MAX).then(Crc::of(&[0])).len, 0);
    }

    #[test]
    fn integer_scalar_extends_signs() {
        assert_eq!(integer_scalar(Dtype::I16, &(-2i16).to_le_bytes()), Some(-2));
        assert_eq!(integer_scalar(Dtype::U16, &0xfffe_u16.to_le_bytes()), Some(0xfffe));
        assert_eq!(integer_scalar(Dtype::U64, &[0xff; 8]), Some(u64::MAX.into()));
        assert_eq!(integer_scalar(Dtype::I64, &i64::MIN.to_le_bytes()), Some(i64::MIN.into()));
        assert_eq!(integer_scalar(Dtype::BOOL, &[1]), None);
        assert_eq!(integer_scalar(Dtype::F32, &[0; 4]), None);
    }

    #[test]
    fn crc_num_takes_both_sums_of_integer_scalars() {
        let mut crc = CrcNum::new();
        crc.add(b"step", Crc::of(&7i64.to_le_bytes()), Some(7));
        let (rule, mindspore) = (crc32fast::hash(b"step\x07\0\0\0\0\0\0\0"), crc32fast::hash(b"step\0\0\0\0\0\0\0"));
        assert!(crc.accepts(rule) && crc.accepts(mindspore) && !crc.accepts(rule ^ 1));
        assert_eq!(crc.to_write(), mindspore);
        // MindSpore cannot sum a negative one.
        crc.add(b"t", Crc::of(&[0xff]), Some(-1));
        assert_eq!(crc.to_write(), crc32fast::hash(b"step\x07\0\0\0\0\0\0\0t\xff"));
        crc.add(b"u", Crc::of(&[3]), None);
        assert_eq!(crc.to_write(), crc32fast::hash(b"step\x07\0\0\0\0\0\0\0t\xffu\x03"));
    }
}
