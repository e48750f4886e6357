//! Aligned copies of tensors that cannot be pointed into where they lie.

use crate::storage::{Buffer, StorageError};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

/// One copy per tensor that has needed one, made once and kept as long as the checkpoint.
///
/// A copy is read by the thread that asks first; threads that ask for the same tensor meanwhile wait for it, those that ask for
/// another one do not.
#[derive(Debug, Default)]
pub(super) struct Copies {
    slots: RwLock<HashMap<usize, Arc<Slot>>>,
}

#[derive(Debug, Default)]
struct Slot {
    buffer: OnceLock<Buffer>,
    /// Held while the buffer is read, so that it is read once.
    filling: Mutex<()>,
}

impl Copies {
    /// The copy of tensor `index`. If there is none, `fill` makes it: a failure is reported and leaves nothing, the next call tries
    /// again.
    pub(super) fn get_or_fill(
        &self,
        index: usize,
        fill: impl FnOnce() -> Result<Buffer, StorageError>,
    ) -> Result<NonNull<u8>, StorageError> {
        let slot = self.slot(index);
        if let Some(buffer) = slot.buffer.get() {
            return Ok(buffer.start());
        }
        // A panic elsewhere leaves no slot in a wrong state, so poison means nothing here.
        let _filling = slot.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(buffer) = slot.buffer.get() {
            return Ok(buffer.start());
        }
        let buffer = fill()?;
        Ok(slot.buffer.get_or_init(|| buffer).start())
    }

    fn slot(&self, index: usize) -> Arc<Slot> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&index) {
            return Arc::clone(slot);
        }
        drop(slots);
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(index).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn get_or_fill_fills_once_for_all_threads() {
        let (copies, fills) = (Copies::default(), AtomicUsize::new(0));
        let get = || {
            let fill = || {
                fills.fetch_add(1, Ordering::Relaxed);
                std::thread::yield_now();
                Buffer::new(10)
            };
            copies.get_or_fill(7, fill).unwrap().as_ptr() as usize
        };
        let pointers: Vec<usize> = std::thread::scope(|s| {
            (0..16).map(|_| s.spawn(get)).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(pointers.iter().all(|p| *p == pointers[0]));
        assert_eq!(fills.into_inner(), 1);
    }

    #[test]
    fn get_or_fill_tries_again_after_a_failure() {
        let copies = Copies::default();
        assert!(copies.get_or_fill(0, || Err(StorageError::NoMemory { nbytes: 1 })).is_err());
        assert!(copies.get_or_fill(0, || Buffer::new(1)).is_ok());
    }
}
