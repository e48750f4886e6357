//! Memory of our own for the copies we hold.

use super::{Storage, StorageError};
use memmap2::{Advice, MmapMut, MmapRaw};
use std::mem::MaybeUninit;
use std::ptr::NonNull;

/// A huge page, where advice for them begins to pay.
const HUGE_PAGE: usize = 2 * 1024 * 1024;

/// Zeroed memory, aligned to 64 bytes: a cache line, and enough for every vector unit. Too large a size is an error, not an abort.
///
/// Held by raw pointers throughout: callers of the C API keep a pointer to it while the buffer itself is moved into its place.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(NonNull<[Line]>),
    /// With its first byte.
    Mapped(MmapRaw, NonNull<u8>),
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

// SAFETY: the buffer owns its memory and gives `&self` no way to change it, so it may move between and be shared by threads.
unsafe impl Send for Buffer {}
// SAFETY: as for `Send`.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// From this size on a buffer is mapped by itself: it is page-aligned, may use huge pages, and goes back to the system when freed.
    pub(crate) const MAPPED_FROM: usize = 256 * 1024;

    pub(crate) fn new(len: u64) -> Result<Buffer, StorageError> {
        let no_memory = || StorageError::NoMemory { nbytes: len };
        let len = usize::try_from(len).map_err(|_| no_memory())?;
        if len < Self::MAPPED_FROM {
            let mut lines = Vec::new();
            let count = len.div_ceil(64);
            lines.try_reserve_exact(count).map_err(|_| no_memory())?;
            lines.resize(count, Line([0; 64]));
            let lines = NonNull::from(Box::leak(lines.into_boxed_slice()));
            return Ok(Buffer { memory: Memory::Heap(lines), len });
        }
        let mapped = MmapRaw::from(MmapMut::map_anon(len).map_err(|_| no_memory())?);
        if len >= HUGE_PAGE {
            // Only advice: without huge pages the buffer is slower to fill, not wrong.
            let _ = mapped.advise(Advice::HugePage);
        }
        let start = NonNull::new(mapped.as_mut_ptr()).ok_or(StorageError::Internal("a mapping lies at address 0"))?;
        Ok(Buffer { memory: Memory::Mapped(mapped, start), len })
    }

    /// The first byte. The pointer is valid as long as the buffer lives, wherever it moves; writing through it is the caller's affair.
    pub(crate) fn start(&self) -> NonNull<u8> {
        match &self.memory {
            Memory::Heap(lines) => lines.cast(),
            Memory::Mapped(_, start) => *start,
        }
    }

    /// Lets children that are forked have none of it, if it is mapped by itself. A disk may be writing to it while the process forks:
    /// whoever of the two writes to a page next would get a copy, and it could be the child that keeps the page which the disk knows (see
    /// NOTES of open(2) on `O_DIRECT`).
    pub(crate) fn keep_from_children(&self) {
        if let Memory::Mapped(mapped, _) = &self.memory {
            // Where this is refused it is as it would be without.
            let _ = mapped.advise(Advice::DontFork);
        }
    }

    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The bytes, for a read to fill.
    pub(crate) fn as_uninit_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: the memory is ours, `len` bytes long, and borrowed mutably as long as the slice; pointers to it are given out only
        // after it has been filled.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr().cast(), self.len) }
    }
}

impl Buffer {
    /// The bytes, to be read and written.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the memory is ours, `len` bytes long, zeroed when it was made and written by nobody but with initialised bytes, and
        // borrowed mutably as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(self.start().as_ptr(), self.len) }
    }
}

/// Memory to read to, again and again: its pages cost more than what is read.
#[derive(Debug, Default)]
pub(crate) struct Scratch(Option<Buffer>);

impl Scratch {
    /// Reads `len` bytes from `offset` on. They are there until the next read.
    pub(crate) fn read(&mut self, storage: &Storage, offset: u64, len: u64) -> Result<&[u8], StorageError> {
        self.fill(len, |room| storage.read_exact_at(room, offset))
    }

    /// As [`Scratch::read`], leaving the page cache as it is where the system can.
    pub(crate) fn read_around_cache(
        &mut self,
        storage: &Storage,
        offset: u64,
        len: u64,
    ) -> Result<&[u8], StorageError> {
        self.fill(len, |room| storage.read_around_cache(room, offset))
    }

    /// `read` initialises all of the room that it gets when it returns `Ok`.
    fn fill(
        &mut self,
        len: u64,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<(), StorageError>,
    ) -> Result<&[u8], StorageError> {
        if self.0.as_ref().is_none_or(|buffer| (buffer.len as u64) < len) {
            // The old one goes first, and a little more room saves the next one.
            self.0 = None;
            self.0 = Some(Buffer::new(len.saturating_add(len / 4))?);
        }
        let room = self.0.as_mut().and_then(|buffer| buffer.as_uninit_mut().get_mut(..len as usize));
        let room = room.ok_or(StorageError::Internal("a buffer is shorter than it was made"))?;
        read(room)?;
        // SAFETY: the read has initialised all of `room`, which is borrowed mutably from here on and given out as shared.
        Ok(unsafe { &*(&raw const *room as *const [u8]) })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Heap(lines) = self.memory {
            // SAFETY: `new` leaked these lines from a box, and nobody else frees them.
            drop(unsafe { Box::from_raw(lines.as_ptr()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_gives_aligned_memory_of_every_size() {
        const FROM: usize = Buffer::MAPPED_FROM;
        for len in [0, 1, 63, 64, 65, FROM - 1, FROM, FROM + 1, HUGE_PAGE + 1] {
            let mut buffer = Buffer::new(len as u64).unwrap();
            assert_eq!(buffer.start().as_ptr() as usize % 64, 0, "{len}");
            let bytes = buffer.as_uninit_mut();
            assert_eq!(bytes.len(), len);
            bytes.fill(MaybeUninit::new(0xa5));
        }
    }

    #[test]
    fn new_says_when_there_is_no_memory() {
        for len in [u64::MAX, 1 << 62, 1 << 50] {
            assert!(matches!(Buffer::new(len), Err(StorageError::NoMemory { nbytes }) if nbytes == len));
        }
    }
}
