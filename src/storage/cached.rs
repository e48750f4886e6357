//! How much of a file the page cache has.

use super::pages::{page_size, pages_around};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// How many of `bytes`, which lie in the file, are in the page cache, to the page. `None` where the system does not tell: for files that
/// are not this user's, for one.
pub(super) fn cached(file: &File, bytes: Range<u64>) -> Option<u64> {
    if bytes.is_empty() {
        // To the system a length of 0 means to the end of the file.
        return Some(0);
    }
    let pages = pages_around(bytes.clone());
    let cached = match cachestat(file, pages.clone()) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => mincore(file, pages),
        counted => counted.ok(),
    }?;
    Some(cached.saturating_mul(page_size()).min(bytes.end.saturating_sub(bytes.start)))
}

/// The number of pages (Linux 6.5).
fn cachestat(file: &File, pages: Range<u64>) -> io::Result<u64> {
    /// From asm-generic/unistd.h: the same on all architectures.
    const CACHESTAT: libc::c_long = 451;
    let range = [pages.start, pages.end - pages.start];
    // nr_cache, nr_dirty, nr_writeback, nr_evicted, nr_recently_evicted
    let mut counts = [0u64; 5];
    // SAFETY: the descriptor is open, and both arrays are what linux/mman.h calls struct cachestat_range and struct cachestat.
    let failed = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), range.as_ptr(), counts.as_mut_ptr(), 0u32) } != 0;
    match (failed, counts) {
        (true, _) => Err(io::Error::last_os_error()),
        (false, [cached, ..]) => Ok(cached),
    }
}

/// The same, by mapping the pages for a moment.
fn mincore(file: &File, pages: Range<u64>) -> Option<u64> {
    // Of other files the system says that they are all there (Linux 5.2).
    if !belongs_to_us(file) {
        return None;
    }
    let len = usize::try_from(pages.end - pages.start).ok().filter(|len| *len > 0)?;
    let map = memmap2::MmapOptions::new().offset(pages.start).len(len).map_raw_read_only(file).ok()?;
    let mut are_in = Vec::new();
    let count = len / page_size() as usize;
    are_in.try_reserve_exact(count).ok()?;
    are_in.resize(count, 0u8);
    // SAFETY: the mapping has so many pages, and `are_in` a byte for each.
    let failed = unsafe { libc::mincore(map.as_mut_ptr().cast(), len, are_in.as_mut_ptr()) } != 0;
    (!failed).then(|| are_in.iter().filter(|page| **page & 1 != 0).count() as u64)
}

fn belongs_to_us(file: &File) -> bool {
    // SAFETY: reads numbers of the process.
    let user = unsafe { libc::geteuid() };
    user == 0 || file.metadata().is_ok_and(|metadata| metadata.uid() == user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn cached_counts_what_was_written_and_not_what_is_a_hole() {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let page = page_size();
        file.write_all(&vec![1; 16 * page as usize]).unwrap();
        file.as_file().set_len(64 * page).unwrap();
        let of_mincore = |bytes: Range<u64>| mincore(file.as_file(), bytes);
        assert_eq!(of_mincore(0..16 * page), Some(16));
        assert_eq!(of_mincore(8 * page..64 * page), Some(8));
        for (bytes, expected) in [(0..64 * page, 16 * page), (100..200, 100), (40 * page..41 * page, 0)] {
            let cached = cached(file.as_file(), bytes.clone());
            assert!(cached.is_none_or(|cached| cached == expected), "{bytes:?}: {cached:?}");
        }
    }
}
