//! Bytes that are in memory already.

use super::StorageError;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// A safetensors file in memory: the library's own, or borrowed from the caller.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    len: usize,
    /// Set when the bytes are ours to free.
    owned: bool,
}

// SAFETY: the bytes are only read, through `&self`, from whichever thread; `borrowed` makes its caller promise that nobody writes.
unsafe impl Send for Memory {}
// SAFETY: as for `Send`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Borrows `len` bytes from `start` on.
    ///
    /// # Safety
    ///
    /// The bytes must be readable, and nobody may write to or free them, while the `Memory` or anything made of it lives.
    pub unsafe fn borrowed(start: NonNull<u8>, len: usize) -> Memory {
        Memory { start, len, owned: false }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn pointer(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len as u64 {
            return None;
        }
        NonNull::new(self.start.as_ptr().wrapping_add(usize::try_from(offset).ok()?))
    }

    pub(super) fn read_exact_at(&self, dst: &mut [MaybeUninit<u8>], offset: u64) -> Result<(), StorageError> {
        let len = dst.len() as u64;
        let Some(from) = self.pointer(offset, len) else {
            return Err(StorageError::Truncated { offset, len, opened_len: self.len as u64 });
        };
        // SAFETY: `pointer` has checked that so many bytes follow. The caller may read a tensor onto itself, so the two may
        // overlap: `copy`, not `copy_nonoverlapping`.
        unsafe { std::ptr::copy(from.as_ptr(), dst.as_mut_ptr().cast(), dst.len()) };
        Ok(())
    }
}

impl From<Vec<u8>> for Memory {
    fn from(bytes: Vec<u8>) -> Memory {
        let bytes = Box::leak(bytes.into_boxed_slice());
        Memory { len: bytes.len(), start: NonNull::from(bytes).cast(), owned: true }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.owned {
            let bytes = NonNull::slice_from_raw_parts(self.start, self.len);
            // SAFETY: `owned` is set by `From<Vec<u8>>` alone, where these very parts were leaked from a box.
            drop(unsafe { Box::from_raw(bytes.as_ptr()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_exact_at_and_pointer_stay_inside() {
        let memory = Memory::from(b"0123456789".to_vec());
        let mut dst = [MaybeUninit::new(0); 4];
        memory.read_exact_at(&mut dst, 6).unwrap();
        // SAFETY: initialised from the start.
        assert_eq!(dst.map(|byte| unsafe { byte.assume_init() }), *b"6789");
        assert!(matches!(memory.read_exact_at(&mut dst, 7), Err(StorageError::Truncated { .. })));
        assert!(memory.pointer(10, 0).is_some() && memory.pointer(10, 1).is_none());
        assert!(memory.pointer(u64::MAX, 1).is_none());
        assert_eq!((memory.len(), memory.is_empty()), (10, false));
    }
}
