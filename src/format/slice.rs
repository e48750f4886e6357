//! Ranges of a tensor to runs of bytes.
//!
//! Elements lie in row-major order, packed. A slice takes one range per leading dimension; what it selects is a set of runs, each
//! contiguous in the file. Dimensions from the right that are selected whole are joined into one run with the last that is not;
//! the dimensions left of it are walked by [`Runs`], which holds one counter per such dimension and nothing per run.

use super::validate::bits_of;
use super::{Dtype, SliceError};
use std::ops::Range;

/// As the end of a range: the end of the dimension.
pub const END: u64 = u64::MAX;

/// A tensor's dtype and shape, and the part of it that ranges select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    dtype: Dtype,
    /// Elements selected per dimension.
    shape: Vec<u64>,
    /// Elements from one index to the next, per dimension of the whole tensor.
    strides: Vec<u64>,
    /// The first selected bit, from the tensor's start. All positions are in bits, since elements may be of 4 or 6.
    start: u64,
    nbits: u64,
    /// Bits of one run.
    run: u64,
    /// The dimensions that are walked, outermost first: at most 63, since each has two elements or more.
    walked: Vec<Walked>,
}

/// A dimension over which runs repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Walked {
    count: u64,
    /// Bits from one index to the next.
    stride: u64,
}

/// Contiguous bytes of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte, from the tensor's start.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Slice {
    /// The part of a tensor of `dtype` and `shape` that `ranges` select: one range of element indices per dimension, from the
    /// first; the dimensions that are left over are taken whole. A range that stops at [`END`] goes to the end of its dimension.
    /// Empty ranges are fine.
    ///
    /// # Errors
    ///
    /// [`SliceError`]: more ranges than dimensions, a range outside of its dimension, or elements of less than a byte that
    /// do not start and end on whole bytes.
    ///
    /// ```
    /// use safetensors_lazy::format::{Dtype, Run, Slice, END};
    ///
    /// // Column 1 of a 3 x 4 matrix of 16-bit floats.
    /// let column = Slice::new(Dtype::F16, &[3, 4], &[0..END, 1..2])?;
    /// let offsets: Vec<u64> = column.runs().map(|run| run.offset).collect();
    /// assert_eq!((column.shape(), column.nbytes(), offsets), (&[3, 1][..], 6, vec![2, 10, 18]));
    ///
    /// // Rows 1 and 2 are one run.
    /// let rows = Slice::new(Dtype::F16, &[3, 4], &[1..3])?;
    /// assert!(rows.runs().eq([Run { offset: 8, len: 16 }]));
    /// # Ok::<(), safetensors_lazy::format::SliceError>(())
    /// ```
    pub fn new(dtype: Dtype, shape: &[u64], ranges: &[Range<u64>]) -> Result<Slice, SliceError> {
        let tensor_bits = bits_of(dtype, shape).ok_or(SliceError::Overflow)?;
        if ranges.len() > shape.len() {
            return Err(SliceError::TooManyRanges { ranges: ranges.len(), rank: shape.len() });
        }
        let mut slice = Slice {
            dtype,
            shape: room(shape.len())?,
            strides: strides_of(shape)?,
            start: 0,
            nbits: 0,
            run: 0,
            walked: Vec::new(),
        };
        let mut starts = room(shape.len())?;
        for (dimension, len) in shape.iter().copied().enumerate() {
            let Range { start, end } = ranges.get(dimension).cloned().unwrap_or(0..END);
            let stop = if end == END { len } else { end };
            if start > stop || stop > len {
                return Err(SliceError::OutOfRange { dimension, start, stop, len });
            }
            starts.push(start);
            slice.shape.push(stop - start);
        }
        if tensor_bits > 0 && !slice.shape.contains(&0) {
            slice.lay_out(shape, &starts);
        }
        match slice.is_on_bytes() {
            true => Ok(slice),
            false => Err(SliceError::PartialByte { dtype }),
        }
    }

    /// Fills in where the bits of a slice with elements lie. Every number here is a position or a size inside the tensor, and so at most
    /// its size in bits, which is known to fit: nothing can overflow.
    fn lay_out(&mut self, tensor_shape: &[u64], starts: &[u64]) {
        let bits = u64::from(self.dtype.bits());
        self.run = bits;
        let mut joined = true;
        let dimensions = tensor_shape.iter().zip(&self.shape).zip(&self.strides).zip(starts);
        for (((len, count), stride), start) in dimensions.rev() {
            self.start += start * stride * bits;
            if joined {
                self.run *= count;
                joined = count == len;
            } else if *count > 1 {
                self.walked.push(Walked { count: *count, stride: stride * bits });
            }
        }
        self.walked.reverse();
        self.nbits = self.walked.iter().fold(self.run, |bits, dimension| bits * dimension.count);
    }

    fn is_on_bytes(&self) -> bool {
        let steps = self.walked.iter().map(|dimension| dimension.stride);
        steps.chain([self.start, self.run]).all(|bits| bits % 8 == 0)
    }

    /// The element type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The selected elements per dimension.
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Elements from one index to the next along each dimension of the tensor that this is a slice of: what a view of the
    /// slice in place needs. (In a tensor without elements a stride that would not fit 64 bits is 0.)
    pub fn strides(&self) -> &[u64] {
        &self.strides
    }

    /// The first selected byte, from the tensor's start; 0 when nothing is selected.
    pub fn offset(&self) -> u64 {
        self.start / 8
    }

    /// The size of the selected elements in bytes.
    pub fn nbytes(&self) -> u64 {
        self.nbits / 8
    }

    /// Whether the selected bytes are one run, or none.
    pub fn is_contiguous(&self) -> bool {
        self.walked.is_empty()
    }

    /// The runs of bytes that make up the slice, in the order of its elements. Neighbours never touch: what is contiguous is one run.
    pub fn runs(&self) -> Runs<'_> {
        self.runs_from(0)
    }

    /// As [`Slice::runs`], without the first `skipped`.
    fn runs_from(&self, skipped: u64) -> Runs<'_> {
        let remaining = self.nbits.checked_div(self.run).unwrap_or(0).saturating_sub(skipped);
        let mut runs = Runs { slice: self, at: self.start, counters: vec![0; self.walked.len()], remaining };
        let mut left = if remaining > 0 { skipped } else { 0 };
        for (counter, dimension) in runs.counters.iter_mut().zip(&self.walked).rev() {
            *counter = left % dimension.count;
            runs.at += *counter * dimension.stride;
            left /= dimension.count;
        }
        runs
    }

    /// The runs, or parts of them, that hold the bytes `packed` of the slice: counted without what lies between its runs. Takes no
    /// longer for bytes at its end.
    ///
    /// ```
    /// use safetensors_lazy::format::{Dtype, Run, Slice, END};
    ///
    /// // Two columns of a matrix of bytes: 4 5, 10 11, 16 17.
    /// let columns = Slice::new(Dtype::U8, &[3, 6], &[0..END, 4..6])?;
    /// assert!(columns.runs_within(1..4).eq([Run { offset: 5, len: 1 }, Run { offset: 10, len: 2 }]));
    /// # Ok::<(), safetensors_lazy::format::SliceError>(())
    /// ```
    pub fn runs_within(&self, packed: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let stop = packed.end.min(self.nbytes());
        let len = (self.run / 8).max(1);
        let mut at = packed.start.min(stop) / len * len;
        let runs = if packed.start < stop { self.runs_from(at / len) } else { self.runs_from(u64::MAX) };
        runs.map_while(move |run| {
            let (start, stop) = (at.max(packed.start), (at + run.len).min(stop));
            let part = Run { offset: run.offset + (start - at), len: stop.checked_sub(start)? };
            at += run.len;
            (part.len > 0).then_some(part)
        })
    }
}

/// The number of elements from one index to the next, per dimension, in row-major order.
fn strides_of(shape: &[u64]) -> Result<Vec<u64>, SliceError> {
    let mut strides = room(shape.len())?;
    let mut stride = 1u64;
    for len in shape.iter().rev() {
        strides.push(stride);
        // Only a tensor without elements can have such dimensions; no element is ever a stride away from another there.
        stride = stride.checked_mul(*len).unwrap_or(0);
    }
    strides.reverse();
    Ok(strides)
}

/// Room for a number per dimension, of which a stranger's tensor may have millions.
fn room(rank: usize) -> Result<Vec<u64>, SliceError> {
    let mut numbers = Vec::new();
    numbers.try_reserve_exact(rank).map_err(|_| SliceError::NoMemory { rank })?;
    Ok(numbers)
}

/// The runs of a [`Slice`]. Made by [`Slice::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'s> {
    slice: &'s Slice,
    at: u64,
    /// The index in each walked dimension.
    counters: Vec<u64>,
    remaining: u64,
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        self.remaining = self.remaining.checked_sub(1)?;
        let run = Run { offset: self.at / 8, len: self.slice.run / 8 };
        for (counter, dimension) in self.counters.iter_mut().zip(&self.slice.walked).rev() {
            if *counter + 1 < dimension.count {
                *counter += 1;
                self.at += dimension.stride;
                break;
            }
            self.at -= *counter * dimension.stride;
            *counter = 0;
        }
        Some(run)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match usize::try_from(self.remaining) {
            Ok(remaining) => (remaining, Some(remaining)),
            Err(_) => (usize::MAX, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(dtype: Dtype, shape: &[u64], ranges: &[Range<u64>]) -> Vec<(u64, u64)> {
        Slice::new(dtype, shape, ranges).unwrap().runs().map(|run| (run.offset, run.len)).collect()
    }

    #[test]
    fn runs_join_what_is_contiguous() {
        assert_eq!(runs(Dtype::F32, &[4, 5], &[]), [(0, 80)]);
        assert_eq!(runs(Dtype::F32, &[4, 5], &[1..3]), [(20, 40)]);
        assert_eq!(runs(Dtype::F32, &[4, 5], &[1..2, 1..3]), [(24, 8)]);
        assert_eq!(runs(Dtype::F32, &[4, 5], &[1..3, 1..3]), [(24, 8), (44, 8)]);
        assert_eq!(runs(Dtype::U8, &[2, 1, 3], &[0..END, 0..1, 0..3]), [(0, 6)]);
        assert_eq!(runs(Dtype::U8, &[2, 2, 2, 2], &[0..2, 1..2, 0..2, 0..1]), [(4, 1), (6, 1), (12, 1), (14, 1)]);
    }

    #[test]
    fn runs_within_are_the_bytes_of_the_runs() {
        let ranges: [&[Range<u64>]; 5] = [&[], &[1..3], &[0..END, 1..4], &[1..4, 0..END, 2..3], &[2..2]];
        for (dtype, ranges) in [Dtype::U8, Dtype::F32, Dtype::F4].into_iter().flat_map(|d| ranges.map(|r| (d, r))) {
            let Ok(slice) = Slice::new(dtype, &[4, 5, 6], ranges) else { continue };
            let bytes: Vec<u64> = slice.runs().flat_map(|run| run.offset..run.offset + run.len).collect();
            for start in 0..=slice.nbytes() {
                for stop in (start..=slice.nbytes() + 1).step_by(3) {
                    let parts = slice.runs_within(start..stop).flat_map(|run| run.offset..run.offset + run.len);
                    let expected = &bytes[start as usize..stop.min(slice.nbytes()) as usize];
                    assert!(parts.eq(expected.iter().copied()), "{dtype} {ranges:?} {start}..{stop}");
                }
            }
            assert_eq!(slice.runs_within(u64::MAX - 1..u64::MAX).next(), None);
        }
    }

    #[test]
    fn runs_of_scalars_and_of_nothing() {
        assert_eq!(runs(Dtype::F64, &[], &[]), [(0, 8)]);
        assert_eq!(runs(Dtype::F64, &[3, 0], &[]), []);
        assert_eq!(runs(Dtype::F64, &[3, 2], &[1..1]), []);
        assert_eq!(runs(Dtype::F64, &[3, 2], &[3..3, 0..1]), []);
        let slice = Slice::new(Dtype::F64, &[3, 2], &[1..1]).unwrap();
        assert_eq!((slice.shape(), slice.nbytes(), slice.is_contiguous()), (&[0, 2][..], 0, true));
    }

    #[test]
    fn new_refuses_ranges_outside_with_the_numbers() {
        let refused = |ranges: &[Range<u64>]| Slice::new(Dtype::F32, &[4, 5], ranges).unwrap_err();
        let out_of_range = |dimension, start, stop, len| SliceError::OutOfRange { dimension, start, stop, len };
        assert_eq!(refused(&[0..5]), out_of_range(0, 0, 5, 4));
        assert_eq!(refused(&[0..4, 6..END]), out_of_range(1, 6, 5, 5));
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = [3..2];
        assert_eq!(refused(&reversed), out_of_range(0, 3, 2, 4));
        assert_eq!(refused(&[0..1, 0..1, 0..1]), SliceError::TooManyRanges { ranges: 3, rank: 2 });
    }

    #[test]
    fn new_keeps_small_elements_on_whole_bytes() {
        assert_eq!(runs(Dtype::F4, &[4, 4], &[0..4, 2..4]), [(1, 1), (3, 1), (5, 1), (7, 1)]);
        assert_eq!(runs(Dtype::F6_E3M2, &[2, 4], &[1..2]), [(3, 3)]);
        // Rows of 3 four-bit elements: the tensor fills bytes, its second row starts inside one.
        assert_eq!(runs(Dtype::F4, &[4, 3], &[]), [(0, 6)]);
        assert_eq!(runs(Dtype::F4, &[4, 3], &[2..4]), [(3, 3)]);
        for ranges in [vec![1..2], vec![0..1], vec![0..2, 0..2]] {
            let refused = Slice::new(Dtype::F4, &[4, 3], &ranges).unwrap_err();
            assert_eq!(refused, SliceError::PartialByte { dtype: Dtype::F4 }, "{ranges:?}");
        }
    }

    #[test]
    fn strides_are_those_of_the_whole_tensor() {
        let slice = Slice::new(Dtype::F32, &[4, 5, 6], &[1..3, 2..3]).unwrap();
        assert_eq!((slice.strides(), slice.offset()), (&[30, 6, 1][..], 168));
        assert!(!slice.is_contiguous());
        const HALF: u64 = 1 << 63;
        assert_eq!(Slice::new(Dtype::F32, &[0, HALF, HALF], &[]).unwrap().strides(), [0, HALF, 1]);
    }

    #[test]
    fn runs_of_a_column_hold_no_list() {
        let column = Slice::new(Dtype::BF16, &[150_000, 8192], &[0..END, 7..8]).unwrap();
        let runs = column.runs();
        assert_eq!((runs.size_hint(), runs.counters.len()), ((150_000, Some(150_000)), 1));
        assert_eq!(runs.last(), Some(Run { offset: (149_999 * 8192 + 7) * 2, len: 2 }));
    }

    #[test]
    fn new_refuses_sizes_beyond_64_bits() {
        assert_eq!(Slice::new(Dtype::F32, &[u64::MAX, 2], &[]), Err(SliceError::Overflow));
    }
}
