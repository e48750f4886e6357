//! Memory for what has no place of its own.

use super::options::Staging;
use crate::error::Error;
use crate::storage::{Buffer, PAGE};
use std::ptr::NonNull;

/// Memory of bounded size, from which pages are lent and given back in any order.
#[derive(Debug)]
pub(super) struct Ring {
    /// The first whole page.
    start: NonNull<u8>,
    pages: u64,
    lent: u64,
    /// Runs of free pages, in order: their first page, and their number. Neighbours are one run. Allocated when the ring is made, so that
    /// to lend and to take back need no memory.
    free: Vec<(u64, u64)>,
    /// The most leases at once: there is one run of free pages more than there are leases at most.
    leases: usize,
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
    /// Of as many pages as staging memory has, but for memory of our own, of which there is no more than `needed` pages. For up to `leases`
    /// leases at once.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn new(staging: &Staging, needed: u64, leases: usize) -> Result<Ring, Error> {
        let mut free = Vec::new();
        free.try_reserve_exact(leases.saturating_add(1)).map_err(|_| Error::NoMemory)?;
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
        if pages > 0 {
            free.push((0, pages));
        }
        Ok(Ring { start, pages, lent: 0, free, leases, _own: own })
    }

    /// Bytes that are lent.
    pub(super) fn lent(&self) -> u64 {
        self.lent * PAGE
    }

    /// All bytes.
    pub(super) fn size(&self) -> u64 {
        self.pages * PAGE
    }

    /// Lends pages that follow one another, from the first place where there are so many: what was touched before is used again first.
    pub(super) fn lend(&mut self, pages: u64) -> Option<Lease> {
        let leases = self.leases.checked_sub(1)?;
        let run = self.free.iter().position(|(_, free)| *free >= pages)?;
        let (first, free) = self.free.get_mut(run)?;
        let lease = Lease { first: *first, pages };
        (*first, *free) = (*first + pages, *free - pages);
        if *free == 0 {
            self.free.remove(run);
        }
        self.leases = leases;
        self.lent += pages;
        Some(lease)
    }

    /// Whether [`Ring::lend`] would.
    pub(super) fn could_lend(&self, pages: u64) -> bool {
        pages == 0 || (self.leases > 0 && self.free.iter().any(|(_, free)| *free >= pages))
    }

    /// The first byte of what was lent, aligned to the page.
    pub(super) fn address(&self, lease: &Lease) -> NonNull<u8> {
        // Inside the memory, so not null.
        NonNull::new(self.start.as_ptr().wrapping_add((lease.first * PAGE) as usize)).unwrap_or(self.start)
    }

    /// Takes back what was lent.
    pub(super) fn take_back(&mut self, lease: Lease) {
        let Lease { first, pages } = lease;
        self.lent -= pages;
        self.leases += 1;
        let next = self.free.partition_point(|(start, _)| *start < first);
        let joins_next = self.free.get(next).is_some_and(|(start, _)| *start == first + pages);
        let before = next.checked_sub(1).and_then(|before| self.free.get_mut(before));
        match before.filter(|(start, free)| *start + *free == first) {
            Some((_, free)) if joins_next => {
                *free += pages;
                let (_, more) = self.free.remove(next);
                if let Some((_, free)) = self.free.get_mut(next - 1) {
                    *free += more;
                }
            }
            Some((_, free)) => *free += pages,
            None => match self.free.get_mut(next).filter(|_| joins_next) {
                Some((start, free)) => (*start, *free) = (first, *free + pages),
                // One run more than leases are out was reserved.
                None => self.free.insert(next, (first, pages)),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Destination;

    fn ring(pages: u64) -> Ring {
        Ring::new(&Staging::Own(1 << 30), pages, 8).unwrap()
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
    fn lend_and_take_back_allocate_nothing() {
        let mut ring = Ring::new(&Staging::Own(1 << 30), 64, 32).unwrap();
        let capacity = ring.free.capacity();
        let mut leases: Vec<_> = (0..32).map(|_| ring.lend(1).unwrap()).collect();
        // As many as were asked for, though there is memory for more.
        assert!(ring.lend(1).is_none() && !ring.could_lend(1));
        // Every second one: as many runs as there can be.
        for number in (0..32).rev().step_by(2) {
            ring.take_back(leases.remove(number));
        }
        assert_eq!((ring.free.len(), ring.free.capacity()), (16, capacity));
        leases.into_iter().for_each(|lease| ring.take_back(lease));
        assert_eq!((ring.free.len(), ring.lend(64).unwrap().pages), (1, 64));
    }

    #[test]
    fn new_uses_the_whole_pages_of_given_memory() {
        let memory = Buffer::new(1 << 20).unwrap();
        for (before, len, expected) in [(0, 16 * PAGE, 16), (1, 16 * PAGE, 15), (PAGE - 1, 2 * PAGE, 1), (1, PAGE, 0)] {
            let start = NonNull::new(memory.start().as_ptr().wrapping_add(before as usize)).unwrap();
            // SAFETY: inside of `memory`.
            let given = Staging::Given(unsafe { Destination::new(start, len as usize) });
            assert_eq!(pages_of(&given), expected);
            let ring = Ring::new(&given, 0, 1).unwrap();
            assert_eq!((ring.size(), ring.start.addr().get() as u64 % PAGE), (expected * PAGE, 0));
        }
    }

    #[test]
    fn new_allocates_no_more_than_is_needed() {
        assert_eq!(ring(3).size(), 3 * PAGE);
        assert!(ring(0)._own.is_none());
        assert!(matches!(Ring::new(&Staging::Own(usize::MAX / 2), u64::MAX, 1), Err(Error::NoMemory)));
    }
}
