//! Reading a block around the page cache.

use super::buffered;
use super::options::Engine;
use super::reads::{Copy, Read, Reads, Target};
use super::segment::Block;
use super::shared::{Failures, Outcome, Shared};
use crate::storage::{Buffer, Direct, Queue, Storage, PAGE};
use std::io;
use std::ops::Range;
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
pub(super) struct Job {
    block: Block,
    reads: Reads,
    bounce: Option<Bounce>,
    /// Reads that have not ended.
    left: usize,
    /// What reads that have failed were to read.
    failed: Vec<Range<u64>>,
    bytes_read: u64,
    /// What has read it.
    engine: Engine,
}

impl Job {
    /// To be read through io_uring, unless [`Job::read`] is called. Gives the block back if there is no memory for what has to be copied.
    pub(super) fn new(block: Block, bounces: &mut Bounces) -> Result<Job, Block> {
        let reads = Reads::of(&block, PAGE);
        let bounce = match reads.bounce {
            0 => None,
            bytes => match bounces.take(bytes) {
                None => return Err(block),
                bounce => bounce,
            },
        };
        let left = reads.list.len();
        Ok(Job { block, reads, bounce, left, failed: Vec::new(), bytes_read: 0, engine: Engine::Uring })
    }

    pub(super) fn block(&self) -> &Block {
        &self.block
    }

    /// Number of reads.
    pub(super) fn len(&self) -> usize {
        self.reads.list.len()
    }

    /// Whether all reads have ended.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0
    }

    /// A read, and where it goes.
    fn prepared(&self, number: usize) -> Option<(Read, NonNull<u8>)> {
        let read = *self.reads.list.get(number)?;
        let to = match read.to {
            Target::Straight(to) => to,
            Target::Bounce(place) => {
                // Inside the part, which was taken for as many bytes, so not null.
                NonNull::new(self.bounce.as_ref()?.0.as_ptr().wrapping_add(place))?
            }
        };
        Some((read, to))
    }

    fn direct<'s>(&self, shared: &'s Shared) -> Option<&'s Direct> {
        shared.source.direct_of(self.block.shard)
    }

    /// Hands a read to the queue. `false` if that has no room.
    ///
    /// # Safety
    ///
    /// The job, and the load, stay until the read has ended or the queue was dropped.
    pub(super) unsafe fn push(&self, shared: &Shared, queue: &mut Queue, number: usize, token: u64) -> bool {
        let (Some((read, to)), Some(direct)) = (self.prepared(number), self.direct(shared)) else { return false };
        // SAFETY: what is read to belongs to the job, or to those who have asked for it, and nobody else touches it until it is
        // delivered; the caller's promise for how long. A read is no longer than a block, or its bounce memory, and two pages.
        unsafe { queue.push(direct, to, read.len as u32, read.offset, token) }
    }

    /// Does a read, and waits for it.
    pub(super) fn read(&mut self, shared: &Shared, number: usize) {
        let (Some((read, to)), Some(direct)) = (self.prepared(number), self.direct(shared)) else { return };
        // SAFETY: as above, until this returns.
        let outcome = unsafe { direct.read_at(to, read.len as usize, read.offset) };
        self.engine = Engine::Direct;
        self.settle(shared, number, outcome);
    }

    /// A read has ended.
    pub(super) fn settle(&mut self, shared: &Shared, number: usize, outcome: io::Result<usize>) {
        let Some(read) = self.reads.list.get(number) else { return };
        self.left = self.left.saturating_sub(1);
        if let (Err(error), Some(direct)) = (&outcome, self.direct(shared)) {
            direct.has_failed(error);
        }
        match outcome {
            Ok(n) if n as u64 >= read.needed => self.bytes_read += n as u64,
            _ => self.failed.push(read.wanted()),
        }
    }

    /// Copies what has to be copied, and reads through the page cache what could not be read around it: that tells whose bytes they are
    /// that cannot be read, and why. Reads that have not been done have failed.
    pub(super) fn finish(mut self, shared: &Shared, storage: &Storage, bounces: &mut Bounces) {
        if let Some(bounce) = self.bounce.take() {
            for Copy { from, to, len } in &self.reads.copies {
                let bytes = bounce.0.as_ptr().wrapping_add(*from);
                // SAFETY: the part was taken for all that the copies are of, it was zeroed when it was made, and its reads have ended. The
                // memory copied to belongs to those who have asked for these bytes, has room for them, and is not the bounce memory.
                unsafe { std::ptr::copy_nonoverlapping(bytes, to.as_ptr(), *len) };
            }
            bounces.give(bounce);
        }
        let (mut failures, mut rescued) = (Failures::new(), Vec::new());
        let is_all_there = self.left == 0 && self.failed.is_empty();
        for (number, piece) in self.block.pieces.iter().enumerate().filter(|_| !is_all_there) {
            let is_bad = |bad: &Range<u64>| bad.start < piece.end() && piece.offset < bad.end;
            if self.left == 0 && !self.failed.iter().any(is_bad) {
                continue;
            }
            rescued.push(number);
            match buffered::read_piece(shared, storage, piece) {
                Ok(()) => self.bytes_read += piece.len,
                Err(error) => failures.push((number, error)),
            }
        }
        let outcome = Outcome { engine: self.engine, rescued, failures, bytes_read: self.bytes_read };
        shared.give(&self.block, outcome);
    }
}
