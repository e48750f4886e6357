//! What is to be read, under way, and to be delivered. Knows no files.

use super::loaded::{Loaded, LoadedBytes};
use super::options::Engine;
use super::plan::{piece_of, Group, Plan};
use super::request::{page_after, page_before, Wanted};
use super::segment::{Block, Limits, Part, Room, Segment, MOST_PIECES};
use super::staging::{Lease, Ring};
use crate::error::Error;
use crate::storage::PAGE;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::ptr::NonNull;

/// What never changes while a load runs.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) wanted: Vec<Wanted>,
    pub(super) plan: Plan,
    pub(super) limits: Limits,
    pub(super) in_order: bool,
    /// The most pages of a file that a piece of a staged request spans, in bytes, and the most of its bytes.
    pub(super) piece_span: u64,
    pub(super) piece_bytes: u64,
    /// The most pages of a file that a staged request spans which comes at once.
    pub(super) whole_span: u64,
}

/// What changes, under one lock.
#[derive(Debug)]
pub(super) struct State {
    /// What is staged, or comes in order; what has destinations. The second does not wait for the memory that the first needs.
    lanes: [Lane; 2],
    ring: Ring,
    leases: HashMap<u64, Lent>,
    deliveries: HashMap<u64, Delivery>,
    /// Those that must not overtake one another, first to last.
    line: VecDeque<u64>,
    ready: VecDeque<u64>,
    /// Delivered staged memory, and what it was lent by.
    held: HashMap<u64, u64>,
    next_id: u64,
    /// Blocks that have been dealt out and have not come back.
    under_way: usize,
    /// Requests that were not delivered yet.
    left: usize,
}

/// Groups that are opened one after the other.
#[derive(Debug, Default)]
struct Lane {
    next: usize,
    /// How much of the next group, a staged request that comes in pieces, was opened.
    opened: u64,
    segment: Option<Segment>,
}

#[derive(Debug)]
struct Lent {
    lease: Lease,
    /// Deliveries that are in it.
    users: usize,
}

/// A request, or a piece of one, that is being read.
#[derive(Debug)]
struct Delivery {
    request: usize,
    packed: Range<u64>,
    to: NonNull<u8>,
    is_last: bool,
    lent: Option<u64>,
    in_line: bool,
    /// Bytes that have not arrived.
    missing: u64,
    engine: Option<Engine>,
    /// Boxed, since there are many without one.
    failure: Option<Box<Error>>,
    done: bool,
}

// SAFETY: the pointers are those of destinations and staging memory, of which the state only knows.
unsafe impl Send for State {}

/// Bytes of a delivery that are all there, to be checked.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) delivery: u64,
    pub(super) request: usize,
    pub(super) packed: Range<u64>,
    pub(super) to: NonNull<u8>,
}

impl Work {
    /// Whether a staged request comes in pieces.
    fn is_in_pieces(&self, wanted: &Wanted) -> bool {
        let whole = 0..wanted.nbytes;
        wanted.destination.is_none() && (wanted.nbytes > self.piece_bytes || span(wanted, &whole) > self.whole_span)
    }

    /// The piece of a staged request that starts at `at`.
    fn piece(&self, wanted: &Wanted, at: u64) -> Range<u64> {
        match self.is_in_pieces(wanted) {
            true => piece_of(wanted, at, self.piece_span, self.piece_bytes),
            false => at..wanted.nbytes,
        }
    }

    /// How many pages of staging memory are used if all of it is there at once.
    pub(super) fn pages_needed(&self) -> u64 {
        let of_group = |group: &Group| {
            let mut members = self.plan.members(&self.wanted, group).map(|(_, wanted)| wanted);
            let (Some(first), last) = (members.next(), members.last()) else { return 0 };
            if first.destination.is_some() {
                return 0;
            }
            if self.is_in_pieces(first) {
                let piece = self.piece(first, 0);
                let each = (piece.end - piece.start).max(PAGE);
                let count = first.nbytes.div_ceil(each).saturating_add(1);
                return count.saturating_mul(each.div_ceil(PAGE) + 1);
            }
            let last = last.unwrap_or(first);
            let bytes = first.start..last.start + last.nbytes;
            match first.scattered {
                Some(_) => page_after(first.nbytes) / PAGE,
                None => (pages_around(bytes.clone()).end - pages_around(bytes).start) / PAGE,
            }
        };
        self.plan.staged.iter().map(of_group).fold(0, u64::saturating_add)
    }

    /// A guess at the number of blocks, which is right about few.
    pub(super) fn blocks(&self) -> u64 {
        let Limits { block, bounce, .. } = self.limits;
        let groups = self.plan.staged.iter().chain(&self.plan.placed);
        let blocks = |group: &Group| {
            let (mut bytes, mut runs) = (0u64, 0u64);
            let mut most = block;
            for (_, wanted) in self.plan.members(&self.wanted, group) {
                bytes = bytes.saturating_add(wanted.nbytes);
                runs = runs.saturating_add(wanted.runs());
                if wanted.may_bounce() {
                    most = bounce;
                }
            }
            bytes.div_ceil(most).max(runs / MOST_PIECES as u64)
        };
        groups.map(blocks).fold(0, u64::saturating_add)
    }

    /// How many deliveries there can be at once, at most.
    fn deliveries(&self, ring_pages: u64) -> usize {
        let piece = self.piece_bytes.min(self.piece_span).max(PAGE);
        let in_pieces = self.wanted.iter().any(|wanted| self.is_in_pieces(wanted));
        let pieces = if in_pieces { ring_pages.saturating_mul(PAGE) / piece + 1 } else { 0 };
        self.wanted.len().saturating_add(pieces as usize)
    }

    fn groups(&self, lane: usize) -> &[Group] {
        match lane {
            0 => &self.plan.staged,
            _ => &self.plan.placed,
        }
    }
}

/// How many bytes of staging memory a part of a request takes: the pages that hold it in the file, or as many as it fills.
fn span(wanted: &Wanted, packed: &Range<u64>) -> u64 {
    match wanted.scattered {
        Some(_) => page_after(packed.end - packed.start),
        None => {
            let pages = pages_around(wanted.start + packed.start..wanted.start + packed.end);
            pages.end - pages.start
        }
    }
}

/// The pages of a file that hold these bytes.
fn pages_around(bytes: Range<u64>) -> Range<u64> {
    match bytes.is_empty() {
        true => bytes,
        false => page_before(bytes.start)..page_after(bytes.end),
    }
}

/// What is opened next.
struct Opening<'w> {
    /// With their numbers.
    members: Vec<(usize, &'w Wanted)>,
    /// Set if it is a piece of a staged request.
    piece: Option<Range<u64>>,
    /// The pages of the file that hold it, if it is staged and of one run; otherwise as many bytes of staging memory as it needs, from 0 on.
    pages: Range<u64>,
}

impl State {
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn new(work: &Work, ring: Ring) -> Result<State, Error> {
        let no_memory = |_| Error::NoMemory;
        let most = work.deliveries(ring.size() / PAGE);
        let (mut deliveries, mut ready, mut line) = (HashMap::new(), VecDeque::new(), VecDeque::new());
        deliveries.try_reserve(most).map_err(|_| Error::NoMemory)?;
        ready.try_reserve_exact(most).map_err(no_memory)?;
        line.try_reserve_exact(if work.in_order { most } else { most - work.wanted.len() }).map_err(no_memory)?;
        Ok(State {
            lanes: Default::default(),
            ring,
            leases: HashMap::new(),
            deliveries,
            line,
            ready,
            held: HashMap::new(),
            // Anywhere, so that no number is of two loads: what was delivered by another is not to be recycled here.
            next_id: RandomState::new().hash_one(()),
            under_way: 0,
            left: work.wanted.len(),
        })
    }

    /// The next block to be read. `None` if there is none, or not before something is recycled.
    pub(super) fn deal(&mut self, work: &Work) -> Option<Block> {
        while let Some(lane) = self.lane_to_deal(work) {
            let segment = &mut self.lanes.get_mut(lane)?.segment;
            let block = segment.as_mut()?.cut(&work.wanted, &work.limits);
            if segment.as_ref().is_some_and(Segment::is_dealt_out) {
                *segment = None;
            }
            if block.is_some() {
                self.under_way += 1;
                return block;
            }
        }
        None
    }

    /// The lane whose open segment comes first in the files. Opens what can be opened.
    fn lane_to_deal(&mut self, work: &Work) -> Option<usize> {
        for lane in 0..self.lanes.len() {
            while self.lanes.get(lane)?.segment.is_none() && self.open(work, lane) {}
        }
        let place = |lane: &usize| {
            let segment = self.lanes.get(*lane)?.segment.as_ref()?;
            let request = segment.parts.get(segment.next.0).or(segment.parts.last())?.request;
            Some((segment.shard, work.wanted.get(request)?.start))
        };
        (0..self.lanes.len()).filter(|lane| place(lane).is_some()).min_by_key(place)
    }

    /// Whether all has been dealt out.
    pub(super) fn is_dealt_out(&self, work: &Work) -> bool {
        let is_at_end =
            |(number, lane): (usize, &Lane)| lane.segment.is_none() && lane.next >= work.groups(number).len();
        self.lanes.iter().enumerate().all(is_at_end)
    }

    /// Whether all that was dealt out has come back, and all has been dealt out.
    pub(super) fn is_read(&self, work: &Work) -> bool {
        self.under_way == 0 && self.is_dealt_out(work)
    }

    /// Whether nothing more can arrive before something is recycled.
    pub(super) fn is_stalled(&self, work: &Work) -> bool {
        let can_go_on = |(number, lane): (usize, &Lane)| {
            let fits = |opening: Opening<'_>| self.ring.could_lend((opening.pages.end - opening.pages.start) / PAGE);
            lane.segment.is_some() || self.opening(work, number).is_some_and(fits)
        };
        self.ready.is_empty() && self.under_way == 0 && !self.lanes.iter().enumerate().any(can_go_on)
    }

    pub(super) fn staging_full(&self) -> Error {
        Error::StagingFull { held: self.ring.lent(), size: self.ring.size() }
    }

    fn opening<'w>(&self, work: &'w Work, lane: usize) -> Option<Opening<'w>> {
        let Lane { next, opened, .. } = self.lanes.get(lane)?;
        let members: Vec<_> = work.plan.members(&work.wanted, work.groups(lane).get(*next)?).collect();
        let ((_, first), (_, last)) = (members.first()?, members.last()?);
        let piece = work.is_in_pieces(first).then(|| work.piece(first, *opened));
        let bytes = piece.clone().unwrap_or(0..first.nbytes);
        let pages = match (first.destination, &first.scattered) {
            (Some(_), _) => 0..0,
            (None, Some(_)) => 0..page_after(bytes.end - bytes.start),
            (None, None) if members.iter().all(|(_, wanted)| wanted.nbytes == 0) => 0..0,
            (None, None) if piece.is_some() => pages_around(first.start + bytes.start..first.start + bytes.end),
            (None, None) => pages_around(first.start..last.start + last.nbytes),
        };
        Some(Opening { members, piece, pages })
    }

    /// Opens what comes next of a lane, if there is anything and memory for it. What has no bytes is ready at once, and no segment, so that
    /// each that there is has a block.
    fn open(&mut self, work: &Work, lane: usize) -> bool {
        let Some(Opening { members, piece, pages }) = self.opening(work, lane) else { return false };
        let Some((_, first)) = members.first() else { return false };
        let (mut lent, mut room, mut base) = (None, None, NonNull::<Aligned>::dangling().cast());
        if !pages.is_empty() {
            let Some(lease) = self.ring.lend((pages.end - pages.start) / PAGE) else { return false };
            base = self.ring.address(&lease);
            room = first.scattered.is_none().then_some(Room { offset: pages.start, to: base });
            lent = Some((self.new_id(), lease));
        }
        let id = lent.as_ref().map(|(id, _)| *id);
        let in_line = work.in_order || piece.is_some();
        let (shard, mut parts) = (first.shard, Vec::with_capacity(members.len()));
        let is_last = piece.as_ref().is_none_or(|piece| piece.end >= first.nbytes);
        for (request, wanted) in &members {
            let packed = piece.clone().unwrap_or(0..wanted.nbytes);
            let is_empty = packed.is_empty();
            let to = match (wanted.destination, room) {
                (Some(destination), _) => destination,
                (None, Some(room)) if !is_empty => {
                    let from_start = (wanted.start + packed.start).wrapping_sub(room.offset);
                    NonNull::new(base.as_ptr().wrapping_add(from_start as usize)).unwrap_or(base)
                }
                (None, _) => base,
            };
            let delivery = self.new_id();
            parts.push(Part { delivery, request: *request, packed: packed.clone(), to });
            let missing = packed.end - packed.start;
            let lent = id.filter(|_| !is_empty);
            let (request, done) = (*request, is_empty);
            let new =
                Delivery { request, packed, to, is_last, lent, in_line, missing, engine: None, failure: None, done };
            self.deliveries.insert(delivery, new);
            if in_line {
                self.line.push_back(delivery);
            } else if is_empty {
                self.ready.push_back(delivery);
            }
        }
        if let Some((id, lease)) = lent {
            let users = parts.iter().filter(|part| !part.packed.is_empty()).count();
            self.leases.insert(id, Lent { lease, users });
        }
        let opened = piece.map_or(0, |piece| if is_last { 0 } else { piece.end });
        let is_empty = parts.iter().all(|part| part.packed.is_empty());
        let segment = (!is_empty).then_some(Segment { shard, parts, room, next: (0, 0) });
        if let Some(lane) = self.lanes.get_mut(lane) {
            *lane = Lane { next: lane.next + usize::from(is_last), opened, segment };
        }
        self.release_line();
        true
    }

    fn new_id(&mut self) -> u64 {
        // 0 stands for none.
        self.next_id = self.next_id.wrapping_add(1).max(1);
        self.next_id
    }

    /// So many bytes of a delivery were read by `engine`, or not. Gives the delivery if all of it is there now, in which case it is not
    /// concluded yet.
    pub(super) fn arrive(&mut self, id: u64, len: u64, engine: Engine, failure: Option<Error>) -> Option<Complete> {
        let delivery = self.deliveries.get_mut(&id)?;
        delivery.missing = delivery.missing.saturating_sub(len);
        delivery.engine = Some(engine);
        if delivery.failure.is_none() {
            delivery.failure = failure.map(Box::new);
        }
        if delivery.missing > 0 {
            return None;
        }
        let Delivery { request, to, .. } = *delivery;
        let complete = Complete { delivery: id, request, packed: delivery.packed.clone(), to };
        match delivery.failure {
            None => Some(complete),
            Some(_) => {
                self.conclude(id, Ok(()));
                None
            }
        }
    }

    /// Whose a delivery is.
    pub(super) fn request_of(&self, delivery: u64) -> Option<usize> {
        Some(self.deliveries.get(&delivery)?.request)
    }

    /// A delivery is done with: right, or not as a check has found.
    pub(super) fn conclude(&mut self, id: u64, outcome: Result<(), Error>) {
        let Some(delivery) = self.deliveries.get_mut(&id) else { return };
        if let Err(error) = outcome {
            delivery.failure = Some(Box::new(error));
        }
        delivery.done = true;
        let (in_line, lent) = (delivery.in_line, delivery.lent.filter(|_| delivery.failure.is_some()));
        if let Some(lent) = lent {
            delivery.lent = None;
            self.give_back(lent);
        }
        match in_line {
            true => self.release_line(),
            false => self.ready.push_back(id),
        }
    }

    /// A block that was dealt out has come back.
    pub(super) fn come_back(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    /// Lets those pass that are done, up to the first that is not.
    fn release_line(&mut self) {
        while let Some(first) = self.line.front().copied() {
            if !self.deliveries.get(&first).is_some_and(|delivery| delivery.done) {
                return;
            }
            self.line.pop_front();
            self.ready.push_back(first);
        }
    }

    /// Whether there is more room than before.
    fn give_back(&mut self, lent: u64) -> bool {
        let Some(entry) = self.leases.get_mut(&lent) else { return false };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return false;
        }
        if let Some(Lent { lease, .. }) = self.leases.remove(&lent) {
            self.ring.take_back(lease);
        }
        true
    }

    /// What is delivered next.
    pub(super) fn deliver(&mut self, work: &Work) -> Option<Loaded> {
        let id = self.ready.pop_front()?;
        let Delivery { request, packed, to, is_last, lent, engine, failure, .. } = self.deliveries.remove(&id)?;
        let wanted = work.wanted.get(request)?;
        let buffer = lent.map_or(0, |lent| {
            self.held.insert(id, lent);
            id
        });
        self.left -= usize::from(is_last);
        let bytes = match failure {
            Some(error) => Err(*error),
            None => Ok(LoadedBytes { start: to, len: (packed.end - packed.start) as usize }),
        };
        let (tag, index) = (wanted.tag, wanted.index);
        Some(Loaded { tag, request, index, bytes, offset: packed.start, is_last, engine, buffer })
    }

    /// Whether something is to be delivered.
    pub(super) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Number of requests that were not delivered yet.
    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Takes staged memory back, and tells whether there is more room than before. `None` if it was not lent, or was taken back before.
    pub(super) fn recycle(&mut self, buffer: u64) -> Option<bool> {
        let lent = self.held.remove(&buffer)?;
        Some(self.give_back(lent))
    }
}

/// What requests of no bytes get instead of an address.
#[repr(align(64))]
struct Aligned;
