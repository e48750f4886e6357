//! A file mapped into memory.

use super::pages::{blocks_around, mapped_bytes, whole_pages};
use super::pread::Reader;
use super::StorageError;
use memmap2::{Advice, Mmap, MmapMut, MmapOptions, MmapRaw};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The whole of a file, mapped when it was opened and never resized.
///
/// Gives out raw pointers only. Other processes may write to the file, so Rust references to its pages would promise what nobody
/// can keep; and when the file is truncated, touching a page beyond its end is a SIGBUS.
#[derive(Debug)]
pub(super) struct Mapping {
    map: MmapRaw,
    copy_on_write: bool,
    has_huge_pages: AtomicBool,
}

impl Mapping {
    /// Maps `len` bytes of `file`: shared and read-only, private where the file system refuses to share; or private and
    /// writable for `copy_on_write`.
    pub(super) fn new(file: &File, len: u64, copy_on_write: bool) -> io::Result<Mapping> {
        let len = usize::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let mut options = MmapOptions::new();
        options.len(len);
        if copy_on_write {
            // Only the pages that are written cost memory, so that a model larger than memory can be opened this way.
            options.no_reserve_swap();
            return Ok(Mapping::of(MmapRaw::from(private_writable(&options, file)?), copy_on_write));
        }
        let map = match options.map_raw_read_only(file) {
            Ok(shared) => shared,
            Err(_) => MmapRaw::from(private(&options, file)?),
        };
        Ok(Mapping::of(map, copy_on_write))
    }

    fn of(map: MmapRaw, copy_on_write: bool) -> Mapping {
        Mapping { map, copy_on_write, has_huge_pages: AtomicBool::new(true) }
    }

    /// Where `len` bytes from `offset` on lie; `None` outside of the mapping.
    pub(super) fn pointer(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.map.len() as u64 {
            return None;
        }
        // `wrapping_add` rather than `add`: no promise to the compiler about bytes that another process may take away.
        NonNull::new(self.map.as_mut_ptr().wrapping_add(usize::try_from(offset).ok()?))
    }

    /// Brings all pages in. An error of the disk is reported here instead of as a SIGBUS later.
    pub(super) fn populate(&self, reader: &Reader) -> Result<(), StorageError> {
        let Err(error) = self.map.advise(Advice::PopulateRead) else { return Ok(()) };
        match error.raw_os_error() {
            // Linux before 5.14 does not know it, and filters of system calls may not let it through: what can be done there without the
            // danger of a SIGBUS is to bring all of the file into the page cache.
            Some(libc::EINVAL | libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EOPNOTSUPP) => reader.read_through(),
            // What a touch of the page would have raised SIGBUS for: reading tells why.
            Some(libc::EFAULT | libc::EHWPOISON) => reader.read_through(),
            _ => Err(StorageError::io("populate the mapping", error)),
        }
    }

    /// Takes the pages that lie wholly in `bytes` out of this process's memory. They come back when they are touched.
    ///
    /// What was written through a copy-on-write mapping is never lost: those pages are at most offered to the system to reclaim.
    pub(super) fn drop_pages(&self, bytes: Range<u64>) {
        let pages = whole_pages(bytes, self.map.len() as u64);
        let (Ok(start), Ok(len)) = (usize::try_from(pages.start), usize::try_from(pages.end - pages.start)) else {
            return;
        };
        if len == 0 {
            return;
        }
        // DONTNEED forgets what a private page holds, and another thread may be writing to it just now: PAGEOUT leaves that to the
        // kernel, which keeps it.
        let advice = if self.copy_on_write { libc::MADV_PAGEOUT } else { libc::MADV_DONTNEED };
        // SAFETY: the pages are part of this mapping. If it is read-only they hold what the file holds, and will again; if not, the
        // advice changes no page's content.
        // Locked pages, and kernels that do not know the advice, refuse: then the pages stay, which loses nothing.
        unsafe { libc::madvise(self.map.as_mut_ptr().wrapping_add(start).cast(), len, advice) };
    }

    /// What may have come into memory with `bytes` when these were touched. Of a copy-on-write mapping, only these: the system does not
    /// just unmap what it is offered of that, it reads it again.
    pub(super) fn mapped_with(&self, bytes: Range<u64>) -> Range<u64> {
        if self.copy_on_write {
            return bytes;
        }
        // The system counts in addresses: where the mapping starts matters.
        let first = self.map.as_mut_ptr().addr() as u64;
        let around = blocks_around(first.saturating_add(bytes.start)..first.saturating_add(bytes.end));
        around.start.saturating_sub(first)..around.end.saturating_sub(first).min(self.map.len() as u64)
    }

    /// Has the system map pages one by one from now on. Of a huge page (from Linux 6.18 on what touches a huge folio maps one) none can
    /// leave alone: dropping one drops all, those of tensors that are held too.
    pub(super) fn forbid_huge_pages(&self) {
        if self.has_huge_pages.load(Relaxed) {
            // Refused by systems that have none.
            let _ = self.map.advise(Advice::NoHugePage);
            self.has_huge_pages.store(false, Relaxed);
        }
    }

    /// How many of `bytes` are in memory on this process's account. `None` where the system does not tell.
    pub(super) fn resident(&self, bytes: Range<u64>) -> Option<u64> {
        let start = self.map.as_mut_ptr().addr() as u64;
        let stop = bytes.end.min(self.map.len() as u64);
        mapped_bytes(start.checked_add(bytes.start)?..start.checked_add(stop)?)
    }

    /// Locks all pages into memory until the mapping goes.
    pub(super) fn lock(&self) -> Result<(), StorageError> {
        self.map.lock().map_err(|error| StorageError::io("lock the mapping into memory", error))
    }
}

fn private(options: &MmapOptions, file: &File) -> io::Result<Mmap> {
    // SAFETY: the hazard of `Mmap` is its `Deref` to bytes that others can change. It becomes an `MmapRaw`, which has none.
    unsafe { options.map_copy_read_only(file) }
}

fn private_writable(options: &MmapOptions, file: &File) -> io::Result<MmapMut> {
    // SAFETY: as in `private`.
    unsafe { options.map_copy(file) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn pointer_stays_inside() {
        let mapping = Mapping::new(&file(b"0123456789"), 10, false).unwrap();
        let pointer = mapping.pointer(4, 6).unwrap();
        // SAFETY: six bytes of a file that nobody else knows.
        assert_eq!(unsafe { std::slice::from_raw_parts(pointer.as_ptr(), 6) }, b"456789");
        assert!(mapping.pointer(10, 0).is_some());
        assert!(mapping.pointer(4, 7).is_none());
        assert!(mapping.pointer(11, 0).is_none());
        assert!(mapping.pointer(u64::MAX, 2).is_none());
    }

    #[test]
    fn new_with_copy_on_write_leaves_the_file_alone() {
        let file = file(b"abc");
        let mapping = Mapping::new(&file, 3, true).unwrap();
        // SAFETY: a private writable page.
        unsafe { mapping.pointer(1, 1).unwrap().write(b'X') };
        let mut bytes = [0; 3];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"abc");
    }

    #[test]
    fn drop_pages_keeps_what_was_written() {
        let file = file(&[7; 64 * 1024]);
        for copy_on_write in [false, true] {
            let mapping = Mapping::new(&file, 64 * 1024, copy_on_write).unwrap();
            let first = mapping.pointer(0, 64 * 1024).unwrap();
            // SAFETY: touches each page of a mapping that nobody else knows; writes only where pages are private.
            unsafe {
                for page in 0..16 {
                    assert_eq!(first.add(page * 4096).read_volatile(), 7);
                }
                if copy_on_write {
                    first.add(5 * 4096).write_volatile(8);
                }
            }
            assert_eq!(mapping.resident(0..64 * 1024), Some(64 * 1024));
            mapping.drop_pages(1..60 * 1024);
            if !copy_on_write {
                assert_eq!(mapping.resident(0..64 * 1024), Some(8 * 1024));
            }
            // SAFETY: as above.
            let written = unsafe { first.add(5 * 4096).read_volatile() };
            assert_eq!(written, if copy_on_write { 8 } else { 7 });
        }
    }

    #[test]
    fn private_maps_what_cannot_be_shared() {
        let map = private(MmapOptions::new().len(3), &file(b"abc")).unwrap();
        assert_eq!(&map[..], b"abc");
    }
}
