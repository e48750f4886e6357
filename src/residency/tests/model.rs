//! The ledger against a model that does the same in the simplest way, after each of any sequence of calls.

use super::super::ledger::Ledger;
use super::super::{AcquireError, InUse, NotInUse, Stats};
use super::mock::{Mock, Piece, Ticks};
use proptest::prelude::*;
use std::sync::atomic::Ordering::Relaxed;

const PIECES: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Call {
    Acquire(usize),
    Keep(usize),
    Release(usize),
    Evict(usize),
    EvictAll,
    SetBudget(u64),
    CopiesFail(bool),
}

fn call() -> impl Strategy<Value = Call> {
    let index = 0..PIECES;
    prop_oneof![
        8 => index.clone().prop_map(Call::Acquire),
        1 => index.clone().prop_map(Call::Keep),
        7 => index.clone().prop_map(Call::Release),
        2 => index.prop_map(Call::Evict),
        1 => Just(Call::EvictAll),
        2 => prop_oneof![Just(0), 1..40u64].prop_map(Call::SetBudget),
        1 => any::<bool>().prop_map(Call::CopiesFail),
    ]
}

/// What a call came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Evicted(bool),
    NotInUse,
    InUse,
    Budget { needed: u64, in_use: u64, budget: u64 },
    Storage,
}

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    pins: u64,
    kept: bool,
    hits: u64,
    misses: u64,
    evictions: u64,
}

#[derive(Debug)]
struct Model<'m> {
    mock: &'m Mock,
    budget: u64,
    /// What is resident, most recently used last.
    resident: Vec<usize>,
    uses: [Use; PIECES],
    dropped: Vec<usize>,
}

impl Model<'_> {
    fn nbytes(&self, index: usize) -> u64 {
        self.mock.pieces[index].nbytes
    }

    fn is_in_use(&self, index: usize) -> bool {
        self.uses[index].pins > 0 || self.uses[index].kept
    }

    fn may_go(&self, index: usize) -> bool {
        !self.is_in_use(index) && (self.mock.pieces[index].in_place || !self.mock.writable)
    }

    fn bytes(&self, of: impl Fn(usize) -> bool) -> u64 {
        self.resident.iter().filter(|index| of(**index)).map(|index| self.nbytes(*index)).sum()
    }

    fn evict(&mut self, index: usize) {
        self.resident.retain(|other| *other != index);
        self.uses[index].evictions += 1;
        if self.mock.pieces[index].in_place {
            self.dropped.push(index);
        }
    }

    fn evict_until_fits(&mut self, needed: u64) {
        while self.budget != 0 && self.bytes(|_| true) + needed > self.budget {
            match self.resident.iter().copied().find(|index| self.may_go(*index)) {
                Some(index) => self.evict(index),
                None => return,
            }
        }
    }

    fn hold(&mut self, index: usize, keep: bool) -> Outcome {
        let nbytes = self.nbytes(index);
        if let Some(place) = self.resident.iter().position(|other| *other == index) {
            if !keep {
                self.resident.remove(place);
                self.resident.push(index);
                self.uses[index].hits += 1;
            }
        } else {
            let in_use = self.bytes(|index| !self.may_go(index));
            if nbytes > 0 && self.budget != 0 && in_use + nbytes > self.budget {
                return Outcome::Budget { needed: nbytes, in_use, budget: self.budget };
            }
            if nbytes > 0 {
                self.evict_until_fits(nbytes);
            }
            if !self.mock.pieces[index].in_place && self.mock.fails.load(Relaxed) {
                return Outcome::Storage;
            }
            self.resident.push(index);
            self.uses[index].misses += 1;
        }
        match keep {
            true => self.uses[index].kept = true,
            false => self.uses[index].pins += 1,
        }
        Outcome::Done
    }

    fn call(&mut self, call: Call) -> Outcome {
        match call {
            Call::Acquire(index) => return self.hold(index, false),
            Call::Keep(index) => return self.hold(index, true),
            Call::Release(index) if self.uses[index].pins == 0 => return Outcome::NotInUse,
            Call::Release(index) => {
                self.uses[index].pins -= 1;
                self.evict_until_fits(0);
            }
            Call::Evict(index) if self.is_in_use(index) => return Outcome::InUse,
            Call::Evict(index) => {
                let evicted = self.resident.contains(&index) && self.may_go(index);
                if evicted {
                    self.evict(index);
                }
                return Outcome::Evicted(evicted);
            }
            Call::EvictAll => {
                for index in (0..PIECES).filter(|index| self.resident.contains(index)).collect::<Vec<_>>() {
                    if self.may_go(index) {
                        self.evict(index);
                    }
                }
            }
            Call::SetBudget(budget) => {
                self.budget = budget;
                self.evict_until_fits(0);
            }
            Call::CopiesFail(fails) => self.mock.fails.store(fails, Relaxed),
        }
        Outcome::Done
    }

    fn stats(&self, index: usize) -> Stats {
        let Use { pins, hits, misses, evictions, .. } = self.uses[index];
        let nbytes_if = |condition| if condition { self.nbytes(index) } else { 0 };
        let resident = self.resident.contains(&index);
        Stats {
            pins,
            in_use_bytes: nbytes_if(self.is_in_use(index)),
            copied_bytes: nbytes_if(resident && !self.mock.pieces[index].in_place),
            charged_bytes: nbytes_if(resident),
            hits,
            misses,
            evictions,
        }
    }
}

fn hold_outcome(held: Result<std::ptr::NonNull<u8>, AcquireError>, index: usize, mock: &Mock) -> Outcome {
    match held {
        Ok(start) => {
            let Piece { nbytes, in_place } = mock.pieces[index];
            if !in_place && nbytes > 0 {
                // SAFETY: it is held.
                let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), nbytes as usize) };
                assert!(bytes.iter().all(|byte| *byte == Mock::pattern(index)));
            }
            Outcome::Done
        }
        Err(AcquireError::Budget { needed, in_use, budget }) => Outcome::Budget { needed, in_use, budget },
        Err(AcquireError::Storage(_)) => Outcome::Storage,
        Err(error) => panic!("{error:?}"),
    }
}

fn call_ledger(ledger: &Ledger<Ticks>, mock: &Mock, call: Call) -> Outcome {
    match call {
        Call::Acquire(index) => hold_outcome(ledger.acquire(index, mock), index, mock),
        Call::Keep(index) => hold_outcome(ledger.keep(index, mock), index, mock),
        Call::Release(index) => match ledger.release(index, mock) {
            Ok(()) => Outcome::Done,
            Err(NotInUse) => Outcome::NotInUse,
        },
        Call::Evict(index) => match ledger.evict(index, mock) {
            Ok(evicted) => Outcome::Evicted(evicted),
            Err(InUse) => Outcome::InUse,
        },
        Call::EvictAll => {
            ledger.evict_all(mock);
            Outcome::Done
        }
        Call::SetBudget(budget) => {
            ledger.set_budget(budget, mock);
            assert_eq!(ledger.budget(), budget);
            Outcome::Done
        }
        Call::CopiesFail(_) => Outcome::Done,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn ledger_does_what_the_model_does(
        sizes in prop::collection::vec((prop_oneof![1 => Just(0), 6 => 1..16u64], any::<bool>()), PIECES),
        writable in prop::bool::weighted(0.2),
        budget in prop_oneof![1 => Just(0), 5 => 1..40u64],
        calls in prop::collection::vec(call(), 1..120),
    ) {
        let mock = Mock { writable, ..Mock::new(sizes) };
        let ledger = Ledger::with_clock(PIECES, budget, Ticks::default());
        let mut model =
            Model { mock: &mock, budget, resident: Vec::new(), uses: Default::default(), dropped: Vec::new() };
        for call in calls {
            let expected = model.call(call);
            prop_assert_eq!(call_ledger(&ledger, &mock, call), expected, "{:?}", call);
            let mut total = Stats::default();
            for index in 0..PIECES {
                prop_assert_eq!(ledger.stats(index, &mock), model.stats(index), "piece {} after {:?}", index, call);
                prop_assert_eq!(ledger.is_in_use(index), model.is_in_use(index));
                total = total.plus(model.stats(index));
            }
            prop_assert_eq!(ledger.total_stats(&mock), total);
            prop_assert_eq!(ledger.lock().charged, total.charged_bytes);
            prop_assert_eq!(&*mock.dropped.lock().unwrap(), &model.dropped);
        }
    }
}
