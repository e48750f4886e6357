//! Bytes as a whole file whose checksums are verified: whatever they say of themselves, every way of asking gives the same answer.

use safetensors_lazy::ffi::error::{
    st_error, st_status, ST_ERR_CHECKSUM_MALFORMED, ST_ERR_CHECKSUM_MISMATCH, ST_ERR_CHECKSUM_MISSING, ST_OK,
};
use safetensors_lazy::ffi::open::{
    st_checkpoint, st_close, st_open_buffer, st_open_options, ST_VERIFY_FIRST_USE, ST_VERIFY_FULL, ST_VERIFY_NONE,
    ST_VERIFY_STRUCTURE,
};
use safetensors_lazy::ffi::verify::{
    st_verify, st_verify_options, st_verify_report, ST_CHECK_BLAKE3, ST_CHECK_CRC, ST_CHECK_SHA256,
};
use safetensors_lazy::ffi::{bytes::st_tensor_ptr, directory::st_len};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

pub fn run(file: &[u8]) {
    let Ok(plain) = open(file, ST_VERIFY_NONE) else { return };
    let (whole, report) = verify(&plain, 0);
    // SAFETY: the handle is open.
    let len = unsafe { st_len(plain.0) };
    if let Some(report) = report {
        assert_eq!(whole == ST_OK, report.bad_checks == 0);
        assert_eq!(report.bad_tensors > 0, report.first_bad_tensor < len);
        assert_eq!((report.bad_shards, report.first_bad_shard == 0), (u64::from(whole != ST_OK), whole != ST_OK));
        let mut bad = 0;
        for check in [ST_CHECK_CRC, ST_CHECK_SHA256, ST_CHECK_BLAKE3] {
            let (alone, report_alone) = verify(&plain, check);
            match report.checks & check {
                0 => assert_eq!(alone, ST_ERR_CHECKSUM_MISSING),
                _ => assert_eq!(alone == ST_OK, report.bad_checks & check == 0),
            }
            bad |= report_alone.map_or(0, |report| report.bad_checks);
        }
        assert_eq!(bad, report.bad_checks);
    }
    // A file without tensors needs no sum.
    assert_eq!(open(file, ST_VERIFY_FULL).map(|_| ()).err().unwrap_or(ST_OK), whole);

    let structure = open(file, ST_VERIFY_STRUCTURE).map(|_| ()).err().unwrap_or(ST_OK);
    match open(file, ST_VERIFY_FIRST_USE) {
        Err(status) => assert!(status == ST_ERR_CHECKSUM_MISSING || status == structure, "{status} {structure}"),
        Ok(handle) => {
            assert_eq!(structure, ST_OK);
            // The header is right and everything is covered: each tensor's verdict is that of the digests as a whole.
            let bad = (0..len).filter(|index| pointer(&handle, *index) != ST_OK).count() as u64;
            let (_, report) = verify(&plain, ST_CHECK_BLAKE3);
            assert_eq!(report.map_or(0, |report| report.bad_tensors), bad);
            assert!(
                (0..len).filter(|index| pointer(&handle, *index) == ST_ERR_CHECKSUM_MISMATCH).count() as u64 == bad
            );
        }
    }
}

/// An open handle over a file that outlives it.
struct Handle(*mut st_checkpoint);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and its only reference.
        unsafe { st_close(self.0) };
    }
}

fn open(file: &[u8], verify: i32) -> Result<Handle, st_status> {
    let options = st_open_options {
        struct_size: size_of::<st_open_options>(),
        storage: 0,
        flags: 0,
        budget: 0,
        verify,
        reserved: 0,
    };
    let (mut handle, mut error) = (null_mut(), st_error { status: 0, os_error: 0, message: [1; 504] });
    // SAFETY: the file outlives the handle; all others are locals.
    match unsafe { st_open_buffer(file.as_ptr().cast(), file.len(), &options, &mut handle, &mut error) } {
        ST_OK => Ok(Handle(handle)),
        status => Err(status),
    }
}

/// The report, if there is one.
fn verify(handle: &Handle, checks: u32) -> (st_status, Option<st_verify_report>) {
    let options = st_verify_options {
        struct_size: size_of::<st_verify_options>(),
        checks,
        flags: 0,
        workers: 1,
        reserved: 0,
        sha256: null(),
        sha256_len: 0,
        task: null_mut(),
    };
    let mut report = MaybeUninit::uninit();
    // SAFETY: the handle is open; all others are locals.
    let status = unsafe { st_verify(handle.0, &options, report.as_mut_ptr(), null_mut()) };
    match status {
        // SAFETY: written in these two cases.
        ST_OK | ST_ERR_CHECKSUM_MISMATCH => (status, Some(unsafe { report.assume_init() })),
        ST_ERR_CHECKSUM_MISSING | ST_ERR_CHECKSUM_MALFORMED => (status, None),
        other => panic!("{other}"),
    }
}

fn pointer(handle: &Handle, index: usize) -> st_status {
    let mut data = null();
    // SAFETY: the handle is open; the output is a local.
    unsafe { st_tensor_ptr(handle.0, index, &mut data, null_mut(), null_mut()) }
}
