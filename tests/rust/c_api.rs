//! The C functions that open, called as C would call them.

use safetensors_lazy::ffi::error::{st_error, st_status, st_status_name};
use safetensors_lazy::ffi::open::{st_checkpoint, st_close, st_open, st_open_buffer, st_open_options};
use std::ffi::{CStr, CString};
use std::path::Path;
use std::ptr::{null, null_mut};

/// An open handle, closed when dropped.
#[derive(Debug)]
pub struct Handle(pub *mut st_checkpoint);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle owns this reference.
        unsafe { st_close(self.0) };
    }
}

/// What a failed call leaves behind.
#[derive(Debug)]
pub struct Failure {
    /// Such as "ST_ERR_IO".
    pub status: &'static str,
    pub os_error: i32,
    pub message: String,
}

pub fn open(path: &Path) -> Result<Handle, Failure> {
    open_with(path, 0)
}

/// `flags`: `ST_OPEN_*`.
pub fn open_with(path: &Path, flags: u32) -> Result<Handle, Failure> {
    let path = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    let options = st_open_options {
        struct_size: size_of::<st_open_options>(),
        storage: 0,
        flags,
        budget: 0,
        verify: 0,
        reserved: 0,
    };
    let (mut handle, mut error) = (null_mut(), untouched());
    // SAFETY: the string, the options, the output and the error are locals.
    let status = unsafe { st_open(path.as_ptr(), &options, &mut handle, &mut error) };
    outcome(status, handle, &error)
}

/// `buffer` must outlive the handle.
pub fn open_buffer(buffer: &[u8]) -> Result<Handle, Failure> {
    let (mut handle, mut error) = (null_mut(), untouched());
    // SAFETY: the buffer outlives the handle; the output and the error are locals.
    let status = unsafe { st_open_buffer(buffer.as_ptr().cast(), buffer.len(), null(), &mut handle, &mut error) };
    outcome(status, handle, &error)
}

/// Full of what no call would write, so that a call which writes too little shows.
fn untouched() -> st_error {
    st_error { status: -1, os_error: -1, message: [0x55; 504] }
}

fn outcome(status: st_status, handle: *mut st_checkpoint, error: &st_error) -> Result<Handle, Failure> {
    if status == 0 {
        assert!(!handle.is_null() && error.status == -1);
        return Ok(Handle(handle));
    }
    assert!(handle.is_null() && error.status == status);
    // SAFETY: the header promises a NUL inside the message.
    let message = unsafe { CStr::from_ptr(error.message.as_ptr()) }.to_str().expect("UTF-8").to_owned();
    Err(Failure { status: name_of(status), os_error: error.os_error, message })
}

fn name_of(status: st_status) -> &'static str {
    let name = st_status_name(status);
    assert!(!name.is_null(), "{status}");
    // SAFETY: not NULL, so a string that lives for ever.
    unsafe { CStr::from_ptr(name) }.to_str().unwrap()
}
