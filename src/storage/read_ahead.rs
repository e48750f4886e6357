//! Reading into the page cache while the caller does something else.

use crate::process::Process;
use crate::thread::{self, without_signals};
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// However much it is asked for at once, Linux reads no more ahead than the larger of the device's read-ahead window and its largest
/// request: at least so much.
const CHUNK: u64 = 128 * 1024;

/// The thread calls the system and nothing else.
const STACK_BYTES: usize = 256 * 1024;

/// More requests than this are not kept: they are advice.
const MOST_REQUESTS: usize = 4096;

/// Reads ahead in a thread of its own. To ask the system is not enough: it makes the asking thread wait once the disk's queue is full.
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    /// Started by the first request. Only those who ask lock this, so that the thread does not hold it when the process forks. (What it
    /// locks itself, the requests, no child touches.)
    worker: Mutex<Option<Worker>>,
}

#[derive(Debug)]
struct Worker {
    process: Process,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

/// What the thread shares with those who ask.
#[derive(Debug, Default)]
struct Shared {
    /// At most [`MOST_REQUESTS`].
    requests: Mutex<VecDeque<Request>>,
    /// There is a request, or the end.
    changed: Condvar,
    stop: AtomicBool,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, VecDeque<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a request, if there is room for it.
    fn ask(&self, request: Request) {
        let mut requests = self.requests();
        if requests.len() < MOST_REQUESTS && requests.try_reserve(1).is_ok() {
            requests.push_back(request);
            drop(requests);
            self.changed.notify_one();
        }
    }

    /// The next request. `None` at the end.
    fn next(&self) -> Option<Request> {
        let mut requests = self.requests();
        while !self.stop.load(Ordering::Relaxed) {
            match requests.pop_front() {
                Some(request) => return Some(request),
                None => requests = self.changed.wait(requests).unwrap_or_else(PoisonError::into_inner),
            }
        }
        None
    }

    fn stop(&self) {
        let requests = self.requests();
        self.stop.store(true, Ordering::Relaxed);
        drop(requests);
        self.changed.notify_one();
    }
}

#[derive(Debug)]
struct Request {
    file: Arc<File>,
    bytes: Range<u64>,
}

impl ReadAhead {
    /// Asks for `bytes` of a file. What cannot be done is left undone.
    pub(super) fn ask(&self, file: &Arc<File>, bytes: Range<u64>) {
        if bytes.is_empty() {
            return;
        }
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if worker.as_ref().is_some_and(|worker| !worker.process.is_this()) {
            std::mem::forget(worker.take());
        }
        let request = Request { file: Arc::clone(file), bytes };
        if worker.is_none() {
            *worker = Worker::start();
        }
        if let Some(worker) = worker.as_ref() {
            worker.shared.ask(request);
        }
    }
}

impl Drop for ReadAhead {
    /// Waits for the thread to end, which takes it no longer than one chunk.
    fn drop(&mut self) {
        let worker = self.worker.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        match worker {
            Some(worker) if worker.process.is_this() => worker.end(),
            of_another_process => std::mem::forget(of_another_process),
        }
    }
}

impl Worker {
    fn start() -> Option<Worker> {
        let process = Process::this()?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let spawn = || thread::builder("st_prefetch", STACK_BYTES).spawn(move || work(&theirs));
        let thread = without_signals(spawn).ok()?;
        Some(Worker { process, shared, thread })
    }

    fn end(self) {
        self.shared.stop();
        // It does not panic; if it did, it would have ended all the same.
        let _ = self.thread.join();
    }
}

fn work(shared: &Shared) {
    while let Some(Request { file, bytes }) = shared.next() {
        let mut at = bytes.start;
        while at < bytes.end {
            if shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let len = CHUNK.min(bytes.end - at);
            will_need(&file, at, len);
            at += len;
        }
    }
}

fn will_need(file: &File, start: u64, len: u64) {
    let (Ok(start), Ok(len)) = (libc::off64_t::try_from(start), libc::off64_t::try_from(len)) else { return };
    // SAFETY: the descriptor is open; the call touches no memory of ours.
    unsafe { libc::posix_fadvise64(file.as_raw_fd(), start, len, libc::POSIX_FADV_WILLNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ask_starts_one_thread_which_ends_with_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 30).unwrap();
        let file = Arc::new(file);
        let read_ahead = ReadAhead::default();
        read_ahead.ask(&file, 5..5);
        assert!(read_ahead.worker.lock().unwrap().is_none());
        let thread = || read_ahead.worker.lock().unwrap().as_ref().unwrap().thread.thread().id();
        read_ahead.ask(&file, 0..1);
        let first = thread();
        for _ in 0..2 * MOST_REQUESTS {
            read_ahead.ask(&file, 0..1 << 30);
        }
        assert_eq!(thread(), first);
        drop(read_ahead);
        // Whatever was still to be read has been given up.
        assert_eq!(Arc::strong_count(&file), 1);
    }
}
