//! Which block of a tensor a layout gives to which rank: MindSpore's rule.
//!
//! Devices form a matrix with an axis per kind of parallelism. A rank's position, unravelled over the matrix, is its coordinate on
//! each axis. Each dimension of a tensor names the axes that it is split over, and a rank takes the part that its coordinates there
//! select. Ranks that differ only on axes which no dimension names hold the same block, unless an optimizer shard splits that among
//! them.
//!
//! So do `load_distributed_checkpoint` and `unified_safetensors` of MindSpore 2.10, whose results `tests/data/mindspore/` has.

use super::{RankError, MAX_DIMENSIONS};
use std::ops::Range;

/// The most axes that a device matrix has. Real ones have a handful; a number beyond this is garbage.
const MAX_AXES: usize = 64;

/// How a tensor lies on a matrix of devices: `mindspore.parallel.Layout`, and what a strategy file says of a parameter.
///
/// ```
/// use safetensors_lazy::format::Layout;
///
/// // 2 x 4 devices; rows over the last axis, columns whole; the two devices that hold the same rows share them.
/// let layout =
///     Layout { device_matrix: &[2, 4], tensor_map: &[0, -1], tensor_map_starts: None, optimizer_shard: 2 };
/// assert_eq!(layout.ranges(&[16, 8], 1)?, [4..6, 0..8]);
/// assert_eq!(layout.ranges(&[16, 8], 5)?, [6..8, 0..8]);
/// # Ok::<(), safetensors_lazy::format::RankError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Layout<'l> {
    /// The number of devices along each axis. Ranks count along the last axis first.
    pub device_matrix: &'l [u64],
    /// The axes that the dimensions are split over, from the first dimension: 0 is the last axis of the matrix, 1 the one before
    /// it. -1 is no axis. No axis may occur twice.
    pub tensor_map: &'l [i64],
    /// `None`: one entry of `tensor_map` per dimension. Otherwise one offset into it more than there are dimensions: dimension d is
    /// split over the entries from `tensor_map_starts[d]` to before `tensor_map_starts[d + 1]`, of which the first is the most
    /// significant. -1 may only be the last of them, as MindSpore has it; without entries the dimension is not split.
    pub tensor_map_starts: Option<&'l [usize]>,
    /// Into how many parts the first dimension of a block is split once more, among the ranks that would otherwise hold the same
    /// block. 0: it is not; -1: as many as there are such ranks.
    pub optimizer_shard: i64,
}

impl Layout<'_> {
    /// The block of a tensor of `shape` that belongs to a rank: one range per dimension. `rank_id` counts within the pipeline stage;
    /// beyond the last device it begins again at the first.
    ///
    /// # Errors
    ///
    /// [`RankError::Layout`]: the layout contradicts itself or the shape. [`RankError::NotDivisible`]: a dimension, or what is left of
    /// the first one for the optimizer shard, cannot be split into equal parts. [`RankError::NoMemory`]: for the ranges. None of
    /// them depends on the rank.
    pub fn ranges(&self, shape: &[u64], rank_id: u32) -> Result<Vec<Range<u64>>, RankError> {
        let rank = shape.len();
        Layout::check_lens(self.device_matrix.len(), self.tensor_map.len(), self.tensor_map_starts.is_some(), rank)?;
        self.check_starts(rank)?;
        let mut place = Place::new(self.device_matrix, rank_id)?;
        let mut ranges = Vec::new();
        ranges.try_reserve_exact(rank).map_err(|_| RankError::NoMemory { rank })?;
        for (dimension, len) in shape.iter().copied().enumerate() {
            let part = place.take_over(dimension, self.entries_of(dimension)?)?;
            ranges.push(part.of(dimension, 0..len)?);
        }
        if self.optimizer_shard != 0 {
            let Some(first) = ranges.first_mut() else {
                return refuse("an optimizer shard splits the first dimension, and the tensor has none".to_owned());
            };
            let part = self.optimizer_part(place.free()?)?;
            *first = part.of(0, first.clone())?;
        }
        Ok(ranges)
    }

    /// Whether arrays of these lengths can be a layout of a tensor of `rank` dimensions. To be asked before arrays from C are
    /// touched: their lengths may be garbage.
    pub(crate) fn check_lens(axes: usize, entries: usize, nested: bool, rank: usize) -> Result<(), RankError> {
        if axes == 0 {
            return refuse("the device matrix is empty".to_owned());
        }
        if axes > MAX_AXES {
            return refuse(format!("the device matrix has {axes} axes, more than the limit of {MAX_AXES}"));
        }
        if rank > MAX_DIMENSIONS {
            return refuse(format!("a tensor cannot have {rank} dimensions: the limit is {MAX_DIMENSIONS}"));
        }
        match nested {
            false if entries != rank => {
                refuse(format!("the tensor map has {entries} entries for a tensor of {rank} dimensions"))
            }
            // Each axis once, and at most one -1 for each dimension.
            true if entries > rank.saturating_add(axes) => refuse(format!(
                "the tensor map has {entries} entries, too many for a tensor of {rank} dimensions over {axes} axes"
            )),
            _ => Ok(()),
        }
    }

    fn check_starts(&self, rank: usize) -> Result<(), RankError> {
        let Some(starts) = self.tensor_map_starts else { return Ok(()) };
        let entries = self.tensor_map.len();
        match starts {
            _ if starts.len().checked_sub(1) != Some(rank) => {
                refuse(format!("tensor_map_starts has {} offsets for a tensor of {rank} dimensions", starts.len()))
            }
            [first, ..] if *first != 0 => refuse(format!("tensor_map_starts begins with {first}, not with 0")),
            [.., last] if *last != entries => {
                refuse(format!("tensor_map_starts ends with {last}, not with the {entries} entries of the tensor map"))
            }
            _ => Ok(()),
        }
    }

    /// The entries of the tensor map for a dimension.
    fn entries_of(&self, dimension: usize) -> Result<&[i64], RankError> {
        let (start, stop) = match self.tensor_map_starts {
            None => (dimension, dimension + 1),
            Some(starts) => match starts.get(dimension..) {
                Some([start, stop, ..]) => (*start, *stop),
                _ => return Err(RankError::Internal("a dimension has no offsets, of which there are as many")),
            },
        };
        match self.tensor_map.get(start..stop) {
            Some(entries) => Ok(entries),
            None => refuse(format!(
                "tensor_map_starts gives dimension {dimension} the entries from {start} to {stop} of {} in the tensor map",
                self.tensor_map.len()
            )),
        }
    }

    /// The part of its block that the optimizer shard leaves to a rank; `free` is its place among the ranks with the same block.
    fn optimizer_part(&self, free: Part) -> Result<Part, RankError> {
        let parts = match self.optimizer_shard {
            -1 => free.count,
            shard => match u64::try_from(shard) {
                Ok(parts) => parts,
                Err(_) => return refuse(format!("the optimizer shard is {shard}, neither a number of parts nor -1")),
            },
        };
        // Otherwise some parts would belong to more ranks than others, or to none.
        if free.count % parts != 0 {
            return refuse(format!(
                "an optimizer shard of {parts} parts does not divide the {} ranks that hold the same block",
                free.count
            ));
        }
        Ok(Part { index: free.index % parts, count: parts })
    }
}

fn refuse<T>(reason: String) -> Result<T, RankError> {
    Err(RankError::Layout { reason })
}

/// One of `count` equal parts, of which there is at least one.
#[derive(Clone, Copy, Debug)]
struct Part {
    index: u64,
    count: u64,
}

impl Part {
    const WHOLE: Part = Part { index: 0, count: 1 };

    /// A part of this part. The caller knows that the product of both counts fits 64 bits.
    fn then(self, inner: Part) -> Part {
        Part { index: self.index * inner.count + inner.index, count: self.count * inner.count }
    }

    /// This part of a range of a dimension.
    fn of(self, dimension: usize, range: Range<u64>) -> Result<Range<u64>, RankError> {
        let len = range.end - range.start;
        if len % self.count != 0 {
            return Err(RankError::NotDivisible { dimension, len, parts: self.count });
        }
        // The index is below the count, so this stays inside the range.
        let start = range.start + len / self.count * self.index;
        Ok(start..start + len / self.count)
    }
}

/// Where a rank stands in the device matrix, and which axes have been given to dimensions.
struct Place<'l> {
    device_matrix: &'l [u64],
    rank_id: u64,
    /// Bit i is axis i, in the numbering of tensor maps: 0 is the last one.
    used: u64,
}

impl Place<'_> {
    /// All products of numbers of devices are at most that of all, which is known to fit from here on.
    fn new(device_matrix: &[u64], rank_id: u32) -> Result<Place<'_>, RankError> {
        if let Some(axis) = device_matrix.iter().position(|devices| *devices == 0) {
            return refuse(format!("device_matrix[{axis}] is 0"));
        }
        if device_matrix.iter().try_fold(1u64, |product, devices| product.checked_mul(*devices)).is_none() {
            return refuse("the device matrix has more devices than 64 bits can count".to_owned());
        }
        Ok(Place { device_matrix, rank_id: rank_id.into(), used: 0 })
    }

    /// The rank's part of what is split over one axis, if there is such an axis. Ranks beyond the last device begin again at the first:
    /// their coordinates do, on every axis.
    fn along(&self, axis: usize) -> Option<Part> {
        let mut from_the_last = self.device_matrix.iter().rev();
        let stride: u64 = from_the_last.by_ref().take(axis).product();
        let count = *from_the_last.next()?;
        Some(Part { index: self.rank_id / stride % count, count })
    }

    /// The rank's part of a dimension that is split over these entries of the tensor map. They are not free after this.
    fn take_over(&mut self, dimension: usize, entries: &[i64]) -> Result<Part, RankError> {
        let named = match entries {
            [named @ .., -1] => named,
            named => named,
        };
        let mut part = Part::WHOLE;
        for entry in named {
            let axis = usize::try_from(*entry).ok();
            let Some((axis, along)) = axis.and_then(|axis| Some((axis, self.along(axis)?))) else {
                return refuse(self.no_such_axis(dimension, *entry));
            };
            if self.used & 1 << axis != 0 {
                return refuse(format!("the tensor map has axis {axis} again for dimension {dimension}"));
            }
            self.used |= 1 << axis;
            part = part.then(along);
        }
        Ok(part)
    }

    fn no_such_axis(&self, dimension: usize, entry: i64) -> String {
        match entry {
            -1 => format!("the tensor map has more entries for dimension {dimension} after a -1"),
            _ => {
                let last = self.device_matrix.len().saturating_sub(1);
                format!("the tensor map has axis {entry} for dimension {dimension}, and the axes are 0 to {last}")
            }
        }
    }

    /// The rank's place among those that differ from it only on axes that no dimension has taken.
    fn free(&self) -> Result<Part, RankError> {
        let axes = (0..self.device_matrix.len()).rev().filter(|axis| self.used & 1 << axis == 0);
        let along = |axis| self.along(axis).ok_or(RankError::Internal("a device matrix lacks an axis"));
        axes.map(along).try_fold(Part::WHOLE, |part, inner| Ok(part.then(inner?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout<'l>(device_matrix: &'l [u64], tensor_map: &'l [i64]) -> Layout<'l> {
        Layout { device_matrix, tensor_map, tensor_map_starts: None, optimizer_shard: 0 }
    }

    fn nested<'l>(device_matrix: &'l [u64], tensor_map: &'l [i64], starts: &'l [usize]) -> Layout<'l> {
        Layout { tensor_map_starts: Some(starts), ..layout(device_matrix, tensor_map) }
    }

    fn sharded<'l>(device_matrix: &'l [u64], tensor_map: &'l [i64], optimizer_shard: i64) -> Layout<'l> {
        Layout { optimizer_shard, ..layout(device_matrix, tensor_map) }
    }

    /// The first range of each rank.
    fn first_ranges(layout: Layout, shape: &[u64], ranks: u32) -> Vec<Range<u64>> {
        (0..ranks).map(|rank| layout.ranges(shape, rank).unwrap()[0].clone()).collect()
    }

    fn reason(layout: Layout, shape: &[u64]) -> String {
        match layout.ranges(shape, 0) {
            Err(RankError::Layout { reason }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ranges_count_axes_from_the_last() {
        let both = layout(&[2, 3], &[1, 0]);
        assert_eq!(both.ranges(&[4, 6], 0).unwrap(), [0..2, 0..2]);
        assert_eq!(both.ranges(&[4, 6], 1).unwrap(), [0..2, 2..4]);
        assert_eq!(both.ranges(&[4, 6], 5).unwrap(), [2..4, 4..6]);
        assert_eq!(layout(&[2, 3], &[0, 1]).ranges(&[3, 2], 5).unwrap(), [2..3, 1..2]);
    }

    #[test]
    fn ranges_begin_again_after_the_last_device() {
        let rows = layout(&[2, 2], &[0]);
        assert_eq!(first_ranges(rows, &[8], 6), [0..4, 4..8, 0..4, 4..8, 0..4, 4..8]);
        assert_eq!(rows.ranges(&[8], u32::MAX).unwrap(), [4..8]);
    }

    #[test]
    fn ranges_of_a_dimension_over_several_axes() {
        let matrix = [2, 2, 2];
        let starts = [0, 2];
        assert_eq!(first_ranges(nested(&matrix, &[2, 0], &starts), &[4], 5), [0..1, 1..2, 0..1, 1..2, 2..3]);
        assert_eq!(first_ranges(nested(&matrix, &[0, 2], &starts), &[4], 5), [0..1, 2..3, 0..1, 2..3, 1..2]);
        // A list of one axis, a list that is empty, and one that ends in -1.
        let lists = nested(&matrix, &[2, 0, -1], &[0, 1, 1, 3]);
        assert_eq!(lists.ranges(&[2, 3, 4], 5).unwrap(), [1..2, 0..3, 2..4]);
        assert_eq!(nested(&matrix, &[-1], &[0, 1]).ranges(&[3], 7).unwrap(), [0..3]);
    }

    #[test]
    fn ranges_split_once_more_for_an_optimizer_shard() {
        assert_eq!(first_ranges(sharded(&[2, 2], &[0], 2), &[8], 4), [0..2, 4..6, 2..4, 6..8]);
        assert_eq!(first_ranges(sharded(&[2, 2], &[0], -1), &[8], 4), [0..2, 4..6, 2..4, 6..8]);
        assert_eq!(first_ranges(sharded(&[2, 2], &[-1], -1), &[8], 4), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(first_ranges(sharded(&[4], &[-1], 2), &[8], 4), [0..4, 4..8, 0..4, 4..8]);
        // More than an axis and less than two.
        assert_eq!(first_ranges(sharded(&[2, 3], &[-1], 6), &[6], 6), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6]);
        assert_eq!(first_ranges(sharded(&[4, 3], &[-1], 6), &[6], 8), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6, 0..1, 1..2]);
        // Nobody else holds the block.
        assert_eq!(first_ranges(sharded(&[2], &[0], -1), &[8], 2), [0..4, 4..8]);
        assert_eq!(first_ranges(sharded(&[2], &[0], 1), &[8], 2), [0..4, 4..8]);
    }

    #[test]
    fn ranges_of_scalars_and_of_nothing() {
        assert_eq!(layout(&[2], &[]).ranges(&[], 1), Ok(vec![]));
        assert_eq!(nested(&[2], &[], &[0]).ranges(&[], 1), Ok(vec![]));
        assert_eq!(sharded(&[2, 3], &[0, -1], -1).ranges(&[0, 5], 1), Ok(vec![0..0, 0..5]));
    }

    #[test]
    fn ranges_of_the_largest_numbers() {
        const MAX: u64 = u64::MAX;
        assert_eq!(layout(&[MAX], &[0]).ranges(&[MAX], u32::MAX), Ok(vec![u64::from(u32::MAX)..1 << 32]));
        assert_eq!(layout(&[3], &[0]).ranges(&[MAX], 2), Ok(vec![MAX / 3 * 2..MAX]));
        assert_eq!(layout(&[1, MAX, 1], &[-1]).ranges(&[MAX], 9), Ok(vec![0..MAX]));
        let all_axes = [1; MAX_AXES];
        let map: Vec<i64> = (0..MAX_AXES as i64).collect();
        assert_eq!(nested(&all_axes, &map, &[0, MAX_AXES]).ranges(&[7], 9), Ok(vec![0..7]));
        let shard = sharded(&[1 << 32, 1 << 31], &[-1], i64::MAX);
        assert_eq!(
            reason(shard, &[8]),
            "an optimizer shard of 9223372036854775807 parts does not divide the 9223372036854775808 ranks that hold the same block"
        );
    }

    #[test]
    fn ranges_refuse_what_does_not_divide() {
        let not_divisible = |dimension, len, parts| Err(RankError::NotDivisible { dimension, len, parts });
        assert_eq!(layout(&[2, 4], &[-1, 0]).ranges(&[1, 6], 0), not_divisible(1, 6, 4));
        assert_eq!(nested(&[2, 4], &[0, 1], &[0, 2]).ranges(&[4], 0), not_divisible(0, 4, 8));
        assert_eq!(sharded(&[2, 4], &[0], -1).ranges(&[12], 0), not_divisible(0, 3, 2));
    }

    #[test]
    fn ranges_refuse_contradictions_with_the_numbers() {
        let of_matrix = |matrix: &[u64]| reason(layout(matrix, &[-1]), &[8]);
        assert_eq!(of_matrix(&[]), "the device matrix is empty");
        assert_eq!(of_matrix(&[2, 0]), "device_matrix[1] is 0");
        assert_eq!(of_matrix(&[1; 65]), "the device matrix has 65 axes, more than the limit of 64");
        assert_eq!(of_matrix(&[1 << 32, 1 << 32]), "the device matrix has more devices than 64 bits can count");

        let of_map = |map: &[i64]| reason(layout(&[2, 2], map), &[8, 8]);
        assert_eq!(of_map(&[]), "the tensor map has 0 entries for a tensor of 2 dimensions");
        assert_eq!(of_map(&[-1, -1, -1]), "the tensor map has 3 entries for a tensor of 2 dimensions");
        assert_eq!(of_map(&[-1, 2]), "the tensor map has axis 2 for dimension 1, and the axes are 0 to 1");
        assert_eq!(of_map(&[-2, 0]), "the tensor map has axis -2 for dimension 0, and the axes are 0 to 1");
        let largest = format!("the tensor map has axis {} for dimension 0, and the axes are 0 to 1", i64::MAX);
        assert_eq!(of_map(&[i64::MAX, 0]), largest);
        assert_eq!(of_map(&[1, 1]), "the tensor map has axis 1 again for dimension 1");

        let of_shard = |shard| reason(sharded(&[2, 4], &[0], shard), &[64]);
        assert_eq!(of_shard(-2), "the optimizer shard is -2, neither a number of parts nor -1");
        for shard in [3, 4, 8] {
            let expected =
                format!("an optimizer shard of {shard} parts does not divide the 2 ranks that hold the same block");
            assert_eq!(of_shard(shard), expected);
        }
        let of_scalar = reason(sharded(&[2], &[], -1), &[]);
        assert_eq!(of_scalar, "an optimizer shard splits the first dimension, and the tensor has none");
    }

    #[test]
    fn ranges_refuse_wrong_starts_with_the_numbers() {
        let refused = |map: &[i64], starts: &[usize]| reason(nested(&[2, 2, 2], map, starts), &[8, 8]);
        assert_eq!(refused(&[0, 1], &[]), "tensor_map_starts has 0 offsets for a tensor of 2 dimensions");
        assert_eq!(refused(&[0, 1], &[0, 2]), "tensor_map_starts has 2 offsets for a tensor of 2 dimensions");
        assert_eq!(refused(&[0, 1], &[1, 1, 2]), "tensor_map_starts begins with 1, not with 0");
        assert_eq!(
            refused(&[0, 1], &[0, 1, 1]),
            "tensor_map_starts ends with 1, not with the 2 entries of the tensor map"
        );
        assert_eq!(
            refused(&[0, 1], &[0, 3, 2]),
            "tensor_map_starts gives dimension 0 the entries from 0 to 3 of 2 in the tensor map"
        );
        assert_eq!(
            reason(nested(&[2, 2], &[0, 1], &[0, 2, 1, 2]), &[8, 8, 8]),
            "tensor_map_starts gives dimension 1 the entries from 2 to 1 of 2 in the tensor map"
        );
        assert_eq!(
            refused(&[0; 6], &[0, 0, 6]),
            "the tensor map has 6 entries, too many for a tensor of 2 dimensions over 3 axes"
        );
        assert_eq!(refused(&[0, 2, 0], &[0, 1, 3]), "the tensor map has axis 0 again for dimension 1");
        assert_eq!(refused(&[-1, 0], &[0, 2, 2]), "the tensor map has more entries for dimension 0 after a -1");
        assert_eq!(refused(&[0, -1, -1], &[0, 3, 3]), "the tensor map has more entries for dimension 0 after a -1");
    }
}
