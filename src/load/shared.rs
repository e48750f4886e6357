//! What the threads of a load and its callers share.

use super::ending::Ending;
use super::loaded::{LoadProgress, Next};
use super::options::Engine;
use super::segment::{Block, Piece};
use super::source::Source;
use super::state::{Complete, State, Work};
use super::worker::{self, Means};
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::storage::{Storage, StorageError};
use crate::sync::{Condvar, Mutex, MutexGuard};
use crate::task::Progress;
use std::iter::Peekable;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// So many deliveries are checked without the lock before it is taken again.
const CHECKED_AT_ONCE: usize = 64;

/// A load, but for its threads.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) checkpoint: Arc<Checkpoint>,
    pub(super) source: Source,
    work: Work,
    /// Set if the caller's thread reads, in [`Shared::next`], and no other.
    by_caller: Option<Means>,
    guarded: Mutex<Guarded>,
    /// There may be a block for those who read.
    can_read: Condvar,
    /// There may be something for those who wait.
    can_deliver: Condvar,
    /// Whether [`Guarded::ending`] is set.
    has_ended: AtomicBool,
    bytes_total: u64,
    bytes_read: AtomicU64,
    engines: AtomicU8,
    started: Instant,
}

/// What is under the lock.
#[derive(Debug)]
struct Guarded {
    state: State,
    ending: Option<Ending>,
    /// Whether a caller's thread reads.
    is_reading: bool,
    /// How many wait for either condition: to tell of one of which nobody waits is a system call for nothing.
    readers: usize,
    takers: usize,
    bytes_done: u64,
    /// How long it took, once all is read.
    seconds: Option<f64>,
}

/// A block that a thread has taken. If it goes without having been given back, by whatever way, the load ends: it could never be delivered,
/// and whoever waits for it would wait for ever.
#[derive(Debug)]
pub(super) struct Taken<'s> {
    shared: &'s Shared,
    pub(super) storage: &'s Storage,
    pub(super) block: Block,
    is_given: bool,
}

/// Why pieces of a block, by their numbers, were not read.
#[derive(Debug, Default)]
pub(super) struct Failures {
    list: Vec<(usize, Error)>,
    /// There was no memory for the error of this piece, and those of later ones: all pieces from here on have failed.
    rest: Option<usize>,
}

/// What has become of a block.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) engine: Engine,
    pub(super) failures: Failures,
    pub(super) bytes_read: u64,
}

impl Failures {
    /// Adds one, of a later piece than those before.
    pub(super) fn push(&mut self, piece: usize, error: Error) {
        if self.rest.is_some() {
            return;
        }
        match self.list.try_reserve(1) {
            Ok(()) => self.list.push((piece, error)),
            Err(_) => self.rest = Some(piece),
        }
    }

    /// The first of the pieces from `start` to `stop`, if one of them has failed; and how many bytes all that have failed are of.
    pub(super) fn of(
        list: &mut Peekable<std::vec::IntoIter<(usize, Error)>>,
        rest: usize,
        start: usize,
        pieces: &[Piece],
    ) -> (Option<Error>, u64) {
        let (mut first, mut bytes) = (None, 0);
        if rest == usize::MAX && list.len() == 0 {
            return (None, 0);
        }
        for (number, piece) in (start..).zip(pieces) {
            let error = match number >= rest {
                true => Some(Error::NoMemory),
                false => list.next_if(|(failed, _)| *failed == number).map(|(_, error)| error),
            };
            if let Some(error) = error {
                bytes += piece.len;
                first.get_or_insert(error);
            }
        }
        (first, bytes)
    }
}

impl<'s> Taken<'s> {
    /// It was read, but for some of its pieces. Gives the memory of its pieces, to be used again.
    pub(super) fn give(mut self, outcome: Outcome) -> Result<Vec<Piece>, Ending> {
        let given = self.shared.give(&self.block, outcome);
        if let Err(ending) = given {
            // Before this goes, which would be another reason.
            self.shared.end(ending);
        }
        self.is_given = true;
        given.map(|()| std::mem::take(&mut self.block.pieces))
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.is_given {
            // If the load has ended already, nothing changes.
            self.shared.end(Ending::Internal("a block of a load was dropped"));
        }
    }
}

/// The caller's thread reads until this goes.
struct Reading<'s>(&'s Shared);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let mut guarded = self.0.lock();
        guarded.is_reading = false;
        if guarded.takers > 0 {
            self.0.can_deliver.notify_all();
        }
    }
}

impl Shared {
    /// Without `by_caller`, threads are to read.
    pub(super) fn new(
        checkpoint: Arc<Checkpoint>,
        source: Source,
        work: Work,
        state: State,
        by_caller: Option<Means>,
    ) -> Shared {
        let bytes_total = work.wanted.iter().map(|wanted| wanted.nbytes).fold(0, u64::saturating_add);
        let guarded = Guarded {
            state,
            ending: None,
            is_reading: false,
            readers: 0,
            takers: 0,
            bytes_done: 0,
            seconds: (bytes_total == 0).then_some(0.0),
        };
        Shared {
            checkpoint,
            source,
            work,
            by_caller,
            guarded: Mutex::new(guarded),
            can_read: Condvar::new(),
            can_deliver: Condvar::new(),
            has_ended: AtomicBool::new(false),
            bytes_total,
            bytes_read: AtomicU64::new(0),
            engines: AtomicU8::new(0),
            started: Instant::now(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Guarded> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing more is to be begun.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Relaxed)
    }

    /// The next block to read, whose pieces are put into `pieces`. `None`: there is none, and will be none; or, if this is not to wait, there
    /// is none now.
    pub(super) fn take(&self, wait: bool, pieces: &mut Vec<Piece>) -> Result<Option<Taken<'_>>, Ending> {
        let mut guarded = self.lock();
        while guarded.ending.is_none() {
            let block = guarded.state.deal(&self.work, pieces)?;
            if guarded.state.is_ready() && guarded.takers > 0 {
                // What has no bytes is there at once.
                self.can_deliver.notify_all();
            }
            if let Some(block) = block {
                drop(guarded);
                let storage = self.checkpoint.storage(block.shard).ok_or(Ending::Internal("a block of no shard"))?;
                return Ok(Some(Taken { shared: self, storage, block, is_given: false }));
            }
            if guarded.state.is_dealt_out(&self.work) {
                // Those who wait are to know that, too.
                if guarded.readers > 0 {
                    self.can_read.notify_all();
                }
                return Ok(None);
            }
            if !wait {
                return Ok(None);
            }
            guarded.readers += 1;
            guarded = self.can_read.wait(guarded).unwrap_or_else(PoisonError::into_inner);
            guarded.readers -= 1;
        }
        Ok(None)
    }

    /// A block was read, but for some of its pieces.
    fn give(&self, block: &Block, outcome: Outcome) -> Result<(), Ending> {
        let Outcome { engine, failures, bytes_read } = outcome;
        self.bytes_read.fetch_add(bytes_read, Relaxed);
        let rest = failures.rest.unwrap_or(usize::MAX);
        let mut failures = failures.list.into_iter().peekable();
        let is_checked = self.checkpoint.checks_reads();
        let mut unchecked = Unchecked { list: [const { None }; CHECKED_AT_ONCE], len: 0 };
        let (mut number, mut engines, mut has_failed) = (0, 0, false);
        let mut guarded = self.lock();
        for pieces in block.pieces.chunk_by(|one, next| one.delivery == next.delivery) {
            let delivery = pieces.first().ok_or(Ending::Internal("no pieces of a delivery"))?.delivery;
            let (failure, missing) = Failures::of(&mut failures, rest, number, pieces);
            number += pieces.len();
            let len: u64 = pieces.iter().map(|piece| piece.len).sum();
            let engine = if pieces.iter().any(|piece| piece.rescued) { Engine::Buffered } else { engine };
            if engines & bit(engine) == 0 {
                // Before it can be delivered.
                engines |= bit(engine);
                self.engines.fetch_or(engines, Relaxed);
            }
            has_failed |= failure.is_some();
            guarded.bytes_done += len - missing;
            let Some(complete) = guarded.state.arrive(delivery, len, engine, failure)? else { continue };
            if !is_checked {
                guarded.state.conclude(complete.delivery, Ok(()))?;
            } else if unchecked.add(complete)? {
                drop(guarded);
                has_failed |= self.check_all(&mut unchecked)?;
                guarded = self.lock();
            }
        }
        drop(guarded);
        has_failed |= self.check_all(&mut unchecked)?;
        let mut guarded = self.lock();
        guarded.state.come_back()?;
        if guarded.seconds.is_none() && guarded.state.is_read(&self.work) {
            // The clock of the rate stops with the last read.
            guarded.seconds = Some(self.started.elapsed().as_secs_f64());
        }
        if guarded.takers > 0 {
            self.can_deliver.notify_all();
        }
        // What has failed has given its memory back.
        if has_failed && guarded.readers > 0 {
            self.can_read.notify_all();
        }
        Ok(())
    }

    /// Checks what is all there, and says whether something is wrong with any of it.
    fn check_all(&self, unchecked: &mut Unchecked) -> Result<bool, Ending> {
        let Some((first, _)) = unchecked.list.iter().take(unchecked.len).flatten().next() else { return Ok(false) };
        // One look at the file is enough, if it is as it was.
        let first = self.work.wanted_of(first.request)?.index;
        let is_unchanged = self.checkpoint.check_unchanged_of(first).is_ok();
        for (complete, outcome) in unchecked.list.iter_mut().take(unchecked.len).flatten() {
            *outcome = self.check(complete, is_unchanged);
        }
        let (mut guarded, mut has_failed) = (self.lock(), false);
        for place in unchecked.list.iter_mut().take(unchecked.len) {
            let (complete, outcome) =
                place.take().ok_or(Ending::Internal("a delivery was lost while it was checked"))?;
            has_failed |= outcome.is_err();
            guarded.state.conclude(complete.delivery, outcome)?;
        }
        unchecked.len = 0;
        Ok(has_failed)
    }

    /// Checks what is all there as a read of it would have been.
    fn check(&self, complete: &Complete, is_unchanged: bool) -> Result<(), Error> {
        let wanted = self.work.wanted_of(complete.request).map_err(Ending::error)?;
        if !is_unchanged {
            self.checkpoint.check_unchanged_of(wanted.index)?;
        }
        let len = complete.packed.end - complete.packed.start;
        let go_on = || if self.has_ended() { Err(Error::Cancelled) } else { Ok(()) };
        match (wanted.is_whole, len == wanted.nbytes) {
            // No checksum of a slice is known.
            (false, _) => Ok(()),
            (true, false) => self.checkpoint.check_piece(wanted.index, &go_on),
            (true, true) => {
                // SAFETY: so many bytes have been read to there, and they are not delivered yet: nobody else touches them.
                let bytes = unsafe { std::slice::from_raw_parts(complete.to.as_ptr(), len as usize) };
                self.checkpoint.check_whole(wanted.index, bytes, &go_on)
            }
        }
    }

    /// The error of not having read bytes of a request.
    pub(super) fn read_error(&self, request: u32, source: StorageError) -> Error {
        match self.work.wanted_of(request) {
            Ok(wanted) => self.checkpoint.read_error(wanted.index, source),
            Err(ending) => ending.error(),
        }
    }

    /// Ends the load, unless it has ended before. All who wait are told.
    pub(super) fn end(&self, ending: Ending) {
        let mut guarded = self.lock();
        guarded.ending.get_or_insert(ending);
        self.has_ended.store(true, Relaxed);
        // Whoever has looked before this and waits after it would miss it: nobody is between the two while the lock is held.
        self.can_read.notify_all();
        self.can_deliver.notify_all();
    }

    /// Reads what can be read now, on this thread.
    fn read_here(&self, means: Means) {
        let _reading = Reading(self);
        worker::work(self, means, false);
    }

    /// What has arrived next. Without a time to wait for, waits for the storage only.
    pub(super) fn next(&self, timeout: Option<Duration>) -> Result<Next, Error> {
        let mut deadline = None;
        let mut guarded = self.lock();
        loop {
            if let Some(ending) = guarded.ending {
                return Err(ending.error());
            }
            match guarded.state.deliver(&self.work) {
                Ok(Some(loaded)) => {
                    if guarded.state.wants_more() {
                        self.tell_of_room(&guarded);
                    }
                    return Ok(Next::Loaded(loaded));
                }
                Ok(None) => {}
                Err(ending) => {
                    drop(guarded);
                    self.end(ending);
                    return Err(ending.error());
                }
            }
            if guarded.state.left() == 0 {
                return Ok(Next::Done);
            }
            if !guarded.is_reading {
                let matters = self.by_caller.is_some() || timeout.is_none();
                let is_stalled = matters && guarded.state.is_stalled(&self.work);
                if let Some(means) = self.by_caller.filter(|_| !is_stalled) {
                    if guarded.state.is_under_way() {
                        drop(guarded);
                        let ending = Ending::Internal("a block of a load is with nobody");
                        self.end(ending);
                        return Err(ending.error());
                    }
                    guarded.is_reading = true;
                    drop(guarded);
                    self.read_here(means);
                    guarded = self.lock();
                    continue;
                }
                if timeout.is_none() && is_stalled {
                    return Err(guarded.state.staging_full());
                }
            }
            let left = match timeout {
                None => None,
                // A time beyond what the clock can tell never comes.
                Some(timeout) => deadline
                    .get_or_insert_with(|| Instant::now().checked_add(timeout))
                    .map(|deadline| deadline.saturating_duration_since(Instant::now())),
            };
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(Next::Timeout);
            }
            guarded.takers += 1;
            guarded = match left {
                None => self.can_deliver.wait(guarded).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.can_deliver.wait_timeout(guarded, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            guarded.takers -= 1;
        }
    }

    /// Wakes those who may be able to read on.
    fn tell_of_room(&self, guarded: &Guarded) {
        if guarded.readers > 0 {
            self.can_read.notify_all();
        }
        // One of those who wait for a delivery may have to read.
        if self.by_caller.is_some() && guarded.takers > 0 {
            self.can_deliver.notify_all();
        }
    }

    pub(super) fn recycle(&self, buffer: u64) -> Result<(), Error> {
        if buffer == 0 {
            return Ok(());
        }
        let mut guarded = self.lock();
        match guarded.state.recycle(buffer) {
            Ok(Some(true)) => {
                self.tell_of_room(&guarded);
                Ok(())
            }
            Ok(Some(false)) => Ok(()),
            Ok(None) => {
                let what = "this was recycled before, or is not from this load".to_owned();
                Err(Error::InvalidArgument { what })
            }
            Err(ending) => {
                drop(guarded);
                self.end(ending);
                Err(ending.error())
            }
        }
    }

    /// How far it is, but for the number of threads. The numbers are those of one moment.
    pub(super) fn progress(&self) -> LoadProgress {
        let guarded = self.lock();
        let items_total = self.work.wanted.len();
        let items_done = items_total.saturating_sub(guarded.state.left());
        let (bytes_done, seconds) = (guarded.bytes_done, guarded.seconds);
        drop(guarded);
        let seconds = seconds.unwrap_or_else(|| self.started.elapsed().as_secs_f64());
        let engines = self.engines.load(Relaxed);
        LoadProgress {
            done: Progress {
                bytes_done,
                bytes_total: self.bytes_total,
                items_done: items_done as u64,
                items_total: items_total as u64,
                bytes_per_second: if seconds > 0.0 { (bytes_done as f64 / seconds) as u64 } else { 0 },
            },
            bytes_read: self.bytes_read.load(Relaxed),
            engines: Engine::ALL.into_iter().filter(|engine| engines & bit(*engine) != 0).collect(),
            workers: 0,
        }
    }
}

/// Deliveries that are all there, and what a check of each has found.
struct Unchecked {
    list: [Option<(Complete, Result<(), Error>)>; CHECKED_AT_ONCE],
    len: usize,
}

impl Unchecked {
    /// Adds one, and says whether there is room for no more.
    fn add(&mut self, complete: Complete) -> Result<bool, Ending> {
        let place = self.list.get_mut(self.len).ok_or(Ending::Internal("no room for a delivery to be checked"))?;
        *place = Some((complete, Ok(())));
        self.len += 1;
        Ok(self.len == self.list.len())
    }
}

fn bit(engine: Engine) -> u8 {
    1 << engine as u8
}
