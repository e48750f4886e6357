//! Loading many tensors at the speed of the storage.
//!
//! All that is wanted is known from the start, so it can be read in few large reads, many at once.
//!
//! ```text
//! request   what is wanted, checked                      options   how, checked
//! plan      what is read together, in which order        staging   memory for what has no place of its own
//! segment   cut into blocks: what a thread reads at once reads     a block as aligned reads and copies
//! state     what is open, under way, and to be delivered shared    the same for many threads
//! source    how each block is best read                  residency what the page cache had
//! worker    a thread, and its reads that are under way
//! buffered  reading through the page cache               job       reading around it
//! ```
//!
//! `plan`, `segment` and `reads` are arithmetic, and `state` bookkeeping: they know no files.

mod buffered;
mod job;
mod loaded;
mod options;
mod plan;
mod reads;
mod request;
mod residency;
mod segment;
mod shared;
mod source;
mod staging;
mod state;
#[cfg(test)]
mod tests;
mod worker;

pub use loaded::{LoadProgress, Loaded, LoadedBytes, Next};
pub use options::{Engine, LoadOptions, Staging};
pub use request::{Destination, Request};

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::process::Process;
use crate::storage::{StorageError, PAGE};
use crate::thread::{self, without_signals};
use options::Settings;
use plan::{Plan, Rules};
use segment::Limits;
use shared::Shared;
use source::Source;
use staging::{pages_of, Ring};
use state::{State, Work};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use worker::Means;

/// Threads call the system, copy and hash.
const STACK_BYTES: usize = 512 * 1024;

/// The most memory for reads that cannot go where they should, of all threads together.
const BOUNCE_BYTES: u64 = 16 * 1024 * 1024;

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
        let remote = checkpoint.storages().any(|storage| storage.is_remote());
        let settings = Settings::new(options, remote)?;
        let wanted = request::check(&checkpoint, &requests, &settings)?;
        drop(requests);
        let pages = pages_of(&settings.staging);
        let piece_span = (pages / 4).max(1) * PAGE;
        let staged_group = piece_span.min(settings.block_bytes);
        let Settings { in_order, over_read, piece_bytes, .. } = settings;
        let rules = Rules { in_order, over_read, staged_group, piece_bytes };
        let plan = Plan::new(&wanted, &rules)?;
        // For each worker as many as it has blocks under way, and four at least: of 1 MiB if these are few.
        let bounces_of_worker = BOUNCE_BYTES / settings.workers.max(1) as u64;
        let bounces = (settings.blocks_at_once / settings.workers.max(1)).max(4) as u64;
        let bounce = (bounces_of_worker / bounces / PAGE * PAGE).clamp(128 * 1024, 1024 * 1024).min(bounces_of_worker);
        let limits = Limits { block: settings.block_bytes, bounce, over_read: settings.over_read };
        let work = Work { wanted, plan, limits, in_order, piece_span, piece_bytes, whole_span: pages * PAGE };
        let workers = work.blocks().min(settings.workers as u64) as usize;
        let means = Means {
            depth: (settings.queue_depth / workers.max(1)).max(1),
            jobs: (settings.blocks_at_once / workers.max(1)).max(1),
            bounces: (bounces_of_worker / limits.bounce) as usize,
            bounce_bytes: limits.bounce,
        };
        let state = State::new(&work, Ring::new(&settings.staging, work.pages_needed())?)?;
        let source = Source::new(&checkpoint, settings.engine);
        let process = Process::this().ok_or(Error::NoMemory)?;
        let shared = Arc::new(Shared::new(checkpoint, source, work, state));
        let mut load = Load { shared, threads: Vec::new(), process };
        load.employ(workers, means)?;
        Ok(load)
    }

    /// Starts threads: as many as can be had, but one at least.
    fn employ(&mut self, workers: usize, means: Means) -> Result<(), Error> {
        if workers == 0 {
            // Nothing has to be read, and so nobody else comes by.
            self.shared.take(false);
        }
        without_signals(|| {
            for _ in 0..workers {
                let shared = Arc::clone(&self.shared);
                match thread::builder("st_load", STACK_BYTES).spawn(move || work(&shared, means)) {
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
    /// A request that has failed is in [`Loaded::bytes`]; an error is about the load as a whole.
    ///
    /// # Errors
    ///
    /// [`Error::Cancelled`]; [`Error::StagingFull`]: there is no timeout, and nothing can arrive before something is recycled, by whichever
    /// thread: where several take from one load, give a timeout, which waits for them as well. [`Error::Storage`]: in a child of the
    /// process that has started the load.
    ///
    /// # Panics
    ///
    /// If a thread of the load has panicked.
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
            self.shared.cancel();
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
        self.shared.cancel();
        for thread in self.threads.drain(..) {
            // If it has panicked, it has ended all the same.
            let _ = thread.join();
        }
    }
}

/// Reads until there is nothing more to read. A panic ends the load, not the process.
fn work(shared: &Shared, means: Means) {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| worker::work(shared, means)));
    if outcome.is_err() {
        shared.break_down();
    }
}
