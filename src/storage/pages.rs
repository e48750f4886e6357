//! Pages: which of a mapping are in memory on this process's account.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Size of a page in bytes.
pub(super) fn page_size() -> u64 {
    // SAFETY: reads a constant of the system.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).ok().filter(|size| size.is_power_of_two()).unwrap_or(4096)
}

/// How much physical memory this machine has, in bytes; a control group may allow less.
pub(crate) fn physical_memory() -> u64 {
    // SAFETY: reads a number that the system keeps.
    let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
    u64::try_from(pages).unwrap_or(u64::MAX).saturating_mul(page_size())
}

/// The pages that lie wholly in `bytes` of a file of `len` bytes, as bytes. The last page belongs to the file whole.
pub(super) fn whole_pages(bytes: Range<u64>, len: u64) -> Range<u64> {
    let page = page_size();
    let stop = match bytes.end >= len {
        true => len,
        false => bytes.end - bytes.end % page,
    };
    let start = bytes.start.checked_next_multiple_of(page).unwrap_or(stop).min(stop);
    start..stop
}

/// The pages that have a part in `bytes`, as bytes.
pub(super) fn pages_around(bytes: Range<u64>) -> Range<u64> {
    hull(bytes, page_size())
}

/// The blocks of 2 MiB that have a part in `bytes`: what the system may treat as one.
///
/// Given addresses, this is what a touch may have mapped besides, where the page cache had it at hand. Linux maps blocks of 64 KiB around a
/// touched page (fault_around_bytes); from 6.18 on the rest of its folio too, as far as one page table reaches. Given places in a
/// file, it is where the folios lie that have a part in `bytes`: a folio leaves the page cache as a whole or not at all. (Where
/// pages are larger than 4 KiB, so can folios be, but those are rare.)
pub(super) fn blocks_around(bytes: Range<u64>) -> Range<u64> {
    hull(bytes, 2 * 1024 * 1024)
}

/// All blocks of a size that have a part in `bytes`.
fn hull(bytes: Range<u64>, block: u64) -> Range<u64> {
    if bytes.is_empty() {
        return bytes;
    }
    bytes.start - bytes.start % block..bytes.end.checked_next_multiple_of(block).unwrap_or(bytes.end)
}

/// How many of the `bytes` at these addresses are in memory and mapped into this process: those that its resident set size counts.
/// `None` where the system does not tell.
pub(super) fn mapped_bytes(bytes: Range<u64>) -> Option<u64> {
    /// Bit 63 of an entry: "page present" (Linux, Documentation/admin-guide/mm/pagemap.rst).
    const PRESENT: u64 = 1 << 63;
    const ENTRY: u64 = 8;
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let page = page_size();
    let mut entries = [0u8; 8 * 1024];
    let (mut at, mut mapped) = (bytes.start - bytes.start % page, 0u64);
    while at < bytes.end {
        let pages = (bytes.end - at).div_ceil(page).min(entries.len() as u64 / ENTRY);
        let room = entries.get_mut(..(pages * ENTRY) as usize)?;
        pagemap.read_exact_at(room, at / page * ENTRY).ok()?;
        for entry in room.chunks_exact(ENTRY as usize) {
            if u64::from_ne_bytes(entry.try_into().ok()?) & PRESENT != 0 {
                mapped += (at + page).min(bytes.end) - at.max(bytes.start);
            }
            at += page;
        }
    }
    Some(mapped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_pages_rounds_inward_but_for_the_last_page() {
        let page = page_size();
        assert_eq!(whole_pages(1..3 * page + 1, 9 * page), page..3 * page);
        assert_eq!(whole_pages(page..2 * page, 9 * page), page..2 * page);
        assert_eq!(whole_pages(page..3 * page + 1, 3 * page + 1), page..3 * page + 1);
        assert!(whole_pages(1..page, 9 * page).is_empty());
        assert!(whole_pages(u64::MAX - 1..u64::MAX, u64::MAX).is_empty());
    }

    #[test]
    fn pages_around_and_blocks_around_round_outward() {
        let page = page_size();
        assert_eq!(pages_around(1..page + 1), 0..2 * page);
        assert_eq!(pages_around(page..2 * page), page..2 * page);
        assert_eq!(pages_around(page + 5..page + 5), page + 5..page + 5);
        assert_eq!(pages_around(u64::MAX - 1..u64::MAX).end, u64::MAX);
        assert_eq!(blocks_around((2 << 20) + 1..(4 << 20) + 1), 2 << 20..6 << 20);
    }

    #[test]
    fn mapped_bytes_counts_what_was_touched() {
        let page = page_size();
        let mut memory = memmap2::MmapMut::map_anon(16 * page as usize).unwrap();
        let start = memory.as_ptr() as u64;
        // Pages of their own, whatever the system thinks of huge ones.
        memory.advise(memmap2::Advice::NoHugePage).unwrap();
        assert_eq!(mapped_bytes(start..start + 16 * page), Some(0));
        memory[0] = 1;
        memory[5 * page as usize] = 1;
        assert_eq!(mapped_bytes(start..start + 16 * page), Some(2 * page));
        assert_eq!(mapped_bytes(start + 100..start + page + 7), Some(page - 100));
        assert_eq!(mapped_bytes(start + 5 * page + 1..start + 5 * page + 3), Some(2));
        assert_eq!(mapped_bytes(start..start), Some(0));
    }
}
