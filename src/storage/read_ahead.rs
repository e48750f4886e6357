//! Reading into the page cache while the caller does something else.

use crate::process::Process;
use crate::thread::{self, without_signals};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// Started by the first request. Only those who ask lock this, so that the thread holds no lock when the process forks.
    worker: Mutex<Option<Worker>>,
}

#[derive(Debug)]
struct Worker {
    process: Process,
    requests: SyncSender<Request>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
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
        if let Some(Err(TrySendError::Disconnected(_))) =
            worker.as_ref().map(|worker| worker.requests.try_send(request))
        {
            *worker = None;
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
        let (requests, receiver) = sync_channel(MOST_REQUESTS);
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let spawn = || thread::builder("st_prefetch", STACK_BYTES).spawn(move || work(&receiver, &told));
        let thread = without_signals(spawn).ok()?;
        Some(Worker { process, requests, stop, thread })
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.requests);
        // It does not panic; if it did, it would have ended all the same.
        let _ = self.thread.join();
    }
}

fn work(requests: &Receiver<Request>, stop: &AtomicBool) {
    while let Ok(Request { file, bytes }) = requests.recv() {
        let mut at = bytes.start;
        while at < bytes.end {
            if stop.load(Ordering::Relaxed) {
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
