//! A thread of a load: takes blocks, and has them read.

use super::buffered;
use super::ending::Ending;
use super::job::{Bounces, Job};
use super::options::Engine;
use super::segment::Piece;
use super::shared::{Shared, Taken};
use crate::storage::{Completed, Queue, Scatter};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// How much a worker may have under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Means {
    /// Reads at once through io_uring.
    pub(super) depth: usize,
    /// Blocks at once of which they are.
    pub(super) jobs: usize,
    /// Blocks at once that need bounce memory.
    pub(super) bounces: usize,
    /// The size of that memory for each.
    pub(super) bounce_bytes: u64,
}

/// Reads blocks until there are no more; or, if this is not to wait, none now. What it cannot go on from, a panic included, ends the load.
pub(super) fn work(shared: &Shared, means: Means, waits: bool) {
    let ending = match catch_unwind(AssertUnwindSafe(|| Worker::new(shared, means, waits).run())) {
        Ok(Ok(())) => return,
        Ok(Err(ending)) => ending,
        Err(_) => Ending::Internal("a thread of the load has panicked"),
    };
    shared.end(ending);
}

struct Worker<'s> {
    shared: &'s Shared,
    means: Means,
    waits: bool,
    /// Dropped first: it waits for the reads that write to what the jobs have.
    queue: Option<Queue>,
    /// There is no memory for a queue.
    has_no_queue: bool,
    /// Blocks whose reads are under way, at places that the tokens of the reads tell. Empty until there is a queue.
    jobs: Vec<Option<Job<'s>>>,
    /// The job for some of whose reads the queue had no room yet.
    unsent: Option<usize>,
    bounces: Bounces,
    scatter: Scatter,
    /// Memory for the pieces of the next block.
    pieces: Vec<Piece>,
}

const NO_JOB: Ending = Ending::Internal("a read is of no block");

impl<'s> Worker<'s> {
    fn new(shared: &'s Shared, means: Means, waits: bool) -> Worker<'s> {
        Worker {
            shared,
            means,
            waits,
            queue: None,
            has_no_queue: false,
            jobs: Vec::new(),
            unsent: None,
            bounces: Bounces::new(means.bounces, means.bounce_bytes),
            scatter: Scatter::default(),
            pieces: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<(), Ending> {
        // What is under way when the load ends is waited for, and nothing else.
        while !(self.shared.has_ended() && self.is_idle()) {
            while self.has_room() {
                let is_idle = self.is_idle();
                match self.shared.take(is_idle && self.waits, &mut self.pieces)? {
                    Some(taken) => self.begin(taken)?,
                    None if is_idle => return Ok(()),
                    None => break,
                }
            }
            self.advance()?;
        }
        Ok(())
    }

    /// Whether one more block can be begun.
    fn has_room(&self) -> bool {
        self.unsent.is_none()
            && self.bounces.has_one()
            && (self.jobs.is_empty() || self.jobs.iter().any(Option::is_none))
            && self.queue.as_ref().is_none_or(Queue::has_room)
    }

    /// Whether no read is under way.
    fn is_idle(&self) -> bool {
        self.unsent.is_none() && self.queue.as_ref().is_none_or(|queue| queue.len() == 0)
    }

    /// Reads a block, or begins to.
    fn begin(&mut self, taken: Taken<'s>) -> Result<(), Ending> {
        let shared = self.shared;
        let engine = shared.source.engine(taken.storage, &taken.block);
        let job = match engine {
            Engine::Direct | Engine::Uring => match shared.source.direct(taken.storage, taken.block.shard) {
                Some(direct) => Job::new(taken, direct, &mut self.bounces),
                None => Err(taken),
            },
            Engine::Memory | Engine::Buffered => Err(taken),
        };
        match job {
            Err(taken) => {
                let engine = if engine == Engine::Memory { engine } else { Engine::Buffered };
                let outcome = buffered::read(shared, taken.storage, &taken.block, engine, &mut self.scatter);
                self.pieces = taken.give(outcome)?;
            }
            Ok(job) if engine == Engine::Uring && self.has_queue() => self.send(job)?,
            Ok(mut job) => {
                // Not those that nobody waits for any more.
                while !job.is_sent() && !shared.has_ended() {
                    job.read_next()?;
                }
                self.finish(job)?;
            }
        }
        Ok(())
    }

    /// Whether there is a queue, which is made when it is first wanted.
    fn has_queue(&mut self) -> bool {
        if self.queue.is_some() || self.has_no_queue {
            return self.queue.is_some();
        }
        if self.jobs.is_empty() {
            if self.jobs.try_reserve_exact(self.means.jobs).is_err() {
                self.has_no_queue = true;
                return false;
            }
            self.jobs.resize_with(self.means.jobs, || None);
        }
        self.queue = Queue::new(self.means.depth);
        if self.queue.is_none() {
            self.shared.source.refuse_uring();
        }
        self.queue.is_some()
    }

    fn send(&mut self, job: Job<'s>) -> Result<(), Ending> {
        let place = self.jobs.iter_mut().enumerate().find(|(_, place)| place.is_none());
        let (number, place) = place.ok_or(Ending::Internal("a block was taken that has no place"))?;
        *place = Some(job);
        self.unsent = Some(number);
        self.push()
    }

    /// Hands reads to the queue as long as it has room.
    fn push(&mut self) -> Result<(), Ending> {
        let Some(number) = self.unsent else { return Ok(()) };
        let queue = self.queue.as_mut().ok_or(Ending::Internal("reads are left over for a queue that is gone"))?;
        let job = self.jobs.get_mut(number).and_then(Option::as_mut).ok_or(NO_JOB)?;
        while !job.is_sent() {
            // SAFETY: a job, with the memory that it reads to, stays in its place until all of its reads have ended, or the queue was
            // dropped; and so does the load, with its files.
            if !unsafe { job.push(queue, |read| token(number, read)) }? {
                return Ok(());
            }
        }
        self.unsent = None;
        Ok(())
    }

    /// Waits until a read has ended, and sees to all that have.
    fn advance(&mut self) -> Result<(), Ending> {
        if self.shared.has_ended() {
            // Its other reads are not done; the block goes with this worker.
            self.unsent = None;
        }
        self.push()?;
        let Some(queue) = &mut self.queue else { return Ok(()) };
        queue.wait();
        while let Some(completed) = self.queue.as_mut().and_then(Queue::completed) {
            match completed {
                Completed::Done(token, outcome) => self.settle(token, Some(outcome))?,
                Completed::Refused(token) => self.settle(token, None)?,
            }
        }
        match self.queue.as_ref().is_some_and(Queue::is_refused) {
            true => self.do_without_queue(),
            false => Ok(()),
        }
    }

    /// A read has ended, or will never be taken.
    fn settle(&mut self, token: u64, outcome: Option<io::Result<usize>>) -> Result<(), Ending> {
        let (number, read) = of_token(token);
        let job = self.jobs.get_mut(number).and_then(Option::as_mut).ok_or(NO_JOB)?;
        match outcome {
            Some(outcome) => job.settle(read, outcome)?,
            None => job.read(read)?,
        }
        self.finish_if_done(number)
    }

    /// Reads one by one what the queue does not take any more.
    fn do_without_queue(&mut self) -> Result<(), Ending> {
        self.shared.source.refuse_uring();
        if let Some(number) = self.unsent.take() {
            let job = self.jobs.get_mut(number).and_then(Option::as_mut).ok_or(NO_JOB)?;
            while !job.is_sent() {
                job.read_next()?;
            }
            self.finish_if_done(number)?;
        }
        if self.queue.as_ref().is_some_and(|queue| queue.len() == 0) {
            self.queue = None;
        }
        Ok(())
    }

    fn finish_if_done(&mut self, number: usize) -> Result<(), Ending> {
        match self.jobs.get_mut(number).and_then(|place| place.take_if(|job| job.is_done())) {
            Some(job) => self.finish(job),
            None => Ok(()),
        }
    }

    /// All reads of a job have ended.
    fn finish(&mut self, job: Job<'s>) -> Result<(), Ending> {
        self.pieces = job.finish(self.shared, &mut self.bounces)?;
        Ok(())
    }
}

/// What tells a read of a job.
fn token(job: usize, read: usize) -> u64 {
    (job as u64) << 32 | read as u64
}

fn of_token(token: u64) -> (usize, usize) {
    ((token >> 32) as usize, (token & u64::from(u32::MAX)) as usize)
}
