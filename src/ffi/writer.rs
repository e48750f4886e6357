//! Section "Writing".

use super::about::{dtype_of, st_dtype};
use super::error::{st_error, st_status};
use super::guard::{guard, guard_value};
use super::handle::{array, c_bytes, null, output};
use super::options::{check_flags, copy_options, Options};
use super::task::{st_task, task_of_options};
use crate::error::Error;
use crate::format::{Dtype, MAX_DIMENSIONS};
use crate::process::Process;
use crate::storage::StorageError;
use crate::writer::{Checksums, Writer, WriterOptions};
use std::ffi::{c_char, c_void, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, MutexGuard};

/// A checkpoint that is being written. Not reference counted: it belongs to whoever opened it, and is
/// freed by st_writer_finish when that succeeds, or by st_writer_abort. Calls on one writer may come
/// from any threads; they wait for one another, and none may come after, or at the same time as, the
/// call that frees it.
///
/// It also belongs to the process that opened it. In a child made by fork() each call fails with
/// ST_ERR_UNSUPPORTED, and st_writer_abort frees memory and removes nothing.
pub struct st_writer {
    _opaque: [u8; 0],
}

/// Let tensors lie in the order in which they were added or declared. Without this they lie as the reference implementation has them:
/// by dtype, the largest ST_DTYPE_* first, then by name.
pub const ST_WRITE_INSERTION_ORDER: u32 = 1;
/// Do not wait until the disk has everything: faster, and all is well unless the system crashes soon after. Then the new file may be
/// damaged, and the old one gone.
pub const ST_WRITE_NO_SYNC: u32 = 2;
/// Write MindSpore's CRC into the metadata, as "crc_num": see ST_CHECK_CRC. Of a scalar of an integer type that is not negative MindSpore
/// sums as many zeros as its value, and so does this, for MindSpore accepts nothing else. (MindSpore cannot sum BF16 at all.)
pub const ST_WRITE_CRC: u32 = 4;
/// Write the SHA-256 of everything after the header into the metadata, as "modelspec.hash_sha256": see ST_CHECK_SHA256. It cannot be
/// computed by several threads, so it is the slowest.
pub const ST_WRITE_SHA256: u32 = 8;
/// Write BLAKE3 digests of the header and of each tensor into the metadata, as "safetensors_lazy.blake3": see ST_CHECK_BLAKE3. What
/// ST_VERIFY_FIRST_USE needs. 65 bytes of header for each tensor.
pub const ST_WRITE_BLAKE3: u32 = 16;

/// How to write a checkpoint. Initialise with ST_WRITER_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_writer_options {
    /// sizeof(st_writer_options)
    pub struct_size: usize,
    /// ST_WRITE_*, or'ed.
    pub flags: u32,
    /// What the place of the first tensor in the file is a multiple of, by spaces after the header: a power of two from 8 to 65536, or 0,
    /// which is 8. (Further tensors lie directly one after the other, as the format wants it.)
    pub alignment: u32,
    /// 0: one file. Otherwise the most bytes of tensors in a shard, and there may be several files; see st_writer_open.
    pub max_shard_bytes: u64,
    /// Watches st_writer_finish, and cancels it; or NULL. The writer holds a reference of its own.
    pub task: *mut st_task,
}

// SAFETY: 8 + 4 + 4 + 8 + 8 bytes, integers and a raw pointer, `struct_size` first.
unsafe impl Options for st_writer_options {
    const FIRST_SIZE: usize = 32;
}

/// Begins to write a checkpoint. Nothing appears under its path before st_writer_finish succeeds, and then all of it does: who opens the
/// path finds the old file or the new one, never a part of either, also after a crash of the system. Who has the old file open keeps it.
///
/// For the same tensors and metadata the file is, byte for byte, what the reference implementation writes, unless options ask for
/// something else. (Its metadata is in random order where there is more than one entry; here entries keep their order.)
///
/// path: a file in a folder that exists. A regular file there is replaced, and leaves its permissions (those to read, write and execute)
/// to the new one; otherwise these follow the umask. Owner, group, access control lists and other attributes are those of any new file. A
/// symbolic link is replaced itself, and what it leads to stays as it is.
///
/// The writer makes temporary files beside path, whose names begin with a dot and end with ".st-tmp".
/// They go with the writer. If the process dies they stay until the next writer opens the same path
/// (on file systems without flock(2), until somebody removes them). Two writers of the same path do
/// not disturb each other; who finishes last wins. While one of them puts its files in their places,
/// the others wait: for this the folder is locked with flock(2). All of this is so among processes
/// that see one another's locks. Where locks are kept to one host (NFS with local_lock, Lustre with
/// localflock) or refused, and several processes write the same path at the same time, one may remove
/// temporary files of the other, which then fails, and their files may be mixed: see to it that one
/// comes after the other.
///
/// With max_shard_bytes tensors are dealt to shards in the order in which they are added or declared, by the rule of huggingface_hub: one that
/// is larger than that has a shard of its own, and another shard is begun when a tensor would not fit. If there is one shard, it is the
/// file at path and there is no index. If there are several, then for ".../model.safetensors" they are
/// ".../model-00001-of-0000N.safetensors" and so on, and ".../model.safetensors.index.json" is the index, as transformers
/// writes it, through which st_open opens them. (".safetensors" is added to the names if path does not end with it.) Each shard has all of
/// the metadata. Where its name is new it gets the permissions that the files of the old checkpoint have in common.
///
/// At any moment, also after a crash, and after any number of crashes, the path, the index and the
/// folder each open as the old checkpoint or as the new one. A file is replaced by a rename where there
/// is no index. Everything else begins and ends with the index. For a moment it names the temporary
/// files of the new checkpoint, and lists in its metadata, as "safetensors_lazy.unnamed", what is still
/// to be put in place or to be removed; after a crash this lasts until the next writer of the same path
/// finishes. A program that reads the index at that moment, and opens the shards a moment later, may
/// find some of the one and some of the other.
///
/// In the end there is the file or the index with its shards, never a pair that disagrees. Shards that
/// the old index names, and that are not part of the new checkpoint, are removed; only files named
/// ".../model-xxxxx-of-xxxxx.safetensors" are. Shards replace a file at path itself, which is removed.
/// A file replaces shards and their index. The index stays, and names the file, if the folder has other
/// files named "*.safetensors", which a reader of the folder could not tell from the checkpoint. An
/// index of another name that names the file is not looked at: replace a single shard of a checkpoint
/// only by one that has the same tensors. A shard has a descriptor open until the end.
///
/// A file system, or a sandbox, may lack things. Without preallocation a full disk is found later.
/// Without locks, see above. Permissions that cannot be set are left, if the new file permits no more
/// than the old one. Files that can only be appended to are written from front to back by one thread:
/// tensors that are declared must then be written in the order in which they lie in the file, and
/// cannot have checksums. A file system that cannot replace a file by rename(2) cannot be written to.
/// Without hard links (link(2)), and there only:
/// - while shards replace others of the same names, or come to a path where nothing was, the index
///   names files that are on their way, and neither it nor the folder can be opened; a crash in that
///   moment leaves it so until the next writer of the same path finishes;
/// - a crash while a file replaces shards can leave the new file beside the index of the old shards,
///   and one while shards replace others can leave shards that no index names.
///
/// options: NULL for the defaults.
/// out: receives the handle, to be freed by st_writer_finish or st_writer_abort; NULL on failure.
///
/// ST_ERR_IO: the folder is absent (os_error is ENOENT), is none (ENOTDIR) or cannot be written to (EACCES, EROFS), or a name is too long
/// (ENAMETOOLONG).
/// ST_ERR_NOT_A_FILE: path, or the place of the index or of the first shard, leads to a directory, a FIFO, a socket or a device.
/// ST_ERR_INVALID_ARGUMENT: a NULL; path does not end with the name of a file; with max_shard_bytes, that name is not UTF-8; the alignment is
/// none; options that this library does not know.
#[no_mangle]
pub unsafe extern "C" fn st_writer_open(
    path: *const c_char,
    options: *const st_writer_options,
    out: *mut *mut st_writer,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for strings, options, outputs and errors.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            out.write(std::ptr::null_mut());
            let path = OsStr::from_bytes(c_bytes(path, "path")?);
            let writer = Writer::create(path, writer_options(copy_options(options)?)?)?;
            let process = Process::this().ok_or(Error::NoMemory)?;
            out.write(Box::into_raw(Box::new(Handle { process, writer: Mutex::new(writer) })).cast());
            Ok(())
        })
    }
}

/// Adds an entry to the metadata. Entries keep their order. key and value are copied.
///
/// Whoever copies the metadata of another checkpoint must leave out its checksums: "crc_num", "modelspec.hash_sha256", "sshs_model_hash" and
/// "safetensors_lazy.blake3". They are taken as they are given, since a program may have computed them itself, but those of another file
/// are wrong here, and st_verify and other readers would take the new file for damaged. To have the right ones written, set ST_WRITE_*.
///
/// ST_ERR_HEADER_UTF8: key or value is not UTF-8.
/// ST_ERR_DUPLICATE_METADATA: there is an entry of that key, or a checksum that the options ask for will be written as one.
/// ST_ERR_HEADER_TOO_LARGE: the header would be longer than 100,000,000 bytes.
/// ST_ERR_SEALED: it is too late, after a piece has been written or st_writer_finish been called.
/// ST_ERR_NO_MEMORY: no memory for a copy. ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_writer_metadata(
    writer: *mut st_writer,
    key: *const c_char,
    value: *const c_char,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, strings and errors.
    unsafe {
        guard(err, || {
            let mut writer = locked(writer)?;
            writer.metadata(c_bytes(key, "key")?, c_bytes(value, "value")?)
        })
    }
}

/// Adds a tensor whose bytes are all in memory. They are not copied: data must stay readable and unchanged until the writer is freed.
/// They are read by st_writer_finish, by several threads. (If they lie in a mapping of a file that another program truncates, reading
/// raises SIGBUS.)
///
/// name and shape are copied. shape: rank elements; may be NULL if rank is 0. data: nbytes bytes, in C order, little-endian, 4- and 6-bit
/// elements packed; may be NULL if nbytes is 0.
///
/// ST_ERR_DUPLICATE_NAME: there is a tensor of that name. ST_ERR_RESERVED_NAME: the name is "__metadata__".
/// ST_ERR_HEADER_UTF8: the name is not UTF-8.
/// ST_ERR_TENSOR_SIZE: nbytes is not what dtype and shape need.
/// ST_ERR_TENSOR_OVERFLOW: the size of the tensor does not fit 64 bits, or that of the file the largest that a file can have.
/// ST_ERR_TENSOR_PARTIAL_BYTE: elements of 4 or 6 bits do not fill whole bytes.
/// ST_ERR_HEADER_TOO_LARGE: the header would be longer than 100,000,000 bytes.
/// ST_ERR_SEALED: it is too late, after a piece has been written or st_writer_finish been called.
/// ST_ERR_UNSUPPORTED: there would be more than 65,536 shards.
/// ST_ERR_NO_MEMORY: no memory for a copy of name and shape.
/// ST_ERR_INVALID_ARGUMENT: a NULL; no such dtype; more than 50,000,000 dimensions.
#[no_mangle]
pub unsafe extern "C" fn st_writer_add(
    writer: *mut st_writer,
    name: *const c_char,
    dtype: st_dtype,
    shape: *const u64,
    rank: usize,
    data: *const c_void,
    nbytes: usize,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, strings, arrays and errors; `data` is the caller's to keep until the writer is freed.
    unsafe {
        guard(err, || {
            let mut writer = locked(writer)?;
            let (name, shape) = (c_bytes(name, "name")?, shape_of(shape, rank)?);
            let data: &'static [u8] = array(data.cast::<u8>(), nbytes, "data")?;
            writer.add(name, self::dtype(dtype)?, shape, data)
        })
    }
}

/// Announces a tensor whose bytes st_writer_write will bring. name and shape are copied. shape: rank elements; may be NULL if rank is 0.
///
/// Errors: as for st_writer_add.
#[no_mangle]
pub unsafe extern "C" fn st_writer_declare(
    writer: *mut st_writer,
    name: *const c_char,
    dtype: st_dtype,
    shape: *const u64,
    rank: usize,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, strings, arrays and errors.
    unsafe {
        guard(err, || {
            let mut writer = locked(writer)?;
            let (name, shape) = (c_bytes(name, "name")?, shape_of(shape, rank)?);
            writer.declare(name, self::dtype(dtype)?, shape)
        })
    }
}

/// Writes the next bytes of a tensor that was declared; data may be freed afterwards. Tensors may be written in any order and in turns,
/// each in pieces of any size. The first piece fixes where everything lies: from then on nothing can be added or declared. It also
/// makes all files in their full length, so that a full disk is found by then.
///
/// Large pieces are faster: from 8 MiB on each is written by several threads.
///
/// data: nbytes bytes; may be NULL if nbytes is 0. A piece of which the writing fails does not count: it may be given again.
///
/// ST_ERR_NOT_FOUND: no tensor of that name was declared.
/// ST_ERR_TENSOR_SIZE: with this piece the tensor would have more bytes than dtype and shape need.
/// ST_ERR_HEADER_TOO_LARGE: the header would be longer than 100,000,000 bytes.
/// ST_ERR_IO: the disk is full (os_error is ENOSPC or EDQUOT) or failed, or there are more shards than descriptors (EMFILE); or an earlier
/// st_writer_finish failed for good.
/// ST_ERR_UNSUPPORTED: the file system takes the bytes of a file in their order only, and these are not
/// the next ones.
/// ST_ERR_HEADER_UTF8: the name is not UTF-8. ST_ERR_NO_MEMORY: no memory for the layout.
/// ST_ERR_INVALID_ARGUMENT: a NULL; the tensor was added, and has all of its bytes.
#[no_mangle]
pub unsafe extern "C" fn st_writer_write(
    writer: *mut st_writer,
    name: *const c_char,
    data: *const c_void,
    nbytes: usize,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, strings, arrays and errors.
    unsafe {
        guard(err, || {
            let mut writer = locked(writer)?;
            let name = c_bytes(name, "name")?;
            writer.write(name, array(data.cast::<u8>(), nbytes, "data")?)
        })
    }
}

/// Writes what is left, waits until the disk has everything, and puts the checkpoint in its place. On success, and only then, the writer
/// is freed.
///
/// On failure the writer stays, and must be given to st_writer_abort in the end. Before that the cause may be mended, by writing missing
/// bytes or making room on the disk, and this function be called again: nothing that was written is lost, or written or summed
/// again. It goes on from what it finds then: if others have written the same path meanwhile, this checkpoint replaces theirs.
///
/// What is found after a failure is what was there before, unless the message says otherwise. "The new checkpoint is in place": all of it is
/// found at the path, or by the index; but files may still have temporary names besides, or only these, and old shards, or the index of
/// shards that one file replaces, may still be there, which the next call, or the next writer, puts in
/// order. "The index names files that are not in place": the file system has no hard links, and until
/// this function is called again and succeeds, or another writer has, there is no checkpoint.
///
/// The progress of the task counts the bytes of tensors that were added, which are written, those of all tensors again if checksums are
/// asked for, which are read, and all tensors. Memory of up to 16 MiB is used besides.
///
/// ST_ERR_INCOMPLETE: a tensor that was declared lacks bytes; the message names it and says how many.
/// ST_ERR_CANCELLED: the task was cancelled. As this lasts, all that is left is st_writer_abort.
/// ST_ERR_IO: the disk is full (os_error is ENOSPC or EDQUOT) or failed, or the file would be larger than it may be (EFBIG); or
/// permissions have changed meanwhile; or somebody has removed a temporary file (ENOENT); or somebody
/// else has had the folder locked for 30 seconds (ETIMEDOUT); or the file system cannot replace a file
/// by rename(2). If it is fsync(2) or close(2) that failed, what was written may be lost, now or later,
/// and the system would not say so a second time: the writer then fails for good, each time with the
/// same os_error. If the message says that the new checkpoint is in place, it is, but might not be
/// after a crash of the system.
/// ST_ERR_UNSUPPORTED: the file system takes the bytes of a file in their order only, and these are not
/// the next ones; or this is a child of the process that opened the writer.
/// ST_ERR_NOT_A_FILE: what is no file has come to where a file should go.
/// ST_ERR_HEADER_TOO_LARGE: the header would be longer than 100,000,000 bytes.
/// ST_ERR_NO_MEMORY: no memory for the layout or a block. ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_writer_finish(writer: *mut st_writer, err: *mut st_error) -> st_status {
    // SAFETY: the header's rules for handles and errors.
    unsafe {
        guard(err, || {
            locked(writer)?.finish()?;
            drop(Box::from_raw(writer.cast::<Handle>()));
            Ok(())
        })
    }
}

/// Gives up: frees the writer and removes its temporary files. NULL is fine. What is at the path stays.
/// In a child of the process that opened the writer nothing is removed.
///
/// (If st_writer_finish has failed when the new checkpoint was in place, the index may name temporary files. These stay: they are the
/// checkpoint, and complete. The next writer of the same path removes them when it has replaced them.)
#[no_mangle]
pub unsafe extern "C" fn st_writer_abort(writer: *mut st_writer) {
    guard_value((), || {
        if !writer.is_null() {
            // SAFETY: not NULL, so a writer that the caller gives up.
            let handle = unsafe { Box::from_raw(writer.cast::<Handle>()) };
            // In a child of the process another thread, which has not come along, may have left the writer in the middle of something.
            if !handle.process.is_this() && handle.writer.try_lock().is_err() {
                std::mem::forget(handle);
            }
        }
        Some(())
    });
}

/// What a handle points to. What its tensors borrow the caller keeps until it is freed.
struct Handle {
    process: Process,
    writer: Mutex<Writer<'static>>,
}

/// The writer behind a handle, for this thread alone.
///
/// # Safety
///
/// `handle` is NULL or not freed as long as the result is used.
unsafe fn locked<'a>(handle: *mut st_writer) -> Result<MutexGuard<'a, Writer<'static>>, Error> {
    // SAFETY: made by `st_writer_open`, and the caller's promise.
    let handle = unsafe { handle.cast::<Handle>().as_ref() }.ok_or_else(|| null("the writer"))?;
    if !handle.process.is_this() {
        // Not even the lock: a thread that has not come along may have it.
        let source = StorageError::Unsupported("a writer does not go on in a child of its process");
        return Err(Error::Storage { path: String::new(), tensor: None, source });
    }
    handle.writer.lock().map_err(|_| Error::InvalidArgument {
        what: "an earlier call on this writer ended by a bug: only st_writer_abort is left".to_owned(),
    })
}

/// The shape of a new tensor. Its length is checked first, since it may be garbage.
///
/// # Safety
///
/// The header's rules for arrays.
unsafe fn shape_of<'a>(shape: *const u64, ndim: usize) -> Result<&'a [u64], Error> {
    if ndim > MAX_DIMENSIONS {
        let what = format!("a tensor cannot have {ndim} dimensions: the limit is {MAX_DIMENSIONS}");
        return Err(Error::InvalidArgument { what });
    }
    // SAFETY: the caller's promise.
    unsafe { array(shape, ndim, "shape") }
}

fn dtype(number: st_dtype) -> Result<Dtype, Error> {
    dtype_of(number).ok_or_else(|| Error::InvalidArgument { what: format!("there is no dtype {number}") })
}

/// # Safety
///
/// `task` of the options is NULL or not freed.
unsafe fn writer_options(options: st_writer_options) -> Result<WriterOptions, Error> {
    let flag = |flag| options.flags & flag != 0;
    let checksums = Checksums { crc: flag(ST_WRITE_CRC), sha256: flag(ST_WRITE_SHA256), blake3: flag(ST_WRITE_BLAKE3) };
    check_flags(
        options.flags,
        ST_WRITE_INSERTION_ORDER | ST_WRITE_NO_SYNC | ST_WRITE_CRC | ST_WRITE_SHA256 | ST_WRITE_BLAKE3,
    )?;
    Ok(WriterOptions {
        insertion_order: flag(ST_WRITE_INSERTION_ORDER),
        no_sync: flag(ST_WRITE_NO_SYNC),
        checksums,
        alignment: options.alignment,
        max_shard_bytes: options.max_shard_bytes,
        // SAFETY: the caller's promise.
        task: unsafe { task_of_options(options.task) },
    })
}

/// Handles are used from any thread.
const _: () = {
    const fn is_shared<T: Send + Sync>() {}
    is_shared::<Handle>();
};
