//! What is to be loaded.

use super::options::{Engine, Settings, Staging};
use crate::checkpoint::{Checkpoint, Place};
use crate::error::Error;
use crate::format::{Run, Slice};
use crate::storage::{StorageError, StorageKind, PAGE};
use std::ops::Range;
use std::ptr::NonNull;

/// Memory that one load may write to.
#[derive(Debug)]
pub struct Destination {
    pub(super) start: NonNull<u8>,
    pub(super) len: usize,
}

// SAFETY: whoever made it answers for its use by the load's threads.
unsafe impl Send for Destination {}
// SAFETY: as for `Send`.
unsafe impl Sync for Destination {}

impl Destination {
    /// `len` bytes from `start` on.
    ///
    /// # Safety
    ///
    /// They can be written to, and nobody else touches them, until the load that gets this is dropped; or until it has delivered the
    /// request whose destination it is.
    pub unsafe fn new(start: NonNull<u8>, len: usize) -> Destination {
        Destination { start, len }
    }

    /// The first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What to load, and where to.
#[derive(Debug)]
pub struct Request {
    /// The tensor.
    pub index: usize,
    /// One range per leading dimension; those left over are taken whole. See [`Slice::new`].
    pub ranges: Vec<Range<u64>>,
    /// Where the bytes go, packed, in the order of the elements. Around the page cache they reach it without a copy if its address is that
    /// of the file's bytes modulo 4096. `None` is memory of the load's, see [`LoadOptions::staging`](super::LoadOptions::staging).
    pub destination: Option<Destination>,
    /// Comes back in [`Loaded`](super::Loaded).
    pub tag: u64,
}

/// A request but for its ranges, as it is told to [`check`].
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) index: usize,
    /// Its first byte, and its size.
    pub(crate) destination: Option<(NonNull<u8>, usize)>,
    pub(crate) tag: u64,
}

/// A request that is right.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) tag: u64,
    pub(super) index: usize,
    pub(super) shard: usize,
    /// The first byte, from the start of the file; of a slice with gaps, the tensor's.
    pub(super) start: u64,
    pub(super) nbytes: u64,
    /// Set if the bytes are not one run.
    pub(super) scattered: Option<Box<Slice>>,
    pub(super) is_whole: bool,
    pub(super) destination: Option<NonNull<u8>>,
}

// SAFETY: the pointer is that of a `Destination`.
unsafe impl Send for Wanted {}
// SAFETY: as for `Send`.
unsafe impl Sync for Wanted {}

impl Wanted {
    fn new(ask: &Ask, place: Place) -> Wanted {
        let Place { shard, start, nbytes, is_whole, scattered } = place;
        let destination = ask.destination.map(|(start, _)| start);
        Wanted { tag: ask.tag, index: ask.index, shard, start, nbytes, scattered, is_whole, destination }
    }

    /// The part of the file that holds it, with what lies between its runs.
    pub(super) fn extent(&self) -> Range<u64> {
        let Some(last) =
            self.scattered.as_ref().and_then(|_| self.runs_within(self.nbytes.saturating_sub(1)..self.nbytes).last())
        else {
            return self.start..self.start + self.nbytes;
        };
        let first = self.runs_within(0..1).next().map_or(self.start, |first| first.offset);
        first..last.offset + last.len
    }

    /// How many runs it is of.
    pub(super) fn runs(&self) -> u64 {
        self.scattered.as_ref().map_or(1, |slice| slice.runs().size_hint().0 as u64)
    }

    /// Whether more of it than its ends may have to be copied to where it belongs.
    pub(super) fn may_bounce(&self) -> bool {
        let lies_as_in_file = |to: NonNull<u8>| (to.addr().get() as u64).wrapping_sub(self.start) % PAGE == 0;
        self.scattered.is_some() || !self.destination.is_none_or(lies_as_in_file)
    }

    /// What a file has of the bytes `packed` of the request, from the start of the file, in order.
    pub(super) fn runs_within(&self, packed: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let len = packed.end.min(self.nbytes).saturating_sub(packed.start);
        let one = Run { offset: packed.start, len };
        let (one, many) = match &self.scattered {
            None => (Some(one).filter(|run| run.len > 0), None),
            Some(slice) => (None, Some(slice.runs_within(packed))),
        };
        one.into_iter()
            .chain(many.into_iter().flatten())
            .map(|run| Run { offset: self.start + run.offset, len: run.len })
    }
}

/// The start of the page that holds a byte.
pub(super) fn page_before(offset: u64) -> u64 {
    offset - offset % PAGE
}

/// The end of the page that holds the byte before. (A file's last byte is far from where this could overflow: its position is signed.)
pub(super) fn page_after(offset: u64) -> u64 {
    offset.div_ceil(PAGE).saturating_mul(PAGE)
}

/// Turns requests into what they want, all or none.
///
/// # Errors
///
/// No such tensor, wrong ranges, too small a destination; destinations that overlap one another or the staging memory; an engine that
/// cannot read the checkpoint.
pub(super) fn check(
    checkpoint: &Checkpoint,
    len: usize,
    mut ask: impl FnMut(&mut Vec<Range<u64>>) -> Result<Ask, Error>,
    settings: &Settings,
) -> Result<Vec<Wanted>, Error> {
    check_engine(checkpoint, settings.engine)?;
    let (mut wanted, mut ranges) = (Vec::new(), Vec::new());
    wanted.try_reserve_exact(len).map_err(|_| Error::NoMemory)?;
    for _ in 0..len {
        ranges.clear();
        let ask = ask(&mut ranges)?;
        let place = checkpoint.place(ask.index, &ranges)?;
        if let Some((start, given)) = ask.destination {
            let needed = place.nbytes;
            end_of(start, given)?;
            if (given as u64) < needed {
                return Err(checkpoint.buffer_too_small(ask.index, needed, given as u64));
            }
        }
        wanted.push(Wanted::new(&ask, place));
    }
    check_apart(&wanted, &settings.staging)?;
    Ok(wanted)
}

fn check_engine(checkpoint: &Checkpoint, engine: Option<Engine>) -> Result<(), Error> {
    let Some(engine) = engine else { return Ok(()) };
    let what = match engine {
        Engine::Memory => "the engine for memory cannot read files",
        _ => "memory is read by the engine for it only",
    };
    let fits = |kind| (kind == StorageKind::Memory) == (engine == Engine::Memory);
    match checkpoint.storages().all(|storage| fits(storage.kind())) {
        true => Ok(()),
        false => {
            let (path, source) = (String::new(), StorageError::Unsupported(what));
            Err(Error::Storage { path, tensor: None, source })
        }
    }
}

/// The address behind the last byte.
fn end_of(start: NonNull<u8>, len: usize) -> Result<usize, Error> {
    start
        .addr()
        .get()
        .checked_add(len)
        .ok_or_else(|| Error::InvalidArgument { what: format!("{len} bytes from {start:p} on are not memory") })
}

/// Whether nothing is to be written to by two.
fn check_apart(wanted: &[Wanted], staging: &Staging) -> Result<(), Error> {
    let mut places = Vec::new();
    places.try_reserve_exact(wanted.len() + 1).map_err(|_| Error::NoMemory)?;
    if let Staging::Given(memory) = staging {
        places.push((memory.start.addr().get(), end_of(memory.start, memory.len)?));
    }
    let of = |wanted: &Wanted| {
        let start = wanted.destination.filter(|_| wanted.nbytes > 0)?.addr().get();
        Some((start, start + wanted.nbytes as usize))
    };
    places.extend(wanted.iter().filter_map(of));
    places.sort_unstable();
    match places.iter().zip(places.iter().skip(1)).find(|((_, end), (start, _))| start < end) {
        None => Ok(()),
        Some(((first, end), (second, _))) => Err(Error::InvalidArgument {
            what: format!(
                "{} bytes at {first:#x} are a destination, or the staging memory, and so is {second:#x}",
                end - first
            ),
        }),
    }
}
