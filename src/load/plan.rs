//! From requests to groups: what is read together, and in which order.

use super::request::{page_after, page_before, Wanted};
use crate::error::Error;
use crate::storage::PAGE;
use std::ops::Range;

/// The most requests of a group: what is kept of each while it is read is bounded by this.
pub(super) const MOST_REQUESTS: usize = 1024;

/// A gap larger than this is never read through: another read costs less, whatever the storage.
const MOST_GAP: u64 = 1024 * 1024;

/// What bounds groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) in_order: bool,
    /// Gaps that may be read through, in percent of what is wanted.
    pub(super) over_read: u64,
    /// The most bytes of the staged requests that are read together: pages of the file that hold them.
    pub(super) staged_group: u64,
    /// The most bytes of a staged request that comes at once: a larger one is alone.
    pub(super) piece_bytes: u64,
}

/// Which requests are read together: their numbers are at these places of [`Plan::order`].
///
/// Such requests follow one another in a file, each of one run. Any other is alone.
pub(super) type Group = Range<u32>;

/// All requests, in groups.
#[derive(Debug)]
pub(super) struct Plan {
    /// The numbers of requests: as they lie in files, or as they were given if they are to come in order.
    pub(super) order: Vec<u32>,
    /// Those that are staged, and may have to wait for memory; if all are to come in order, all.
    pub(super) staged: Vec<Group>,
    /// Those that have a destination.
    pub(super) placed: Vec<Group>,
}

impl Plan {
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn new(wanted: &[Wanted], rules: &Rules) -> Result<Plan, Error> {
        let no_memory = |_| Error::NoMemory;
        let count = u32::try_from(wanted.len()).map_err(|_| Error::NoMemory)?;
        let mut order = Vec::new();
        order.try_reserve_exact(wanted.len()).map_err(no_memory)?;
        order.extend(0..count);
        let is_placed = |wanted: &Wanted| wanted.destination.is_some();
        let place = |number: &u32| {
            let wanted = wanted.get(*number as usize)?;
            Some((is_placed(wanted), wanted.shard, wanted.start, wanted.nbytes, *number))
        };
        if !rules.in_order {
            order.sort_unstable_by_key(place);
        }
        let (mut staged, mut placed) = (Vec::new(), Vec::new());
        let mut at = 0;
        while let Some(rest) = order.get(at as usize..).filter(|rest| !rest.is_empty()) {
            let mut members = rest.iter().filter_map(|number| wanted.get(*number as usize));
            let first_is_placed = members.clone().next().is_some_and(is_placed);
            let len = joined(&mut members, rules).max(1);
            let groups = if first_is_placed && !rules.in_order { &mut placed } else { &mut staged };
            groups.try_reserve(1).map_err(no_memory)?;
            groups.push(at..at + len);
            at += len;
        }
        Ok(Plan { order, staged, placed })
    }

    /// The requests of a group, with their numbers.
    pub(super) fn members<'p>(
        &'p self,
        wanted: &'p [Wanted],
        group: &Group,
    ) -> impl DoubleEndedIterator<Item = (usize, &'p Wanted)> + 'p {
        // Whoever goes through them counts them: fewer than the group has would be a bug.
        let numbers = self.order.get(group.start as usize..group.end as usize).unwrap_or_default();
        numbers.iter().filter_map(|number| Some((*number as usize, wanted.get(*number as usize)?)))
    }
}

/// How many of the requests are read together with the first.
fn joined<'w>(members: &mut impl Iterator<Item = &'w Wanted>, rules: &Rules) -> u32 {
    let Some(first) = members.next().filter(|first| can_join(first, rules)) else { return 1 };
    let mut joint = Joint { first, end: first.start + first.nbytes, wanted: first.nbytes, gaps: 0 };
    1 + members.take(MOST_REQUESTS - 1).take_while(|next| joint.takes(next, rules)).count() as u32
}

/// Whether a request is one run, and comes at once.
fn can_join(wanted: &Wanted, rules: &Rules) -> bool {
    wanted.scattered.is_none() && (wanted.destination.is_some() || wanted.nbytes <= rules.piece_bytes)
}

/// Requests that are read together so far.
struct Joint<'w> {
    first: &'w Wanted,
    end: u64,
    wanted: u64,
    gaps: u64,
}

impl Joint<'_> {
    fn takes(&mut self, next: &Wanted, rules: &Rules) -> bool {
        let is_staged = self.first.destination.is_none();
        let Some(gap) = next.start.checked_sub(self.end) else { return false };
        let end = next.start.saturating_add(next.nbytes);
        if !can_join(next, rules)
            || next.shard != self.first.shard
            || next.destination.is_none() != is_staged
            || (is_staged && page_after(end) - page_before(self.first.start) > rules.staged_group)
        {
            return false;
        }
        let (wanted, gaps) = (self.wanted.saturating_add(next.nbytes), self.gaps.saturating_add(gap));
        let allowed = gap <= MOST_GAP && gaps.saturating_mul(100) <= rules.over_read.saturating_mul(wanted);
        if !allowed && !is_free(self.end, next.start, rules.over_read) {
            return false;
        }
        *self = Joint { first: self.first, end, wanted, gaps };
        true
    }
}

/// Whether what lies between two places of a file is read anyway: by pages, as page caches and most disks do.
pub(super) fn is_free(end: u64, start: u64, over_read: u64) -> bool {
    end == start || (over_read > 0 && page_before(start) <= page_after(end))
}

/// How much of a staged request that starts at `at` comes at once: a request of one run is cut between pages of its file. `most` is a
/// multiple of the page, and bounds the pages of the file that hold the piece; so is `piece`, which bounds its bytes.
pub(super) fn piece_of(wanted: &Wanted, at: u64, most: u64, piece: u64) -> Range<u64> {
    let stop = match wanted.scattered {
        Some(_) => at.saturating_add(most.min(piece) / PAGE * PAGE),
        None => {
            let (start, end) = (wanted.start + at, most.min(piece));
            let by_pages = page_before(start).saturating_add(most);
            page_before(start.saturating_add(end)).min(by_pages).saturating_sub(wanted.start)
        }
    };
    at..stop.min(wanted.nbytes)
}
