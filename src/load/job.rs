//! Reading a block around the page cache.

use super::buffered;
use super::ending::Ending;
use super::options::Engine;
use super::reads::{Copy, Read, Reads, Target};
use super::segment::Piece;
use super::shared::{Failures, Outcome, Shared, Taken};
use crate::storage::{Buffer, Direct, Queue, PAGE};
use std::io;
use std::ptr::NonNull;

/// Memory, aligned to pages, for what cannot be read to where it belongs: in equal parts of one piece, which may be of huge pages. (1 MiB
/// in 4 KiB pages took a disk twice as long.)
#[derive(Debug)]
pub(super) struct Bounces {
    /// Allocated when it is first wanted.
    memory: Option<Buffer>,
    free: Vec<Bounce>,
    count: usize,
    /// The size of a part.
    bytes: u64,
}

/// A part of that memory.
#[derive(Debug)]
struct Bounce(NonNull<u8>);

impl Bounces {
    /// `count` parts of `bytes` bytes each.
    pub(super) fn new(count: usize, bytes: u64) -> Bounces {
        Bounces { memory: None, free: Vec::new(), count, bytes }
    }

    pub(super) fn has_one(&self) -> bool {
        self.memory.is_none() || !self.free.is_empty()
    }

    fn take(&mut self, bytes: usize) -> Option<Bounce> {
        if bytes as u64 > self.bytes {
            return None;
        }
        if self.memory.is_none() {
            // Smaller ones need not be aligned to pages; what is never written to takes no memory.
            let memory = Buffer::new((self.count as u64 * self.bytes).max(Buffer::MAPPED_FROM as u64)).ok()?;
            memory.keep_from_children();
            let part = |number: usize| memory.start().as_ptr().wrapping_add(number * self.bytes as usize);
            self.free.try_reserve_exact(self.count).ok()?;
            // Inside the memory, so not null. The first is taken first.
            self.free.extend((0..self.count).rev().filter_map(|number| NonNull::new(part(number))).map(Bounce));
            self.memory = Some(memory);
        }
        self.free.pop()
    }

    fn give(&mut self, bounce: Bounce) {
        self.free.push(bounce);
    }
}

/// A block whose reads are under way.
#[derive(Debug)]
pub(super) struct Job<'s> {
    taken: Taken<'s>,
    direct: &'s Direct,
    reads: Reads,
    bounce: Option<Bounce>,
    /// Reads that were handed to the queue, or done.
    sent: usize,
    /// Reads that have not ended.
    left: usize,
    bytes_read: u64,
    /// What has read it.
    engine: Engine,
}

const NO_READ: Ending = Ending::Internal("a block has no such read");

impl<'s> Job<'s> {
    /// To be read through io_uring, unless [`Job::read`] is called. Gives the block back if there is no memory for it, or for what has to be
    /// copied.
    pub(super) fn new(taken: Taken<'s>, direct: &'s Direct, bounces: &mut Bounces) -> Result<Job<'s>, Taken<'s>> {
        let Some(reads) = Reads::of(&taken.block, PAGE) else { return Err(taken) };
        let bounce = match reads.bounce {
            0 => None,
            bytes => match bounces.take(bytes) {
                None => return Err(taken),
                bounce => bounce,
            },
        };
        let left = reads.list.len();
        Ok(Job { taken, direct, reads, bounce, sent: 0, left, bytes_read: 0, engine: Engine::Uring })
    }

    /// Whether all reads have ended.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Whether all reads were begun.
    pub(super) fn is_sent(&self) -> bool {
        self.sent >= self.reads.list.len()
    }

    /// A read, and where it goes.
    fn prepared(&self, number: usize) -> Result<(Read, NonNull<u8>), Ending> {
        let read = *self.reads.list.get(number).ok_or(NO_READ)?;
        let to = match read.to {
            Target::Straight(to) => Some(to),
            // Inside the part, which was taken for as many bytes, so not null.
            Target::Bounce(place) => {
                self.bounce.as_ref().and_then(|bounce| NonNull::new(bounce.0.as_ptr().wrapping_add(place)))
            }
        };
        Ok((read, to.ok_or(Ending::Internal("a read goes nowhere"))?))
    }

    /// Hands the next read to the queue, with a token that `token` makes of its number. `false` if the queue has no room.
    ///
    /// # Safety
    ///
    /// The job, and the load, stay until the read has ended or the queue was dropped.
    pub(super) unsafe fn push(&mut self, queue: &mut Queue, token: impl FnOnce(usize) -> u64) -> Result<bool, Ending> {
        let (read, to) = self.prepared(self.sent)?;
        // SAFETY: what is read to belongs to the job, or to those who have asked for it, and nobody else touches it until it is
        // delivered; the caller's promise for how long. A read is no longer than a block, or its bounce memory, and two pages.
        let pushed = unsafe { queue.push(self.direct, to, read.len as u32, read.offset, token(self.sent)) };
        self.sent += usize::from(pushed);
        Ok(pushed)
    }

    /// Does the next read, and waits for it.
    pub(super) fn read_next(&mut self) -> Result<(), Ending> {
        self.sent += 1;
        self.read(self.sent - 1)
    }

    /// Does a read, and waits for it.
    pub(super) fn read(&mut self, number: usize) -> Result<(), Ending> {
        let (read, to) = self.prepared(number)?;
        // SAFETY: as above, until this returns.
        let outcome = unsafe { self.direct.read_at(to, read.len as usize, read.offset) };
        self.engine = Engine::Direct;
        self.settle(number, outcome)
    }

    /// A read has ended.
    pub(super) fn settle(&mut self, number: usize, outcome: io::Result<usize>) -> Result<(), Ending> {
        let read = self.reads.list.get_mut(number).ok_or(NO_READ)?;
        self.left = self.left.checked_sub(1).ok_or(NO_READ)?;
        match outcome {
            Ok(n) if n as u64 >= read.needed => {
                read.done = true;
                self.bytes_read += n as u64;
            }
            Ok(_) => {}
            Err(error) => self.direct.has_failed(&error),
        }
        Ok(())
    }

    /// Copies what has to be copied, and reads through the page cache what could not be read around it: that tells whose bytes they are
    /// that cannot be read, and why. Reads that have not been done have failed. Gives the memory of the block's pieces.
    pub(super) fn finish(mut self, shared: &Shared, bounces: &mut Bounces) -> Result<Vec<Piece>, Ending> {
        if let Some(bounce) = self.bounce.take() {
            for Copy { from, to, len } in &self.reads.copies {
                let bytes = bounce.0.as_ptr().wrapping_add(*from);
                // SAFETY: the part was taken for all that the copies are of, it was zeroed when it was made, and its reads have ended. The
                // memory copied to belongs to those who have asked for these bytes, has room for them, and is not the bounce memory.
                unsafe { std::ptr::copy_nonoverlapping(bytes, to.as_ptr(), *len) };
            }
            bounces.give(bounce);
        }
        let mut failures = Failures::default();
        let storage = self.taken.storage;
        let is_all_there = self.reads.list.iter().all(|read| read.done);
        for (number, piece) in self.taken.block.pieces.iter_mut().enumerate().filter(|_| !is_all_there) {
            let is_bad = |read: &Read| {
                let wanted = read.wanted();
                !read.done && wanted.start < piece.end() && piece.offset < wanted.end
            };
            if !self.reads.list.iter().any(is_bad) {
                continue;
            }
            piece.rescued = true;
            match buffered::read_piece(shared, storage, piece) {
                Ok(()) => self.bytes_read += piece.len,
                Err(error) => failures.push(number, error),
            }
        }
        let outcome = Outcome { engine: self.engine, failures, bytes_read: self.bytes_read };
        self.taken.give(outcome)
    }
}
