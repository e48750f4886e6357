//! The order in which pieces go: least recently used first.

use super::slot::{Dequeued, Slot};
use crate::storage::StorageError;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Entries of pieces with the time of their last use, as it was when they were queued. Using a piece does not touch its entry, which
/// would need a lock: an entry is put right when its turn comes.
///
/// Each piece has at most one entry, and QUEUED in its state while it has one.
#[derive(Debug, Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<(u64, usize)>>,
}

impl Queue {
    /// Makes room for the entries of `len` pieces: queueing never fails, so what was released can always be evicted.
    pub(super) fn reserve(&mut self, len: usize) -> Result<(), StorageError> {
        let nbytes = (len as u64).saturating_mul(size_of::<(u64, usize)>() as u64);
        self.heap.try_reserve_exact(len).map_err(|_| StorageError::NoMemory { nbytes })
    }

    /// Adds a piece that was just marked as QUEUED.
    pub(super) fn push(&mut self, used: u64, index: usize) {
        debug_assert!(self.heap.len() < self.heap.capacity(), "piece {index} is queued twice");
        self.heap.push(Reverse((used, index)));
    }

    /// Takes the least recently used piece that is free to go, for eviction. `now` is when the eviction began: what is used after that
    /// counts as used then, or threads that never stop using pieces could keep this from ending.
    pub(super) fn claim_oldest(&mut self, slots: &[Slot], now: u64) -> Option<usize> {
        while let Some(Reverse((queued, index))) = self.heap.pop() {
            let Some(slot) = slots.get(index) else { continue };
            let used = slot.used();
            match slot.dequeue(used > queued && queued < now) {
                Dequeued::Claimed => return Some(index),
                Dequeued::Used => self.push(used, index),
                Dequeued::Forgotten => {}
            }
        }
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::slot::{Hold, State};
    use super::*;
    use std::ptr::NonNull;

    /// Pieces that were used at these times, and a queue that knows.
    fn queue(times: &[u64]) -> (Vec<Slot>, Queue) {
        let slots: Vec<_> = times.iter().map(|_| Slot::default()).collect();
        let mut queue = Queue::default();
        queue.reserve(times.len()).unwrap();
        for (index, time) in times.iter().enumerate() {
            slots[index].publish(NonNull::dangling(), *time, State::QUEUED, Hold::Pin);
            slots[index].unpin();
            queue.push(*time, index);
        }
        (slots, queue)
    }

    fn claim_all(slots: &[Slot], queue: &mut Queue, now: u64) -> Vec<usize> {
        std::iter::from_fn(|| queue.claim_oldest(slots, now)).collect()
    }

    #[test]
    fn claim_oldest_follows_the_times_of_use() {
        let (slots, mut queue) = queue(&[5, 3, 9, 1]);
        slots[3].count_hit(7);
        slots[1].count_hit(10);
        assert_eq!(claim_all(&slots, &mut queue, 11), [0, 3, 2, 1]);
    }

    #[test]
    fn claim_oldest_forgets_what_is_in_use_or_gone() {
        let (slots, mut queue) = queue(&[1, 2, 3, 4]);
        slots[0].hold(Hold::Pin);
        slots[1].hold(Hold::Keep);
        slots[2].claim().unwrap();
        assert_eq!(claim_all(&slots, &mut queue, 5), [3]);
        assert!(slots.iter().all(|slot| !slot.state().is(State::QUEUED)));
        assert!(slots[0].unpin().unwrap().is_forgotten());
    }

    #[test]
    fn claim_oldest_takes_what_is_used_during_the_eviction_as_used_once() {
        let (slots, mut queue) = queue(&[1, 60, 70]);
        slots[0].count_hit(65);
        slots[1].count_hit(100);
        assert_eq!(claim_all(&slots, &mut queue, 50), [1, 0, 2]);
    }
}
