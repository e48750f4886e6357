//! Section "Checking".

use super::error::{st_error, st_status};
use super::guard::guard;
use super::handle::{array, c_bytes, checkpoint, optional_output};
use super::open::st_checkpoint;
use super::options::{check_flags, check_reserved, copy_options, Options};
use super::task::{st_task, task_of_options};
use crate::checkpoint::{Checks, Report, VerifyOptions};
use crate::error::Error;
use crate::format::checksum::from_hex;
use std::ffi::c_char;

/// MindSpore's "crc_num" in the metadata: a CRC-32 (zlib's) over the names and bytes of all tensors, in byte order of the names, as a decimal
/// number. For a scalar of an integer type MindSpore sums as many zero bytes as its value; either sum is accepted.
pub const ST_CHECK_CRC: u32 = 1;
/// "modelspec.hash_sha256" or "sshs_model_hash" in the metadata: the SHA-256 of all bytes after the header, in hexadecimal, with or without
/// "0x". A file that has both must match both. (github.com/Stability-AI/ModelSpec, github.com/kohya-ss/sd-scripts. Some programs put the
/// digest of something else there: that is a mismatch.)
pub const ST_CHECK_SHA256: u32 = 2;
/// "safetensors_lazy.blake3" in the metadata, which st_writer_open writes on request: digests of 64 hexadecimal digits with a space between
/// them. The first is that of the header: of all bytes before the data, with these 64 digits as zeros. The others are those of each
/// tensor's bytes, in byte order of the names. The only kind that tells which tensor is damaged.
pub const ST_CHECK_BLAKE3: u32 = 4;
/// The SHA-256 of a file as a whole, as model hubs publish it: st_verify_options.sha256.
pub const ST_CHECK_FILE_SHA256: u32 = 8;

/// Read around the page cache, so that what other programs have there stays (Linux 6.14; before that it makes no difference). Without this
/// that is done for checkpoints larger than half of the machine's memory.
pub const ST_VERIFY_AROUND_CACHE: u32 = 1;

/// What to verify, and how. Initialise with ST_VERIFY_OPTIONS_INIT.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_verify_options {
    /// sizeof(st_verify_options)
    pub struct_size: usize,
    /// ST_CHECK_*, or'ed: kinds that every shard must have. 0: whatever each shard has, which must be at least one.
    pub checks: u32,
    /// ST_VERIFY_AROUND_CACHE, or 0.
    pub flags: u32,
    /// The most threads; 0 leaves the number to the library, which takes 16 at most.
    pub workers: u32,
    /// 0.
    pub reserved: u32,
    /// The SHA-256 of each shard's file: strings of 64 hexadecimal digits in the order of the shards, NULL for those that are not known.
    pub sha256: *const *const c_char,
    /// How many there are in sha256; those of further shards are not known.
    pub sha256_len: usize,
    /// Where other threads see how far it is, and cancel it; may be NULL.
    pub task: *mut st_task,
}

// SAFETY: 8 + 4 * 4 + 8 + 8 + 8 bytes without padding, `struct_size` first; any bits are a pointer.
unsafe impl Options for st_verify_options {
    const FIRST_SIZE: usize = 48;
}

/// What was found.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct st_verify_report {
    /// Bytes that were read.
    pub bytes: u64,
    /// Tensors whose bytes were verified, by whatever kind.
    pub tensors: u64,
    /// Tensors that are known to be damaged. Only ST_CHECK_BLAKE3 knows; the others say no more than that something of a shard is.
    pub bad_tensors: u64,
    /// Index of the first of them; ST_ALL if there is none.
    pub first_bad_tensor: usize,
    /// Shards of which something does not match.
    pub bad_shards: u64,
    /// The first of them; ST_ALL if there is none.
    pub first_bad_shard: usize,
    /// ST_CHECK_*: the kinds that were verified, of any shard.
    pub checks: u32,
    /// ST_CHECK_*: the kinds that did not match.
    pub bad_checks: u32,
}

/// Reads all tensors and compares them with the checksums that the checkpoint carries, and with those that the caller knows. All
/// shards are gone through, whatever is found. It takes several threads, which have ended when this returns, with some MiB of memory for
/// each, or as much as their longest header, which is read anew.
///
/// What is verified is what the files hold (or the caller's buffer): not what was written to tensors after ST_OPEN_COPY_ON_WRITE.
///
/// options: NULL for the defaults.
/// out: receives what was found; may be NULL. Unlike other outputs it is also written on ST_ERR_CHECKSUM_MISMATCH.
///
/// ST_ERR_CHECKSUM_MISMATCH: something is damaged, or the checksum is. The message names the first tensor, or file.
/// ST_ERR_CHECKSUM_MISSING: a shard has no checksum of a kind that is asked for, or none at all.
/// ST_ERR_CHECKSUM_MALFORMED: a checksum in the metadata is none.
/// ST_ERR_FILE_CHANGED: the size or the time of modification of a file is no longer what it was when it was opened.
/// ST_ERR_CANCELLED: by st_task_cancel.
/// ST_ERR_IO, ST_ERR_TRUNCATED, ST_ERR_NO_MEMORY: something could not be read.
/// ST_ERR_INVALID_ARGUMENT: a NULL, options that this library does not know, a digest that is none, more digests than shards.
#[no_mangle]
pub unsafe extern "C" fn st_verify(
    checkpoint: *mut st_checkpoint,
    options: *const st_verify_options,
    out: *mut st_verify_report,
    err: *mut st_error,
) -> st_status {
    // SAFETY: the header's rules for handles, options, strings, outputs and errors.
    unsafe {
        guard(err, || {
            let checkpoint = self::checkpoint(checkpoint)?;
            let options = copy_options(options)?;
            check_flags(options.flags, ST_VERIFY_AROUND_CACHE)?;
            check_reserved(options.reserved)?;
            checkpoint.check_digests(options.sha256_len)?;
            let digests = file_digests(&options)?;
            let task = task_of_options(options.task);
            let report = checkpoint.verify(VerifyOptions {
                checks: checks_of(options.checks)?,
                file_sha256: &digests,
                workers: options.workers as usize,
                around_cache: options.flags & ST_VERIFY_AROUND_CACHE != 0,
                task: Some(&task),
            })?;
            if let Some(out) = optional_output(out) {
                out.write(report_of(&report));
            }
            report.into_result()
        })
    }
}

/// The caller knows that there are not too many of them.
///
/// # Safety
///
/// The header's rules for options: an array of strings.
unsafe fn file_digests(options: &st_verify_options) -> Result<Vec<Option<[u8; 32]>>, Error> {
    // SAFETY: the caller's promise.
    let strings = unsafe { array(options.sha256, options.sha256_len, "sha256") }?;
    let mut digests = Vec::new();
    digests.try_reserve_exact(strings.len()).map_err(|_| Error::NoMemory)?;
    for (shard, string) in strings.iter().enumerate() {
        digests.push(match string.is_null() {
            true => None,
            false => {
                // SAFETY: not NULL, so a string.
                let digest = from_hex(unsafe { c_bytes(*string, "sha256") }?);
                let not_one = || format!("sha256[{shard}] is not a digest of 64 hexadecimal digits");
                Some(digest.ok_or_else(|| Error::InvalidArgument { what: not_one() })?)
            }
        });
    }
    Ok(digests)
}

fn checks_of(bits: u32) -> Result<Checks, Error> {
    let has = |check| bits & check != 0;
    let checks = Checks {
        crc: has(ST_CHECK_CRC),
        sha256: has(ST_CHECK_SHA256),
        blake3: has(ST_CHECK_BLAKE3),
        file_sha256: has(ST_CHECK_FILE_SHA256),
    };
    match bits_of(checks) == bits {
        true => Ok(checks),
        false => Err(Error::InvalidArgument { what: format!("there are no checks {:#x}", bits & !bits_of(checks)) }),
    }
}

fn bits_of(checks: Checks) -> u32 {
    let bit = |is_set: bool, check| if is_set { check } else { 0 };
    bit(checks.crc, ST_CHECK_CRC)
        | bit(checks.sha256, ST_CHECK_SHA256)
        | bit(checks.blake3, ST_CHECK_BLAKE3)
        | bit(checks.file_sha256, ST_CHECK_FILE_SHA256)
}

fn report_of(report: &Report) -> st_verify_report {
    st_verify_report {
        bytes: report.bytes,
        tensors: report.tensors,
        bad_tensors: report.bad_tensors,
        first_bad_tensor: report.first_bad_tensor.unwrap_or(usize::MAX),
        bad_shards: report.bad_shards,
        first_bad_shard: report.first_bad_shard.unwrap_or(usize::MAX),
        checks: bits_of(report.checks),
        bad_checks: bits_of(report.bad_checks),
    }
}
