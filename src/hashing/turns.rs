//! What can only be hashed from front to back, by several threads.

use super::{Input, Sums};
use crate::format::checksum::Digest;
use sha2::{Digest as _, Sha256};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The hashes over all bytes of each input, and whose turn it is.
pub(super) struct Turns {
    inputs: Mutex<State>,
    changed: Condvar,
}

struct State {
    inputs: Vec<Turn>,
    /// A thread has failed, so that turns may never come.
    given_up: bool,
}

struct Turn {
    /// The byte that comes next.
    next: u64,
    /// Away while a thread is at it.
    hashes: Option<Hashes>,
}

struct Hashes {
    data_start: u64,
    file: Option<Sha256>,
    data: Option<Sha256>,
}

impl Hashes {
    fn update(&mut self, bytes: &[u8], start: u64) {
        if let Some(file) = &mut self.file {
            file.update(bytes);
        }
        if let (Some(data), true) = (&mut self.data, start >= self.data_start) {
            data.update(bytes);
        }
    }
}

impl Turns {
    pub(super) fn new(inputs: &[Input]) -> Turns {
        let turn = |input: &Input| Turn {
            next: if input.wanted.file_sha256 { 0 } else { input.data_start },
            hashes: input.wanted.in_order().then(|| Hashes {
                data_start: input.data_start,
                file: input.wanted.file_sha256.then(Sha256::new),
                data: input.wanted.data_sha256.then(Sha256::new),
            }),
        };
        let state = State { inputs: inputs.iter().map(turn).collect(), given_up: false };
        Turns { inputs: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits until all bytes before these have been hashed, and hashes these. Does nothing once a thread has given up.
    ///
    /// Blocks are given out in order, so whoever waits does so for one that is being worked on.
    pub(super) fn take(&self, input: usize, place: Range<u64>, bytes: &[u8]) {
        let mut state = self.lock();
        let mut hashes = loop {
            if state.given_up {
                return;
            }
            match state.inputs.get_mut(input) {
                Some(turn) if turn.next == place.start => match turn.hashes.take() {
                    Some(hashes) => break hashes,
                    // Nothing was wanted.
                    None => return,
                },
                Some(_) => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                None => return,
            }
        };
        drop(state);
        hashes.update(bytes, place.start);
        let mut state = self.lock();
        if let Some(turn) = state.inputs.get_mut(input) {
            *turn = Turn { next: place.end, hashes: Some(hashes) };
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Lets all that wait go.
    pub(super) fn give_up(&self) {
        self.lock().given_up = true;
        self.changed.notify_all();
    }

    /// Writes what came out into `sums`, which are in the order of the inputs.
    pub(super) fn finish(self, sums: &mut [Sums]) {
        let digest = |hash: Option<Sha256>| hash.map_or([0; 32], |hash| Digest::from(hash.finalize()));
        let state = self.inputs.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (turn, sums) in state.inputs.into_iter().zip(sums) {
            if let Some(hashes) = turn.hashes {
                sums.file_sha256 = digest(hashes.file);
                sums.data_sha256 = digest(hashes.data);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
