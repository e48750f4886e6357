//! Section "Bytes".

use super::about::{number_of, st_dtype};
use super::dlpack::{self, DLManagedTensor, DLManagedTensorVersioned};
use super::error::{st_error, st_status};
use super::guard::guard;
use super::handle::{array, array_mut, checkpoint, optional_output, output, shared_checkpoint};
use super::open::st_checkpoint;
use crate::checkpoint::{Checkpoint, View};
use crate::error::Error;
use crate::quote::excerpt;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::Range;

/// As `ST_MAX_RANK` of the header.
const MAX_RANK: usize = 64;

/// Elements start, start + 1, ..., stop - 1 of one dimension. ST_END as stop is the end of the dimension. start == stop selects
/// nothing, which is fine.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_range {
    /// The first element.
    pub start: u64,
    /// The element after the last one, or ST_END.
    pub stop: u64,
}

/// A slice of a tensor in place. Element [i, j, ...] lies i * strides[0] + j * strides[1] + ... elements after data.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_view {
    /// The first element, aligned for dtype; never NULL. Lives as long as the handle.
    pub data: *const c_void,
    /// One of ST_DTYPE_*.
    pub dtype: st_dtype,
    /// Number of dimensions: that of the tensor.
    pub rank: u32,
    /// Elements per dimension; 0 from rank on.
    pub shape: [u64; 64],
    /// Elements from one index to the next, per dimension; 0 from rank on.
    pub strides: [i64; 64],
    /// Size of the selected elements in bytes. Where they are not contiguous, they span more.
    pub nbytes: usize,
    /// 1 if the selected elements follow one another without gaps, so that nbytes bytes from data on are all of them; otherwise 0.
    pub contiguous: u64,
}

/// Points to a tensor. Over a mapping nothing is read: its pages come when they are touched.
///
/// data: receives the address of its first byte, aligned for its dtype; never NULL. It lives as long as the handle, and is the same on
/// every call. nbytes: receives its size in bytes; may be NULL.
///
/// A tensor that is not aligned for its dtype where it lies (writers that do not pad the header make such files), or that is
/// not mapped, is read into a copy aligned to 64 bytes, once, by the thread that asks first. The copy counts against the budget and is
/// never evicted; st_acquire makes copies that may go. The bytes must not be written to, except
/// after ST_OPEN_COPY_ON_WRITE: then cast the const away.
///
/// ST_ERR_OUT_OF_RANGE: index is not below st_len.
/// ST_ERR_NO_MEMORY, ST_ERR_IO, ST_ERR_TRUNCATED, ST_ERR_BUDGET: a copy is needed and cannot be made.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_tensor_ptr(
    checkpoint: *mut st_checkpoint,
    index: usize,
    data: *mut *const c_void,
    nbytes: *mut usize,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, outputs and errors.
    unsafe {
        guard(err, || {
            let data = output(data, "data")?;
            let bytes = self::checkpoint(checkpoint)?.tensor_ptr(index)?;
            data.write(bytes.as_ptr().cast());
            if let Some(nbytes) = optional_output(nbytes) {
                nbytes.write(bytes.len());
            }
            Ok(())
        })
    }
}

/// Points to a slice of a tensor, without a copy beyond the one that st_tensor_ptr may have to make.
///
/// ranges: one per dimension, from the first; if there are fewer than the tensor has dimensions, the rest is taken whole. NULL takes all
/// of the tensor. rank: the number of ranges; not used if ranges is NULL. out: receives the view, which lives as long as the handle.
///
/// ST_ERR_OUT_OF_RANGE: index is not below st_len; a range leaves its dimension; more ranges than dimensions.
/// ST_ERR_MISALIGNED: the slice cuts elements of 4 or 6 bits inside a byte.
/// ST_ERR_UNSUPPORTED: the tensor has more than ST_MAX_RANK dimensions.
/// ST_ERR_NO_MEMORY, ST_ERR_IO, ST_ERR_TRUNCATED, ST_ERR_BUDGET: a copy is needed and cannot be made.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_tensor_view(
    checkpoint: *mut st_checkpoint,
    index: usize,
    ranges: *const st_range,
    rank: usize,
    out: *mut st_view,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, arrays, outputs and errors.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            let checkpoint = self::checkpoint(checkpoint)?;
            let tensor = checkpoint.tensor_at(index)?;
            let rank_of_tensor = tensor.shape().len();
            if rank_of_tensor > MAX_RANK {
                let tensor = excerpt(tensor.name());
                return Err(Error::RankTooLarge { tensor, rank: rank_of_tensor, limit: MAX_RANK });
            }
            let ranges = copy_ranges(checkpoint, index, ranges, rank)?;
            out.write(st_view::from(&checkpoint.tensor_view(index, &ranges)?));
            Ok(())
        })
    }
}

/// Copies a tensor or a slice of it to dst: packed, in row-major order. Only the slice is read, and gaps in it where that saves system
/// calls: of up to 16 KiB, and up to 64 times the bytes that follow the gap. Always reads the file (or buffer) itself: if the file was
/// truncated this is an error and never a signal, and what was written to memory after ST_OPEN_COPY_ON_WRITE is not seen.
///
/// ranges, rank: as for st_tensor_view. dst: where the bytes go, of any alignment; may be NULL if there are none. dst_len: the room there in
/// bytes, at least the size of the slice.
///
/// ST_ERR_OUT_OF_RANGE, ST_ERR_MISALIGNED: as for st_tensor_view.
/// ST_ERR_BUFFER_TOO_SMALL: dst_len is less than the slice has bytes; the message has both numbers.
/// ST_ERR_IO, ST_ERR_TRUNCATED, ST_ERR_NO_MEMORY: the bytes could not be read. dst then holds some of them, or none.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_tensor_read(
    checkpoint: *mut st_checkpoint,
    index: usize,
    ranges: *const st_range,
    rank: usize,
    dst: *mut c_void,
    dst_len: usize,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, arrays and errors.
    unsafe {
        guard(err, || {
            let checkpoint = self::checkpoint(checkpoint)?;
            let ranges = copy_ranges(checkpoint, index, ranges, rank)?;
            let dst: &mut [MaybeUninit<u8>] = array_mut(dst.cast(), dst_len, "dst")?;
            checkpoint.tensor_read(index, &ranges, dst)?;
            Ok(())
        })
    }
}

/// Exports a tensor or a slice of it as a DLPack 1.1 tensor, in place: strided where the slice is, never copied beyond what
/// st_tensor_ptr copies.
///
/// ranges, rank: as for st_tensor_view, without the limit of ST_MAX_RANK.
/// out: receives the tensor. The caller must free it by its deleter, from any thread, also after st_close: the tensor holds
/// a reference to the checkpoint. NULL on failure.
///
/// `strides` are always filled in, `byte_offset` is 0, `data` is NULL if there are no elements, and the device is the CPU.
/// DLPACK_FLAG_BITMASK_READ_ONLY is set, unless the checkpoint was opened with ST_OPEN_COPY_ON_WRITE.
///
/// F4 is exported as torch exports it: an element has 4 bits and two lanes, and the last dimension is half as long. [2,4] of
/// F4 becomes [2,2]. F6 is exported packed, 4 elements in 3 bytes. Every other element has one lane.
///
/// ST_ERR_OUT_OF_RANGE, ST_ERR_MISALIGNED, ST_ERR_NO_MEMORY, ST_ERR_IO, ST_ERR_TRUNCATED, ST_ERR_BUDGET: as for
/// st_tensor_view.
/// ST_ERR_UNSUPPORTED: a dimension is 2^63 or more; or the last dimension of F4 is odd.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_tensor_dlpack(
    checkpoint: *mut st_checkpoint,
    index: usize,
    ranges: *const st_range,
    rank: usize,
    out: *mut *mut DLManagedTensorVersioned,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, arrays, outputs and errors.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            out.write(std::ptr::null_mut());
            let checkpoint = shared_checkpoint(checkpoint)?;
            let ranges = copy_ranges(&checkpoint, index, ranges, rank)?;
            out.write(dlpack::export(checkpoint, index, &ranges)?);
            Ok(())
        })
    }
}

/// As st_tensor_dlpack, in the form that DLPack had before version 1.0, for consumers that take nothing else: jax and
/// MindSpore. It has the same element types, except F6. This form cannot say that memory is read-only: the consumer must not
/// write to it.
///
/// ST_ERR_UNSUPPORTED: as for st_tensor_dlpack; or the elements are F6, since this form cannot say that they are packed.
/// Other errors: as for st_tensor_dlpack.
#[no_mangle]
pub unsafe extern "C" fn st_tensor_dlpack_unversioned(
    checkpoint: *mut st_checkpoint,
    index: usize,
    ranges: *const st_range,
    rank: usize,
    out: *mut *mut DLManagedTensor,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, arrays, outputs and errors.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            out.write(std::ptr::null_mut());
            let checkpoint = shared_checkpoint(checkpoint)?;
            let ranges = copy_ranges(&checkpoint, index, ranges, rank)?;
            out.write(dlpack::export_unversioned(checkpoint, index, &ranges)?);
            Ok(())
        })
    }
}

/// The caller's ranges for tensor `index`. Their number is checked before they are read, since it may be garbage.
///
/// # Safety
///
/// The header's rules for arrays.
pub(super) unsafe fn copy_ranges(
    checkpoint: &Checkpoint,
    index: usize,
    ranges: *const st_range,
    len: usize,
) -> Result<Vec<Range<u64>>, Error> {
    let mut copied = Vec::new();
    // SAFETY: the caller's promise.
    unsafe { copy_ranges_to(&mut copied, checkpoint, index, ranges, len) }?;
    Ok(copied)
}

/// As [`copy_ranges`], to a list that is empty.
///
/// # Safety
///
/// As for [`copy_ranges`].
pub(super) unsafe fn copy_ranges_to(
    to: &mut Vec<Range<u64>>,
    checkpoint: &Checkpoint,
    index: usize,
    ranges: *const st_range,
    len: usize,
) -> Result<(), Error> {
    if ranges.is_null() {
        return Ok(());
    }
    let tensor = checkpoint.tensor_at(index)?;
    let rank = tensor.shape().len();
    if len > rank {
        return Err(checkpoint.too_many_ranges(&tensor, len));
    }
    // SAFETY: not NULL; the rest is the caller's promise.
    let ranges = unsafe { array(ranges, len, "ranges") }?;
    to.try_reserve(len).map_err(|_| checkpoint.no_memory_for(&tensor))?;
    to.extend(ranges.iter().map(|range| range.start..range.stop));
    Ok(())
}

impl From<&View<'_>> for st_view {
    fn from(view: &View<'_>) -> st_view {
        let mut out = st_view {
            data: view.as_ptr().cast(),
            dtype: number_of(view.dtype()),
            rank: view.shape().len() as u32,
            shape: [0; MAX_RANK],
            strides: [0; MAX_RANK],
            nbytes: view.nbytes() as usize,
            contiguous: u64::from(view.is_contiguous()),
        };
        for (to, from) in out.shape.iter_mut().zip(view.shape()) {
            *to = *from;
        }
        for (to, from) in out.strides.iter_mut().zip(view.strides()) {
            // Beyond 63 bits only where there are no elements to stride over.
            *to = i64::try_from(*from).unwrap_or(0);
        }
        out
    }
}
