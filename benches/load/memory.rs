//! Large memory, in huge pages where there are any.

use std::ptr::NonNull;

const HUGE: usize = 2 << 20;

/// Zeros, aligned to a huge page.
pub struct Block {
    map: NonNull<u8>,
    mapped: usize,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory of its own, like a Vec.
unsafe impl Send for Block {}
// SAFETY: as for `Send`.
unsafe impl Sync for Block {}

impl Block {
    /// None of it is there before it is touched.
    pub fn fresh(len: usize) -> Block {
        let mapped = len.next_multiple_of(HUGE) + HUGE;
        // SAFETY: a new mapping, which nothing else knows.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        assert_ne!(map, libc::MAP_FAILED, "memory");
        let map = NonNull::new(map.cast::<u8>()).expect("memory");
        let skip = map.as_ptr().align_offset(HUGE);
        // SAFETY: there is a huge page more than is needed. Only advice.
        let start = unsafe {
            let start = map.add(skip);
            libc::madvise(start.as_ptr().cast(), mapped - skip, libc::MADV_HUGEPAGE);
            start
        };
        Block { map, mapped, start, len }
    }

    pub fn touched(len: usize) -> Block {
        let mut block = Block::fresh(len);
        block.bytes_mut().iter_mut().step_by(4096).for_each(|byte| *byte = 1);
        block
    }

    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes of the mapping.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: the mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.mapped) };
    }
}
