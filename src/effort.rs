//! Threads only when there is work for them: to start one takes as long as to open several small files, and on a busy machine it may be
//! milliseconds before it runs.

use crate::error::Error;
use crate::workers::{in_parallel, workers_for};
use std::time::{Duration, Instant};

/// So many bytes to be read and parsed are worth other threads...
const WORTH_THREADS: u64 = 1024 * 1024;

/// ...one for each of so many.
const PER_THREAD: u64 = 256 * 1024;

/// Storage that has let the thread wait is slow when this much time has gone by.
const WAIT_LIMIT: Duration = Duration::from_millis(1);

/// Does `task` for each number below `len` on the calling thread, and on others from the moment on when it is worth their start: when
/// much is left to be read, or when the storage turns out to be slow. Gives the outcomes in order, or the failure of the smallest
/// number.
///
/// `expected` is what is known beforehand of all the bytes to be read; `bytes` how many were read for an outcome. Each thread has a `S` of
/// its own, the calling one `own`.
///
/// # Errors
///
/// Those of `task`, and [`Error::NoMemory`].
pub(crate) fn with_threads_if_worth<S: Default, T: Send>(
    len: usize,
    mut own: S,
    expected: u64,
    bytes: impl Fn(&T) -> u64,
    task: impl Fn(&mut S, usize) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let mut outcomes = Vec::new();
    outcomes.try_reserve_exact(len).map_err(|_| Error::NoMemory)?;
    let mut effort = Effort::new(expected);
    while outcomes.len() < len {
        let done = outcomes.len();
        let threads = effort.threads(done, len - done);
        if threads > 1 {
            drop(own);
            outcomes.extend(in_parallel(len - done, threads, |own, number| task(own, done + number))?);
            break;
        }
        let outcome = task(&mut own, done)?;
        effort.read = effort.read.saturating_add(bytes(&outcome));
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// What one thread has done so far.
struct Effort {
    expected: u64,
    read: u64,
    begun: Instant,
    waits: Option<i64>,
}

impl Effort {
    fn new(expected: u64) -> Effort {
        Effort { expected, read: 0, begun: Instant::now(), waits: waits() }
    }

    /// How many threads the tasks that are left are worth.
    fn threads(&self, done: usize, left: usize) -> usize {
        if left <= 1 {
            return 1;
        }
        let so_far = self.read.checked_div(done as u64).unwrap_or(0).saturating_mul(left as u64);
        let bytes = so_far.max(self.expected.saturating_sub(self.read));
        if bytes >= WORTH_THREADS {
            return workers_for(left).min(usize::try_from(bytes / PER_THREAD).unwrap_or(usize::MAX));
        }
        match done > 0 && self.begun.elapsed() >= WAIT_LIMIT && self.has_waited() {
            true => workers_for(left),
            false => 1,
        }
    }

    /// Whether the time went by in waiting for something: for a processor others would only wait as well.
    fn has_waited(&self) -> bool {
        waits() != self.waits || self.waits.is_none()
    }
}

/// How often this thread has given its processor away to wait; `None` where the system does not tell.
fn waits() -> Option<i64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` has room for what the call writes.
    match unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) } {
        // SAFETY: getrusage has succeeded, and so has filled `usage` in.
        0 => Some(unsafe { usage.assume_init() }.ru_nvcsw),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::thread::{self, ThreadId};

    /// Runs tasks that read so many bytes each, and tells on which threads.
    fn threads_of(len: usize, expected: u64, bytes: u64, task: impl Fn() + Sync) -> HashSet<ThreadId> {
        let threads = Mutex::new(HashSet::new());
        let outcomes = with_threads_if_worth(
            len,
            (),
            expected,
            |_| bytes,
            |_: &mut (), number| {
                task();
                threads.lock().unwrap().insert(thread::current().id());
                Ok(number)
            },
        );
        assert!(outcomes.unwrap().into_iter().eq(0..len));
        threads.into_inner().unwrap()
    }

    fn a_while() {
        thread::sleep(WAIT_LIMIT);
    }

    #[test]
    fn little_work_is_done_by_the_calling_thread() {
        for len in [0, 1, 2, 1000] {
            let threads = threads_of(len, 0, 1000, || {});
            assert!(threads.is_empty() || threads == HashSet::from([thread::current().id()]), "{len}");
        }
        assert_eq!(threads_of(2, 0, u64::MAX, || {}).len(), 1, "the last one needs no other thread");
    }

    #[test]
    fn much_work_is_done_by_several_threads() {
        assert!(threads_of(8, 0, WORTH_THREADS, a_while).len() > 1);
        assert!(threads_of(8, 8 * WORTH_THREADS, 0, a_while).len() > 1);
    }

    #[test]
    fn waiting_is_done_by_several_threads_and_computing_is_not() {
        assert!(threads_of(8, 0, 1, a_while).len() > 1);
        // Another processor might have done this in the time: but as much as this is not expected of a few bytes.
        let effort = Effort { begun: Instant::now() - 2 * WAIT_LIMIT, ..Effort::new(0) };
        assert_eq!(effort.threads(1, 100), 1);
        a_while();
        assert!(effort.threads(1, 100) > 1);
        assert_eq!(effort.threads(99, 1), 1);
    }

    #[test]
    fn failures_are_those_of_the_smallest_number() {
        for expected in [0, 8 * WORTH_THREADS] {
            let outcome = with_threads_if_worth(
                100,
                (),
                expected,
                |()| 0,
                |_: &mut (), number| match number % 7 {
                    6 => Err(Error::NoSuchTensor { index: number, len: 0 }),
                    _ => Ok(()),
                },
            );
            assert!(matches!(outcome, Err(Error::NoSuchTensor { index: 6, .. })));
        }
    }
}
