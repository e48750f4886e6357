//! What is known of one piece, in one cache line.
//!
//! Who may change the state word:
//!
//! - Anyone may pin or keep a piece that is RESIDENT, and unpin what is pinned.
//! - Everything else is changed with the ledger's mutex held.
//!
//! So what is not resident is not pinned, and what has been claimed (RESIDENT taken away, which works only while nobody uses it) can be
//! let go at leisure. Every change is a read-modify-write that acquires and releases: each sees all that happened before the last.

use super::stats::Stats;
use super::sync::{AtomicPtr, AtomicU64};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// The most pins that a piece can have.
const MAX_PINS: u64 = 1 << 31;

/// The lower half of the state word counts pins, the upper half holds flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(u64);

impl State {
    /// The pointer is valid.
    pub(super) const RESIDENT: u64 = 1 << 32;
    /// The queue has an entry for it, perhaps an outdated one.
    pub(super) const QUEUED: u64 = 1 << 33;
    /// In use for ever.
    pub(super) const KEPT: u64 = 1 << 34;
    /// A thread reads a copy of it. It is charged.
    pub(super) const FILLING: u64 = 1 << 35;
    /// It lies in a copy.
    pub(super) const COPIED: u64 = 1 << 36;
    /// It must not be evicted even though nobody uses it.
    pub(super) const FIXED: u64 = 1 << 37;

    pub(super) fn is(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    pub(super) fn pins(self) -> u64 {
        self.0 & u64::from(u32::MAX)
    }

    pub(super) fn is_in_use(self) -> bool {
        self.pins() > 0 || self.is(State::KEPT)
    }

    /// Resident and free to go.
    fn is_evictable(self) -> bool {
        self.is(State::RESIDENT) && !self.is_in_use() && !self.is(State::FIXED)
    }

    /// Free to go, and the queue does not know.
    pub(super) fn is_forgotten(self) -> bool {
        self.is_evictable() && !self.is(State::QUEUED)
    }

    /// Held by one more.
    fn held(self, hold: Hold) -> State {
        match hold {
            Hold::Pin => State(self.0 + 1),
            Hold::Keep => State(self.0 | State::KEPT),
        }
    }
}

/// How a piece is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// Until it is released.
    Pin,
    /// For ever.
    Keep,
}

/// What became of the attempt to hold a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    Yes,
    NotResident,
    TooManyPins,
}

/// What became of a piece whose entry left the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dequeued {
    /// It was free to go: now it is the caller's to let go or to restore.
    Claimed,
    /// It has been used since: its entry must go back.
    Used,
    /// It is in use or not resident. Whoever releases it last queues it again.
    Forgotten,
}

/// All zero is a piece that has never been used. Aligned, so that threads that use different pieces write to different cache lines.
#[derive(Debug)]
#[cfg_attr(test, derive(Default))]
#[repr(C, align(64))]
pub(super) struct Slot {
    state: AtomicU64,
    /// Valid as long as it is RESIDENT.
    start: AtomicPtr<u8>,
    /// The time of the last use.
    used: AtomicU64,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: AtomicU64,
}

impl Slot {
    pub(super) fn state(&self) -> State {
        State(self.state.load(Acquire))
    }

    /// Where it lies. To be asked by those who hold it: for them, it lies somewhere.
    pub(super) fn start(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.start.load(Relaxed))
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Relaxed)
    }

    /// Holds it if it is resident.
    #[inline]
    pub(super) fn hold(&self, hold: Hold) -> Held {
        let held = self.change(|state| match hold {
            _ if !state.is(State::RESIDENT) => None,
            Hold::Pin if state.pins() >= MAX_PINS => None,
            // Nothing is written, so that those who ask again and again do not take the cache line from one another.
            Hold::Keep if state.is(State::KEPT) => None,
            _ => Some(state.held(hold)),
        });
        match held {
            Ok(_) => Held::Yes,
            Err(state) if !state.is(State::RESIDENT) => Held::NotResident,
            Err(_) if hold == Hold::Keep => Held::Yes,
            Err(_) => Held::TooManyPins,
        }
    }

    /// Notes that it was found resident.
    #[inline]
    pub(super) fn count_hit(&self, now: u64) {
        self.used.store(now, Relaxed);
        self.hits.fetch_add(1, Relaxed);
    }

    /// Undoes one pin and gives the state after it; `None` if there is no pin.
    #[inline]
    pub(super) fn unpin(&self) -> Option<State> {
        let before = self.change(|state| (state.pins() > 0).then(|| State(state.0 - 1))).ok()?;
        Some(State(before.0 - 1))
    }

    /// Marks it as being read.
    pub(super) fn start_filling(&self) {
        self.state.fetch_or(State::FILLING, AcqRel);
    }

    /// Undoes that mark.
    pub(super) fn stop_filling(&self) {
        self.state.fetch_and(!State::FILLING, AcqRel);
    }

    /// Makes it resident and holds it. `flags` may be COPIED, FIXED and QUEUED. Gives the state before.
    pub(super) fn publish(&self, start: NonNull<u8>, now: u64, flags: u64, hold: Hold) -> State {
        self.start.store(start.as_ptr(), Relaxed);
        self.used.store(now, Relaxed);
        self.misses.fetch_add(1, Relaxed);
        let published = |state: State| State(state.0 & !State::FILLING | State::RESIDENT | flags).held(hold);
        self.change(|state| Some(published(state))).unwrap_or_else(|state| state)
    }

    /// Takes it for eviction if it is free to go. Whoever asks for it from now on waits for the mutex.
    pub(super) fn claim(&self) -> Result<(), State> {
        self.change(|state| state.is_evictable().then_some(State(state.0 & !State::RESIDENT))).map(|_| ())
    }

    /// Decides about it when its entry has left the queue: takes it for eviction if it is free to go and was not `used` since.
    pub(super) fn dequeue(&self, used: bool) -> Dequeued {
        let before = self.change(|state| match state.is_evictable() {
            true if used => None,
            true => Some(State(state.0 & !State::QUEUED & !State::RESIDENT)),
            false => Some(State(state.0 & !State::QUEUED)),
        });
        match before {
            Ok(state) if state.is_evictable() => Dequeued::Claimed,
            Ok(_) => Dequeued::Forgotten,
            Err(_) => Dequeued::Used,
        }
    }

    /// Gives back what [`Slot::dequeue`] took. The caller puts it into the queue.
    pub(super) fn restore(&self) {
        self.state.fetch_or(State::RESIDENT | State::QUEUED, AcqRel);
    }

    /// Marks it as queued if it is free to go and not in the queue. The caller puts it there.
    pub(super) fn requeue(&self) -> bool {
        self.change(|state| state.is_forgotten().then_some(State(state.0 | State::QUEUED))).is_ok()
    }

    /// Lets go of what was claimed.
    pub(super) fn clear(&self) {
        self.start.store(ptr::null_mut(), Relaxed);
        self.evictions.fetch_add(1, Relaxed);
        self.state.fetch_and(!State::COPIED, AcqRel);
    }

    /// What there is to say about it, given its size.
    pub(super) fn stats(&self, nbytes: u64) -> Stats {
        let state = self.state();
        let if_any = |flags| if state.is(flags) { nbytes } else { 0 };
        Stats {
            pins: state.pins(),
            in_use_bytes: if state.is_in_use() { nbytes } else { 0 },
            copied_bytes: if state.is(State::RESIDENT) { if_any(State::COPIED) } else { 0 },
            charged_bytes: if_any(State::RESIDENT | State::FILLING),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            evictions: self.evictions.load(Relaxed),
        }
    }

    /// Replaces the state by what `change` makes of it, unless that is nothing. Gives the state before in both cases.
    #[inline]
    fn change(&self, change: impl Fn(State) -> Option<State>) -> Result<State, State> {
        let changed = self.state.fetch_update(AcqRel, Acquire, |state| change(State(state)).map(|state| state.0));
        changed.map(State).map_err(State)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn resident(flags: u64) -> Slot {
        let slot = Slot::default();
        slot.publish(NonNull::dangling(), 1, flags, Hold::Pin);
        slot.unpin().unwrap();
        slot
    }

    #[test]
    fn slots_fill_one_cache_line() {
        assert_eq!((size_of::<Slot>(), align_of::<Slot>()), (64, 64));
    }

    #[test]
    fn hold_pins_only_what_is_resident() {
        let slot = Slot::default();
        assert_eq!(slot.hold(Hold::Pin), Held::NotResident);
        assert_eq!(slot.hold(Hold::Keep), Held::NotResident);
        assert_eq!(slot.state(), State(0));
        assert_eq!(slot.unpin(), None);
        let slot = resident(0);
        assert_eq!(slot.hold(Hold::Pin), Held::Yes);
        assert_eq!(slot.hold(Hold::Keep), Held::Yes);
        assert_eq!(slot.hold(Hold::Keep), Held::Yes);
        assert_eq!(slot.state(), State(1 | State::RESIDENT | State::KEPT));
    }

    #[test]
    fn hold_refuses_before_the_count_wraps() {
        let slot = resident(State::QUEUED);
        slot.state.fetch_or(MAX_PINS - 1, AcqRel);
        assert_eq!(slot.hold(Hold::Pin), Held::Yes);
        for _ in 0..3 {
            assert_eq!(slot.hold(Hold::Pin), Held::TooManyPins);
        }
        assert_eq!(slot.hold(Hold::Keep), Held::Yes);
        assert_eq!(slot.state().pins(), MAX_PINS);
        assert_eq!(slot.unpin().unwrap().pins(), MAX_PINS - 1);
        assert!(slot.state().is(State::QUEUED) && slot.state().is(State::RESIDENT));
    }

    #[test]
    fn claim_and_dequeue_take_only_what_is_free_to_go() {
        assert!(resident(0).claim().is_ok());
        assert!(resident(State::FIXED).claim().is_err());
        assert!(Slot::default().claim().is_err());
        for hold in [Hold::Pin, Hold::Keep] {
            let slot = resident(State::QUEUED);
            slot.hold(hold);
            assert!(slot.claim().is_err());
            assert_eq!(slot.dequeue(false), Dequeued::Forgotten);
            assert!(slot.state().is(State::RESIDENT) && !slot.state().is(State::QUEUED));
        }
        let slot = resident(State::QUEUED);
        assert_eq!(slot.dequeue(true), Dequeued::Used);
        assert_eq!(slot.dequeue(false), Dequeued::Claimed);
        assert_eq!(slot.hold(Hold::Pin), Held::NotResident);
        slot.restore();
        assert_eq!(slot.hold(Hold::Pin), Held::Yes);
        assert!(slot.state().is(State::QUEUED));
    }

    #[test]
    fn requeue_marks_only_what_is_forgotten() {
        assert!(resident(0).requeue());
        assert!(!resident(State::QUEUED).requeue());
        assert!(!resident(State::FIXED).requeue());
        assert!(!Slot::default().requeue());
        let slot = resident(0);
        slot.hold(Hold::Pin);
        assert!(!slot.requeue());
    }
}
