//! Doing the same to many things on several threads.

use crate::error::Error;
use crate::thread::{self, without_signals};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

/// As many threads as cores, but a few even where there is one core, since some will wait for a disk or a network; and not too many,
/// since each allocates memory, for which all wait on one lock of the kernel's.
const WORKERS: RangeInclusive<usize> = 4..=16;

/// Rust's own default.
const STACK_BYTES: usize = 2 * 1024 * 1024;

/// How many threads to give to `tasks` tasks.
pub(crate) fn workers_for(tasks: usize) -> usize {
    if tasks <= *WORKERS.start() {
        // To count the cores is to read the files of a control group.
        return tasks;
    }
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    tasks.min(cores.clamp(*WORKERS.start(), *WORKERS.end()))
}

/// Does `task` for each number below `len`, on the calling thread and up to `workers - 1` others, which have ended when this returns.
/// Gives the outcomes in order, or the failure of the smallest number.
///
/// Each thread has a `S` of its own, for what its tasks can share one after the other.
///
/// A thread that cannot be started is done without. After a failure no new task is begun.
///
/// # Errors
///
/// [`Error::NoMemory`] for the outcomes; those of the tasks.
pub(crate) fn in_parallel<S: Default, T: Send>(
    len: usize,
    workers: usize,
    task: impl Fn(&mut S, usize) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let mut outcomes: Vec<Mutex<Option<T>>> = Vec::new();
    outcomes.try_reserve_exact(len).map_err(|_| Error::NoMemory)?;
    outcomes.resize_with(len, Mutex::default);
    for_each(len as u64, workers, |own: &mut S, number| {
        let number = number as usize;
        let outcome = task(own, number)?;
        let place = outcomes.get(number).ok_or(Error::Internal { what: "there is no such task" })?;
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        Ok(())
    })?;
    let mut in_order = Vec::new();
    in_order.try_reserve_exact(len).map_err(|_| Error::NoMemory)?;
    for outcome in outcomes {
        match outcome.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(outcome) => in_order.push(outcome),
            None => return Err(Error::Internal { what: "a task has no outcome" }),
        }
    }
    Ok(in_order)
}

/// As [`in_parallel`], of tasks without outcomes: in memory that does not grow with their number.
pub(crate) fn for_each<S: Default, E: Send>(
    len: u64,
    workers: usize,
    task: impl Fn(&mut S, u64) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if workers <= 1 || len <= 1 {
        let mut own = S::default();
        return (0..len).try_for_each(|number| task(&mut own, number));
    }
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let failure: Mutex<Option<(u64, E)>> = Mutex::new(None);
    let work = || {
        let mut own = S::default();
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= len {
                return;
            }
            if let Err(error) = task(&mut own, number) {
                // Smaller numbers have all been given out, and are being worked on.
                failed.store(true, Ordering::Relaxed);
                let mut first = failure.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(before, _)| number < *before) {
                    *first = Some((number, error));
                }
            }
        }
    };
    let mut others = Others(Vec::with_capacity(workers));
    without_signals(|| {
        for _ in 1..workers {
            // SAFETY: `others` waits for the thread's end before anything that `work` borrows goes, also if this one panics.
            match unsafe { thread::builder("safetensors_lazy", STACK_BYTES).spawn_unchecked(work) } {
                Ok(other) => others.0.push(other),
                Err(_) => break,
            }
        }
    });
    work();
    others.join();
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// Threads that have ended when this is gone.
///
/// Not `std::thread::scope`: that waits for their work and not for their end, when they still run code of a library that is perhaps
/// unloaded next; and it leaves memory behind in the calling thread, which valgrind finds.
struct Others(Vec<JoinHandle<()>>);

impl Others {
    /// Panics if one of them has.
    fn join(mut self) {
        let panics: Vec<_> = self.0.drain(..).filter_map(|other| other.join().err()).collect();
        if let Some(panic) = panics.into_iter().next() {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for other in self.0.drain(..) {
            // It is this thread that has panicked, which is enough.
            let _ = other.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn in_parallel_gives_outcomes_in_order() {
        for workers in [1, 2, 8] {
            let squares = in_parallel(1000, workers, |_: &mut (), n| Ok(n * n));
            assert!(squares.unwrap().into_iter().eq((0..1000).map(|n| n * n)), "{workers}");
            let nothing = in_parallel(0, workers, |_: &mut (), _| Err::<(), _>(Error::Cancelled));
            assert_eq!(nothing.unwrap(), []);
        }
    }

    #[test]
    fn in_parallel_gives_the_failure_of_the_smallest_number() {
        for workers in [1, 2, 8] {
            let failure = |index| Err(Error::NoSuchTensor { index, len: 100 });
            let outcome = in_parallel(100, workers, |_: &mut (), n| if n % 7 == 6 { failure(n) } else { Ok(()) });
            assert!(matches!(outcome, Err(Error::NoSuchTensor { index: 6, .. })), "{workers}");
        }
    }

    #[test]
    fn in_parallel_passes_panics_on() {
        for panics_at in 0..20 {
            let ended = AtomicUsize::new(0);
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                in_parallel(20, 4, |_: &mut (), number| {
                    assert!(number != panics_at, "meant to fail");
                    ended.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
            }));
            assert!(outcome.is_err(), "{panics_at}");
            // Nobody is left who would change it.
            let at_return = ended.load(Ordering::Relaxed);
            std::thread::yield_now();
            assert_eq!(ended.load(Ordering::Relaxed), at_return);
        }
    }

    #[test]
    fn in_parallel_runs_at_once() {
        let barrier = std::sync::Barrier::new(4);
        let outcome = in_parallel(4, 4, |_: &mut (), _| {
            barrier.wait();
            Ok(())
        });
        assert!(outcome.is_ok());
    }

    #[test]
    fn workers_for_never_gives_more_than_tasks() {
        assert_eq!((workers_for(0), workers_for(1)), (0, 1));
        assert!(WORKERS.contains(&workers_for(1000)));
    }
}
