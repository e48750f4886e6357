//! From requests that are read together to blocks: what a thread reads at once.
//!
//! Blocks are cut when they are wanted, and from any place on, so that no list of the runs of a slice is ever made.

use super::ending::Ending;
use super::plan::is_free;
use super::request::{page_before, Wanted};
use crate::error::Error;
use crate::storage::PAGE;
use std::ops::Range;
use std::ptr::NonNull;

/// The most pieces of a block. Not fewer than requests in a group: those that share a page of a file are to be read together.
pub(super) const MOST_PIECES: usize = 4 * super::plan::MOST_REQUESTS;

/// From this size on, what lies in a file as it does in memory is read around the page cache without a copy, and only its ends, which
/// share pages with others, by reads of their own.
pub(super) const STRAIGHT_FROM: u64 = 64 * 1024;

/// Wanted bytes that follow one another in the file and in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Whose they are.
    pub(super) delivery: u32,
    pub(super) request: u32,
    /// Where they start in the file.
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) to: NonNull<u8>,
    /// Whether what lies between this piece and the one before is read rather than skipped.
    pub(super) joined: bool,
    /// Whether another engine than the block's had to read it, through the page cache.
    pub(super) rescued: bool,
}

impl Piece {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// Memory for whole pages of a file, with what nobody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Where they start in the file.
    pub(super) offset: u64,
    pub(super) to: NonNull<u8>,
}

/// What a thread reads at once, of one shard. Its pieces are in the order of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) shard: usize,
    pub(super) pieces: Vec<Piece>,
    /// Set if the pages around all pieces have a place in memory.
    pub(super) room: Option<Room>,
}

// SAFETY: the pointers are those of destinations and staging memory, which the load's threads may write to.
unsafe impl Send for Block {}

/// What bounds blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The most bytes, with gaps.
    pub(super) block: u64,
    /// The most bytes that have to be copied to where they belong when they are read around the page cache, and the pages that they lie
    /// on: at least 128 KiB.
    pub(super) bounce: u64,
    /// Gaps within a slice that may be read through, in percent of the runs beside them.
    pub(super) over_read: u64,
}

/// A part of a request that will be delivered at once.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) delivery: u32,
    pub(super) request: u32,
    /// Which of the request's bytes.
    pub(super) packed: Range<u64>,
    /// Where they go.
    pub(super) to: NonNull<u8>,
}

/// Parts that are read together, and how far they have been cut into blocks. Used for one group after the other.
#[derive(Debug, Default)]
pub(super) struct Segment {
    pub(super) shard: usize,
    parts: Vec<Part>,
    room: Option<Room>,
    /// The part that comes next, and how many of its bytes have been dealt out.
    next: (usize, u64),
}

// SAFETY: as for `Block`.
unsafe impl Send for Segment {}

impl Segment {
    /// For groups of up to `parts` parts; of none now.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn with_room(parts: usize) -> Result<Segment, Error> {
        let mut segment = Segment::default();
        segment.parts.try_reserve_exact(parts).map_err(|_| Error::NoMemory)?;
        Ok(segment)
    }

    /// Begins anew, with no parts yet.
    pub(super) fn begin(&mut self, shard: usize, room: Option<Room>) {
        self.parts.clear();
        (self.shard, self.room, self.next) = (shard, room, (0, 0));
    }

    /// Adds a part, of one byte at least, for which there is room.
    pub(super) fn add(&mut self, part: Part) {
        self.parts.push(part);
    }

    /// Whether there are no more blocks.
    pub(super) fn is_dealt_out(&self) -> bool {
        self.next_part().is_none()
    }

    /// The part in which the next block begins.
    pub(super) fn next_part(&self) -> Option<&Part> {
        self.parts.get(self.next.0)
    }

    /// The next block, if not all has been dealt out. Its pieces are put into `pieces`, whose memory it takes.
    ///
    /// # Errors
    ///
    /// The load cannot go on: there is no memory for a single piece, or there is nothing to cut.
    pub(super) fn cut(&mut self, wanted: &[Wanted], limits: &Limits, pieces: &mut Vec<Piece>) -> Result<Block, Ending> {
        pieces.clear();
        let mut cut = Cut::new(self.shard, self.room, limits, std::mem::take(pieces));
        while let Some(part) = self.parts.get(self.next.0) {
            let request = wanted.get(part.request as usize).ok_or(Ending::Internal("a part of no request"))?;
            let at = part.packed.start + self.next.1;
            for run in request.runs_within(at..part.packed.end) {
                let to = NonNull::new(part.to.as_ptr().wrapping_add(self.next.1 as usize)).unwrap_or(part.to);
                let Part { delivery, request: number, .. } = *part;
                let (offset, len) = (run.offset, run.len);
                let piece = Piece { delivery, request: number, offset, len, to, joined: false, rescued: false };
                let taken = cut.take(piece, request.scattered.is_some());
                self.next.1 += taken;
                if taken < run.len {
                    return cut.end();
                }
            }
            if self.next.1 != part.packed.end - part.packed.start {
                return Err(Ending::Internal("the runs of a request are not all of it"));
            }
            self.next = (self.next.0 + 1, 0);
        }
        cut.end()
    }
}

/// A block in the making.
struct Cut<'l> {
    block: Block,
    limits: &'l Limits,
    /// Bytes so far, with gaps.
    len: u64,
    /// What may have to be copied, but for the last chain.
    bounced: u64,
    chain: Option<Chain>,
    /// There was no memory for one more piece.
    no_memory: bool,
}

/// Pieces that lie in memory as they lie in the file.
#[derive(Clone, Copy)]
struct Chain {
    /// From a place in the file to the address.
    delta: u64,
    end: u64,
    len: u64,
    /// What else is read with it, and not with what is before.
    around: u64,
}

impl Chain {
    /// A chain that begins with this piece, after one that is joined with it or not.
    fn new(piece: &Piece, before: Option<&Chain>, gap: u64) -> Chain {
        let goes_on = piece.joined && before.is_some_and(|before| !before.is_straight(before.len));
        let around = if goes_on { gap } else { gap + 2 * PAGE };
        Chain { delta: delta(piece.offset, piece.to), end: piece.offset, len: 0, around }
    }

    fn is_straight(&self, len: u64) -> bool {
        self.delta % PAGE == 0 && len >= STRAIGHT_FROM + 2 * PAGE
    }

    /// The most that has to be copied of it when it is `more` bytes longer: all, or its ends.
    fn bounced(&self, more: u64) -> u64 {
        let len = self.len + more;
        match self.is_straight(len) {
            true => self.around + 2 * PAGE,
            false => self.around + len,
        }
    }
}

/// How far memory is from a place in the file: two pieces of equal distance lie as in the file.
pub(super) fn delta(offset: u64, to: NonNull<u8>) -> u64 {
    (to.addr().get() as u64).wrapping_sub(offset)
}

impl<'l> Cut<'l> {
    fn new(shard: usize, room: Option<Room>, limits: &'l Limits, pieces: Vec<Piece>) -> Cut<'l> {
        let block = Block { shard, pieces, room };
        Cut { block, limits, len: 0, bounced: 0, chain: None, no_memory: false }
    }

    fn end(self) -> Result<Block, Ending> {
        match (self.block.pieces.is_empty(), self.no_memory) {
            (false, _) => Ok(self.block),
            (true, true) => Err(Ending::NoMemory),
            (true, false) => Err(Ending::Internal("a block of nothing")),
        }
    }

    /// Adds a piece, or the front of it, or nothing if the block is full. Gives the number of bytes.
    fn take(&mut self, mut piece: Piece, scattered: bool) -> u64 {
        let last = self.block.pieces.last();
        let gap = last.map_or(0, |last| piece.offset.saturating_sub(last.end()));
        piece.joined = last.is_some_and(|last| !scattered || self.may_join(last, &piece));
        let gap = if piece.joined { gap } else { 0 };
        // Without memory for more, the block ends here.
        self.no_memory = self.block.pieces.try_reserve(1).is_err();
        let full = self.no_memory || self.block.pieces.len() >= MOST_PIECES;
        let room = self.limits.block.saturating_sub(self.len.saturating_add(gap));
        let asked = piece.len;
        piece.len = if full { 0 } else { whole_pages(&piece, asked.min(room)) };

        let chain =
            self.chain.filter(|chain| chain.end == piece.offset && chain.delta == delta(piece.offset, piece.to));
        let (before, chain) = match chain {
            Some(chain) => (self.bounced, chain),
            None => {
                let last = self.chain.as_ref();
                (self.bounced + last.map_or(0, |chain| chain.bounced(0)), Chain::new(&piece, last, gap))
            }
        };
        if self.block.room.is_none() && before + chain.bounced(piece.len) > self.limits.bounce {
            let room = self.limits.bounce.saturating_sub(before + chain.bounced(0));
            piece.len = whole_pages(&piece, piece.len.min(room));
            if before + chain.bounced(piece.len) > self.limits.bounce {
                piece.len = 0;
            }
        }
        if piece.len == 0 {
            return 0;
        }
        self.len += gap + piece.len;
        self.bounced = before;
        self.chain = Some(Chain { end: piece.end(), len: chain.len + piece.len, ..chain });
        self.block.pieces.push(piece);
        piece.len
    }

    /// Whether the gap between two runs of a slice is read through: as much of it as of the requests is allowed, of each run.
    fn may_join(&self, last: &Piece, next: &Piece) -> bool {
        let over_read = self.limits.over_read;
        let gap = next.offset.saturating_sub(last.end());
        is_free(last.end(), next.offset, over_read)
            || gap.saturating_mul(100) <= over_read.saturating_mul(last.len.min(next.len))
    }
}

/// `len`, or as many bytes less as it takes to end between pages of the file, unless that is all of the piece.
fn whole_pages(piece: &Piece, len: u64) -> u64 {
    match len >= piece.len {
        true => piece.len,
        false => page_before(piece.offset + len).saturating_sub(piece.offset),
    }
}
