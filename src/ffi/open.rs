//! Section "Open and close".

use super::error::{st_error, st_status};
use super::guard::{guard, guard_value};
use super::handle::{array, c_bytes, into_handle, output, shared_checkpoint, take_handle};
use super::options::{check_flags, check_reserved, copy_options, Options};
use crate::checkpoint::{Checkpoint, OpenOptions, Verify};
use crate::error::Error;
use crate::storage::{Memory, StorageKind, StorageOptions};
use std::ffi::{c_char, c_void, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::ptr::NonNull;
use std::sync::Arc;

/// An open checkpoint: one file, or several shards with one name space. Reference counted.
pub struct st_checkpoint {
    _opaque: [u8; 0],
}

/// Mapped, unless the file lies on a network or FUSE file system or the mapping is refused: then as ST_STORAGE_READ.
pub const ST_STORAGE_AUTO: i32 = 0;
/// Mapped: pointers without a copy, pages shared with every process that maps the file. Where mapping is refused, so is the
/// file.
pub const ST_STORAGE_MMAP: i32 = 1;
/// Read by pread(2): a tensor that is pointed to is a copy, read and kept on first use. No access can raise SIGBUS.
pub const ST_STORAGE_READ: i32 = 2;
/// Memory of the caller's: what st_open_buffer uses.
pub const ST_STORAGE_MEMORY: i32 = 3;

/// Private writable pages: tensors may be written to in memory; the file is never changed, other processes see nothing, and
/// st_tensor_read still gives the file's bytes. Costs memory for the pages that are written. (Over a buffer: tensors are copied
/// when they are first pointed to.)
pub const ST_OPEN_COPY_ON_WRITE: u32 = 1;
/// Read all of the file in before st_open returns: into the mapping, where an error of the disk is reported as ST_ERR_IO rather than
/// raised as SIGBUS later. Before Linux 5.14, and where a sandbox refuses the system call, into the page cache. Without a mapping, start
/// reading ahead into the page cache, as st_prefetch does.
pub const ST_OPEN_POPULATE: u32 = 2;
/// Lock the mapping into physical memory. Needs RLIMIT_MEMLOCK, or fails with ST_ERR_IO or ST_ERR_NO_MEMORY; ST_ERR_UNSUPPORTED
/// where there is no mapping. With ST_OPEN_COPY_ON_WRITE every page becomes a private copy.
pub const ST_OPEN_LOCK: u32 = 4;
/// Let symbolic links in the checkpoint's folder lead out of it. Without this they may lead only below the folder, or from a Hugging
/// Face cache into its store; another process that swaps files and links meanwhile cannot change that. What path itself leads to may lie
/// anywhere.
pub const ST_OPEN_FOLLOW_LINKS: u32 = 8;

/// Nothing is verified, unless st_verify is called.
pub const ST_VERIFY_NONE: i32 = 0;
/// Opening verifies the headers that have digests ("safetensors_lazy.blake3": see st_verify). No tensor is read.
pub const ST_VERIFY_STRUCTURE: i32 = 1;
/// Besides, each tensor is verified once: when it is first handed out by st_tensor_ptr, st_tensor_view, st_tensor_dlpack,
/// st_acquire, or an st_tensor_read of all of it. That call reads all of the tensor, and gives ST_ERR_CHECKSUM_MISMATCH if it is damaged, and so does
/// each call after it; other threads that want the tensor wait meanwhile. Later uses cost nothing. Reads of slices are not verified.
/// Every shard must have digests: else ST_ERR_CHECKSUM_MISSING.
pub const ST_VERIFY_FIRST_USE: i32 = 2;
/// Opening reads everything and verifies it by whatever checksums there are, as st_verify does. Every shard must have one.
pub const ST_VERIFY_FULL: i32 = 3;

/// How to open a checkpoint. Initialise with ST_OPEN_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_open_options {
    /// sizeof(st_open_options)
    pub struct_size: usize,
    /// One of ST_STORAGE_*.
    pub storage: i32,
    /// ST_OPEN_*, or'ed.
    pub flags: u32,
    /// The most bytes of tensors to hold in memory; 0 for no limit. See st_set_budget. Not with ST_OPEN_LOCK: ST_ERR_UNSUPPORTED.
    pub budget: u64,
    /// One of ST_VERIFY_NONE to ST_VERIFY_FULL. With all but the first, st_tensor_read, and what copies a tensor, also give
    /// ST_ERR_FILE_CHANGED if the size or the time of modification of the file is no longer what it was when it was opened. (Not noticed: what is
    /// written to a mapping that was handed out before; and who writes and then sets the time back. A file that is replaced by rename has not
    /// changed: the old one is still there.)
    pub verify: i32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: 8 + 4 + 4 + 8 + 4 + 4 bytes of integers, `struct_size` first.
unsafe impl Options for st_open_options {
    const FIRST_SIZE: usize = 16;
}

/// Opens a checkpoint: reads the headers of its shards into private memory, checks them, and maps the files. Nothing else is read; 100 GB
/// cost no more than 100 MB with as many tensors. Few and small headers are read by the calling thread, others by several threads, which
/// have ended when the call returns. Files may be renamed, replaced by rename or unlinked while they
/// are open.
///
/// path: any path that open(2) takes. It leads to
///
/// - a .safetensors file, which is the only shard; or
/// - an index, whose name ends with ".json": a *.index.json as Hugging Face's transformers writes it, or a param_name_map.json of
///   MindSpore's, with or without its "weight_map". A hyper_param.safetensors beside the latter is a shard too, the last one; or
/// - a folder that holds one such index (those of PyTorch's .bin files aside); or, without an index, all of the shards
///   *-00001-of-0000N.safetensors; or else one .safetensors file.
///
/// With an index, shards are numbered in byte order of their names. Every tensor of the index must be in its shard, and every tensor of
/// these shards in the index. A shard lies in the index's folder or below it; for symbolic links see ST_OPEN_FOLLOW_LINKS.
///
/// options: NULL for the defaults.
/// out: receives the handle, with one reference that the caller must st_close; NULL on failure.
///
/// Each shard keeps a descriptor open, by which it is read when it was renamed or unlinked. Files and folders whose names begin with a dot are not looked at.
///
/// ST_ERR_IO: a file is absent (os_error is ENOENT), not readable (EACCES), or the disk failed; or there are more shards than descriptors
/// (EMFILE; the message has the number and the limit).
/// ST_ERR_NOT_A_FILE: path, or a shard, is a FIFO, a socket or a device, or a shard is a directory.
/// ST_ERR_HEADER_* to ST_ERR_TRAILING_BYTES, ST_ERR_TRUNCATED: a file breaks a rule of the format; each has a code of its own.
/// The rules are those of the reference implementation (github.com/huggingface/safetensors, 0.8), and stricter in that
/// duplicate names, metadata keys that stand twice in one header, and names and keys with a NUL are refused; ST_ERR_DUPLICATE_NAME also
/// if two shards have the same name. The message says what a file is that is none of the format, if its start tells: a Git LFS pointer,
/// an HTML page, a zip archive, zeros.
/// ST_ERR_INDEX_*: the index is not one, or it and the shards contradict each other.
/// ST_ERR_SHARD_MISSING: shards are not there; the message has the first one's name and the number of the others. Or the index is a
/// symbolic link that leads nowhere.
/// ST_ERR_SHARD_OUTSIDE, ST_ERR_SHARD_TWICE: a shard is not in the folder, or there twice.
/// ST_ERR_FOLDER_EMPTY, ST_ERR_FOLDER_AMBIGUOUS: the folder holds no checkpoint, or more than one.
/// ST_ERR_CHECKSUM_MISSING, ST_ERR_CHECKSUM_MISMATCH, ST_ERR_CHECKSUM_MALFORMED, ST_ERR_FILE_CHANGED: what the option verify asks for.
/// ST_ERR_NO_MEMORY: no memory for a header or the index (at most 100 MB each) or the directory.
/// ST_ERR_UNSUPPORTED: the options ask for what the storage cannot do.
/// ST_ERR_INVALID_ARGUMENT: a NULL, or options that this library does not know.
#[no_mangle]
pub unsafe extern "C" fn st_open(
    path: *const c_char,
    options: *const st_open_options,
    out: *mut *mut st_checkpoint,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for strings, options, outputs and errors.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            out.write(std::ptr::null_mut());
            let path = OsStr::from_bytes(c_bytes(path, "path")?);
            let checkpoint = Checkpoint::open(path, open_options(copy_options(options)?)?)?;
            out.write(into_handle(Arc::new(checkpoint)));
            Ok(())
        })
    }
}

/// Opens a safetensors file that is in memory. The header is copied; tensors are pointed to where they lie, so `data` must stay
/// readable and unchanged until the last reference is closed. st_tensor_ptr copies only tensors that are not aligned.
///
/// data: the first of len bytes; may be NULL if len is 0 (which is no safetensors file).
/// options: NULL for the defaults; storage must be ST_STORAGE_AUTO or ST_STORAGE_MEMORY. out: as for st_open.
///
/// Errors: as for st_open, without those of files.
#[no_mangle]
pub unsafe extern "C" fn st_open_buffer(
    data: *const c_void,
    len: usize,
    options: *const st_open_options,
    out: *mut *mut st_checkpoint,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for options, outputs and errors.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            out.write(std::ptr::null_mut());
            let data = array(data.cast::<u8>(), len, "data")?;
            let options = open_options(copy_options(options)?)?;
            // The caller promises to leave the bytes alone until the handle is closed.
            let memory = Memory::borrowed(NonNull::from(data).cast(), data.len());
            out.write(into_handle(Arc::new(Checkpoint::open_memory(memory, options)?)));
            Ok(())
        })
    }
}

/// Takes one more reference and returns the same handle; NULL for NULL. Each reference must be closed.
#[no_mangle]
pub unsafe extern "C" fn st_retain(checkpoint: *mut st_checkpoint) -> *mut st_checkpoint {
    guard_value(std::ptr::null_mut(), || {
        // SAFETY: NULL or an open handle.
        let reference = unsafe { shared_checkpoint(checkpoint) }.ok()?;
        Some(into_handle(reference))
    })
}

/// Drops one reference; NULL is fine. With the last one the files are unmapped, copies are freed, the thread of st_prefetch is
/// waited for (which takes it no longer than the request that it is in), and every pointer that came from the
/// handle is dead, except DLPack tensors, which hold references of their own.
#[no_mangle]
pub unsafe extern "C" fn st_close(checkpoint: *mut st_checkpoint) {
    guard_value((), || {
        if !checkpoint.is_null() {
            // SAFETY: not NULL, so a handle with a reference that the caller gives up.
            drop(unsafe { take_handle(checkpoint) });
        }
        Some(())
    });
}

fn open_options(options: st_open_options) -> Result<OpenOptions, Error> {
    let kind = match options.storage {
        ST_STORAGE_AUTO => StorageKind::Auto,
        ST_STORAGE_MMAP => StorageKind::Mmap,
        ST_STORAGE_READ => StorageKind::Read,
        ST_STORAGE_MEMORY => StorageKind::Memory,
        unknown => return Err(Error::InvalidArgument { what: format!("there is no storage {unknown}") }),
    };
    let flag = |flag| options.flags & flag != 0;
    check_flags(options.flags, ST_OPEN_COPY_ON_WRITE | ST_OPEN_POPULATE | ST_OPEN_LOCK | ST_OPEN_FOLLOW_LINKS)?;
    let storage = StorageOptions {
        kind,
        copy_on_write: flag(ST_OPEN_COPY_ON_WRITE),
        populate: flag(ST_OPEN_POPULATE),
        lock: flag(ST_OPEN_LOCK),
    };
    let verify = match options.verify {
        ST_VERIFY_NONE => Verify::None,
        ST_VERIFY_STRUCTURE => Verify::Structure,
        ST_VERIFY_FIRST_USE => Verify::FirstUse,
        ST_VERIFY_FULL => Verify::Full,
        unknown => return Err(Error::InvalidArgument { what: format!("there is no way to verify {unknown}") }),
    };
    check_reserved(options.reserved)?;
    Ok(OpenOptions { storage, follow_links: flag(ST_OPEN_FOLLOW_LINKS), budget: options.budget, verify })
}

/// The `ST_STORAGE_*` of a kind.
pub(super) fn number_of(kind: StorageKind) -> i32 {
    match kind {
        StorageKind::Auto => ST_STORAGE_AUTO,
        StorageKind::Mmap => ST_STORAGE_MMAP,
        StorageKind::Read => ST_STORAGE_READ,
        StorageKind::Memory => ST_STORAGE_MEMORY,
    }
}

/// Handles are used from any thread.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<Checkpoint>();
};
