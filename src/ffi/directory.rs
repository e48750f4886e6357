//! Section "The directory".

use super::about::{number_of as dtype_number, st_dtype};
use super::error::{st_error, st_status, ST_ERR_NOT_FOUND, ST_ERR_NO_MEMORY, ST_ERR_OUT_OF_RANGE, ST_OK};
use super::guard::{guard, guard_status, guard_value};
use super::handle::{array, c_bytes, checkpoint, optional_output, output};
use super::open::{number_of as storage_number, st_checkpoint};
use crate::format::MAX_HEADER_LEN;
use std::ffi::c_char;
use std::ptr::null;

/// What a checkpoint says about one tensor. All pointers live as long as the handle.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_tensor {
    /// Its name: NUL-terminated UTF-8.
    pub name: *const c_char,
    /// Length of its name in bytes.
    pub name_len: usize,
    /// One of ST_DTYPE_*.
    pub dtype: st_dtype,
    /// Number of dimensions; 0 for a scalar.
    pub rank: u32,
    /// Its shape: rank numbers of elements, outermost dimension first. Never NULL.
    pub shape: *const u64,
    /// Its size in bytes.
    pub nbytes: usize,
    /// The shard that it lies in: see st_shard_path.
    pub shard: usize,
    /// Where it starts in its shard, in bytes from the start of the file.
    pub file_offset: u64,
    /// The largest power of two, at most 4096, that divides file_offset, in bytes. If its dtype needs more than that, st_tensor_ptr makes
    /// an aligned copy.
    pub alignment: u64,
}

/// Sizes of a checkpoint, and how it was opened.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_info {
    /// Size of all shards in bytes.
    pub file_bytes: u64,
    /// Size of all headers in bytes, without the 8 bytes before each.
    pub header_bytes: u64,
    /// Size of all tensors in bytes.
    pub tensor_bytes: u64,
    /// How many metadata entries st_metadata_at leaves out because an earlier shard has another value for their key,
    /// but for checksums, which every shard has its own of.
    pub metadata_conflicts: u64,
    /// The storage that was chosen: one of ST_STORAGE_*, never ST_STORAGE_AUTO. If some shards are mapped and some are read:
    /// ST_STORAGE_READ.
    pub storage: i32,
    /// Whether tensors may be written to in memory: 1 if opened with ST_OPEN_COPY_ON_WRITE, 0 otherwise.
    pub writable: i32,
}

/// Returns the number of tensors.
#[no_mangle]
pub unsafe extern "C" fn st_len(checkpoint: *const st_checkpoint) -> usize {
    // SAFETY: NULL or an open handle.
    guard_value(0, || Some(unsafe { self::checkpoint(checkpoint) }.ok()?.len()))
}

/// Returns the names of all tensors: keys[i] is the name of tensor i, NUL-terminated UTF-8. Tensors are numbered in the order of
/// the shards, and within a shard in that of its header. The array, made by the first call, lives as long as the handle. NULL if there is no memory for it.
///
/// len: receives the number of names; may be NULL.
#[no_mangle]
pub unsafe extern "C" fn st_keys(checkpoint: *const st_checkpoint, len: *mut usize) -> *const *const c_char {
    guard_value(null(), || {
        // SAFETY: NULL or an open handle; NULL or an output.
        let (checkpoint, len) = unsafe { (self::checkpoint(checkpoint).ok()?, optional_output(len)) };
        let names = checkpoint.c_names()?;
        if let Some(len) = len {
            len.write(names.len());
        }
        Some(names.as_ptr())
    })
}

/// Finds a tensor by its name. Takes constant time, does not allocate.
///
/// index: receives its index.
///
/// ST_ERR_NOT_FOUND: there is no tensor of that name.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_find(
    checkpoint: *const st_checkpoint,
    name: *const c_char,
    index: *mut usize,
) -> st_status {
    guard_status(|| {
        // SAFETY: the header's rules for strings.
        let name = unsafe { c_bytes(name, "name") }.ok()?;
        // SAFETY: the header's rules for handles and outputs.
        unsafe { find(checkpoint, name, index) }
    })
}

/// As st_find, for a name that is not NUL-terminated: name_len bytes from name on, which may be NULL if name_len is 0.
#[no_mangle]
pub unsafe extern "C" fn st_find_n(
    checkpoint: *const st_checkpoint,
    name: *const c_char,
    name_len: usize,
    index: *mut usize,
) -> st_status {
    guard_status(|| {
        if name_len > MAX_HEADER_LEN && !(checkpoint.is_null() || name.is_null() || index.is_null()) {
            // No header has room for such a name, so that it need not be read.
            return Some(ST_ERR_NOT_FOUND);
        }
        // SAFETY: the header's rules for strings.
        let name = unsafe { array(name.cast::<u8>(), name_len, "name") }.ok()?;
        // SAFETY: the header's rules for handles and outputs.
        unsafe { find(checkpoint, name, index) }
    })
}

/// # Safety
///
/// The header's rules for handles and outputs.
unsafe fn find(checkpoint: *const st_checkpoint, name: &[u8], index: *mut usize) -> Option<st_status> {
    // SAFETY: the caller's promise.
    let (checkpoint, index) = unsafe { (self::checkpoint(checkpoint).ok()?, output(index, "index").ok()?) };
    let Some(found) = checkpoint.find(name) else { return Some(ST_ERR_NOT_FOUND) };
    index.write(found);
    Some(ST_OK)
}

/// Finds all tensors whose names start with prefix, such as "model.layers.3."; "" finds all. No match is ST_OK with *len 0.
///
/// indices: receives an array of their indices, in byte order of the names, which lives as long as the handle. len: receives its length.
/// The first call on a handle sorts the names; from then on a call takes logarithmic time and does not allocate.
///
/// ST_ERR_NO_MEMORY: no memory for the order of the names.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_find_prefix(
    checkpoint: *const st_checkpoint,
    prefix: *const c_char,
    indices: *mut *const usize,
    len: *mut usize,
) -> st_status {
    guard_status(|| {
        // SAFETY: the header's rules for handles and strings.
        let (checkpoint, prefix) = unsafe { (self::checkpoint(checkpoint).ok()?, c_bytes(prefix, "prefix").ok()?) };
        // SAFETY: the header's rules for outputs.
        let (indices, len) = unsafe { (output(indices, "indices").ok()?, output(len, "len").ok()?) };
        let Some(found) = checkpoint.find_prefix(prefix) else { return Some(ST_ERR_NO_MEMORY) };
        indices.write(found.as_ptr());
        len.write(found.len());
        Some(ST_OK)
    })
}

/// Describes tensor index.
///
/// ST_ERR_OUT_OF_RANGE: index is not below st_len.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_tensor_info(
    checkpoint: *const st_checkpoint,
    index: usize,
    out: *mut st_tensor,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, outputs and errors.
    unsafe {
        guard(err, || {
            let tensor = self::checkpoint(checkpoint)?.tensor_at(index)?;
            output(out, "out")?.write(st_tensor {
                name: tensor.name_bytes().as_ptr().cast(),
                name_len: tensor.name_bytes().len(),
                dtype: dtype_number(tensor.dtype()),
                // A header of 100 MB has no room for 2^32 dimensions.
                rank: tensor.shape().len() as u32,
                shape: tensor.shape().as_ptr(),
                nbytes: tensor.nbytes() as usize,
                shard: tensor.shard(),
                file_offset: tensor.file_offset(),
                alignment: tensor.alignment(),
            });
            Ok(())
        })
    }
}

/// Tells the sizes of the checkpoint and how it was opened.
///
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_checkpoint_info(checkpoint: *const st_checkpoint, out: *mut st_info) -> st_status {
    guard_status(|| {
        // SAFETY: the header's rules for handles and outputs.
        let (checkpoint, out) = unsafe { (self::checkpoint(checkpoint).ok()?, output(out, "out").ok()?) };
        let info = checkpoint.info();
        out.write(st_info {
            file_bytes: info.file_bytes,
            header_bytes: info.header_bytes,
            tensor_bytes: info.tensor_bytes,
            metadata_conflicts: info.metadata_conflicts,
            storage: storage_number(info.storage),
            writable: i32::from(checkpoint.is_writable()),
        });
        Some(ST_OK)
    })
}

/// Returns the number of entries in the metadata: __metadata__ of all shards' headers, each key once. Where shards have different
/// values for a key, that of the first shard counts; st_info tells how often that was so. (An index's "metadata" is not shown.)
#[no_mangle]
pub unsafe extern "C" fn st_metadata_len(checkpoint: *const st_checkpoint) -> usize {
    // SAFETY: NULL or an open handle.
    guard_value(0, || Some(unsafe { self::checkpoint(checkpoint) }.ok()?.metadata_len()))
}

/// Gives key and value of metadata entry i, in the order of the shards and their headers. Both live as long as the handle. (A value that contains a NUL
/// appears to end there; a key cannot contain one.)
///
/// key, value: either may be NULL.
///
/// ST_ERR_OUT_OF_RANGE: i is not below st_metadata_len.
/// ST_ERR_INVALID_ARGUMENT: the checkpoint is NULL.
#[no_mangle]
pub unsafe extern "C" fn st_metadata_at(
    checkpoint: *const st_checkpoint,
    i: usize,
    key: *mut *const c_char,
    value: *mut *const c_char,
) -> st_status {
    guard_status(|| {
        // SAFETY: NULL or an open handle.
        let checkpoint = unsafe { self::checkpoint(checkpoint) }.ok()?;
        let Some((found_key, found_value)) = checkpoint.metadata(i) else { return Some(ST_ERR_OUT_OF_RANGE) };
        for (out, found) in [(key, found_key), (value, found_value)] {
            // SAFETY: the header's rules for outputs.
            if let Some(out) = unsafe { optional_output(out) } {
                out.write(found.as_ptr().cast());
            }
        }
        Some(ST_OK)
    })
}

/// Returns the metadata value of a key, NULL when there is none. It lives as long as the handle.
#[no_mangle]
pub unsafe extern "C" fn st_metadata_get(checkpoint: *const st_checkpoint, key: *const c_char) -> *const c_char {
    guard_value(null(), || {
        // SAFETY: the header's rules for handles and strings.
        let (checkpoint, key) = unsafe { (self::checkpoint(checkpoint).ok()?, c_bytes(key, "key").ok()?) };
        Some(checkpoint.metadata_get(key)?.as_ptr().cast())
    })
}

/// Returns the number of shards: the files that hold the tensors.
#[no_mangle]
pub unsafe extern "C" fn st_shard_len(checkpoint: *const st_checkpoint) -> usize {
    // SAFETY: NULL or an open handle.
    guard_value(0, || Some(unsafe { self::checkpoint(checkpoint) }.ok()?.shard_len()))
}

/// Returns the path of a shard: as it was given to st_open, or the folder's path joined with the shard's name; "" for a buffer; NULL if
/// shard is not below st_shard_len. It lives as
/// long as the handle.
#[no_mangle]
pub unsafe extern "C" fn st_shard_path(checkpoint: *const st_checkpoint, shard: usize) -> *const c_char {
    // SAFETY: NULL or an open handle.
    guard_value(null(), || Some(unsafe { self::checkpoint(checkpoint) }.ok()?.shard_path(shard)?.as_ptr()))
}
