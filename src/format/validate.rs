//! The rules over a directory as a whole, in the order of the reference implementation's `Metadata::validate`.

use super::directory::{Directory, Entry};
use super::{Dtype, HeaderError};
use crate::quote::excerpt;
use std::fmt::Write;

/// Checks that the tensors of `directory` cover a data section without gap or overlap, each with the size that its dtype and
/// shape need, and gives the length of that section in bytes.
pub fn validate(directory: &Directory) -> Result<u64, HeaderError> {
    let tensors = &directory.tensors;
    // The header may list tensors in any order; the rules are about the order of their bytes. Most headers are in that order already:
    // if they pass, sorting would have changed nothing.
    if let Ok(len) = check_in_order(directory, tensors.iter()) {
        return Ok(len);
    }
    let mut by_offset: Vec<&Entry> = Vec::new();
    by_offset
        .try_reserve_exact(tensors.len())
        .map_err(|_| HeaderError::NoMemory { header_len: directory.text.len() })?;
    by_offset.extend(tensors);
    by_offset.sort_unstable_by_key(|entry| (entry.start, entry.stop));
    check_in_order(directory, by_offset.into_iter())
}

fn check_in_order<'d>(directory: &Directory, by_offset: impl Iterator<Item = &'d Entry>) -> Result<u64, HeaderError> {
    let mut expected = 0;
    for entry in by_offset {
        let Entry { dtype, start, stop, .. } = *entry;
        let tensor = || excerpt(std::str::from_utf8(entry.name.of(&directory.text)).unwrap_or_default());
        if stop < start {
            return Err(HeaderError::OffsetsReversed { tensor: tensor(), start, stop });
        }
        if start > expected {
            return Err(HeaderError::OffsetsGap { tensor: tensor(), start, expected });
        }
        if start < expected {
            return Err(HeaderError::OffsetsOverlap { tensor: tensor(), start, expected });
        }
        expected = stop;

        let shape = directory.shape(entry);
        let Some(bits) = bits_of(dtype, shape) else {
            return Err(HeaderError::Overflow { tensor: tensor(), dtype, shape: shape_text(shape) });
        };
        if bits % 8 != 0 {
            return Err(HeaderError::PartialByte { tensor: tensor(), dtype, bits });
        }
        let (needed, spanned) = (bits / 8, stop - start);
        if needed != spanned {
            let shape = shape_text(shape);
            return Err(HeaderError::Size { tensor: tensor(), dtype, shape, needed, spanned });
        }
    }
    Ok(expected)
}

/// The size of a tensor in bits. Dimensions are multiplied from first to last, as the reference does: `[0, 2^63, 2]` is a size, and
/// `[2^63, 2, 0]` is not.
pub(crate) fn bits_of(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |product, dim| product.checked_mul(*dim))?;
    elements.checked_mul(u64::from(dtype.bits()))
}

/// A shape for a message: all of it up to 8 dimensions.
pub(crate) fn shape_text(shape: &[u64]) -> String {
    let mut text = String::from("[");
    for (i, dim) in shape.iter().take(8).enumerate() {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{dim}", if i == 0 { "" } else { ", " });
    }
    if shape.len() > 8 {
        let _ = write!(text, ", ... {} in all", shape.len());
    }
    text + "]"
}

#[cfg(test)]
mod tests {
    use super::super::json;
    use super::*;

    fn verdict(tensors: &str) -> Result<u64, HeaderError> {
        validate(&json::parse(tensors).unwrap())
    }

    #[test]
    fn validate_gives_the_length_of_the_data() {
        assert_eq!(verdict("{}"), Ok(0));
        assert_eq!(verdict(r#"{"b":["F32",[2],[4,12]],"a":["F16",[2],[0,4]]}"#), Ok(12));
        assert_eq!(verdict(r#"{"z":["F32",[0],[4,4]],"a":["F16",[2],[0,4]],"y":["F32",[7,0],[4,4]]}"#), Ok(4));
    }

    #[test]
    fn validate_tells_reversed_gap_and_overlap_apart() {
        use HeaderError as E;
        assert!(matches!(verdict(r#"{"a":["I8",[],[1,0]]}"#), Err(E::OffsetsReversed { start: 1, stop: 0, .. })));
        assert!(matches!(verdict(r#"{"a":["I8",[],[1,2]]}"#), Err(E::OffsetsGap { start: 1, expected: 0, .. })));
        assert!(matches!(
            verdict(r#"{"a":["I8",[2],[0,2]],"b":["I8",[2],[1,3]]}"#),
            Err(E::OffsetsOverlap { start: 1, expected: 2, .. })
        ));
    }

    #[test]
    fn validate_checks_sizes() {
        use HeaderError as E;
        assert!(matches!(verdict(r#"{"a":["F32",[2],[0,4]]}"#), Err(E::Size { needed: 8, spanned: 4, .. })));
        assert!(matches!(verdict(r#"{"a":["F4",[3],[0,2]]}"#), Err(E::PartialByte { bits: 12, .. })));
        assert_eq!(verdict(r#"{"a":["F6_E2M3",[4],[0,3]]}"#), Ok(3));
    }

    #[test]
    fn bits_of_multiplies_in_order() {
        const HALF: u64 = 1 << 63;
        assert_eq!(bits_of(Dtype::I8, &[0, HALF, 2]), Some(0));
        assert_eq!(bits_of(Dtype::I8, &[HALF, 2, 0]), None);
        assert_eq!(bits_of(Dtype::I8, &[1 << 61]), None);
        assert_eq!(bits_of(Dtype::F4, &[1 << 61]), Some(1 << 63));
        assert_eq!(bits_of(Dtype::F64, &[]), Some(64));
    }

    #[test]
    fn shape_text_shortens_long_shapes() {
        assert_eq!(shape_text(&[]), "[]");
        assert_eq!(shape_text(&[2, 3]), "[2, 3]");
        assert_eq!(shape_text(&[1; 1000]), "[1, 1, 1, 1, 1, 1, 1, 1, ... 1000 in all]");
    }
}
