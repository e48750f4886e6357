//! A long call as another thread sees it.

use crate::error::Error;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// How far a long call is, and a way to end it early: given to the call by the thread that makes it, and looked at by others.
///
/// One task may watch one call after another; each starts its progress anew. Cancelling stays: a call that gets a cancelled task ends at
/// once.
#[derive(Debug, Default)]
pub struct Task {
    cancelled: AtomicBool,
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    items_done: AtomicU64,
    items_total: AtomicU64,
    /// When the call began, and how long it took once it has ended.
    clock: Mutex<Clock>,
}

#[derive(Debug, Default)]
struct Clock {
    started: Option<Instant>,
    seconds: Option<f64>,
}

/// How far a call is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read or written so far.
    pub bytes_done: u64,
    /// Bytes that there are to read or write; 0 before the call knows.
    pub bytes_total: u64,
    /// Tensors that are done with.
    pub items_done: u64,
    /// Tensors that there are.
    pub items_total: u64,
    /// Bytes done per second since the call began, or until it ended.
    pub bytes_per_second: u64,
}

impl Task {
    /// How far the call is. The numbers are those of about the same moment.
    pub fn progress(&self) -> Progress {
        let bytes_done = self.bytes_done.load(Ordering::Relaxed);
        let clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        let running = || clock.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        let seconds = clock.seconds.unwrap_or_else(running);
        Progress {
            bytes_done,
            bytes_total: self.bytes_total.load(Ordering::Relaxed),
            items_done: self.items_done.load(Ordering::Relaxed),
            items_total: self.items_total.load(Ordering::Relaxed),
            bytes_per_second: if seconds > 0.0 { (bytes_done as f64 / seconds) as u64 } else { 0 },
        }
    }

    /// Asks the call to end: it gives [`Error::Cancelled`] soon after.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// A call begins, and knows what there is to do.
    pub(crate) fn begin(&self, bytes: u64, items: u64) {
        *self.clock.lock().unwrap_or_else(PoisonError::into_inner) =
            Clock { started: Some(Instant::now()), seconds: None };
        self.bytes_done.store(0, Ordering::Relaxed);
        self.items_done.store(0, Ordering::Relaxed);
        self.bytes_total.store(bytes, Ordering::Relaxed);
        self.items_total.store(items, Ordering::Relaxed);
    }

    /// So much more is done.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`].
    pub(crate) fn done(&self, bytes: u64, items: u64) -> Result<(), Error> {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        self.items_done.fetch_add(items, Ordering::Relaxed);
        self.check()
    }

    /// The call has ended: its rate stays as it is.
    pub(crate) fn end(&self) {
        let mut clock = self.clock.lock().unwrap_or_else(PoisonError::into_inner);
        clock.seconds = clock.started.map(|started| started.elapsed().as_secs_f64());
    }

    /// # Errors
    ///
    /// [`Error::Cancelled`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.cancelled.load(Ordering::Relaxed) {
            true => Err(Error::Cancelled),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_tells_what_is_done_and_its_rate() {
        let task = Task::default();
        assert_eq!(task.progress(), Progress::default());
        task.begin(100, 3);
        task.done(60, 1).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        task.end();
        let progress = task.progress();
        assert_eq!((progress.bytes_done, progress.bytes_total), (60, 100));
        assert_eq!((progress.items_done, progress.items_total), (1, 3));
        assert!((1..=30_000).contains(&progress.bytes_per_second), "{progress:?}");
        assert_eq!(task.progress(), progress);
        task.begin(7, 0);
        assert_eq!((task.progress().bytes_done, task.progress().bytes_total), (0, 7));
    }

    #[test]
    fn cancel_stays() {
        let task = Task::default();
        task.check().unwrap();
        task.cancel();
        assert!(matches!(task.done(1, 0), Err(Error::Cancelled)));
        task.begin(1, 1);
        assert!(matches!(task.check(), Err(Error::Cancelled)));
    }
}
