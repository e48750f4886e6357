//! Section "About the library".

use super::error::{st_status, ST_ERR_NOT_FOUND, ST_OK};
use super::guard::{guard_status, guard_value};
use super::handle::{c_bytes, output};
use crate::format::Dtype;
use std::ffi::{c_char, CStr};

/// The number in the shared library's soname.
const ABI_VERSION: u32 = 1;

/// The type of a tensor's elements: one of ST_DTYPE_*.
pub type st_dtype = i32;

/// One byte, 0 or 1.
pub const ST_DTYPE_BOOL: st_dtype = 1;
/// MXFP4 (E2M1): 4 bits, packed.
pub const ST_DTYPE_F4: st_dtype = 2;
/// MXFP6 (E2M3): 6 bits, packed.
pub const ST_DTYPE_F6_E2M3: st_dtype = 3;
/// MXFP6 (E3M2): 6 bits, packed.
pub const ST_DTYPE_F6_E3M2: st_dtype = 4;
/// uint8_t.
pub const ST_DTYPE_U8: st_dtype = 5;
/// int8_t.
pub const ST_DTYPE_I8: st_dtype = 6;
/// 8-bit float: 5 exponent bits, 2 mantissa bits.
pub const ST_DTYPE_F8_E5M2: st_dtype = 7;
/// 8-bit float: 4 exponent bits, 3 mantissa bits, no infinities.
pub const ST_DTYPE_F8_E4M3: st_dtype = 8;
/// 8-bit scale of the MX formats: a power of two.
pub const ST_DTYPE_F8_E8M0: st_dtype = 9;
/// F8_E4M3 without a negative zero.
pub const ST_DTYPE_F8_E4M3FNUZ: st_dtype = 10;
/// F8_E5M2 without a negative zero.
pub const ST_DTYPE_F8_E5M2FNUZ: st_dtype = 11;
/// int16_t.
pub const ST_DTYPE_I16: st_dtype = 12;
/// uint16_t.
pub const ST_DTYPE_U16: st_dtype = 13;
/// IEEE 754 half precision.
pub const ST_DTYPE_F16: st_dtype = 14;
/// bfloat16: the upper half of an F32.
pub const ST_DTYPE_BF16: st_dtype = 15;
/// int32_t.
pub const ST_DTYPE_I32: st_dtype = 16;
/// uint32_t.
pub const ST_DTYPE_U32: st_dtype = 17;
/// float.
pub const ST_DTYPE_F32: st_dtype = 18;
/// Complex number of two floats.
pub const ST_DTYPE_C64: st_dtype = 19;
/// double.
pub const ST_DTYPE_F64: st_dtype = 20;
/// int64_t.
pub const ST_DTYPE_I64: st_dtype = 21;
/// uint64_t.
pub const ST_DTYPE_U64: st_dtype = 22;

/// Returns the version of the library, for example "0.1.0". The string lives for ever.
#[no_mangle]
pub extern "C" fn st_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

/// Returns the number in the shared library's soname. It grows when a program that was linked against an older library would no
/// longer work.
#[no_mangle]
pub extern "C" fn st_abi_version() -> u32 {
    ABI_VERSION
}

/// Returns the name of a dtype as headers of files spell it, for example "BF16"; NULL for a number that is none. The string lives
/// for ever.
#[no_mangle]
pub extern "C" fn st_dtype_name(dtype: st_dtype) -> *const c_char {
    guard_value(std::ptr::null(), || Some(c_name(dtype_of(dtype)?).as_ptr()))
}

/// Returns the size of one element in bits: 4, 6, 8, 16, 32 or 64; 0 for a number that is no dtype.
#[no_mangle]
pub extern "C" fn st_dtype_bits(dtype: st_dtype) -> u32 {
    guard_value(0, || Some(dtype_of(dtype)?.bits()))
}

/// Finds a dtype by its name, for example "BF16". Names are compared exactly.
///
/// ST_ERR_INVALID_ARGUMENT: `name` or `out` is NULL.
/// ST_ERR_NOT_FOUND: there is no dtype of that name.
#[no_mangle]
pub unsafe extern "C" fn st_dtype_from_name(name: *const c_char, out: *mut st_dtype) -> st_status {
    guard_status(|| {
        // SAFETY: the header's rules for strings and outputs.
        let (name, out) = unsafe { (c_bytes(name, "name").ok()?, output(out, "out").ok()?) };
        let Some(dtype) = std::str::from_utf8(name).ok().and_then(|name| name.parse::<Dtype>().ok()) else {
            return Some(ST_ERR_NOT_FOUND);
        };
        out.write(number_of(dtype));
        Some(ST_OK)
    })
}

/// The `st_dtype` of a dtype.
pub(super) fn number_of(dtype: Dtype) -> st_dtype {
    dtype as st_dtype
}

pub(super) fn dtype_of(number: st_dtype) -> Option<Dtype> {
    Dtype::ALL.into_iter().find(|dtype| number_of(*dtype) == number)
}

fn c_name(dtype: Dtype) -> &'static CStr {
    match dtype {
        Dtype::BOOL => c"BOOL",
        Dtype::F4 => c"F4",
        Dtype::F6_E2M3 => c"F6_E2M3",
        Dtype::F6_E3M2 => c"F6_E3M2",
        Dtype::U8 => c"U8",
        Dtype::I8 => c"I8",
        Dtype::F8_E5M2 => c"F8_E5M2",
        Dtype::F8_E4M3 => c"F8_E4M3",
        Dtype::F8_E8M0 => c"F8_E8M0",
        Dtype::F8_E4M3FNUZ => c"F8_E4M3FNUZ",
        Dtype::F8_E5M2FNUZ => c"F8_E5M2FNUZ",
        Dtype::I16 => c"I16",
        Dtype::U16 => c"U16",
        Dtype::F16 => c"F16",
        Dtype::BF16 => c"BF16",
        Dtype::I32 => c"I32",
        Dtype::U32 => c"U32",
        Dtype::F32 => c"F32",
        Dtype::C64 => c"C64",
        Dtype::F64 => c"F64",
        Dtype::I64 => c"I64",
        Dtype::U64 => c"U64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c_names_are_the_names() {
        for dtype in Dtype::ALL {
            assert_eq!(c_name(dtype).to_str(), Ok(dtype.name()));
        }
    }

    #[test]
    fn st_version_is_the_crates() {
        // SAFETY: a string that lives for ever.
        assert_eq!(unsafe { CStr::from_ptr(st_version()) }.to_str(), Ok(env!("CARGO_PKG_VERSION")));
    }
}
