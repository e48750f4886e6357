//! Section "Residency".

use super::error::{st_error, st_status};
use super::guard::guard;
use super::handle::{array, checkpoint, optional_output, output};
use super::open::st_checkpoint;
use super::options::check_flags;
use crate::checkpoint::Residency;
use std::ffi::c_void;

/// As `ST_ALL` of the header.
const ALL: usize = usize::MAX;

/// Also ask the system to take the bytes out of the page cache. It leaves what another process has mapped.
pub const ST_EVICT_PAGE_CACHE: u32 = 1;

/// What is in memory of a tensor, or of all.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_residency_info {
    /// Bytes in physical memory now, on this process's account: measured (by /proc/self/pagemap) for what is mapped, and all of
    /// what is held in copies. UINT64_MAX where the system does not tell.
    pub resident_bytes: u64,
    /// Bytes of tensors in use: acquired and not yet released, or pointed to for ever in a copy.
    pub in_use_bytes: u64,
    /// Bytes of tensors that are held in copies.
    pub copied_bytes: u64,
    /// Bytes that count against the budget: of tensors that were acquired and not evicted since, and of copies.
    pub charged_bytes: u64,
    /// The budget of the handle in bytes; 0 for none.
    pub budget: u64,
    /// How often st_acquire found the tensor held.
    pub hits: u64,
    /// How often it did not, or st_tensor_ptr made a copy.
    pub misses: u64,
    /// How often it was evicted, by st_evict or to make room.
    pub evictions: u64,
}

/// Asks for tensors to be read into the page cache, in the order given, and returns at once: a thread of the library's own reads, after what
/// it was asked for before. It starts with the first call and ends when the last reference is closed. With a budget, at most so many bytes are read for a
/// call; tensors beyond them are left out. This is advice: calls that come much faster than the disk reads are forgotten, and errors
/// show when the tensors are used. Nothing is held, acquired or copied. Over a buffer this does nothing.
///
/// indices: n indices of tensors; may be NULL if n is 0.
///
/// ST_ERR_OUT_OF_RANGE: an index is not below st_len; nothing is read then.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_prefetch(
    checkpoint: *mut st_checkpoint,
    indices: *const usize,
    n: usize,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, arrays and errors.
    unsafe {
        guard(err, || {
            let checkpoint = self::checkpoint(checkpoint)?;
            checkpoint.prefetch(array(indices, n, "indices")?)
        })
    }
}

/// Points to a tensor and marks it as in use and most recently used. It stays in memory, as far as this library decides, until it
/// has been released as often as it was acquired.
///
/// If the tensor is not held yet it counts against the budget from now on, by its size; where that exceeds the budget, the least
/// recently used tensors that are not in use are evicted. A tensor that cannot be pointed to where it lies (see st_tensor_ptr) is read
/// into an aligned copy, which is freed when it is evicted. Over a mapping nothing is read before it is touched.
///
/// data: receives the address of its first byte, aligned for its dtype; never NULL. It is valid until st_release; over a mapping it
/// stays valid, as that of st_tensor_ptr. nbytes: receives its size in bytes; may be NULL.
///
/// Of a tensor that is held this takes no lock: threads do not wait for one another.
///
/// ST_ERR_BUDGET: it does not fit into the budget beside what is in use; the message has the numbers. Nothing is evicted then.
/// ST_ERR_OUT_OF_RANGE: index is not below st_len.
/// ST_ERR_NO_MEMORY, ST_ERR_IO, ST_ERR_TRUNCATED: a copy is needed and cannot be made.
/// ST_ERR_INVALID_ARGUMENT: a NULL; or the tensor has been acquired 2^31 times.
#[no_mangle]
pub unsafe extern "C" fn st_acquire(
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
            let bytes = self::checkpoint(checkpoint)?.acquire(index)?;
            data.write(bytes.as_ptr().cast());
            if let Some(nbytes) = optional_output(nbytes) {
                nbytes.write(bytes.len());
            }
            Ok(())
        })
    }
}

/// Undoes one st_acquire, by any thread. The tensor stays in memory as long as the budget allows; if more is held than that (the budget
/// was lowered), it is evicted at once.
///
/// ST_ERR_OUT_OF_RANGE: index is not below st_len.
/// ST_ERR_INVALID_ARGUMENT: the tensor is not in use, which is a bug of the caller; or a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_release(checkpoint: *mut st_checkpoint, index: usize, err: *mut st_error) -> st_status {
    // SAFETY: the header's rules for handles and errors.
    unsafe { guard(err, || self::checkpoint(checkpoint)?.release(index)) }
}

/// Takes a tensor out of memory now, whether it was acquired or only touched: its copy is freed, or its pages leave this process (they
/// stay in the page cache unless flags say otherwise). Pointers into a mapping stay valid: pages come back when they are touched. A page
/// stays that another tensor has a part in which is held: acquired, and not evicted since. After ST_OPEN_COPY_ON_WRITE nothing that was written is lost: copies stay, and the
/// system is asked to reclaim pages, which takes those that were not written to, as far as it allows (MADV_PAGEOUT).
///
/// index: a tensor, or ST_ALL for all that are not in use. flags: 0 or ST_EVICT_PAGE_CACHE.
///
/// ST_ERR_IN_USE: the tensor is acquired, or st_tensor_ptr, st_tensor_view or DLPack have given a pointer to its copy away.
/// ST_ERR_UNSUPPORTED: opened with ST_OPEN_LOCK.
/// ST_ERR_OUT_OF_RANGE: index is neither below st_len nor ST_ALL.
/// ST_ERR_INVALID_ARGUMENT: a NULL; unknown flags.
#[no_mangle]
pub unsafe extern "C" fn st_evict(
    checkpoint: *mut st_checkpoint,
    index: usize,
    flags: u32,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles and errors.
    unsafe {
        guard(err, || {
            let checkpoint = self::checkpoint(checkpoint)?;
            check_flags(flags, ST_EVICT_PAGE_CACHE)?;
            let page_cache = flags & ST_EVICT_PAGE_CACHE != 0;
            match index {
                ALL => checkpoint.evict_all(page_cache),
                index => checkpoint.evict(index, page_cache),
            }
        })
    }
}

/// Changes the budget: the most bytes of tensors that are held in memory. What exceeds it is evicted now, least recently used first,
/// except what is in use: that goes when it is released.
///
/// The budget counts tensors that were acquired, and copies, by their sizes. It does not count pages that are touched through
/// st_tensor_ptr or a view and never acquired; nor headers, nor memory of the caller's. With a page that is touched the system
/// maps what it has at hand around it, up to 2 MiB: what that brings in is not counted, but dropped every few tensors.
///
/// bytes: 0 for no budget.
///
/// ST_ERR_UNSUPPORTED: opened with ST_OPEN_LOCK, and bytes is not 0.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_set_budget(checkpoint: *mut st_checkpoint, bytes: u64, err: *mut st_error) -> st_status {
    // SAFETY: the header's rules for handles and errors.
    unsafe { guard(err, || self::checkpoint(checkpoint)?.set_budget(bytes)) }
}

/// Tells what is in memory of a tensor, or of all: a look at every page, so not for a hot loop.
///
/// index: a tensor, or ST_ALL for the sums over all.
///
/// ST_ERR_OUT_OF_RANGE: index is neither below st_len nor ST_ALL.
/// ST_ERR_INVALID_ARGUMENT: a NULL.
#[no_mangle]
pub unsafe extern "C" fn st_residency(
    checkpoint: *const st_checkpoint,
    index: usize,
    out: *mut st_residency_info,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, outputs and errors.
    unsafe {
        guard(err, || {
            let out = output(out, "out")?;
            let checkpoint = self::checkpoint(checkpoint)?;
            let residency = match index {
                ALL => checkpoint.total_residency(),
                index => checkpoint.residency(index)?,
            };
            out.write(st_residency_info::from(residency));
            Ok(())
        })
    }
}

impl From<Residency> for st_residency_info {
    fn from(residency: Residency) -> st_residency_info {
        st_residency_info {
            resident_bytes: residency.resident_bytes.unwrap_or(u64::MAX),
            in_use_bytes: residency.in_use_bytes,
            copied_bytes: residency.copied_bytes,
            charged_bytes: residency.charged_bytes,
            budget: residency.budget,
            hits: residency.hits,
            misses: residency.misses,
            evictions: residency.evictions,
        }
    }
}
