//! The `struct_size` rule: options of callers that are older or newer than this library.

use crate::error::Error;
use std::mem::MaybeUninit;

/// More than any options struct will ever have: a larger `struct_size` is garbage, not a newer caller.
const MAX_SIZE: usize = 4096;

/// A struct of options from C.
///
/// # Safety
///
/// It is `repr(C)`, starts with `struct_size: usize`, has no padding, and every bit pattern is a value of it.
pub(super) unsafe trait Options: Copy {
    /// Its size in the first release.
    const FIRST_SIZE: usize;
}

/// Copies options from C, with the default, zero, for what an older caller does not know. NULL gives all defaults.
///
/// What a newer caller knows and this library does not must be zero, that is, not used: the rule of Linux's `openat2`.
///
/// # Safety
///
/// `options` is NULL or points to as many readable bytes as its `struct_size` says.
pub(super) unsafe fn copy_options<T: Options>(options: *const T) -> Result<T, Error> {
    let mut copy = MaybeUninit::<T>::zeroed();
    if !options.is_null() {
        // SAFETY: the first field is a `size_t`; `read_unaligned` because nothing is known of the caller's struct yet.
        let given = unsafe { options.cast::<usize>().read_unaligned() };
        if !(T::FIRST_SIZE..=MAX_SIZE).contains(&given) {
            let what = format!("struct_size is {given}, which no version of these options has: use the INIT macro");
            return Err(Error::InvalidArgument { what });
        }
        // SAFETY: the caller promises that `given` bytes can be read.
        let bytes = unsafe { std::slice::from_raw_parts(options.cast::<u8>(), given) };
        let (known, unknown) = bytes.split_at(given.min(size_of::<T>()));
        if unknown.iter().any(|byte| *byte != 0) {
            let what =
                format!("the options use a field that this library ({}) does not know", env!("CARGO_PKG_VERSION"));
            return Err(Error::InvalidArgument { what });
        }
        // SAFETY: `known` is at most as long as `copy`, which is a local.
        unsafe { std::ptr::copy_nonoverlapping(known.as_ptr(), copy.as_mut_ptr().cast(), known.len()) };
    }
    // SAFETY: all bytes are initialised, and `Options` says that they are a value.
    Ok(unsafe { copy.assume_init() })
}

/// Refuses flags that are none of those `known`.
pub(super) fn check_flags(flags: u32, known: u32) -> Result<(), Error> {
    match flags & !known {
        0 => Ok(()),
        unknown => Err(Error::InvalidArgument { what: format!("there are no flags {unknown:#x}") }),
    }
}

/// Refuses a field that has no meaning yet and is used.
pub(super) fn check_reserved(reserved: u32) -> Result<(), Error> {
    match reserved {
        0 => Ok(()),
        _ => Err(Error::InvalidArgument { what: "reserved is not 0".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct Old {
        struct_size: usize,
        a: u64,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    #[repr(C)]
    struct New {
        old: Old,
        b: u64,
    }

    // SAFETY: integers without padding, `struct_size` first.
    unsafe impl Options for Old {
        const FIRST_SIZE: usize = 16;
    }
    // SAFETY: as above.
    unsafe impl Options for New {
        const FIRST_SIZE: usize = 16;
    }

    fn new(struct_size: usize, b: u64) -> New {
        New { old: Old { struct_size, a: 5 }, b }
    }

    #[test]
    fn copy_options_fills_in_what_an_older_caller_lacks() {
        let old = Old { struct_size: 16, a: 5 };
        // SAFETY: `struct_size` is true in each case.
        unsafe {
            assert_eq!(copy_options::<New>((&raw const old).cast()).unwrap(), new(16, 0));
            assert_eq!(copy_options::<New>(std::ptr::null()).unwrap(), New { old: Old { struct_size: 0, a: 0 }, b: 0 });
            assert_eq!(copy_options(&new(24, 6)).unwrap(), new(24, 6));
        }
    }

    #[test]
    fn copy_options_takes_a_newer_caller_that_uses_nothing_new() {
        let (unused, used) = (new(24, 0), new(24, 1));
        // SAFETY: `struct_size` is true in both cases.
        unsafe {
            assert_eq!(copy_options::<Old>((&raw const unused).cast()).unwrap(), unused.old);
            assert!(copy_options::<Old>((&raw const used).cast()).is_err());
        }
    }

    #[test]
    fn copy_options_refuses_sizes_of_no_version() {
        for size in [0, 8, 15, MAX_SIZE + 1, usize::MAX] {
            // SAFETY: such a size is refused before anything but itself is read.
            assert!(unsafe { copy_options(&new(size, 0)) }.is_err(), "{size}");
        }
    }
}
