//! Loading many tensors at the speed of the storage.
//!
//! All that is wanted is known from the start, so it can be read in few large reads, many at once.
//!
//! ```text
//! request   what is wanted, checked                      options   how, checked
//! plan      what is read together, in which order        staging   memory for what has no place of its own
//! segment   cut into blocks: what a thread reads at once reads     a block as aligned reads and copies
//! state     what is open, under way, and to be delivered shared    the same for many threads
//! slots     tables whose memory is reserved              ending    why a load ends early
//! source    how each block is best read                  residency what the page cache had
//! worker    a thread, and its reads that are under way
//! buffered  reading through the page cache               job       reading around it
//! ```
//!
//! `plan`, `segment` and `reads` are arithmetic, and `state` bookkeeping: they know no files.

mod buffered;
mod ending;
mod job;
mod loaded;
mod options;
mod plan;
mod reads;
mod request;
mod residency;
mod segment;
mod shared;
mod slots;
mod source;
mod staging;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use loaded::{LoadProgress, Loaded, LoadedBytes, Next};
pub use options::{Engine, LoadOptions, Staging};
pub(crate) use request::Ask;
pub use request::{Destination, Request};

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::process::Process;
use crate::storage::{StorageError, PAGE};
use crate::thread::{self, without_signals};
use ending::Ending;
use options::Settings;
use plan::{Plan, Rules};
use segment::Limits;
use shared::Shared;
use source::Source;
use staging::pages_of;
use state::{State, Work};
use std::ops::Range;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use worker::{work, Means};

/// Threads call the system, copy and hash.
const STACK_BYTES: usize = 512 * 1024;

/// The most reads of a load without threads: as many as one thread has under way at once.
const MOST_SMALL_READS: u64 = options::QUEUE_DEPTH as u64;

/// A running load.
///
/// It may be used from any number of threads at once. Dropping it cancels what is not done, and waits for reads that are under way: until
/// then they may write to destinations and staging memory.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    process: Process,
}

impl Load {
    /// Starts to load, and returns. Requests that overlap in a file are read one by one, all others in as few reads as is useful.
    ///
    /// What is loaded is what the files hold, as for [`Checkpoint::tensor_read`]. Under [`Verify::FirstUse`](crate::Verify::FirstUse)
    /// whole tensors are verified before they are delivered; one that comes in pieces is read once more for that, before.
    ///
    /// A load of less than a block, in few reads, starts no threads, unless [`LoadOptions::workers`] asks for them: [`Load::next`] reads it, on
    /// the thread that calls. So nothing is read before that call.
    ///
    /// # Errors
    ///
    /// Nothing is started unless all requests are right. [`Error::NoSuchTensor`], [`Error::Slice`], [`Error::BufferTooSmall`];
    /// [`Error::InvalidArgument`]: options out of range, destinations that overlap one another or the staging memory;
    /// [`Error::Storage`]: the engine asked for cannot read this checkpoint; [`Error::NoMemory`], also for threads.
    ///
    /// ```
    /// use safetensors_lazy::{Load, LoadOptions, Next, Request};
    /// # use safetensors_lazy::Checkpoint;
    /// # let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   "#;
    /// # let file = [&(header.len() as u64).to_le_bytes()[..], header, b"xy"].concat();
    /// # let checkpoint = std::sync::Arc::new(Checkpoint::open_memory(file, Default::default())?);
    ///
    /// let all = (0..checkpoint.len()).map(|index| Request { index, ranges: vec![], destination: None, tag: 0 });
    /// let load = Load::start(checkpoint.clone(), all.collect(), LoadOptions::default())?;
    /// while let Next::Loaded(loaded) = load.next(None)? {
    ///     let bytes = loaded.bytes?;
    ///     println!("{} bytes at {:p}", bytes.len(), bytes.start());
    ///     load.recycle(loaded.buffer)?;
    /// }
    /// # Ok::<(), safetensors_lazy::Error>(())
    /// ```
    pub fn start(checkpoint: Arc<Checkpoint>, requests: Vec<Request>, options: LoadOptions) -> Result<Load, Error> {
        let mut asked = requests.iter();
        let load = Load::start_with(checkpoint, requests.len(), options, |ranges| {
            let request = asked.next().ok_or(Error::Internal { what: "fewer requests than there are" })?;
            ranges.try_reserve(request.ranges.len()).map_err(|_| Error::NoMemory)?;
            ranges.extend_from_slice(&request.ranges);
            let destination = request.destination.as_ref().map(|destination| (destination.start, destination.len));
            Ok(Ask { index: request.index, destination, tag: request.tag })
        });
        drop(requests);
        load
    }

    /// As [`Load::start`], of `len` requests that `ask` gives one after the other: the ranges of each are put into an empty list, for which
    /// there is memory as far as a tensor of the checkpoint may have ranges.
    pub(crate) fn start_with(
        checkpoint: Arc<Checkpoint>,
        len: usize,
        options: LoadOptions,
        ask: impl FnMut(&mut Vec<Range<u64>>) -> Result<Ask, Error>,
    ) -> Result<Load, Error> {
        let settings = Settings::new(options)?;
        let wanted = request::check(&checkpoint, len, ask, &settings)?;
        let pages = pages_of(&settings.staging);
        let piece_span = (pages / 4).max(1) * PAGE;
        let staged_group = piece_span.min(settings.block_bytes);
        let Settings { in_order, over_read, piece_bytes, .. } = settings;
        let rules = Rules { in_order, over_read, staged_group, piece_bytes };
        let plan = Plan::new(&wanted, &rules)?;
        let limits = Limits { block: settings.block_bytes, bounce: options::LEAST_BOUNCE, over_read };
        let mut work = Work { wanted, plan, limits, in_order, piece_span, piece_bytes, whole_span: pages * PAGE };
        let remote = checkpoint.is_remote();
        let most_reads = if remote { 1 } else { MOST_SMALL_READS };
        // Whoever asks for threads gets them, so that something is read while nobody waits for it.
        let is_small = settings.workers == 0 && work.is_small(most_reads);
        let (workers, means) = match is_small {
            true => (0, settings.means_of_caller(&mut work)),
            false => settings.means_of_workers(remote, &mut work),
        };
        let state = State::new(&work, work.ring(&settings.staging)?)?;
        let source = Source::new(&checkpoint, settings.engine, is_small)?;
        let process = if is_small { Process::by_number() } else { Process::this().ok_or(Error::NoMemory)? };
        let shared = Shared::new(checkpoint, source, work, state, is_small.then_some(means));
        let mut load = Load { shared: Arc::new(shared), threads: Vec::new(), process };
        if !is_small {
            load.employ(workers, means)?;
        }
        Ok(load)
    }

    /// Starts threads: as many as can be had, but one at least.
    fn employ(&mut self, workers: usize, means: Means) -> Result<(), Error> {
        if workers == 0 {
            // Nothing has to be read, and so nobody else comes by.
            self.shared.take(false, &mut Vec::new()).map_err(Ending::error)?;
        }
        self.threads.try_reserve_exact(workers).map_err(|_| Error::NoMemory)?;
        without_signals(|| {
            for _ in 0..workers {
                let shared = Arc::clone(&self.shared);
                match thread::builder("st_load", STACK_BYTES).spawn(move || work(&shared, means, true)) {
                    Ok(thread) => self.threads.push(thread),
                    Err(_) => break,
                }
            }
        });
        match self.threads.is_empty() && workers > 0 {
            true => Err(Error::NoMemory),
            false => Ok(()),
        }
    }

    /// The next request, or piece of one, that has arrived. Waits no longer than `timeout`; without one, as long as the storage takes. Each
    /// goes to one of those who wait.
    ///
    /// A load of less than a block is read by this call, whatever the timeout: see [`Load::start`].
    ///
    /// A request that has failed is in [`Loaded::bytes`]; an error is about the load as a whole.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`]; [`Error::StagingFull`]: there is no timeout, and nothing can arrive before something is recycled, by whichever
    /// thread: where several take from one load, give a timeout, which waits for them as well. [`Error::Storage`]: in a child of the
    /// process that has started the load. [`Error::NoMemory`], [`Error::Internal`]: the load cannot go on.
    pub fn next(&self, timeout: Option<Duration>) -> Result<Next, Error> {
        self.check_process()?;
        self.shared.next(timeout)
    }

    /// Hands staged memory back, so that more can be read to it: [`Loaded::buffer`] of what was delivered. 0 is fine.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`]: it was recycled before, or is not of this load. [`Error::Storage`]: as for [`Load::next`].
    pub fn recycle(&self, buffer: u64) -> Result<(), Error> {
        self.check_process()?;
        self.shared.recycle(buffer)
    }

    /// How far it is.
    pub fn progress(&self) -> LoadProgress {
        match self.process.is_this() {
            true => LoadProgress { workers: self.threads.len(), ..self.shared.progress() },
            false => LoadProgress::default(),
        }
    }

    /// Ends the load early, and returns at once: nothing new is read, and [`Load::next`] gives [`Error::Cancelled`] from now on. Staged
    /// memory that was delivered stays.
    pub fn cancel(&self) {
        if self.process.is_this() {
            self.shared.end(Ending::Cancelled);
        }
    }

    /// In a child of the process the threads do not run, and one of them may have had the lock when it forked.
    fn check_process(&self) -> Result<(), Error> {
        match self.process.is_this() {
            true => Ok(()),
            false => {
                let source = StorageError::Unsupported("a load does not go on in a child of its process");
                Err(Error::Storage { path: String::new(), tensor: None, source })
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !self.process.is_this() {
            // The threads are not here, and what they were doing is not to be waited for.
            std::mem::forget((Arc::clone(&self.shared), std::mem::take(&mut self.threads)));
            return;
        }
        self.shared.end(Ending::Cancelled);
        for thread in self.threads.drain(..) {
            // If it has panicked, it has ended all the same.
            let _ = thread.join();
        }
    }
}
