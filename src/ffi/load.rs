//! Section "Loading".

use super::bytes::{copy_ranges_to, st_range};
use super::error::{st_error, st_status, ST_DONE, ST_OK, ST_TIMEOUT};
use super::guard::{guard, guard_status, guard_status_with, guard_value};
use super::handle::{array, null, output, shared_checkpoint};
use super::open::st_checkpoint;
use super::options::{check_flags, check_reserved, copy_options, Options};
use super::task::{progress_of, st_progress};
use crate::error::Error;
use crate::load::{Ask, Destination, Engine, Load, LoadOptions, Loaded, Next, Staging};
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

/// The library chooses, for each part of each file: ST_ENGINE_BUFFERED for what the page cache has, and where the system does not tell what
/// it has; otherwise ST_ENGINE_URING; where that is refused, as containers often do, and on network and FUSE file systems,
/// ST_ENGINE_DIRECT; where direct I/O is refused (tmpfs, some others), and for small reads over a network, ST_ENGINE_BUFFERED.
///
/// What is read around the page cache is not in it afterwards. Where several processes of one machine load the same bytes,
/// ST_ENGINE_BUFFERED lets all but the first find them there.
pub const ST_ENGINE_AUTO: i32 = 0;
/// Copies out of memory that was given to st_open_buffer. Only for that, and nothing else is.
pub const ST_ENGINE_MEMORY: i32 = 1;
/// Reads through the page cache, each by one of several threads.
pub const ST_ENGINE_BUFFERED: i32 = 2;
/// Reads around the page cache (O_DIRECT), each by one of several threads.
pub const ST_ENGINE_DIRECT: i32 = 4;
/// Reads around the page cache, many at once by each thread (O_DIRECT, io_uring).
pub const ST_ENGINE_URING: i32 = 8;

/// Deliver in the order of the requests. Without this they come as they are complete, and are read in the order of the files.
pub const ST_LOAD_IN_ORDER: u32 = 1;

/// For st_load_options.over_read: read nothing but what is wanted.
pub const ST_OVER_READ_NONE: u32 = u32::MAX;

/// What to load, and where to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_request {
    /// The tensor.
    pub index: usize,
    /// One range per leading dimension, as for st_tensor_read; NULL for all of the tensor. Read by st_load_start only.
    pub ranges: *const st_range,
    /// The number of ranges; not used if ranges is NULL.
    pub rank: usize,
    /// Where the bytes go, packed, in the order of the elements: memory of the caller's that nobody else may touch until the request
    /// was delivered, or the load was freed. Neither its content nor that of what lies around it matters. Around the page cache,
    /// bytes reach it without a copy if its address is that of the file's bytes modulo 4096, which for a whole tensor is: (address -
    /// st_tensor.file_offset) % 4096 == 0. Large destinations should be in huge pages (MADV_HUGEPAGE): a page fault for each 4 KiB costs
    /// more than to read them. NULL: staged, in memory that the load provides (see st_load_options.staging).
    pub dst: *mut c_void,
    /// The size of dst in bytes; not used if dst is NULL.
    pub dst_len: usize,
    /// Comes back in st_loaded.
    pub tag: u64,
}

/// How to load. Initialise with ST_LOAD_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_load_options {
    /// sizeof(st_load_options)
    pub struct_size: usize,
    /// ST_LOAD_IN_ORDER, or 0.
    pub flags: u32,
    /// ST_ENGINE_AUTO, or the only one to use. One that the system, or a file, refuses is replaced by the next best all the same: see
    /// st_loaded.engine.
    pub engine: i32,
    /// Threads that read. Never more than 64, nor than there is work for. 0 leaves the number to the library, which starts none for a
    /// load of less than block_bytes: see st_load_start. A number starts threads for such a load, too.
    pub workers: u32,
    /// Reads that are under way at once around the page cache, by all threads together; 0 leaves the number to the library. At most 1024.
    pub queue_depth: u32,
    /// The most bytes of one read, a multiple of 4096 from 64 KiB to 64 MiB; 0 leaves it to the library.
    pub block_bytes: usize,
    /// Memory for what is staged, of staging_bytes bytes, which should be aligned to 4096: for example memory that is pinned for a device. It
    /// must stay until st_load_free returns. NULL: the library's own, in huge pages where there are any.
    pub staging: *mut c_void,
    /// The size of the memory for what is staged, at least 64 KiB. 0 is 256 MiB (with staging given: ST_ERR_INVALID_ARGUMENT).
    /// Nothing is allocated beyond what the staged requests need, or without any.
    pub staging_bytes: usize,
    /// The most bytes that are delivered at once of a staged request, at least 4096; a larger one comes in pieces. 0: one that the
    /// staging memory could not hold comes in pieces of a quarter of that, all others at once. Smaller pieces let reading and
    /// uploading go side by side; each is a read of its own.
    pub piece_bytes: usize,
    /// Gaps between requests that are read through to save a read, in percent of the wanted bytes; 0 is 10, ST_OVER_READ_NONE is none.
    pub over_read: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: 8 + 4 * 4 + 4 * 8 + 2 * 4 bytes without padding, `struct_size` first; any bits are a pointer.
unsafe impl Options for st_load_options {
    const FIRST_SIZE: usize = 64;
}

/// A request, or a piece of one, that has arrived.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_loaded {
    /// The request's tag.
    pub tag: u64,
    /// The request's place among those given to st_load_start; ST_ALL if the call told of none.
    pub request: usize,
    /// The tensor; ST_ALL if the call told of none.
    pub index: usize,
    /// The bytes: the request's dst, or staged memory, which may be read and written until it is recycled. Its address is that of the
    /// bytes in their file modulo 4096, so that staged bytes are aligned for their dtype where the tensor is in its file (see
    /// st_tensor.alignment); of a slice with gaps it is a multiple of 4096. NULL if the request failed.
    pub data: *mut c_void,
    /// The number of bytes at data.
    pub nbytes: usize,
    /// Where they start in the request, in bytes: not 0 only for pieces. These end between pages of 4096 bytes of the file (of slices with
    /// gaps: of the slice), and so anywhere in the tensor, but for its last.
    pub offset: u64,
    /// What st_load_recycle needs; 0 if there is nothing to recycle.
    pub buffer: u64,
    /// ST_OK, or why the request (or this piece of it) failed.
    pub status: st_status,
    /// ST_ENGINE_*: what read it. If several did, the one that read the last bytes.
    pub engine: i32,
    /// 1 for the last piece of a request, which is the only one where it is not in pieces; otherwise 0. (Pieces come in order.)
    pub last: u32,
    /// 0.
    pub reserved: u32,
}

/// A load that is running. It holds a reference to its checkpoint.
pub struct st_load {
    _opaque: [u8; 0],
}

/// Starts to load many tensors, or slices, and returns. Everything that is wanted should be asked for at once: neighbours are read
/// together, in few large reads that are under way at the same time, and each byte is read once. (Requests that overlap are read
/// one by one.)
///
///   st_load *load;
///   st_loaded it;
///   st_status status;
///   if (st_load_start(model, requests, n, NULL, &load, &err) != ST_OK)
///       return 1;
///   while ((status = st_load_next(load, -1, &it, &err)) != ST_DONE) {
///       if (status == ST_OK)
///           upload(it.tag, it.data, it.nbytes, it.offset);
///       else
///           fprintf(stderr, "%s\n", err.message);
///       if (it.request == ST_ALL)
///           break; // the load has failed, not one of its requests
///       st_load_recycle(load, &it, NULL);
///   }
///   st_load_free(load);
///
/// What is loaded is what the files hold, as for st_tensor_read; no access to them can raise SIGBUS. Under ST_VERIFY_FIRST_USE whole
/// tensors are verified before they are delivered; one that comes in pieces is read once more for that, before.
///
/// Memory: the staging memory; up to 16 MiB for reads that cannot go where they should at once; some 300 bytes per request, and more if it
/// is a slice of many dimensions. Staging memory is touched from its start on, and used again when it was recycled: no more is staged while
/// 16 MiB, or an eighth of the staging memory, wait to be taken by st_load_next. Huge pages round what is touched up to 2 MiB. Threads:
/// those of st_load_options.workers; they end when all is read, or with st_load_free at the latest.
///
/// A small load starts no thread: the thread that calls st_load_next reads it. A load is small if it reads less than block_bytes, in 64 reads
/// or fewer (one on a network or FUSE file system), and st_load_options.workers is 0. Nothing of it is read before that call, so
/// st_load_progress does not change by itself, and destinations stay as they are if st_load_free comes first.
///
/// After a fork the load goes on in the parent. The child may call st_load_free on it, and nothing else; it has no staging memory of the
/// library's. A process that forks during loads that read around the page cache should keep destinations, and staging memory of its own, from
/// its children (MADV_DONTFORK), or use ST_ENGINE_BUFFERED: otherwise, on some kernels, bytes can reach the child and not the parent (open(2),
/// NOTES, O_DIRECT).
///
/// requests: n of them; they and their ranges are read during this call only. May be NULL if n is 0.
/// options: NULL for the defaults. out: receives the handle, which the caller must st_load_free; NULL on failure.
///
/// Nothing is started unless all requests are right:
/// ST_ERR_OUT_OF_RANGE, ST_ERR_MISALIGNED: an index or a range is wrong, as for st_tensor_read.
/// ST_ERR_BUFFER_TOO_SMALL: a dst_len is less than the request's bytes.
/// ST_ERR_UNSUPPORTED: the engine asked for cannot read this checkpoint at all (ST_ENGINE_MEMORY: a file; another: a buffer).
/// ST_ERR_NO_MEMORY: for the staging memory, the requests or the threads.
/// ST_ERR_INVALID_ARGUMENT: a NULL, options that this library does not know, destinations that overlap one another or the staging memory.
#[no_mangle]
pub unsafe extern "C" fn st_load_start(
    checkpoint: *mut st_checkpoint,
    requests: *const st_request,
    n: usize,
    options: *const st_load_options,
    out: *mut *mut st_load,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, arrays, options, outputs and errors; destinations and staging memory are what the header asks
    // of them.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            out.write(std::ptr::null_mut());
            let checkpoint = shared_checkpoint(checkpoint)?;
            let options = options_of(&copy_options(options)?)?;
            let requests = array(requests, n, "requests")?;
            let of = Arc::clone(&checkpoint);
            let mut requests = requests.iter();
            let load = Load::start_with(checkpoint, n, options, |ranges| {
                let request = requests.next().ok_or(Error::Internal { what: "fewer requests than there are" })?;
                copy_ranges_to(ranges, &of, request.index, request.ranges, request.rank)?;
                let destination = NonNull::new(request.dst).map(|start| (start.cast(), request.dst_len));
                Ok(Ask { index: request.index, destination, tag: request.tag })
            })?;
            out.write(Box::into_raw(Box::new(load)).cast());
            Ok(())
        })
    }
}

/// Gives the next request, or piece of one, that has arrived.
///
/// timeout_ms: the most milliseconds to wait; 0 does not wait. A negative number waits as long as the storage takes, but not for the
/// caller: see ST_ERR_STAGING_FULL. A small load (see st_load_start) is read by this call, which then takes as long as the storage does,
/// whatever the timeout; other threads that call it meanwhile wait for what it reads.
/// out: receives what has arrived; may not be NULL. Unlike other outputs it is always written: where the status is that of a request that
/// failed, out->request, out->tag and out->index tell of which; where it is another, out->request is ST_ALL.
///
/// Any number of threads may call this at once; each request goes to one of them. What others have not recycled counts, too: where several
/// threads take from one load, pass a timeout, which waits for them as well. INT64_MAX waits for ever.
///
/// ST_DONE: everything was delivered.
/// ST_TIMEOUT: nothing has arrived in time.
/// ST_ERR_IO, ST_ERR_TRUNCATED, ST_ERR_FILE_CHANGED, ST_ERR_CHECKSUM_MISMATCH, ST_ERR_NO_MEMORY: this request (or piece: each fails or
/// arrives by itself) failed, and the content of its dst is unspecified. The load goes on: call again for the others.
/// ST_ERR_STAGING_FULL: the timeout is negative, and nothing can arrive before some of what was delivered is recycled, by any thread.
/// ST_ERR_CANCELLED: by st_load_cancel.
/// ST_ERR_NO_MEMORY, ST_ERR_INTERNAL, with ST_ALL as out->request: the load cannot go on. Every call gives that from now on.
/// ST_ERR_INVALID_ARGUMENT: a NULL. ST_ERR_UNSUPPORTED: in a child of the process that started the load.
#[no_mangle]
pub unsafe extern "C" fn st_load_next(
    load: *mut st_load,
    timeout_ms: i64,
    out: *mut st_loaded,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, outputs and errors.
    unsafe {
        guard_status_with(err, || {
            let out = output(out, "out")?;
            out.write(NOTHING);
            let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
            Ok(match self::load(load)?.next(timeout)? {
                Next::Done => ST_DONE,
                Next::Timeout => ST_TIMEOUT,
                Next::Loaded(loaded) => {
                    let (status, loaded) = loaded_of(&loaded, err);
                    out.write(loaded);
                    status
                }
            })
        })
    }
}

/// Hands staged memory back, so that more can be read into it. The bytes must not be touched any more. What was delivered to a dst, and what
/// failed, has nothing to hand back: that is fine too. May be called from any thread.
///
/// ST_ERR_INVALID_ARGUMENT: a NULL; this was recycled before, or is not from this load.
/// ST_ERR_UNSUPPORTED: in a child of the process that started the load.
#[no_mangle]
pub unsafe extern "C" fn st_load_recycle(
    load: *mut st_load,
    loaded: *const st_loaded,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, structs and errors.
    unsafe {
        guard(err, || {
            let loaded = loaded.as_ref().ok_or_else(|| null("loaded"))?;
            self::load(load)?.recycle(loaded.buffer)
        })
    }
}

/// Tells how far the load is. Bytes are done when they have arrived, so that those of requests that fail never are; items are requests, and
/// done when they are delivered, or their failure is. Any thread may ask, at any time. All zero in a child of the process that started
/// the load.
///
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_load_progress(load: *const st_load, out: *mut st_progress) -> st_status {
    guard_status(|| {
        // SAFETY: NULL or a load that has not been freed; NULL or an output.
        let (load, out) = unsafe { (self::load(load).ok()?, output(out, "out").ok()?) };
        let progress = load.progress();
        out.write(st_progress {
            bytes_read: progress.bytes_read,
            engines: progress.engines.iter().fold(0, |bits, engine| bits | number_of_engine(*engine) as u32),
            workers: u32::try_from(progress.workers).unwrap_or(u32::MAX),
            ..progress_of(&progress.done)
        });
        Some(ST_OK)
    })
}

/// Ends the load early, and returns at once: nothing new is read, and st_load_next gives ST_ERR_CANCELLED from now on, in all threads.
/// Reads that are under way may still write to destinations until st_load_free returns. Staged bytes that were delivered stay until
/// then. May be called from any thread; NULL is fine.
#[no_mangle]
pub unsafe extern "C" fn st_load_cancel(load: *mut st_load) {
    guard_value((), || {
        // SAFETY: NULL or a load that has not been freed.
        unsafe { self::load(load) }.ok()?.cancel();
        Some(())
    });
}

/// Cancels what is not done, waits for reads that are under way (as long as the storage takes for them), and frees the load and its staging
/// memory. NULL is fine. No other thread may use the load any more, and none of its threads is left.
#[no_mangle]
pub unsafe extern "C" fn st_load_free(load: *mut st_load) {
    guard_value((), || {
        if !load.is_null() {
            // SAFETY: not NULL, so a load that the caller gives up.
            drop(unsafe { Box::<Load>::from_raw(load.cast()) });
        }
        Some(())
    });
}

/// What a call tells that has nothing to tell.
const NOTHING: st_loaded = st_loaded {
    tag: 0,
    request: usize::MAX,
    index: usize::MAX,
    data: std::ptr::null_mut(),
    nbytes: 0,
    offset: 0,
    buffer: 0,
    status: ST_OK,
    engine: ST_ENGINE_AUTO,
    last: 0,
    reserved: 0,
};

/// The load behind a handle.
///
/// # Safety
///
/// `handle` is NULL or not freed as long as the result is used.
unsafe fn load<'a>(handle: *const st_load) -> Result<&'a Load, Error> {
    // SAFETY: made by `st_load_start`, and the caller's promise.
    unsafe { handle.cast::<Load>().as_ref() }.ok_or_else(|| null("the load"))
}

/// # Safety
///
/// The header's rules: staging memory can be written to until the load is freed.
unsafe fn options_of(options: &st_load_options) -> Result<LoadOptions, Error> {
    check_flags(options.flags, ST_LOAD_IN_ORDER)?;
    check_reserved(options.reserved)?;
    let staging = match NonNull::new(options.staging) {
        // SAFETY: the caller's promise.
        Some(start) => Staging::Given(unsafe { Destination::new(start.cast(), options.staging_bytes) }),
        None => Staging::Own(options.staging_bytes),
    };
    Ok(LoadOptions {
        in_order: options.flags & ST_LOAD_IN_ORDER != 0,
        engine: engine_of(options.engine)?,
        workers: options.workers as usize,
        queue_depth: options.queue_depth as usize,
        block_bytes: options.block_bytes,
        staging,
        piece_bytes: options.piece_bytes,
        over_read: match options.over_read {
            0 => None,
            ST_OVER_READ_NONE => Some(0),
            percent => Some(percent),
        },
    })
}

fn engine_of(number: i32) -> Result<Option<Engine>, Error> {
    Ok(Some(match number {
        ST_ENGINE_AUTO => return Ok(None),
        ST_ENGINE_MEMORY => Engine::Memory,
        ST_ENGINE_BUFFERED => Engine::Buffered,
        ST_ENGINE_DIRECT => Engine::Direct,
        ST_ENGINE_URING => Engine::Uring,
        _ => return Err(Error::InvalidArgument { what: format!("there is no engine {number}") }),
    }))
}

/// The number of an engine, which is also its bit in `st_progress.engines`.
fn number_of_engine(engine: Engine) -> i32 {
    match engine {
        Engine::Memory => ST_ENGINE_MEMORY,
        Engine::Buffered => ST_ENGINE_BUFFERED,
        Engine::Direct => ST_ENGINE_DIRECT,
        Engine::Uring => ST_ENGINE_URING,
    }
}

/// # Safety
///
/// `err` is NULL or valid for writes: it receives the failure of a request.
unsafe fn loaded_of(loaded: &Loaded, err: *mut st_error) -> (st_status, st_loaded) {
    let (data, nbytes, status) = match &loaded.bytes {
        Ok(bytes) => (bytes.start().as_ptr(), bytes.len(), ST_OK),
        // SAFETY: the caller's promise.
        Err(error) => (std::ptr::null_mut(), 0, unsafe { st_error::from(error).give(err) }),
    };
    let of_c = st_loaded {
        tag: loaded.tag,
        request: loaded.request,
        index: loaded.index,
        data: data.cast(),
        nbytes,
        offset: loaded.offset,
        buffer: loaded.buffer,
        status,
        engine: loaded.engine.map_or(ST_ENGINE_AUTO, number_of_engine),
        last: u32::from(loaded.is_last),
        reserved: 0,
    };
    (status, of_c)
}
