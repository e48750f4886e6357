//! What can only be hashed from front to back, by several threads.

use super::{Input, Sums};
use crate::error::Error;
use crate::format::checksum::Digest;
use sha2::{Digest as _, Sha256};
use std::cmp::Ordering;
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

const NO_TURN: Error = Error::Internal { what: "bytes to be hashed in order have no turn" };

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
    /// `None` if there is no memory.
    pub(super) fn new(inputs: &[Input]) -> Option<Turns> {
        let turn = |input: &Input| Turn {
            next: if input.wanted.file_sha256 { 0 } else { input.data_start },
            hashes: input.wanted.in_order().then(|| Hashes {
                data_start: input.data_start,
                file: input.wanted.file_sha256.then(Sha256::new),
                data: input.wanted.data_sha256.then(Sha256::new),
            }),
        };
        let mut turns = Vec::new();
        turns.try_reserve_exact(inputs.len()).ok()?;
        turns.extend(inputs.iter().map(turn));
        let state = State { inputs: turns, given_up: false };
        Some(Turns { inputs: Mutex::new(state), changed: Condvar::new() })
    }

    /// Waits until all bytes before these have been hashed, and hashes these. Does nothing once a thread has given up.
    ///
    /// Blocks are given out in order, so whoever waits does so for one that is being worked on.
    ///
    /// # Errors
    ///
    /// [`Error::Internal`]: the turn of these bytes has been, or will never be. Whoever gets it gives up.
    pub(super) fn take(&self, input: usize, place: Range<u64>, bytes: &[u8]) -> Result<(), Error> {
        if place.is_empty() {
            // A block of empty tensors. It begins where the next one does, so that both would have the same turn.
            return Ok(());
        }
        let mut state = self.lock();
        let mut hashes = loop {
            if state.given_up {
                return Ok(());
            }
            let turn = state.inputs.get_mut(input).ok_or(NO_TURN)?;
            match turn.next.cmp(&place.start) {
                // If they are away, another thread is at these very bytes.
                Ordering::Equal => break turn.hashes.take().ok_or(NO_TURN)?,
                Ordering::Greater => return Err(NO_TURN),
                Ordering::Less => {}
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        hashes.update(bytes, place.start);
        let mut state = self.lock();
        *state.inputs.get_mut(input).ok_or(NO_TURN)? = Turn { next: place.end, hashes: Some(hashes) };
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Lets all that wait go.
    pub(super) fn give_up(&self) {
        self.lock().given_up = true;
        self.changed.notify_all();
    }

    /// Writes what came out into `sums`, which are in the order of the inputs, as are those that were given to [`Turns::new`].
    ///
    /// # Errors
    ///
    /// [`Error::Internal`]: bytes of an input have had no turn.
    pub(super) fn finish(self, inputs: &[Input], sums: &mut [Sums]) -> Result<(), Error> {
        let digest = |hash: Option<Sha256>| hash.map_or([0; 32], |hash| Digest::from(hash.finalize()));
        let state = self.inputs.into_inner().unwrap_or_else(PoisonError::into_inner);
        for ((turn, input), sums) in state.inputs.into_iter().zip(inputs).zip(sums) {
            if !input.wanted.in_order() {
                continue;
            }
            let end = input.tensors.last().map_or(input.data_start, |last| last.end);
            let hashes = turn.hashes.filter(|_| turn.next == end).ok_or(NO_TURN)?;
            sums.file_sha256 = digest(hashes.file);
            sums.data_sha256 = digest(hashes.data);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
