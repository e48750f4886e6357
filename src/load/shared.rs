//! What the threads of a load and its callers share.

use super::loaded::{LoadProgress, Next};
use super::options::Engine;
use super::segment::Block;
use super::source::Source;
use super::state::{Complete, State, Work};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::storage::StorageError;
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::task::Task;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// A load, but for its threads.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) source: Source,
    work: Work,
    state: Mutex<State>,
    /// There may be a block for those who read.
    can_read: Condvar,
    /// There may be something for those who wait.
    can_deliver: Condvar,
    cancelled: AtomicBool,
    /// A thread has panicked.
    broken: AtomicBool,
    task: Task,
    bytes_read: AtomicU64,
    engines: AtomicU8,
}

/// Why pieces of a block, by their numbers, were not read; in order.
pub(super) type Failures = Vec<(usize, Error)>;

/// What has become of a block.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) engine: Engine,
    /// The pieces that another had to read, through the page cache; in order.
    pub(super) rescued: Vec<usize>,
    pub(super) failures: Failures,
    pub(super) bytes_read: u64,
}

impl Shared {
    pub(super) fn new(checkpoint: Arc<Checkpoint>, source: Source, work: Work, state: State) -> Shared {
        let task = Task::default();
        let bytes = work.wanted.iter().map(|wanted| wanted.nbytes).fold(0, u64::saturating_add);
        task.begin(bytes, work.wanted.len() as u64);
        Shared {
            checkpoint,
            source,
            work,
            state: Mutex::new(state),
            can_read: Condvar::new(),
            can_deliver: Condvar::new(),
            cancelled: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            task,
            bytes_read: AtomicU64::new(0),
            engines: AtomicU8::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing more is to be begun.
    pub(super) fn has_ended(&self) -> bool {
        self.cancelled.load(Relaxed) || self.broken.load(Relaxed)
    }

    /// The next block to read. `None`: there is none, and will be none; or, if this is not to wait, there is none now.
    pub(super) fn take(&self, wait: bool) -> Option<Block> {
        let mut state = self.state();
        while !self.has_ended() {
            let block = state.deal(&self.work);
            if state.is_ready() {
                // What has no bytes is there at once.
                self.can_deliver.notify_all();
            }
            if block.is_some() {
                return block;
            }
            if state.is_dealt_out(&self.work) {
                self.end_if_read(&state);
                // Those who wait are to know that, too.
                self.can_read.notify_all();
                return None;
            }
            if !wait {
                return None;
            }
            state = self.can_read.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    /// The clock of the rate stops with the last read.
    fn end_if_read(&self, state: &State) {
        if state.is_read(&self.work) {
            self.task.end();
        }
    }

    /// A block was read, but for some of its pieces.
    pub(super) fn give(&self, block: &Block, outcome: Outcome) {
        let Outcome { engine, rescued, failures, bytes_read } = outcome;
        self.bytes_read.fetch_add(bytes_read, Relaxed);
        let engine_of = |pieces: Range<usize>| match rescued.iter().any(|number| pieces.contains(number)) {
            true => Engine::Buffered,
            false => engine,
        };
        let len = |number: usize| block.pieces.get(number).map_or(0, |piece| piece.len);
        let wanted: u64 = block.pieces.iter().map(|piece| piece.len).sum();
        let missing: u64 = failures.iter().map(|(number, _)| len(*number)).sum();
        // Cancelling is looked at elsewhere.
        let _ = self.task.done(wanted - missing, 0);
        let mut state = self.state();
        let (mut complete, mut failures, mut end) = (Vec::new(), failures.into_iter().peekable(), 0);
        for pieces in block.pieces.chunk_by(|one, next| one.delivery == next.delivery) {
            let Some(first) = pieces.first() else { continue };
            let start = end;
            end += pieces.len();
            let mut failure = None;
            while let Some((_, error)) = failures.next_if(|(number, _)| *number < end) {
                failure.get_or_insert(error);
            }
            let len = pieces.iter().map(|piece| piece.len).sum();
            let engine = engine_of(start..end);
            self.engines.fetch_or(bit(engine), Relaxed);
            complete.extend(state.arrive(first.delivery, len, engine, failure));
        }
        drop(state);
        let checked: Vec<_> = complete.into_iter().map(|complete| (complete.delivery, self.check(&complete))).collect();
        let has_failed = missing > 0 || checked.iter().any(|(_, outcome)| outcome.is_err());
        let mut state = self.state();
        for (delivery, outcome) in checked {
            state.conclude(delivery, outcome);
        }
        state.come_back();
        self.end_if_read(&state);
        drop(state);
        self.can_deliver.notify_all();
        if has_failed {
            // It has given its memory back.
            self.can_read.notify_all();
        }
    }

    /// Checks what is all there as a read of it would have been.
    fn check(&self, complete: &Complete) -> Result<(), Error> {
        let Some(wanted) = self.work.wanted.get(complete.request) else { return Ok(()) };
        let len = complete.packed.end - complete.packed.start;
        let go_on = || if self.has_ended() { Err(Error::Cancelled) } else { Ok(()) };
        match (wanted.is_whole, len == wanted.nbytes) {
            (false, _) => self.checkpoint.check_slice(wanted.index),
            (true, false) => self.checkpoint.check_piece(wanted.index, &go_on),
            (true, true) => {
                // SAFETY: so many bytes have been read to there, and they are not delivered yet: nobody else touches them.
                let bytes = unsafe { std::slice::from_raw_parts(complete.to.as_ptr(), len as usize) };
                self.checkpoint.check_whole(wanted.index, bytes, &go_on)
            }
        }
    }

    /// The error of not having read bytes of a delivery.
    pub(super) fn read_error(&self, delivery: u64, source: StorageError) -> Error {
        let request = self.state().request_of(delivery);
        let index = request.and_then(|request| self.work.wanted.get(request)).map_or(usize::MAX, |wanted| wanted.index);
        self.checkpoint.read_error(index, source)
    }

    /// Ends the load, since a thread has panicked.
    pub(super) fn break_down(&self) {
        self.broken.store(true, Relaxed);
        self.wake_all();
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
        self.wake_all();
    }

    fn wake_all(&self) {
        // Whoever has looked before this and waits after it would miss it: nobody is between the two while this is held.
        let state = self.state();
        self.can_read.notify_all();
        self.can_deliver.notify_all();
        drop(state);
    }

    /// What has arrived next. Without a time to wait for, waits for the storage only.
    pub(super) fn next(&self, timeout: Option<Duration>) -> Result<Next, Error> {
        // A time beyond what the clock can tell never comes.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.state();
        loop {
            assert!(!self.broken.load(Relaxed), "a thread of the load has panicked");
            if self.cancelled.load(Relaxed) {
                return Err(Error::Cancelled);
            }
            if let Some(loaded) = state.deliver(&self.work) {
                drop(state);
                let _ = self.task.done(0, u64::from(loaded.is_last));
                return Ok(Next::Loaded(loaded));
            }
            if state.left() == 0 {
                return Ok(Next::Done);
            }
            if timeout.is_none() && state.is_stalled(&self.work) {
                return Err(state.staging_full());
            }
            state = match deadline {
                None => self.can_deliver.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Next::Timeout);
                    }
                    self.can_deliver.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    pub(super) fn recycle(&self, buffer: u64) -> Result<(), Error> {
        if buffer == 0 {
            return Ok(());
        }
        match self.state().recycle(buffer) {
            Some(true) => self.can_read.notify_all(),
            Some(false) => {}
            None => {
                let what = "this was recycled before, or is not from this load".to_owned();
                return Err(Error::InvalidArgument { what });
            }
        }
        Ok(())
    }

    /// How far it is, but for the number of threads.
    pub(super) fn progress(&self) -> LoadProgress {
        let engines = self.engines.load(Relaxed);
        LoadProgress {
            done: self.task.progress(),
            bytes_read: self.bytes_read.load(Relaxed),
            engines: Engine::ALL.into_iter().filter(|engine| engines & bit(*engine) != 0).collect(),
            workers: 0,
        }
    }
}

fn bit(engine: Engine) -> u8 {
    1 << engine as u8
}
