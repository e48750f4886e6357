//! Memory for what has no place of its own.

use super::options::Staging;
use crate::error::Error;
use crate::storage::{Buffer, PAGE};
use std::collections::BTreeMap;
use std::ptr::NonNull;

/// Memory of bounded size, from which pages are lent and given back in any order.
#[derive(Debug)]
pub(super) struct Ring {
    /// The first whole page.
    start: NonNull<u8>,
    pages: u64,
    lent: u64,
    /// Runs of free pages: their first page, and their number. Neighbours are one run.
    free: BTreeMap<u64, u64>,
    /// Keeps memory of our own.
    _own: Option<Buffer>,
}

// SAFETY: the ring lends out addresses, and touches no memory itself.
unsafe impl Send for Ring {}

/// Pages that were lent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lease {
    first: u64,
    pages: u64,
}

/// How many whole pages staging memory has, or may have.
pub(super) fn pages_of(staging: &Staging) -> u64 {
    match staging {
        Staging::Own(bytes) => *bytes as u64 / PAGE,
        Staging::Given(memory) => {
            let unaligned = memory.start.align_offset(PAGE as usize);
            memory.len.saturating_sub(unaligned) as u64 / PAGE
        }
    }
}

impl Ring {
    /// Of as many pages as staging memory has, but for memory of our own, of which there is no more than `needed` pages.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn new(staging: &Staging, needed: u64) -> Result<Ring, Error> {
        let (start, pages, own) = match staging {
            Staging::Given(memory) => (memory.start, pages_of(staging), None),
            Staging::Own(_) => match pages_of(staging).min(needed) {
                0 => (NonNull::dangling(), 0, None),
                pages => {
                    // Smaller buffers need not be aligned to pages.
                    let bytes = (pages * PAGE).max(Buffer::MAPPED_FROM as u64);
                    let buffer = Buffer::new(bytes).map_err(|_| Error::NoMemory)?;
                    buffer.keep_from_children();
                    (buffer.start(), pages, Some(buffer))
                }
            },
        };
        let unaligned = start.align_offset(PAGE as usize);
        let start = NonNull::new(start.as_ptr().wrapping_add(unaligned)).unwrap_or(start);
        let free = if pages > 0 { BTreeMap::from([(0, pages)]) } else { BTreeMap::new() };
        Ok(Ring { start, pages, lent: 0, free, _own: own })
    }

    /// Bytes that are lent.
    pub(super) fn lent(&self) -> u64 {
        self.lent * PAGE
    }

    /// All bytes.
    pub(super) fn size(&self) -> u64 {
        self.pages * PAGE
    }

    /// Lends pages that follow one another, from the first place where there are so many.
    pub(super) fn lend(&mut self, pages: u64) -> Option<Lease> {
        let (first, free) = self.free.iter().map(|(first, free)| (*first, *free)).find(|(_, free)| *free >= pages)?;
        self.free.remove(&first);
        if free > pages {
            self.free.insert(first + pages, free - pages);
        }
        self.lent += pages;
        Some(Lease { first, pages })
    }

    /// Whether [`Ring::lend`] would.
    pub(super) fn could_lend(&self, pages: u64) -> bool {
        pages == 0 || self.free.values().any(|free| *free >= pages)
    }

    /// The first byte of what was lent, aligned to the page.
    pub(super) fn address(&self, lease: &Lease) -> NonNull<u8> {
        // Inside the memory, so not null.
        NonNull::new(self.start.as_ptr().wrapping_add((lease.first * PAGE) as usize)).unwrap_or(self.start)
    }

    /// Takes back what was lent.
    pub(super) fn take_back(&mut self, lease: Lease) {
        let Lease { mut first, mut pages } = lease;
        self.lent -= pages;
        if let Some((before, free)) = self.free.range(..first).next_back().map(|(before, free)| (*before, *free)) {
            if before + free == first {
                self.free.remove(&before);
                (first, pages) = (before, pages + free);
            }
        }
        if let Some(free) = self.free.remove(&(first + pages)) {
            pages += free;
        }
        self.free.insert(first, pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Destination;

    fn ring(pages: u64) -> Ring {
        Ring::new(&Staging::Own(1 << 30), pages).unwrap()
    }

    #[test]
    fn lend_gives_pages_that_nobody_else_has() {
        let mut ring = ring(8);
        assert_eq!((ring.size(), ring.lent()), (8 * PAGE, 0));
        let leases: Vec<_> = [3, 3, 2].map(|pages| ring.lend(pages).unwrap()).into();
        let addresses: Vec<_> = leases.iter().map(|lease| ring.address(lease).addr().get() as u64).collect();
        assert_eq!(
            (addresses[0] % PAGE, addresses[1] - addresses[0], addresses[2] - addresses[1]),
            (0, 3 * PAGE, 3 * PAGE)
        );
        assert!(ring.lend(1).is_none() && !ring.could_lend(1));
        assert_eq!(ring.lent(), ring.size());
    }

    #[test]
    fn take_back_joins_neighbours_in_any_order() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut ring = ring(8);
            let mut leases = [1, 4, 3].map(|pages| ring.lend(pages));
            for (n, lease) in order.into_iter().enumerate() {
                assert!(!ring.could_lend(8), "{n}");
                ring.take_back(leases[lease].take().unwrap());
            }
            assert_eq!((ring.lent(), ring.lend(8).unwrap().pages), (0, 8), "{order:?}");
        }
    }

    #[test]
    fn new_uses_the_whole_pages_of_given_memory() {
        let memory = Buffer::new(1 << 20).unwrap();
        for (before, len, expected) in [(0, 16 * PAGE, 16), (1, 16 * PAGE, 15), (PAGE - 1, 2 * PAGE, 1), (1, PAGE, 0)] {
            let start = NonNull::new(memory.start().as_ptr().wrapping_add(before as usize)).unwrap();
            // SAFETY: inside of `memory`.
            let given = Staging::Given(unsafe { Destination::new(start, len as usize) });
            assert_eq!(pages_of(&given), expected);
            let ring = Ring::new(&given, 0).unwrap();
            assert_eq!((ring.size(), ring.start.addr().get() as u64 % PAGE), (expected * PAGE, 0));
        }
    }

    #[test]
    fn new_allocates_no_more_than_is_needed() {
        assert_eq!(ring(3).size(), 3 * PAGE);
        assert!(ring(0)._own.is_none());
        assert!(matches!(Ring::new(&Staging::Own(usize::MAX / 2), u64::MAX), Err(Error::NoMemory)));
    }
}
