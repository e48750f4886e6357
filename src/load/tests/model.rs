//! Files in memory, and a load over them that does what its threads would, one after the other.

use crate::error::Error;
use crate::format::{Dtype, Slice};
use crate::load::loaded::Loaded;
use crate::load::options::{Engine, Staging};
use crate::load::plan::{Plan, Rules};
use crate::load::reads::{Reads, Target};
use crate::load::request::Wanted;
use crate::load::segment::{Block, Limits};
use crate::load::staging::pages_of;
use crate::load::state::{State, Work};
use crate::storage::{Buffer, PAGE};
use std::ops::Range;
use std::ptr::NonNull;

/// What untouched memory holds.
const UNTOUCHED: u8 = 0xa5;

/// A tensor of a file.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) shard: usize,
    pub(super) start: u64,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<u64>,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) tensor: usize,
    pub(super) ranges: Vec<Range<u64>>,
    /// How far the destination is from where it would lie as in the file; `None` is staged.
    pub(super) shift: Option<u64>,
}

/// How it is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub(super) in_order: bool,
    pub(super) over_read: u64,
    pub(super) block: u64,
    pub(super) bounce: u64,
    pub(super) piece_bytes: u64,
    pub(super) staging: usize,
    /// Of reads around the page cache; 0 is through it.
    pub(super) alignment: u64,
}

impl Default for How {
    fn default() -> How {
        How {
            in_order: false,
            over_read: 10,
            block: 256 * 1024,
            bounce: 128 * 1024,
            piece_bytes: u64::MAX,
            staging: 1 << 20,
            alignment: 512,
        }
    }
}

/// Destinations, with some room around each that nobody may touch.
struct Places(Vec<Option<(Buffer, usize)>>);

pub(super) struct Model {
    pub(super) files: Vec<Vec<u8>>,
    pub(super) work: Work,
    pub(super) state: State,
    expected: Vec<Vec<u8>>,
    places: Places,
    alignment: u64,
    /// Bytes that were read.
    pub(super) bytes_read: u64,
    /// Number of reads.
    pub(super) reads: usize,
}

/// A byte of a file, by its place: no two pages are alike.
fn byte(shard: usize, at: u64) -> u8 {
    (at ^ (at >> 8).wrapping_mul(167) ^ (at >> 16).wrapping_mul(59) ^ shard as u64) as u8
}

/// A request as it is after checking.
pub(super) fn wanted(tensor: &Tensor, ask: &Ask, destination: Option<NonNull<u8>>) -> Wanted {
    let slice = Slice::new(tensor.dtype, &tensor.shape, &ask.ranges).unwrap();
    let contiguous = slice.is_contiguous();
    Wanted {
        tag: 0,
        index: ask.tensor,
        shard: tensor.shard,
        start: tensor.start + if contiguous { slice.offset() } else { 0 },
        nbytes: slice.nbytes(),
        scattered: (!contiguous).then(|| Box::new(slice)),
        is_whole: ask.ranges.is_empty(),
        destination,
    }
}

impl Model {
    pub(super) fn new(tensors: &[Tensor], asks: &[Ask], how: How) -> Model {
        let end = |tensor: &Tensor| tensor.start + Slice::new(tensor.dtype, &tensor.shape, &[]).unwrap().nbytes();
        let shards = tensors.iter().map(|tensor| tensor.shard + 1).max().unwrap_or(0);
        let files: Vec<Vec<u8>> = (0..shards)
            .map(|shard| {
                let ends = tensors.iter().filter(|tensor| tensor.shard == shard).map(end);
                (0..ends.max().unwrap_or(0)).map(|at| byte(shard, at)).collect()
            })
            .collect();
        let (mut all, mut expected, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for ask in asks {
            let tensor = &tensors[ask.tensor];
            let staged = wanted(tensor, ask, None);
            let runs = staged.runs_within(0..u64::MAX);
            expected.push(
                runs.flat_map(|run| (run.offset..run.offset + run.len).map(|at| byte(tensor.shard, at))).collect(),
            );
            let place = ask.shift.map(|shift| {
                let mut memory = Buffer::new((staged.nbytes + 4 * PAGE).max(Buffer::MAPPED_FROM as u64)).unwrap();
                memory.as_mut_slice().fill(UNTOUCHED);
                (memory, (PAGE + (staged.start + shift) % PAGE) as usize)
            });
            let start =
                place.as_ref().map(|(memory, at)| NonNull::new(memory.start().as_ptr().wrapping_add(*at)).unwrap());
            all.push(wanted(tensor, ask, start));
            places.push(place);
        }
        let staging = Staging::Own(how.staging);
        let pages = pages_of(&staging);
        let piece_span = (pages / 4).max(1) * PAGE;
        let rules = Rules {
            in_order: how.in_order,
            over_read: how.over_read,
            staged_group: piece_span.min(how.block),
            piece_bytes: how.piece_bytes,
        };
        let plan = Plan::new(&all, &rules).unwrap();
        let work = Work {
            wanted: all,
            plan,
            limits: Limits { block: how.block, bounce: how.bounce, over_read: how.over_read },
            in_order: how.in_order,
            piece_span,
            piece_bytes: how.piece_bytes,
            whole_span: pages * PAGE,
        };
        let state = State::new(&work, work.ring(&staging).unwrap()).unwrap();
        let places = Places(places);
        Model { files, work, state, expected, places, alignment: how.alignment, bytes_read: 0, reads: 0 }
    }

    pub(super) fn deal(&mut self) -> Option<Block> {
        let block = self.state.deal(&self.work, &mut Vec::new()).unwrap()?;
        self.check_block(&block);
        Some(block)
    }

    /// What every block is.
    fn check_block(&self, block: &Block) {
        let Limits { block: most, .. } = self.work.limits;
        assert!(!block.pieces.is_empty() && block.pieces.len() <= 4096);
        let gaps = block.pieces.windows(2).map(|two| {
            assert!(two[0].end() <= two[1].offset, "{block:?}");
            if two[1].joined {
                two[1].offset - two[0].end()
            } else {
                0
            }
        });
        let len = gaps.sum::<u64>() + block.pieces.iter().map(|piece| piece.len).sum::<u64>();
        assert!(len <= most, "{len} of {most}");
        assert!(block.pieces.iter().all(|piece| piece.len > 0) && !block.pieces[0].joined);
    }

    /// Reads a block, as its pieces are or as aligned reads.
    pub(super) fn read(&mut self, block: &Block) {
        match self.alignment {
            0 => {
                for piece in &block.pieces {
                    self.read_to(block.shard, piece.offset, piece.len, piece.to);
                }
            }
            alignment => self.read_around(block, alignment),
        }
    }

    fn read_around(&mut self, block: &Block, alignment: u64) {
        let reads = Reads::of(block, alignment).unwrap();
        assert!(reads.bounce as u64 <= self.work.limits.bounce, "{} bytes to be copied", reads.bounce);
        let bounce = Buffer::new((reads.bounce as u64).max(Buffer::MAPPED_FROM as u64)).unwrap();
        let mut end = 0;
        for read in &reads.list {
            assert_eq!((read.offset % alignment, read.len % alignment), (0, 0));
            assert!(read.needed > 0 && read.needed <= read.len && read.needed + alignment > read.len);
            let to = match read.to {
                Target::Straight(to) => to,
                Target::Bounce(place) => {
                    assert!(place >= end, "bounced reads overlap");
                    end = place + read.len as usize;
                    assert!(end <= reads.bounce);
                    NonNull::new(bounce.start().as_ptr().wrapping_add(place)).unwrap()
                }
            };
            assert_eq!(to.addr().get() as u64 % alignment, 0);
            self.read_to(block.shard, read.offset, read.len, to);
        }
        for copy in &reads.copies {
            assert!(copy.from + copy.len <= reads.bounce);
            let from = bounce.start().as_ptr().wrapping_add(copy.from);
            // SAFETY: inside of the bounce memory, and of a destination or the staging memory.
            unsafe { std::ptr::copy_nonoverlapping(from, copy.to.as_ptr(), copy.len) };
        }
    }

    /// As a file is read: as far as it goes.
    fn read_to(&mut self, shard: usize, offset: u64, len: u64, to: NonNull<u8>) {
        let file = &self.files[shard];
        let stop = (offset + len).min(file.len() as u64);
        let bytes = &file[offset as usize..stop as usize];
        // SAFETY: a destination with its surroundings, or staging memory: both are larger than what is read to them, or the tests fail.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        self.bytes_read += len;
        self.reads += 1;
    }

    /// A block comes back: read, or none of it.
    pub(super) fn give(&mut self, block: &Block, good: bool) {
        for piece in &block.pieces {
            let failure = (!good).then_some(Error::Cancelled);
            if let Some(complete) = self.state.arrive(piece.delivery, piece.len, Engine::Direct, failure).unwrap() {
                self.state.conclude(complete.delivery, Ok(())).unwrap();
            }
        }
        self.state.come_back().unwrap();
    }

    pub(super) fn deliver(&mut self) -> Option<Loaded> {
        self.state.deliver(&self.work).unwrap()
    }

    /// Hands staged memory back, and tells whether there is more room than before.
    pub(super) fn recycle(&mut self, buffer: u64) -> Option<bool> {
        self.state.recycle(buffer).unwrap()
    }

    /// Whether the bytes of what was delivered are right.
    pub(super) fn is_right(&self, loaded: &Loaded) -> bool {
        let Ok(bytes) = &loaded.bytes else { return false };
        let expected = &self.expected[loaded.request];
        let part = loaded.offset as usize..loaded.offset as usize + bytes.len();
        // SAFETY: bytes that were delivered and not recycled.
        let arrived = unsafe { bytes.as_slice() };
        arrived == &expected[part.clone()] && loaded.is_last == (part.end == expected.len())
    }

    /// Whether nothing was written around the destinations.
    pub(super) fn surroundings_are_untouched(&mut self) -> bool {
        let of = |(place, expected): (&mut Option<(Buffer, usize)>, &Vec<u8>)| {
            let Some((memory, at)) = place else { return true };
            let bytes = memory.as_mut_slice();
            bytes[..*at].iter().chain(&bytes[*at + expected.len()..]).all(|byte| *byte == UNTOUCHED)
        };
        self.places.0.iter_mut().zip(&self.expected).all(of)
    }

    /// Does all of it in order, and sees to it that all is right.
    pub(super) fn run(&mut self) {
        while let Some(block) = self.deal() {
            self.read(&block);
            self.give(&block, true);
            while let Some(loaded) = self.deliver() {
                assert!(self.is_right(&loaded), "{loaded:?}");
                if loaded.buffer != 0 {
                    assert!(self.recycle(loaded.buffer).is_some());
                }
            }
        }
        while let Some(loaded) = self.deliver() {
            assert!(self.is_right(&loaded));
        }
        assert!(self.state.left() == 0 && self.state.is_read(&self.work) && self.surroundings_are_untouched());
    }
}
