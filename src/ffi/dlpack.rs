//! A slice of a tensor as DLPack tensor, which holds a reference to its checkpoint.
//!
//! The structs are those of `dlpack.h` 1.1 (<https://github.com/dmlc/dlpack>); `tests/c/dlpack.c` holds their layout against it.

use super::guard::guard_value;
use crate::checkpoint::{Checkpoint, Tensor};
use crate::error::Error;
use crate::format::Dtype;
use crate::quote::excerpt;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Arc;

const VERSION: DLPackVersion = DLPackVersion { major: 1, minor: 1 };
const CPU: DLDevice = DLDevice { device_type: 1, device_id: 0 };
const FLAG_READ_ONLY: u64 = 1;

/// `DLPackVersion` of dlpack.h.
#[repr(C)]
struct DLPackVersion {
    major: u32,
    minor: u32,
}

/// `DLDevice` of dlpack.h.
#[repr(C)]
struct DLDevice {
    device_type: i32,
    device_id: i32,
}

/// `DLDataType` of dlpack.h.
#[repr(C)]
struct DLDataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLTensor` of dlpack.h.
#[repr(C)]
struct DLTensor {
    data: *mut c_void,
    device: DLDevice,
    ndim: i32,
    dtype: DLDataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensorVersioned` of dlpack.h.
#[repr(C)]
pub struct DLManagedTensorVersioned {
    version: DLPackVersion,
    manager_ctx: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DLManagedTensorVersioned)>,
    flags: u64,
    dl_tensor: DLTensor,
}

/// `DLManagedTensor` of dlpack.h: the form before version 1.0.
#[repr(C)]
pub struct DLManagedTensor {
    dl_tensor: DLTensor,
    manager_ctx: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut DLManagedTensor)>,
}

/// What a DLPack tensor keeps alive.
struct Context {
    _checkpoint: Arc<Checkpoint>,
    /// Shape, then strides; room for one dimension at least, so that the pointers always lead somewhere.
    dims: Box<[i64]>,
}

/// Exports a slice of tensor `index`; the ranges are explained at `Slice::new`.
pub(super) fn export(
    checkpoint: Arc<Checkpoint>,
    index: usize,
    ranges: &[Range<u64>],
) -> Result<*mut DLManagedTensorVersioned, Error> {
    let flags = if checkpoint.is_writable() { 0 } else { FLAG_READ_ONLY };
    let (dl_tensor, context) = prepare(checkpoint, index, ranges)?;
    let manager_ctx = Box::into_raw(context).cast();
    let deleter = Some(delete as unsafe extern "C" fn(_));
    let managed = DLManagedTensorVersioned { version: VERSION, manager_ctx, deleter, flags, dl_tensor };
    Ok(Box::into_raw(Box::new(managed)))
}

/// As [`export`], in the form before version 1.0.
pub(super) fn export_unversioned(
    checkpoint: Arc<Checkpoint>,
    index: usize,
    ranges: &[Range<u64>],
) -> Result<*mut DLManagedTensor, Error> {
    let tensor = checkpoint.tensor_at(index)?;
    // Only the versioned form can say whether elements of less than a byte are packed. Pairs of F4 fill bytes, so that
    // the question does not arise; no consumer takes F6 in this form.
    if matches!(tensor.dtype(), Dtype::F6_E2M3 | Dtype::F6_E3M2) {
        return Err(unsupported(&tensor, "a DLPack tensor of the form before version 1.0"));
    }
    let (dl_tensor, context) = prepare(checkpoint, index, ranges)?;
    let manager_ctx = Box::into_raw(context).cast();
    let deleter = Some(delete_unversioned as unsafe extern "C" fn(_));
    Ok(Box::into_raw(Box::new(DLManagedTensor { dl_tensor, manager_ctx, deleter })))
}

fn prepare(
    checkpoint: Arc<Checkpoint>,
    index: usize,
    ranges: &[Range<u64>],
) -> Result<(DLTensor, Box<Context>), Error> {
    let tensor = checkpoint.tensor_at(index)?;
    let view = checkpoint.tensor_view(index, ranges)?;
    let too_large = |_| unsupported(&tensor, "a DLPack tensor: its shape is beyond 63 bits");
    let rank = view.shape().len();
    let ndim = i32::try_from(rank).map_err(too_large)?;
    let mut dims: Vec<i64> = Vec::new();
    let len = rank.max(1).saturating_mul(2);
    dims.try_reserve_exact(len).map_err(|_| checkpoint.no_memory_for(&tensor))?;
    for len in view.shape() {
        dims.push(i64::try_from(*len).map_err(too_large)?);
    }
    // Beyond 63 bits only where there are no elements to stride over.
    dims.extend(view.strides().iter().map(|stride| i64::try_from(*stride).unwrap_or(0)));
    let lanes = lanes_of(view.dtype());
    if lanes > 1 && !join_lanes(&mut dims, rank, i64::from(lanes)) {
        return Err(unsupported(&tensor, "a DLPack tensor: two elements are one, and its last dimension is odd"));
    }
    dims.resize(len, 0);
    let data = if view.nbytes() == 0 { null_mut() } else { view.as_mut_ptr().cast() };
    let dtype = DLDataType { code: code_of(view.dtype()), bits: view.dtype().bits() as u8, lanes };

    let mut context = Box::new(Context { _checkpoint: Arc::clone(&checkpoint), dims: dims.into_boxed_slice() });
    let shape = context.dims.as_mut_ptr();
    let strides = shape.wrapping_add(rank);
    Ok((DLTensor { data, device: CPU, ndim, dtype, shape, strides, byte_offset: 0 }, context))
}

fn unsupported(tensor: &Tensor<'_>, what: &'static str) -> Error {
    Error::Unsupported { tensor: excerpt(tensor.name()), dtype: tensor.dtype(), what }
}

/// How many of our elements are one of DLPack's. F4 goes in pairs, each a byte: torch, which is the consumer of F4, takes
/// and exports nothing else.
fn lanes_of(dtype: Dtype) -> u16 {
    match dtype {
        Dtype::F4 => 2,
        _ => 1,
    }
}

/// Makes a shape and strides, which lie one after the other in `dims`, those of elements of several lanes. Returns `false`
/// where lanes are left over in the last dimension. (All other strides between elements are whole bytes, or the view would
/// have been refused. That of a dimension of one element may be odd; nothing is ever multiplied with it.)
fn join_lanes(dims: &mut [i64], rank: usize, lanes: i64) -> bool {
    let (shape, strides) = dims.split_at_mut(rank.min(dims.len()));
    let (Some(last), Some((_, outer))) = (shape.last_mut(), strides.split_last_mut()) else { return false };
    if *last % lanes != 0 {
        return false;
    }
    *last /= lanes;
    outer.iter_mut().for_each(|stride| *stride /= lanes);
    true
}

/// `DLDataTypeCode` of dlpack.h 1.1.
fn code_of(dtype: Dtype) -> u8 {
    match dtype {
        Dtype::I8 | Dtype::I16 | Dtype::I32 | Dtype::I64 => 0,
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => 1,
        Dtype::F16 | Dtype::F32 | Dtype::F64 => 2,
        Dtype::BF16 => 4,
        Dtype::C64 => 5,
        Dtype::BOOL => 6,
        Dtype::F8_E4M3 => 10,
        Dtype::F8_E4M3FNUZ => 11,
        Dtype::F8_E5M2 => 12,
        Dtype::F8_E5M2FNUZ => 13,
        Dtype::F8_E8M0 => 14,
        Dtype::F6_E2M3 => 15,
        Dtype::F6_E3M2 => 16,
        Dtype::F4 => 17,
    }
}

unsafe extern "C" fn delete(managed: *mut DLManagedTensorVersioned) {
    guard_value((), || {
        if !managed.is_null() {
            // SAFETY: made by `export` from two boxes; the consumer calls the deleter once.
            let managed = unsafe { Box::from_raw(managed) };
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(managed.manager_ctx.cast::<Context>()) });
        }
        Some(())
    });
}

unsafe extern "C" fn delete_unversioned(managed: *mut DLManagedTensor) {
    guard_value((), || {
        if !managed.is_null() {
            // SAFETY: made by `export_unversioned` from two boxes; the consumer calls the deleter once.
            let managed = unsafe { Box::from_raw(managed) };
            // SAFETY: as above.
            drop(unsafe { Box::from_raw(managed.manager_ctx.cast::<Context>()) });
        }
        Some(())
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_that_of_dlpack_h() {
        assert_eq!(
            (size_of::<DLTensor>(), size_of::<DLManagedTensorVersioned>(), size_of::<DLManagedTensor>()),
            (48, 80, 64)
        );
    }
}
