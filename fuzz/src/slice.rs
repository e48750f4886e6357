//! Bytes as a dtype, a shape and ranges: what a slice says of itself is true, whatever the numbers.

use super::input::Input;
use safetensors_lazy::format::{Slice, SliceError, END};
use safetensors_lazy::Dtype;
use std::ops::Range;

/// More runs than this are not walked: a slice may have 2^64.
const MOST_RUNS: u64 = 10_000;

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let dtype = Dtype::ALL[usize::from(input.byte()) % Dtype::ALL.len()];
    let shape: Vec<u64> = (0..input.byte() % 9).map(|_| input.number()).collect();
    let ranges: Vec<Range<u64>> = (0..input.byte() % 10).map(|_| input.number()..input.number()).collect();
    let tensor_bits = bits_of(dtype, &shape);
    match Slice::new(dtype, &shape, &ranges) {
        Ok(slice) => {
            let tensor_bits = tensor_bits.expect("a size beyond 64 bits is refused");
            has_the_ranges(&slice, &shape, &ranges);
            runs_are_sound(&slice, tensor_bits / 8);
        }
        Err(SliceError::Overflow) => assert_eq!(tensor_bits, None),
        Err(SliceError::TooManyRanges { .. }) => assert!(ranges.len() > shape.len()),
        Err(SliceError::OutOfRange { dimension, start, stop, len }) => {
            assert_eq!((shape[dimension], ranges[dimension].start), (len, start));
            assert!(ranges[dimension].end == stop || (ranges[dimension].end == END && stop == len));
            assert!(start > stop || stop > len);
        }
        Err(SliceError::PartialByte { .. }) => assert!(dtype.bits() < 8),
        Err(other) => panic!("{other}"),
    }
}

fn bits_of(dtype: Dtype, shape: &[u64]) -> Option<u64> {
    let elements = shape.iter().try_fold(1u64, |product, len| product.checked_mul(*len))?;
    elements.checked_mul(u64::from(dtype.bits()))
}

fn has_the_ranges(slice: &Slice, shape: &[u64], ranges: &[Range<u64>]) {
    assert_eq!((slice.shape().len(), slice.strides().len()), (shape.len(), shape.len()));
    for (dimension, count) in slice.shape().iter().enumerate() {
        let len = shape[dimension];
        let expected = match ranges.get(dimension) {
            Some(range) if range.end == END => len - range.start,
            Some(range) => range.end - range.start,
            None => len,
        };
        assert_eq!(*count, expected);
    }
    assert_eq!(Some(slice.nbytes()), bits_of(slice.dtype(), slice.shape()).map(|bits| bits / 8));
}

fn runs_are_sound(slice: &Slice, tensor_bytes: u64) {
    let runs = slice.runs();
    let number = runs.size_hint().1.expect("fits 64 bits") as u64;
    let (mut walked, mut bytes, mut last_stop) = (0, 0u64, None);
    for run in runs.take(MOST_RUNS as usize) {
        assert!(run.len > 0 && last_stop.is_none_or(|stop| run.offset > stop));
        let stop = run.offset + run.len;
        assert!(stop <= tensor_bytes);
        if last_stop.is_none() {
            assert_eq!(run.offset, slice.offset());
        }
        (walked, bytes, last_stop) = (walked + 1, bytes + run.len, Some(stop));
    }
    assert_eq!(walked, number.min(MOST_RUNS));
    if number <= MOST_RUNS {
        assert_eq!(bytes, slice.nbytes());
    }
    assert_eq!(slice.is_contiguous(), number <= 1);
}
