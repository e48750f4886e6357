//! What is to be read, under way, and to be delivered. Knows no files.

use super::ending::Ending;
use super::loaded::{Loaded, LoadedBytes};
use super::options::{Engine, Staging};
use super::plan::{piece_of, Group, Plan};
use super::request::{page_after, page_before, Wanted};
use super::segment::{Block, Limits, Part, Piece, Room, Segment, MOST_PIECES};
use super::slots::Slots;
use super::staging::{pages_of, Lease, Ring};
use crate::error::Error;
use crate::storage::PAGE;
use std::collections::VecDeque;
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

/// Staged bytes that are ready are enough when they are this part of the staging memory, and so many blocks at least.
const ENOUGH_OF_RING: u64 = 8;
const ENOUGH_BLOCKS: u64 = 4;

/// What changes, under one lock. All of its memory is allocated when it is made: nothing that a caller does later, such as to recycle
/// nothing, makes it grow.
#[derive(Debug)]
pub(super) struct State {
    /// What is staged, or comes in order; what has destinations. The second does not wait for the memory that the first needs.
    lanes: [Lane; 2],
    ring: Ring,
    leases: Slots<Lent>,
    /// Those that are being read, those that wait to be delivered, and those that were delivered and lie in staging memory.
    deliveries: Slots<Delivery>,
    /// Those that must not overtake one another, first to last.
    line: VecDeque<u32>,
    ready: VecDeque<u32>,
    /// Staged bytes that are ready; how many are enough for no more to be read to staging memory; and whether that was so: what was used
    /// once is used again rather than more of it, as long as the caller keeps up.
    ready_bytes: u64,
    enough: u64,
    has_enough: bool,
    /// A piece was delivered that is not to be recycled: another one has a place now.
    has_new_place: bool,
    /// How many more pieces of requests there may be at once. Of requests that come at once there is room for all.
    pieces_left: usize,
    /// Where the numbers for [`State::recycle`] start: anywhere, so that no number is of two loads.
    base: u64,
    serial: u32,
    /// Blocks that have been dealt out and have not come back.
    under_way: usize,
    /// Requests that were not delivered yet.
    left: usize,
}

/// Groups that are opened one after the other.
#[derive(Debug)]
struct Lane {
    next: usize,
    /// How much of the next group, a staged request that comes in pieces, was opened.
    opened: u64,
    segment: Segment,
}

#[derive(Debug)]
struct Lent {
    lease: Lease,
    /// Deliveries that are in it.
    users: usize,
}

/// A request, or a piece of one.
#[derive(Debug)]
struct Delivery {
    request: u32,
    /// Tells it from others that had the same place in the table before.
    serial: u32,
    packed: Range<u64>,
    to: NonNull<u8>,
    lent: Option<u32>,
    /// Bytes that have not arrived.
    missing: u64,
    /// Boxed, since there are many without one.
    failure: Option<Box<Error>>,
    engine: Option<Engine>,
    is_last: bool,
    is_piece: bool,
    in_line: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Read,
    /// All of it has arrived, or it has failed.
    Done,
    /// The caller has it, in staging memory.
    Held,
}

// SAFETY: the pointers are those of destinations and staging memory, of which the state only knows.
unsafe impl Send for State {}

/// Bytes of a delivery that are all there, to be checked.
#[derive(Debug)]
pub(super) struct Complete {
    pub(super) delivery: u32,
    pub(super) request: u32,
    pub(super) packed: Range<u64>,
    pub(super) to: NonNull<u8>,
}

impl Work {
    /// A request by its number.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(super) fn wanted_of(&self, request: u32) -> Result<&Wanted, Ending> {
        self.wanted.get(request as usize).ok_or(Ending::Internal("a load has no such request"))
    }

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
            let (Some(first), last) = (members.next(), members.next_back()) else { return 0 };
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

    /// The staging memory of the load.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn ring(&self, staging: &Staging) -> Result<Ring, Error> {
        let needed = self.pages_needed();
        let pages = match staging {
            Staging::Own(_) => pages_of(staging).min(needed),
            Staging::Given(_) => pages_of(staging),
        };
        Ring::new(staging, needed, self.leases(self.pieces(pages)))
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

    /// How many pieces of requests there can be at once, at most, in a ring of so many pages.
    fn pieces(&self, ring_pages: u64) -> usize {
        // All but the first and the last of a request lie on so many pages or more.
        let pages = (self.piece_bytes.min(self.piece_span) / PAGE).saturating_sub(1).max(1);
        let in_pieces = self.wanted.iter().filter(|wanted| self.is_in_pieces(wanted));
        let (count, all) = in_pieces.fold((0u64, 0u64), |(count, all), wanted| {
            (count + 1, all.saturating_add(wanted.nbytes / (pages * PAGE) + 3))
        });
        all.min(ring_pages / pages + 2 * count + 1).min(ring_pages) as usize
    }

    /// How many leases there can be at once, at most.
    fn leases(&self, pieces: usize) -> usize {
        self.plan.staged.len().saturating_add(pieces)
    }

    /// The most requests of a group of a lane.
    fn largest_group(&self, lane: usize) -> usize {
        self.groups(lane).iter().map(|group| group.len()).max().unwrap_or(0)
    }

    /// Whether a load is so small that to start threads for it would cost more than it takes to read: less than a block, in no more than
    /// `most_reads` reads.
    pub(super) fn is_small(&self, most_reads: u64) -> bool {
        let (mut bytes, mut reads) = (0u64, 0u64);
        let mut groups = self.plan.staged.iter().chain(&self.plan.placed);
        groups.all(|group| {
            let mut members = self.plan.members(&self.wanted, group).map(|(_, wanted)| wanted);
            let Some(first) = members.next() else { return true };
            let extent = first.extent();
            let end = members.next_back().map_or(extent.end, |last| last.extent().end);
            let whole = end.saturating_sub(extent.start);
            // Of a slice, what lies between its runs may be read with them, or may not.
            let (len, count) = match whole < self.limits.block {
                true => (whole, u64::from(whole > 0)),
                false => (first.nbytes, first.runs()),
            };
            (bytes, reads) = (bytes.saturating_add(len), reads.saturating_add(count));
            bytes < self.limits.block && reads <= most_reads
        })
    }

    /// The most bytes of memory that reads of a small load can need because they cannot go where they should.
    pub(super) fn bounced(&self) -> u64 {
        self.wanted
            .iter()
            .map(|wanted| wanted.extent())
            .fold(0, |sum, extent| sum.saturating_add(page_after(extent.end) - page_before(extent.start)))
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
    first: &'w Wanted,
    /// Number of requests.
    len: usize,
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
        let pieces = work.pieces(ring.size() / PAGE);
        let most = work.wanted.len().saturating_add(pieces);
        let (mut ready, mut line) = (VecDeque::new(), VecDeque::new());
        ready.try_reserve_exact(most).map_err(no_memory)?;
        line.try_reserve_exact(if work.in_order { most } else { pieces }).map_err(no_memory)?;
        let lane = |number| {
            let segment = Segment::with_room(work.largest_group(number))?;
            Ok(Lane { next: 0, opened: 0, segment })
        };
        let enough = (ring.size() / ENOUGH_OF_RING).max(ENOUGH_BLOCKS * work.limits.block);
        Ok(State {
            lanes: [lane(0)?, lane(1)?],
            ring,
            leases: Slots::new(work.leases(pieces))?,
            deliveries: Slots::new(most)?,
            line,
            ready,
            ready_bytes: 0,
            enough,
            has_enough: false,
            has_new_place: false,
            pieces_left: pieces,
            base: RandomState::new().hash_one(()),
            serial: 0,
            under_way: 0,
            left: work.wanted.len(),
        })
    }

    /// The next block to be read, whose pieces are put into `pieces`. `None` if there is none, or not before something is recycled.
    ///
    /// # Errors
    ///
    /// The load cannot go on.
    pub(super) fn deal(&mut self, work: &Work, pieces: &mut Vec<Piece>) -> Result<Option<Block>, Ending> {
        if let Some(lane) = self.lane_to_deal(work)? {
            let lane = self.lanes.get_mut(lane).ok_or(NO_LANE)?;
            let block = lane.segment.cut(&work.wanted, &work.limits, pieces)?;
            self.under_way += 1;
            return Ok(Some(block));
        }
        Ok(None)
    }

    /// The lane whose open segment comes first in the files. Opens what can be opened.
    fn lane_to_deal(&mut self, work: &Work) -> Result<Option<usize>, Ending> {
        let mut first = None;
        for number in 0..self.lanes.len() {
            while self.lanes.get(number).ok_or(NO_LANE)?.segment.is_dealt_out() && self.open(work, number)? {}
            let segment = &self.lanes.get(number).ok_or(NO_LANE)?.segment;
            if let Some(part) = segment.next_part() {
                let place = (segment.shard, work.wanted_of(part.request)?.start);
                if first.is_none_or(|(_, before)| place < before) {
                    first = Some((number, place));
                }
            }
        }
        Ok(first.map(|(number, _)| number))
    }

    /// Whether all has been dealt out.
    pub(super) fn is_dealt_out(&self, work: &Work) -> bool {
        let is_at_end =
            |(number, lane): (usize, &Lane)| lane.segment.is_dealt_out() && lane.next >= work.groups(number).len();
        self.lanes.iter().enumerate().all(is_at_end)
    }

    /// Whether all that was dealt out has come back, and all has been dealt out.
    pub(super) fn is_read(&self, work: &Work) -> bool {
        self.under_way == 0 && self.is_dealt_out(work)
    }

    /// Whether nothing more can arrive before something is recycled.
    pub(super) fn is_stalled(&self, work: &Work) -> bool {
        let can_go_on = |(number, lane): (usize, &Lane)| {
            // Where something is wrong, whoever goes on is told.
            let can_open =
                || self.opening(work, number).map_or(true, |opening| opening.is_some_and(|it| self.can_open(&it)));
            !lane.segment.is_dealt_out() || can_open()
        };
        self.ready.is_empty() && self.under_way == 0 && !self.lanes.iter().enumerate().any(can_go_on)
    }

    pub(super) fn staging_full(&self) -> Error {
        Error::StagingFull { held: self.ring.lent(), size: self.ring.size() }
    }

    /// What is opened next of a lane. `None`: it is at its end.
    fn opening<'w>(&self, work: &'w Work, lane: usize) -> Result<Option<Opening<'w>>, Ending> {
        let Lane { next, opened, .. } = self.lanes.get(lane).ok_or(NO_LANE)?;
        let Some(group) = work.groups(lane).get(*next) else { return Ok(None) };
        let of_group = || work.plan.members(&work.wanted, group).map(|(_, wanted)| wanted);
        let mut members = of_group();
        let first = members.next().ok_or(NO_MEMBERS)?;
        let last = members.next_back().unwrap_or(first);
        let piece = work.is_in_pieces(first).then(|| work.piece(first, *opened));
        let bytes = piece.clone().unwrap_or(0..first.nbytes);
        let pages = match (first.destination, &first.scattered) {
            (Some(_), _) => 0..0,
            (None, Some(_)) => 0..page_after(bytes.end - bytes.start),
            (None, None) if of_group().all(|wanted| wanted.nbytes == 0) => 0..0,
            (None, None) if piece.is_some() => pages_around(first.start + bytes.start..first.start + bytes.end),
            (None, None) => pages_around(first.start..last.start + last.nbytes),
        };
        Ok(Some(Opening { first, len: group.len(), piece, pages }))
    }

    /// Whether there is room for it.
    fn can_open(&self, opening: &Opening<'_>) -> bool {
        (opening.piece.is_none() || self.pieces_left > 0)
            && self.ring.could_lend((opening.pages.end - opening.pages.start) / PAGE)
    }

    /// Opens what comes next of a lane, if there is anything and memory for it. What has no bytes is ready at once, and no segment, so that
    /// each that there is has a block.
    fn open(&mut self, work: &Work, lane: usize) -> Result<bool, Ending> {
        let Some(opening) = self.opening(work, lane)? else { return Ok(false) };
        if !self.can_open(&opening) {
            return Ok(false);
        }
        if !opening.pages.is_empty() && self.ready_bytes >= self.enough {
            self.has_enough = true;
            return Ok(false);
        }
        let Opening { first, len, piece, pages } = opening;
        let (mut lent, mut room, mut base) = (None, None, NonNull::<Aligned>::dangling().cast());
        if !pages.is_empty() {
            let lease = self.ring.lend((pages.end - pages.start) / PAGE).ok_or(NO_ROOM)?;
            base = self.ring.address(&lease);
            room = first.scattered.is_none().then_some(Room { offset: pages.start, to: base });
            lent = Some(self.leases.insert(Lent { lease, users: 0 }).ok_or(NO_ROOM)?);
        }
        let (is_piece, in_line) = (piece.is_some(), work.in_order || piece.is_some());
        let is_last = piece.as_ref().is_none_or(|piece| piece.end >= first.nbytes);
        let place = self.lanes.get_mut(lane).ok_or(NO_LANE)?;
        let group = work.groups(lane).get(place.next).ok_or(NO_LANE)?;
        place.next += usize::from(is_last);
        place.opened = piece.as_ref().map_or(0, |piece| if is_last { 0 } else { piece.end });
        let mut segment = std::mem::take(&mut place.segment);
        segment.begin(first.shard, room);
        let (mut users, mut members) = (0, 0);
        for (request, wanted) in work.plan.members(&work.wanted, group) {
            members += 1;
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
            let new = Delivery {
                request: request as u32,
                serial: self.next_serial(),
                packed: packed.clone(),
                to,
                lent: lent.filter(|_| !is_empty),
                missing: packed.end - packed.start,
                failure: None,
                engine: None,
                is_last,
                is_piece,
                in_line,
                stage: if is_empty { Stage::Done } else { Stage::Read },
            };
            let delivery = self.deliveries.insert(new).ok_or(NO_ROOM)?;
            self.pieces_left -= usize::from(is_piece);
            if in_line {
                self.line.push_back(delivery);
            } else if is_empty {
                self.make_ready(delivery)?;
            }
            if !is_empty {
                users += 1;
                segment.add(Part { delivery, request: request as u32, packed, to });
            }
        }
        if members != len {
            return Err(NO_MEMBERS);
        }
        if let Some(lent) = lent {
            self.leases.get_mut(lent).ok_or(NO_LEASE)?.users = users;
        }
        self.lanes.get_mut(lane).ok_or(NO_LANE)?.segment = segment;
        self.release_line()?;
        Ok(true)
    }

    /// Any but the one that would make the number for [`State::recycle`] 0, which stands for none, at some place.
    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        if self.base.wrapping_add(u64::from(self.serial) << 32).wrapping_neg() <= u64::from(u32::MAX) {
            self.serial = self.serial.wrapping_add(1);
        }
        self.serial
    }

    /// What [`State::recycle`] is given for a delivery.
    fn buffer_of(&self, number: u32, serial: u32) -> u64 {
        self.base.wrapping_add(u64::from(serial) << 32 | u64::from(number))
    }

    /// So many bytes of a delivery were read by `engine`, or not. Gives the delivery if all of it is there now, in which case it is not
    /// concluded yet.
    ///
    /// # Errors
    ///
    /// There is no such delivery that waits for so many bytes.
    pub(super) fn arrive(
        &mut self,
        id: u32,
        len: u64,
        engine: Engine,
        failure: Option<Error>,
    ) -> Result<Option<Complete>, Ending> {
        let delivery = self.deliveries.get_mut(id).filter(|delivery| delivery.stage == Stage::Read);
        let delivery = delivery.ok_or(NO_DELIVERY)?;
        let missing = delivery.missing.checked_sub(len);
        delivery.missing = missing.ok_or(Ending::Internal("more bytes have arrived than were asked for"))?;
        delivery.engine = Some(engine);
        if delivery.failure.is_none() {
            delivery.failure = failure.map(Box::new);
        }
        if delivery.missing > 0 {
            return Ok(None);
        }
        let Delivery { request, to, .. } = *delivery;
        let complete = Complete { delivery: id, request, packed: delivery.packed.clone(), to };
        match delivery.failure {
            None => Ok(Some(complete)),
            Some(_) => self.conclude(id, Ok(())).map(|()| None),
        }
    }

    /// A delivery is done with: right, or not as a check has found.
    pub(super) fn conclude(&mut self, id: u32, outcome: Result<(), Error>) -> Result<(), Ending> {
        let delivery = self.deliveries.get_mut(id).filter(|delivery| delivery.stage == Stage::Read);
        let delivery = delivery.ok_or(NO_DELIVERY)?;
        if let Err(error) = outcome {
            delivery.failure = Some(Box::new(error));
        }
        delivery.stage = Stage::Done;
        let (in_line, lent) = (delivery.in_line, delivery.lent.filter(|_| delivery.failure.is_some()));
        if let Some(lent) = lent {
            delivery.lent = None;
            self.give_back(lent)?;
        }
        match in_line {
            true => self.release_line()?,
            false => self.make_ready(id)?,
        }
        Ok(())
    }

    fn make_ready(&mut self, id: u32) -> Result<(), Ending> {
        let delivery = self.deliveries.get(id).ok_or(NO_DELIVERY)?;
        if delivery.lent.is_some() {
            self.ready_bytes += delivery.packed.end - delivery.packed.start;
        }
        self.ready.push_back(id);
        Ok(())
    }

    /// A block that was dealt out has come back.
    pub(super) fn come_back(&mut self) -> Result<(), Ending> {
        let under_way = self.under_way.checked_sub(1);
        self.under_way = under_way.ok_or(Ending::Internal("a block has come back twice"))?;
        Ok(())
    }

    /// Whether a block was dealt out and has not come back.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way > 0
    }

    /// Lets those pass that are done, up to the first that is not.
    fn release_line(&mut self) -> Result<(), Ending> {
        while let Some(first) = self.line.front().copied() {
            if self.deliveries.get(first).ok_or(NO_DELIVERY)?.stage != Stage::Done {
                break;
            }
            self.line.pop_front();
            self.make_ready(first)?;
        }
        Ok(())
    }

    /// Whether there is more room than before.
    fn give_back(&mut self, lent: u32) -> Result<bool, Ending> {
        let entry = self.leases.get_mut(lent).ok_or(NO_LEASE)?;
        entry.users = entry.users.checked_sub(1).ok_or(NO_LEASE)?;
        if entry.users > 0 {
            return Ok(false);
        }
        let Lent { lease, .. } = self.leases.remove(lent).ok_or(NO_LEASE)?;
        self.ring.take_back(lease);
        Ok(true)
    }

    /// What is delivered next.
    ///
    /// # Errors
    ///
    /// The load cannot go on.
    pub(super) fn deliver(&mut self, work: &Work) -> Result<Option<Loaded>, Ending> {
        let Some(id) = self.ready.pop_front() else { return Ok(None) };
        let delivery = self.deliveries.get_mut(id).filter(|delivery| delivery.stage == Stage::Done);
        let delivery = delivery.ok_or(NO_DELIVERY)?;
        let Delivery { request, serial, to, is_last, is_piece, lent, engine, .. } = *delivery;
        let Range { start: offset, end } = delivery.packed;
        let bytes = match delivery.failure.take() {
            Some(error) => Err(*error),
            None => Ok(LoadedBytes { start: to, len: (end - offset) as usize }),
        };
        let buffer = match lent {
            Some(_) => {
                delivery.stage = Stage::Held;
                self.ready_bytes = self.ready_bytes.saturating_sub(end - offset);
                self.buffer_of(id, serial)
            }
            None => {
                self.deliveries.remove(id);
                self.pieces_left += usize::from(is_piece);
                self.has_new_place |= is_piece;
                0
            }
        };
        self.left -= usize::from(is_last);
        let wanted = work.wanted_of(request)?;
        let (tag, index, request) = (wanted.tag, wanted.index, request as usize);
        Ok(Some(Loaded { tag, request, index, bytes, offset, is_last, engine, buffer }))
    }

    /// Whether more can be read since something was delivered: there was enough that was ready, and is not any more; or a piece that has
    /// failed, and so needs no recycling, has left its place. Whoever waits for a block is to be told.
    pub(super) fn wants_more(&mut self) -> bool {
        let lacks = self.has_enough && self.ready_bytes <= self.enough / 2;
        self.has_enough &= !lacks;
        std::mem::take(&mut self.has_new_place) || lacks
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
    ///
    /// # Errors
    ///
    /// The load cannot go on.
    pub(super) fn recycle(&mut self, buffer: u64) -> Result<Option<bool>, Ending> {
        let place = buffer.wrapping_sub(self.base);
        let (number, serial) = (place as u32, (place >> 32) as u32);
        let is_held = |delivery: &&mut Delivery| delivery.stage == Stage::Held && delivery.serial == serial;
        let Some(delivery) = self.deliveries.get_mut(number).filter(is_held) else { return Ok(None) };
        let (lent, is_piece) = (delivery.lent.ok_or(NO_LEASE)?, delivery.is_piece);
        self.deliveries.remove(number);
        self.pieces_left += usize::from(is_piece);
        // A place for a piece is room, too.
        Ok(Some(self.give_back(lent)? || is_piece))
    }
}

const NO_MEMBERS: Ending = Ending::Internal("a group of a load lacks requests");
const NO_LANE: Ending = Ending::Internal("a load has no such lane");
const NO_ROOM: Ending = Ending::Internal("there is less room in a load than was reserved");
const NO_LEASE: Ending = Ending::Internal("staging memory of a load is lent to nobody");
const NO_DELIVERY: Ending = Ending::Internal("a load has no such delivery");

/// What requests of no bytes get instead of an address.
#[repr(align(64))]
struct Aligned;
