//! Bytes as a whole file, by way of the C functions: each one that answers about a checkpoint, for each tensor.

use crate::reference::{check, Verdict};
use safetensors_lazy::ffi::bytes::{
    st_range, st_tensor_dlpack, st_tensor_dlpack_unversioned, st_tensor_ptr, st_tensor_read, st_tensor_view, st_view,
};
use safetensors_lazy::ffi::directory::{
    st_checkpoint_info, st_find, st_find_n, st_find_prefix, st_info, st_keys, st_len, st_metadata_at, st_metadata_get,
    st_metadata_len, st_shard_len, st_shard_path, st_tensor, st_tensor_info,
};
use safetensors_lazy::ffi::error::{
    st_error, ST_ERR_BUFFER_TOO_SMALL, ST_ERR_MISALIGNED, ST_ERR_NOT_FOUND, ST_ERR_OUT_OF_RANGE, ST_ERR_UNSUPPORTED,
    ST_OK,
};
use safetensors_lazy::ffi::open::{st_checkpoint, st_close, st_open_buffer, st_retain};
use safetensors_lazy::format::END;
use std::ffi::{c_void, CStr};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

/// As `ST_MAX_RANK` of the header.
const MAX_RANK: u32 = 64;

/// More tensors than this are not looked into.
const MOST_TENSORS: usize = 32;

pub fn run(file: &[u8]) {
    let verdict = check(file).unwrap_or_else(|difference| panic!("{difference}\n{}", file.escape_ascii()));
    let (mut handle, mut error) = (null_mut(), st_error { status: 0, os_error: 0, message: [1; 504] });
    // SAFETY: the file outlives the handle; the outputs are locals.
    unsafe {
        let status = st_open_buffer(file.as_ptr().cast(), file.len(), null(), &mut handle, &mut error);
        assert_eq!(status == ST_OK, verdict == Verdict::Accepted);
        if status == ST_OK {
            assert_eq!(st_retain(handle), handle);
            st_close(handle);
            whole(handle, file);
            st_close(handle);
        } else {
            assert!(handle.is_null() && error.status == status);
            let message = CStr::from_ptr(error.message.as_ptr()).to_str().expect("UTF-8");
            assert!(!message.is_empty() && !message.contains(char::is_control));
        }
    }
}

/// # Safety
///
/// `handle` is open, over `file`.
unsafe fn whole(handle: *mut st_checkpoint, file: &[u8]) {
    // SAFETY: the caller's promise; all outputs are locals.
    unsafe {
        let mut info = MaybeUninit::<st_info>::uninit();
        assert_eq!(st_checkpoint_info(handle, info.as_mut_ptr()), ST_OK);
        let info = info.assume_init();
        assert_eq!((info.file_bytes, info.writable), (file.len() as u64, 0));
        assert_eq!(8 + info.header_bytes + info.tensor_bytes, info.file_bytes);

        assert_eq!((st_shard_len(handle), CStr::from_ptr(st_shard_path(handle, 0))), (1, c""));
        assert!(st_shard_path(handle, 1).is_null());
        for i in 0..st_metadata_len(handle) {
            let (mut key, mut value) = (null(), null());
            assert_eq!(st_metadata_at(handle, i, &mut key, &mut value), ST_OK);
            assert_eq!(st_metadata_get(handle, key), value);
        }
        assert_eq!(st_metadata_at(handle, st_metadata_len(handle), null_mut(), null_mut()), ST_ERR_OUT_OF_RANGE);

        let (mut len, mut sorted, mut found) = (0, null(), 0);
        let keys = st_keys(handle, &mut len);
        assert_eq!(len, st_len(handle));
        assert_eq!(st_find_prefix(handle, c"".as_ptr(), &mut sorted, &mut found), ST_OK);
        assert_eq!(found, len);
        assert_eq!(st_tensor_info(handle, len, MaybeUninit::uninit().as_mut_ptr(), null_mut()), ST_ERR_OUT_OF_RANGE);
        for index in 0..len.min(MOST_TENSORS) {
            let mut tensor = MaybeUninit::<st_tensor>::uninit();
            assert_eq!(st_tensor_info(handle, index, tensor.as_mut_ptr(), null_mut()), ST_OK);
            let tensor = tensor.assume_init();
            assert_eq!(*keys.add(index), tensor.name);
            names(handle, index, &tensor);
            bytes(handle, index, &tensor, file);
        }
    }
}

/// # Safety
///
/// `tensor` is what the open `handle` says of `index`.
unsafe fn names(handle: *mut st_checkpoint, index: usize, tensor: &st_tensor) {
    // SAFETY: the caller's promise; all outputs are locals.
    unsafe {
        assert_eq!(CStr::from_ptr(tensor.name).to_bytes().len(), tensor.name_len);
        let mut found = usize::MAX;
        assert_eq!((st_find(handle, tensor.name, &mut found), found), (ST_OK, index));
        found = usize::MAX;
        assert_eq!((st_find_n(handle, tensor.name, tensor.name_len, &mut found), found), (ST_OK, index));
        // With its NUL it is the name of no tensor.
        assert_eq!(st_find_n(handle, tensor.name, tensor.name_len + 1, &mut found), ST_ERR_NOT_FOUND);
        let (mut indices, mut len) = (null(), 0);
        assert_eq!(st_find_prefix(handle, tensor.name, &mut indices, &mut len), ST_OK);
        // A name is the first of those that start with it.
        assert!(len > 0 && *indices == index);
    }
}

/// # Safety
///
/// `tensor` is what the open `handle` over `file` says of `index`.
unsafe fn bytes(handle: *mut st_checkpoint, index: usize, tensor: &st_tensor, file: &[u8]) {
    // SAFETY: the caller's promise; all outputs are locals; the arrays have the lengths that are said.
    unsafe {
        let expected = &file[tensor.file_offset as usize..][..tensor.nbytes];
        let (mut data, mut nbytes) = (null(), usize::MAX);
        assert_eq!(st_tensor_ptr(handle, index, &mut data, &mut nbytes, null_mut()), ST_OK);
        assert_eq!(std::slice::from_raw_parts(data.cast::<u8>(), nbytes), expected);

        let mut copy = vec![0u8; nbytes];
        let dst = copy.as_mut_ptr().cast();
        assert_eq!(st_tensor_read(handle, index, null(), 0, dst, nbytes, null_mut()), ST_OK);
        assert_eq!(copy, expected);
        if nbytes > 0 {
            let refused = st_tensor_read(handle, index, null(), 0, dst, nbytes - 1, null_mut());
            assert_eq!(refused, ST_ERR_BUFFER_TOO_SMALL);
        }
        let shape = std::slice::from_raw_parts(tensor.shape, tensor.rank as usize);
        for ranges in some_ranges(shape) {
            slice(handle, index, tensor, &ranges, data.cast(), &mut copy);
        }
    }
}

/// All of it, the first half of each dimension, the last element of each, and a range too far.
fn some_ranges(shape: &[u64]) -> [Vec<st_range>; 4] {
    let ranges = |range: fn(u64) -> (u64, u64)| {
        shape.iter().map(|len| range(*len)).map(|(start, stop)| st_range { start, stop }).collect()
    };
    [
        ranges(|_| (0, END)),
        ranges(|len| (0, len / 2)),
        ranges(|len| (len.saturating_sub(1), len)),
        ranges(|len| (len, len.saturating_add(1))),
    ]
}

/// # Safety
///
/// `tensor` is what the open `handle` says of `index`; `data` leads to its bytes; `room` is as long.
unsafe fn slice(
    handle: *mut st_checkpoint,
    index: usize,
    tensor: &st_tensor,
    ranges: &[st_range],
    data: *const u8,
    room: &mut [u8],
) {
    // SAFETY: the caller's promise; all outputs are locals; the arrays have the lengths that are said.
    unsafe {
        let dst = room.as_mut_ptr().cast();
        let read = st_tensor_read(handle, index, ranges.as_ptr(), ranges.len(), dst, room.len(), null_mut());
        assert!([ST_OK, ST_ERR_OUT_OF_RANGE, ST_ERR_MISALIGNED].contains(&read), "{read}");

        let mut view = MaybeUninit::<st_view>::uninit();
        let viewed = st_tensor_view(handle, index, ranges.as_ptr(), ranges.len(), view.as_mut_ptr(), null_mut());
        match tensor.rank > MAX_RANK {
            true => assert_eq!(viewed, ST_ERR_UNSUPPORTED),
            false => assert_eq!(viewed, read),
        }
        if viewed == ST_OK {
            let view = view.assume_init();
            assert!(view.nbytes <= room.len() && !view.data.is_null());
            if view.contiguous == 1 && view.nbytes > 0 {
                let offset = view.data.cast::<u8>().offset_from(data) as usize;
                assert!(offset + view.nbytes <= room.len());
                assert_eq!(std::slice::from_raw_parts(view.data.cast::<u8>(), view.nbytes), &room[..view.nbytes]);
            }
        }

        let mut managed = null_mut();
        let exported = st_tensor_dlpack(handle, index, ranges.as_ptr(), ranges.len(), &mut managed, null_mut());
        assert!(exported == read || exported == ST_ERR_UNSUPPORTED);
        if !managed.is_null() {
            let managed: *mut Managed = managed.cast();
            ((*managed).deleter)(managed.cast());
        }
        let mut managed = null_mut();
        let exported =
            st_tensor_dlpack_unversioned(handle, index, ranges.as_ptr(), ranges.len(), &mut managed, null_mut());
        assert!(exported == read || exported == ST_ERR_UNSUPPORTED);
        if !managed.is_null() {
            let managed: *mut ManagedUnversioned = managed.cast();
            ((*managed).deleter)(managed.cast());
        }
    }
}

/// The front of `DLManagedTensorVersioned` of dlpack.h.
#[repr(C)]
struct Managed {
    version: [u32; 2],
    manager_ctx: *mut c_void,
    deleter: unsafe extern "C" fn(*mut c_void),
}

/// `DLManagedTensor` of dlpack.h, of whose tensor only the size matters.
#[repr(C)]
struct ManagedUnversioned {
    dl_tensor: [u64; 6],
    manager_ctx: *mut c_void,
    deleter: unsafe extern "C" fn(*mut c_void),
}
