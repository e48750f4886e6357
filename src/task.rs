//! A long call as another thread sees it.

use crate::error::Error;
use crate::sync::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::PoisonError;
use std::time::Instant;

/// How far a long call is, and a way to end it early: given to the call by the thread that makes it, and looked at by others.
///
/// One task may watch one call after another; each starts its progress anew. Cancelling stays: a call that gets a cancelled task ends at
/// once.
#[derive(Debug, Default)]
pub struct Task {
    cancelled: AtomicBool,
    state: Mutex<State>,
}

/// What is told of the call that runs, or ran last.
#[derive(Debug, Default)]
struct State {
    done: Progress,
    started: Option<Instant>,
    /// How long it took, once it has ended.
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
    /// How far the call is. The numbers are those of one moment.
    pub fn progress(&self) -> Progress {
        let state = self.state();
        let running = || state.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        let seconds = state.seconds.unwrap_or_else(running);
        let bytes_per_second = if seconds > 0.0 { (state.done.bytes_done as f64 / seconds) as u64 } else { 0 };
        Progress { bytes_per_second, ..state.done }
    }

    /// Asks the call to end: it gives [`Error::Cancelled`] soon after.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// A call begins, and knows what there is to do.
    pub(crate) fn begin(&self, bytes: u64, items: u64) {
        let done = Progress { bytes_total: bytes, items_total: items, ..Progress::default() };
        *self.state() = State { done, started: Some(Instant::now()), seconds: None };
    }

    /// So much more is done.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`].
    pub(crate) fn done(&self, bytes: u64, items: u64) -> Result<(), Error> {
        let mut state = self.state();
        state.done.bytes_done = state.done.bytes_done.saturating_add(bytes);
        state.done.items_done = state.done.items_done.saturating_add(items);
        drop(state);
        self.check()
    }

    /// The call has ended: its rate stays as it is.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        state.seconds = state.started.map(|started| started.elapsed().as_secs_f64());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
