//! The slots of all pieces.

use super::slot::Slot;
use crate::storage::StorageError;

#[cfg(not(all(loom, test)))]
use crate::storage::Buffer;

/// One slot per piece, in memory that the system zeroes when it is first touched: slots that are not used cost nothing.
#[cfg(not(all(loom, test)))]
#[derive(Debug)]
pub(super) struct Table {
    memory: Buffer,
    len: usize,
}

#[cfg(not(all(loom, test)))]
impl Table {
    pub(super) fn new(len: usize) -> Result<Table, StorageError> {
        // A size that does not fit is one that nobody has.
        let nbytes = (len as u64).saturating_mul(size_of::<Slot>() as u64);
        Ok(Table { memory: Buffer::new(nbytes)?, len })
    }

    #[inline]
    pub(super) fn slots(&self) -> &[Slot] {
        // SAFETY: the memory is ours, aligned to 64 bytes as slots are, and `len` slots large. It was zeroed, which is a valid slot:
        // numbers and a null pointer. Nothing else reaches it, and slots change only through atomics.
        unsafe { std::slice::from_raw_parts(self.memory.start().as_ptr().cast(), self.len) }
    }
}

/// Atomics of loom are not made of zeroes.
#[cfg(all(loom, test))]
#[derive(Debug)]
pub(super) struct Table(Vec<Slot>);

#[cfg(all(loom, test))]
impl Table {
    pub(super) fn new(len: usize) -> Result<Table, StorageError> {
        Ok(Table((0..len).map(|_| Slot::default()).collect()))
    }

    pub(super) fn slots(&self) -> &[Slot] {
        &self.0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn new_gives_unused_slots() {
        for len in [0, 1, 100, 10_000] {
            let table = Table::new(len).unwrap();
            assert_eq!(table.slots().len(), len);
            assert!(table.slots().iter().all(|slot| slot.stats(1) == Default::default()));
        }
    }

    #[test]
    fn new_says_when_there_is_no_memory() {
        assert!(matches!(Table::new(usize::MAX), Err(StorageError::NoMemory { .. })));
        assert!(matches!(Table::new(1 << 50), Err(StorageError::NoMemory { .. })));
    }
}
