//! The 22 element types.

use std::fmt;
use std::str::FromStr;

/// The type of a tensor's elements.
///
/// The variants and their order are those of the reference implementation ("in increasing alignment order").
/// The discriminants are the `ST_DTYPE_*` numbers of the C header and never change.
#[allow(non_camel_case_types)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
#[non_exhaustive]
pub enum Dtype {
    /// One byte, 0 or 1.
    BOOL = 1,
    /// MXFP4 (E2M1), two elements in a byte. OCP Microscaling Formats 1.0.
    F4 = 2,
    /// MXFP6 with 2 exponent and 3 mantissa bits, packed. OCP Microscaling Formats 1.0.
    F6_E2M3 = 3,
    /// MXFP6 with 3 exponent and 2 mantissa bits, packed. OCP Microscaling Formats 1.0.
    F6_E3M2 = 4,
    /// Unsigned 8-bit integer.
    U8 = 5,
    /// Signed 8-bit integer.
    I8 = 6,
    /// 8-bit float with 5 exponent and 2 mantissa bits. <https://arxiv.org/abs/2209.05433>
    F8_E5M2 = 7,
    /// 8-bit float with 4 exponent and 3 mantissa bits, no infinities. <https://arxiv.org/abs/2209.05433>
    F8_E4M3 = 8,
    /// 8-bit power-of-two scale of the MX formats. OCP Microscaling Formats 1.0.
    F8_E8M0 = 9,
    /// As [`Dtype::F8_E4M3`] without a negative zero. <https://arxiv.org/abs/2206.02915>
    F8_E4M3FNUZ = 10,
    /// As [`Dtype::F8_E5M2`] without a negative zero. <https://arxiv.org/abs/2206.02915>
    F8_E5M2FNUZ = 11,
    /// Signed 16-bit integer.
    I16 = 12,
    /// Unsigned 16-bit integer.
    U16 = 13,
    /// IEEE 754 half precision.
    F16 = 14,
    /// Brain floating point: the upper half of an F32.
    BF16 = 15,
    /// Signed 32-bit integer.
    I32 = 16,
    /// Unsigned 32-bit integer.
    U32 = 17,
    /// IEEE 754 single precision.
    F32 = 18,
    /// Complex number of two F32 parts.
    C64 = 19,
    /// IEEE 754 double precision.
    F64 = 20,
    /// Signed 64-bit integer.
    I64 = 21,
    /// Unsigned 64-bit integer.
    U64 = 22,
}

impl Dtype {
    /// Every element type, in the order of their numbers.
    pub const ALL: [Dtype; 22] = [
        Dtype::BOOL,
        Dtype::F4,
        Dtype::F6_E2M3,
        Dtype::F6_E3M2,
        Dtype::U8,
        Dtype::I8,
        Dtype::F8_E5M2,
        Dtype::F8_E4M3,
        Dtype::F8_E8M0,
        Dtype::F8_E4M3FNUZ,
        Dtype::F8_E5M2FNUZ,
        Dtype::I16,
        Dtype::U16,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I32,
        Dtype::U32,
        Dtype::F32,
        Dtype::C64,
        Dtype::F64,
        Dtype::I64,
        Dtype::U64,
    ];

    /// The name as headers spell it, for example `"BF16"`.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::BOOL => "BOOL",
            Dtype::F4 => "F4",
            Dtype::F6_E2M3 => "F6_E2M3",
            Dtype::F6_E3M2 => "F6_E3M2",
            Dtype::U8 => "U8",
            Dtype::I8 => "I8",
            Dtype::F8_E5M2 => "F8_E5M2",
            Dtype::F8_E4M3 => "F8_E4M3",
            Dtype::F8_E8M0 => "F8_E8M0",
            Dtype::F8_E4M3FNUZ => "F8_E4M3FNUZ",
            Dtype::F8_E5M2FNUZ => "F8_E5M2FNUZ",
            Dtype::I16 => "I16",
            Dtype::U16 => "U16",
            Dtype::F16 => "F16",
            Dtype::BF16 => "BF16",
            Dtype::I32 => "I32",
            Dtype::U32 => "U32",
            Dtype::F32 => "F32",
            Dtype::C64 => "C64",
            Dtype::F64 => "F64",
            Dtype::I64 => "I64",
            Dtype::U64 => "U64",
        }
    }

    /// The type of that name, if there is one. Names are compared exactly: `"f32"` is none.
    pub(super) fn from_name(name: &[u8]) -> Option<Dtype> {
        Some(match name {
            b"BOOL" => Dtype::BOOL,
            b"F4" => Dtype::F4,
            b"F6_E2M3" => Dtype::F6_E2M3,
            b"F6_E3M2" => Dtype::F6_E3M2,
            b"U8" => Dtype::U8,
            b"I8" => Dtype::I8,
            b"F8_E5M2" => Dtype::F8_E5M2,
            b"F8_E4M3" => Dtype::F8_E4M3,
            b"F8_E8M0" => Dtype::F8_E8M0,
            b"F8_E4M3FNUZ" => Dtype::F8_E4M3FNUZ,
            b"F8_E5M2FNUZ" => Dtype::F8_E5M2FNUZ,
            b"I16" => Dtype::I16,
            b"U16" => Dtype::U16,
            b"F16" => Dtype::F16,
            b"BF16" => Dtype::BF16,
            b"I32" => Dtype::I32,
            b"U32" => Dtype::U32,
            b"F32" => Dtype::F32,
            b"C64" => Dtype::C64,
            b"F64" => Dtype::F64,
            b"I64" => Dtype::I64,
            b"U64" => Dtype::U64,
            _ => return None,
        })
    }

    /// The size of one element in bits: 4, 6, 8, 16, 32 or 64.
    pub const fn bits(self) -> u32 {
        match self {
            Dtype::F4 => 4,
            Dtype::F6_E2M3 | Dtype::F6_E3M2 => 6,
            Dtype::BOOL
            | Dtype::U8
            | Dtype::I8
            | Dtype::F8_E5M2
            | Dtype::F8_E4M3
            | Dtype::F8_E8M0
            | Dtype::F8_E4M3FNUZ
            | Dtype::F8_E5M2FNUZ => 8,
            Dtype::I16 | Dtype::U16 | Dtype::F16 | Dtype::BF16 => 16,
            Dtype::I32 | Dtype::U32 | Dtype::F32 => 32,
            Dtype::C64 | Dtype::F64 | Dtype::I64 | Dtype::U64 => 64,
        }
    }

    /// The alignment in bytes that C asks of such an element: 1, 2, 4 or 8. A complex number is aligned as its parts.
    pub const fn alignment(self) -> usize {
        match self {
            Dtype::C64 => 4,
            _ => match self.bits() {
                16 => 2,
                32 => 4,
                64 => 8,
                _ => 1,
            },
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The error of parsing a [`Dtype`] from a name that no type has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseDtypeError(());

impl fmt::Display for ParseDtypeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no dtype of that name")
    }
}

impl std::error::Error for ParseDtypeError {}

impl FromStr for Dtype {
    type Err = ParseDtypeError;

    fn from_str(name: &str) -> Result<Dtype, ParseDtypeError> {
        Dtype::from_name(name.as_bytes()).ok_or(ParseDtypeError(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_in_the_order_of_the_numbers() {
        for (i, dtype) in Dtype::ALL.into_iter().enumerate() {
            assert_eq!(dtype as usize, i + 1);
        }
    }

    #[test]
    fn name_and_from_str_are_inverse() {
        for dtype in Dtype::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
            assert_eq!(dtype.to_string(), dtype.name());
        }
        for wrong in ["", "f32", "F32 ", "FP32", "F8_E4M3FN", "BOOLEAN"] {
            assert!(wrong.parse::<Dtype>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn bits_and_alignment_fit_each_other() {
        for dtype in Dtype::ALL {
            assert!(dtype.alignment().is_power_of_two());
            assert!(dtype.alignment() * 8 <= dtype.bits().max(8) as usize, "{dtype}");
        }
        assert_eq!(Dtype::C64.alignment(), 4);
    }
}
