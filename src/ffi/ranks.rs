//! Section "Ranks".

use super::bytes::st_range;
use super::error::{st_error, st_status};
use super::guard::guard;
use super::handle::{array, array_mut, null, output};
use super::options::{copy_options, Options};
use crate::error::Error;
use crate::format::{split_range, Layout};

/// How a tensor lies on a matrix of devices: what mindspore.parallel.Layout, or a strategy file of MindSpore, says of it. Initialise
/// with ST_LAYOUT_INIT. The arrays are the caller's, and are read during the call only.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_layout {
    /// sizeof(st_layout)
    pub struct_size: usize,
    /// The number of devices along each axis (dev_matrix of a strategy file). Ranks count along the last axis first.
    pub device_matrix: *const u64,
    /// The number of axes: 1 to 64.
    pub device_dims: usize,
    /// The axes that the dimensions are split over, from the first dimension: 0 is the last axis of device_matrix, 1 the one before
    /// it. -1 is no axis: the dimension is not split. No axis may occur twice.
    pub tensor_map: *const i64,
    /// NULL: one entry of tensor_map per dimension. Otherwise rank + 1 offsets into tensor_map, for dimensions that are split over several
    /// axes (lists inside tensor_map of a strategy file): dimension d is split over the entries from tensor_map_starts[d] to before
    /// tensor_map_starts[d + 1], the first of which is the most significant. -1 may only be the last of them; if there are none, the
    /// dimension is not split.
    pub tensor_map_starts: *const usize,
    /// The number of entries of tensor_map.
    pub tensor_map_len: usize,
    /// Into how many parts the first dimension of a rank's block is split once more, among the ranks that would otherwise hold the same
    /// block (opt_weight_shard_size of a strategy file; 0 where opt_weight_shard_step is 0). 0: it is not; -1: as many as there are
    /// such ranks. The parts go round among these ranks in ascending order.
    pub optimizer_shard: i64,
}

// SAFETY: 7 fields of 8 bytes, integers and raw pointers, `struct_size` first.
unsafe impl Options for st_layout {
    const FIRST_SIZE: usize = 56;
}

/// Splits a dimension over ranks by the rule of numpy.array_split: the parts follow one another, and the first dim % world of them have one
/// element more than the others. A part is empty where there are more ranks than elements.
///
/// dim: elements of the dimension. rank, world: which of how many ranks. out: receives the part, to be given to st_tensor_view,
/// st_tensor_read or st_tensor_dlpack.
///
/// ST_ERR_OUT_OF_RANGE: rank is not below world.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_split_range(
    dim: u64,
    rank: u32,
    world: u32,
    out: *mut st_range,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for outputs and errors.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            let range = split_range(dim, rank, world).map_err(Error::Rank)?;
            out.write(st_range { start: range.start, stop: range.end });
            Ok(())
        })
    }
}

/// Finds the block of a tensor that belongs to a rank, by the rule of MindSpore (mindspore.parallel.Layout,
/// mindspore.load_distributed_checkpoint): the rank's position, unravelled over the device matrix in row-major order, is its coordinate on
/// each axis; a dimension is split into as many equal parts as its axes have devices, and the coordinates there select one. Ranks that
/// differ only on other axes have the same block, unless optimizer_shard splits it among them.
///
/// layout: must not be NULL. shape: elements per dimension of the whole tensor. rank: its number of dimensions.
/// rank_id: the rank, counted within its pipeline stage (where there is a rank_list: the position in it). Beyond the last device it begins
/// again at the first. ranges: receives rank ranges, to be given to st_tensor_view, st_tensor_read or st_tensor_dlpack.
/// shape and ranges may be NULL if rank is 0.
///
/// Whether the call succeeds does not depend on rank_id.
/// ST_ERR_NOT_DIVISIBLE: a dimension, or what a rank has of the first one for optimizer_shard, cannot be split into equal parts.
/// ST_ERR_INVALID_ARGUMENT: the layout contradicts itself or the tensor: an axis that is not there or occurs twice; another number of
/// dimensions than the tensor has; offsets that fall, or do not go from 0 to tensor_map_len; a device matrix that is empty, has a 0,
/// more than 64 axes, or 2^64 devices or more; an optimizer_shard that does not divide the number of ranks with the same block, is
/// less than -1, or is not 0 for a tensor without dimensions. Or a NULL, or a layout that uses what this library does not know.
/// ST_ERR_NO_MEMORY: no memory for the ranges.
#[no_mangle]
pub unsafe extern "C" fn st_layout_ranges(
    layout: *const st_layout,
    shape: *const u64,
    rank: usize,
    rank_id: u32,
    ranges: *mut st_range,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for options, arrays and errors.
    unsafe {
        guard(err, || {
            if layout.is_null() {
                return Err(null("layout"));
            }
            let given = copy_options(layout)?;
            let layout = borrow_layout(&given, rank)?;
            let shape = array(shape, rank, "shape")?;
            let out = array_mut(ranges, rank, "ranges")?;
            for (to, range) in out.iter_mut().zip(layout.ranges(shape, rank_id).map_err(Error::Rank)?) {
                to.write(st_range { start: range.start, stop: range.end });
            }
            Ok(())
        })
    }
}

/// The caller's layout of a tensor of `rank` dimensions. Lengths are checked before the arrays are touched, since they may be garbage.
///
/// # Safety
///
/// The header's rules for arrays.
unsafe fn borrow_layout(given: &st_layout, rank: usize) -> Result<Layout<'_>, Error> {
    let nested = !given.tensor_map_starts.is_null();
    Layout::check_lens(given.device_dims, given.tensor_map_len, nested, rank).map_err(Error::Rank)?;
    // SAFETY: the caller's promise.
    unsafe {
        let starts = match nested {
            true => Some(array(given.tensor_map_starts, rank.saturating_add(1), "tensor_map_starts")?),
            false => None,
        };
        Ok(Layout {
            device_matrix: array(given.device_matrix, given.device_dims, "device_matrix")?,
            tensor_map: array(given.tensor_map, given.tensor_map_len, "tensor_map")?,
            tensor_map_starts: starts,
            optimizer_shard: given.optimizer_shard,
        })
    }
}
