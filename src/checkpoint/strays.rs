//! Pages that come into memory beside the tensors that are touched.
//!
//! The system maps what it has at hand around a touched page, up to 2 MiB. Of a tensor of some KiB that is most, and would stay as long as
//! the tensor is held: a budget would bound next to nothing. So when tensors that were not held before have been used, what lies beside
//! them is dropped: after some tensors at a time, since those that follow one another share what was mapped.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};

/// So many tensors at a time. Each may have brought in 2 MiB and a bit, or twice as much across the border of two blocks.
pub(super) const AT_A_TIME: usize = 8;

/// Which tensors have been used since they became held. All of it is about how much memory is used, nothing about what is valid: so
/// nobody waits for anybody here.
#[derive(Debug, Default)]
pub(super) struct Strays {
    /// There is a budget to keep.
    wanted: AtomicBool,
    /// One bit per tensor: it has been noted since it was last evicted.
    noted: OnceLock<Option<Box<[AtomicU64]>>>,
    pending: Mutex<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    tensors: [usize; AT_A_TIME],
    len: usize,
}

impl Strays {
    /// Says whether what is noted will be wanted.
    pub(super) fn want(&self, wanted: bool) {
        self.wanted.store(wanted, Relaxed);
    }

    /// Notes that tensor `index` of `len` was used. Gives those beside which pages should be dropped now, if that is so.
    #[inline]
    pub(super) fn note(&self, index: usize, len: usize) -> Option<[usize; AT_A_TIME]> {
        if !self.wanted.load(Relaxed) {
            return None;
        }
        let (word, bit) = self.bit(index, len)?;
        // Nearly always it is set, and nothing is written.
        if word.load(Relaxed) & bit != 0 || word.fetch_or(bit, Relaxed) & bit != 0 {
            return None;
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let at = pending.len;
        *pending.tensors.get_mut(at)? = index;
        pending.len = (at + 1) % AT_A_TIME;
        (pending.len == 0).then_some(pending.tensors)
    }

    /// Tensor `index` was evicted: if it is used again that is news.
    pub(super) fn forget(&self, index: usize, len: usize) {
        if !self.wanted.load(Relaxed) {
            return;
        }
        if let Some((word, bit)) = self.bit(index, len) {
            word.fetch_and(!bit, Relaxed);
        }
    }

    #[inline]
    fn bit(&self, index: usize, len: usize) -> Option<(&AtomicU64, u64)> {
        let noted = self.noted.get_or_init(|| {
            let words = len.div_ceil(64);
            let mut noted = Vec::new();
            noted.try_reserve_exact(words).ok()?;
            noted.resize_with(words, AtomicU64::default);
            Some(noted.into_boxed_slice())
        });
        Some((noted.as_deref()?.get(index / 64)?, 1 << (index % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_gives_tensors_some_at_a_time_and_each_once() {
        let strays = Strays::default();
        assert_eq!(strays.note(0, 100), None);
        strays.want(true);
        for _ in 0..3 {
            for index in 90..97 {
                assert_eq!(strays.note(index, 100), None);
            }
        }
        assert_eq!(strays.note(100 + 64, 100), None);
        assert_eq!(strays.note(3, 100), Some([90, 91, 92, 93, 94, 95, 96, 3]));
        strays.forget(3, 100);
        for index in [90, 3, 3, 4, 5, 6, 7, 8, 9] {
            assert_eq!(strays.note(index, 100), None);
        }
        assert_eq!(strays.note(10, 100), Some([3, 4, 5, 6, 7, 8, 9, 10]));
    }
}
