//! From a block to aligned reads around the page cache, and what has to be copied after them.

use super::segment::{delta, Block, Piece, Room, STRAIGHT_FROM};
use std::ops::Range;
use std::ptr::NonNull;

/// The reads of a block, and the copies.
#[derive(Debug, Default)]
pub(super) struct Reads {
    pub(super) list: Vec<Read>,
    pub(super) copies: Vec<Copy>,
    /// Bytes of memory that the bounced ones need.
    pub(super) bounce: usize,
}

/// One aligned read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) offset: u64,
    pub(super) len: u64,
    /// So many of its bytes are wanted: the file may end behind them.
    pub(super) needed: u64,
    pub(super) to: Target,
    /// Whether all that is needed was read.
    pub(super) done: bool,
}

/// Where a read goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Where the bytes belong.
    Straight(NonNull<u8>),
    /// A place in other memory, from which they are copied.
    Bounce(usize),
}

/// From bounce memory to where bytes belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copy {
    pub(super) from: usize,
    pub(super) to: NonNull<u8>,
    pub(super) len: usize,
}

impl Reads {
    /// The reads of a block, all of them at multiples of `alignment`, a power of two: of the page, but for tests, which meet more edges with
    /// less. `None` if there is no memory for the list of them.
    pub(super) fn of(block: &Block, alignment: u64) -> Option<Reads> {
        let mut reads = Reads::default();
        match block.room {
            Some(room) => reads.fill_room(block, room, alignment)?,
            None => reads.fill_places(block, alignment)?,
        }
        Some(reads)
    }

    fn push(&mut self, read: Read) -> Option<()> {
        self.list.try_reserve(1).ok()?;
        self.list.push(read);
        Some(())
    }

    /// With the pages around: nothing is copied.
    fn fill_room(&mut self, block: &Block, room: Room, alignment: u64) -> Option<()> {
        for piece in &block.pieces {
            let around = around(piece.offset..piece.end(), alignment);
            match self.list.last_mut() {
                Some(last) if piece.joined || around.start <= last.end() => last.extend(around.end, piece.end()),
                _ => {
                    let to = room.to.as_ptr().wrapping_add(around.start.wrapping_sub(room.offset) as usize);
                    let to = Target::Straight(NonNull::new(to).unwrap_or(room.to));
                    self.push(Read::new(around, piece.end(), to))?;
                }
            }
        }
        Some(())
    }

    /// What lies in memory as in the file, straight, but for its ends; what does not, to be copied.
    fn fill_places(&mut self, block: &Block, alignment: u64) -> Option<()> {
        let follow = |one: &Piece, next: &Piece| {
            one.end() == next.offset && delta(one.offset, one.to) == delta(next.offset, next.to)
        };
        let mut before = None;
        for chain in block.pieces.chunk_by(follow) {
            let (first, last) = (chain.first()?, chain.last()?);
            let bytes = first.offset..last.end();
            let inner = bytes.start.next_multiple_of(alignment)..bytes.end - bytes.end % alignment;
            let is_straight =
                delta(first.offset, first.to) % alignment == 0 && inner.end >= inner.start + STRAIGHT_FROM;
            let address = |at: u64| {
                let to = first.to.as_ptr().wrapping_add((at - bytes.start) as usize);
                NonNull::new(to).unwrap_or(first.to)
            };
            if is_straight {
                self.bounce(bytes.start..inner.start, first.to, None, alignment)?;
                let to = Target::Straight(address(inner.start));
                self.push(Read::new(inner.clone(), inner.end, to))?;
                self.bounce(inner.end..bytes.end, address(inner.end), None, alignment)?;
            } else {
                self.bounce(bytes.clone(), first.to, before.filter(|_| first.joined), alignment)?;
            }
            before = Some(bytes.end);
        }
        Some(())
    }

    /// Bytes to be copied: by the read before if that reaches here, or if it ends at `joined` and may go on.
    fn bounce(&mut self, bytes: Range<u64>, to: NonNull<u8>, joined: Option<u64>, alignment: u64) -> Option<()> {
        if bytes.is_empty() {
            return Some(());
        }
        let around = around(bytes.clone(), alignment);
        let last = self.list.iter_mut().rev().find_map(|read| match read.to {
            Target::Bounce(place) => Some((read, place)),
            Target::Straight(_) => None,
        });
        let (read, place) = match last {
            Some((read, place)) if around.start <= read.end() || joined == Some(read.wanted().end) => {
                read.extend(around.end, bytes.end);
                (*read, place)
            }
            _ => {
                let read = Read::new(around, bytes.end, Target::Bounce(self.bounce));
                self.push(read)?;
                (read, self.bounce)
            }
        };
        self.bounce = place + read.len as usize;
        let from = place + (bytes.start - read.offset) as usize;
        self.copies.try_reserve(1).ok()?;
        self.copies.push(Copy { from, to, len: (bytes.end - bytes.start) as usize });
        Some(())
    }
}

impl Read {
    fn new(bytes: Range<u64>, wanted_end: u64, to: Target) -> Read {
        Read { offset: bytes.start, len: bytes.end - bytes.start, needed: wanted_end - bytes.start, to, done: false }
    }

    /// The wanted bytes, and what lies before and between them.
    pub(super) fn wanted(&self) -> Range<u64> {
        self.offset..self.offset + self.needed
    }

    fn end(&self) -> u64 {
        self.offset + self.len
    }

    fn extend(&mut self, end: u64, wanted_end: u64) {
        self.len = end.max(self.end()) - self.offset;
        self.needed = wanted_end - self.offset;
    }
}

/// The aligned bytes that hold these.
fn around(bytes: Range<u64>, alignment: u64) -> Range<u64> {
    bytes.start - bytes.start % alignment..bytes.end.next_multiple_of(alignment)
}
