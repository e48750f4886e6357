//! A thread of a load: takes blocks, and has them read.

use super::buffered;
use super::job::{Bounces, Job};
use super::options::Engine;
use super::segment::Block;
use super::shared::Shared;
use crate::storage::{Completed, Queue, Sink, Storage};
use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;

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

/// Reads blocks until there are no more.
pub(super) fn work(shared: &Shared, means: Means) {
    Worker::new(shared, means).run();
}

struct Worker<'s> {
    shared: &'s Shared,
    means: Means,
    /// Dropped first: it waits for the reads that write to what the jobs have.
    queue: Option<Queue>,
    /// Blocks whose reads are under way, at places that the tokens of the reads tell.
    jobs: Vec<Option<Job>>,
    /// Reads, by job and number, for which the queue had no room yet.
    unsent: VecDeque<(usize, usize)>,
    bounces: Bounces,
    sink: Box<Sink>,
}

impl<'s> Worker<'s> {
    fn new(shared: &'s Shared, means: Means) -> Worker<'s> {
        let Means { jobs, bounces, bounce_bytes, .. } = means;
        Worker {
            shared,
            means,
            queue: None,
            jobs: (0..jobs).map(|_| None).collect(),
            unsent: VecDeque::new(),
            bounces: Bounces::new(bounces, bounce_bytes),
            sink: Box::new([MaybeUninit::uninit(); std::mem::size_of::<Sink>()]),
        }
    }

    fn run(&mut self) {
        // What is under way when the load ends is waited for, and nothing else.
        while !(self.shared.has_ended() && self.is_idle()) {
            while self.has_room() {
                let is_idle = self.is_idle();
                match self.shared.take(is_idle) {
                    Some(block) => self.begin(block),
                    None if is_idle => return,
                    None => break,
                }
            }
            self.advance();
        }
    }

    /// Whether one more block can be begun.
    fn has_room(&self) -> bool {
        self.unsent.is_empty()
            && self.bounces.has_one()
            && self.jobs.iter().any(Option::is_none)
            && self.queue.as_ref().is_none_or(Queue::has_room)
    }

    /// Whether no read is under way.
    fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.queue.as_ref().is_none_or(|queue| queue.len() == 0)
    }

    /// Reads a block, or begins to.
    fn begin(&mut self, block: Block) {
        let shared = self.shared;
        let Some(storage) = shared.checkpoint.storage(block.shard) else { return };
        let engine = shared.source.engine(storage, &block);
        let job = match engine {
            Engine::Direct | Engine::Uring => self.job(storage, block),
            Engine::Memory | Engine::Buffered => Err(block),
        };
        match job {
            Err(block) => {
                let engine = if engine == Engine::Memory { engine } else { Engine::Buffered };
                let outcome = buffered::read(shared, storage, &block, engine, &mut self.sink);
                shared.give(&block, outcome);
            }
            Ok(job) if engine == Engine::Uring && self.has_queue() => self.send(job),
            Ok(mut job) => {
                for read in 0..job.len() {
                    // Not those that nobody waits for any more.
                    if !shared.has_ended() {
                        job.read(shared, read);
                    }
                }
                self.finish(job);
            }
        }
    }

    /// What reading the block around the page cache takes; the block itself if there is not all of it.
    fn job(&mut self, storage: &Storage, block: Block) -> Result<Job, Block> {
        match self.shared.source.direct(storage, block.shard) {
            Some(_) => Job::new(block, &mut self.bounces),
            None => Err(block),
        }
    }

    /// Whether there is a queue, which is made when it is first wanted.
    fn has_queue(&mut self) -> bool {
        if self.queue.is_none() {
            self.queue = Queue::new(self.means.depth);
            if self.queue.is_none() {
                self.shared.source.refuse_uring();
            }
        }
        self.queue.is_some()
    }

    fn send(&mut self, job: Job) {
        let Some((number, place)) = self.jobs.iter_mut().enumerate().find(|(_, place)| place.is_none()) else { return };
        self.unsent.extend((0..job.len()).map(|read| (number, read)));
        *place = Some(job);
        self.push();
    }

    /// Hands reads to the queue as long as it has room.
    fn push(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        while let Some((number, read)) = self.unsent.front().copied() {
            let Some(job) = self.jobs.get(number).and_then(Option::as_ref) else { return };
            // SAFETY: a job, with the memory that it reads to, stays in its place until all of its reads have ended, or the queue was
            // dropped; and so does the load, with its files.
            if !unsafe { job.push(self.shared, queue, read, token(number, read)) } {
                return;
            }
            self.unsent.pop_front();
        }
    }

    /// Waits until a read has ended, and sees to all that have.
    fn advance(&mut self) {
        if self.shared.has_ended() {
            self.unsent.clear();
        }
        self.push();
        let Some(queue) = &mut self.queue else { return };
        queue.wait();
        let mut ended = Vec::new();
        while let Some(completed) = queue.completed() {
            ended.push(completed);
        }
        let is_refused = queue.is_refused();
        for completed in ended {
            match completed {
                Completed::Done(token, outcome) => self.settle(token, Some(outcome)),
                Completed::Refused(token) => self.settle(token, None),
            }
        }
        if is_refused {
            self.do_without_queue();
        }
    }

    /// A read has ended, or will never be taken.
    fn settle(&mut self, token: u64, outcome: Option<io::Result<usize>>) {
        let (number, read) = of_token(token);
        let Some(place) = self.jobs.get_mut(number) else { return };
        let Some(job) = place else { return };
        match outcome {
            Some(outcome) => job.settle(self.shared, read, outcome),
            None => job.read(self.shared, read),
        }
        if job.is_done() {
            if let Some(job) = place.take() {
                self.finish(job);
            }
        }
    }

    /// Reads one by one what the queue does not take any more.
    fn do_without_queue(&mut self) {
        self.shared.source.refuse_uring();
        while let Some((number, read)) = self.unsent.pop_front() {
            self.settle(token(number, read), None);
        }
        if self.queue.as_ref().is_some_and(|queue| queue.len() == 0) {
            self.queue = None;
        }
    }

    /// All reads of a job have ended.
    fn finish(&mut self, job: Job) {
        let Some(storage) = self.shared.checkpoint.storage(job.block().shard) else { return };
        job.finish(self.shared, storage, &mut self.bounces);
    }
}

/// What tells a read of a job.
fn token(job: usize, read: usize) -> u64 {
    (job as u64) << 32 | read as u64
}

fn of_token(token: u64) -> (usize, usize) {
    ((token >> 32) as usize, (token & u64::from(u32::MAX)) as usize)
}
