//! Each tensor's digest, checked once, when the tensor is first used.

use super::super::shard::Shard;
use super::super::{Checkpoint, Tensor};
use super::claims::claims_of_all;
use super::ShardBytes;
use crate::error::Error;
use crate::format::checksum::Digest;
use crate::format::ChecksumError;
use crate::hashing::{pass, Input, Source, Wanted};
use crate::quote::excerpt;
use crate::workers::workers_for;
use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// So much of a tensor is worth a thread.
const BYTES_PER_WORKER: u64 = 8 * 1024 * 1024;

/// Nobody has asked.
const UNKNOWN: u8 = 0;
/// A thread is at it; others wait.
const RUNNING: u8 = 1;
const GOOD: u8 = 2;
const BAD: u8 = 3;

/// What is known of each tensor.
#[derive(Debug)]
pub(in crate::checkpoint) struct FirstUse {
    tensors: Vec<Entry>,
    /// Held to change a state, and by those who wait for that.
    changing: Mutex<()>,
    changed: Condvar,
}

#[derive(Debug)]
struct Entry {
    state: AtomicU8,
    digest: Digest,
}

impl FirstUse {
    /// # Errors
    ///
    /// [`Error::Checksum`]: a shard has no digests, or another header than theirs.
    pub(super) fn new(shards: &[Shard], len: usize) -> Result<FirstUse, Error> {
        let mut tensors = Vec::new();
        tensors.try_reserve_exact(len).map_err(|_| Error::NoMemory)?;
        for (shard, claims) in shards.iter().zip(claims_of_all(shards)?) {
            claims.check_header(shard)?;
            let entry = |digest: &Digest| Entry { state: AtomicU8::new(UNKNOWN), digest: *digest };
            match claims.stated.blake3 {
                Some(digests) => tensors.extend(digests.tensors.iter().map(entry)),
                None if shard.header.is_empty() => {}
                None => {
                    let source = ChecksumError::Missing { what: "BLAKE3 digests" };
                    return Err(Error::Checksum { path: shard.path_text(), source });
                }
            }
        }
        match tensors.len() == len {
            true => Ok(FirstUse { tensors, changing: Mutex::new(()), changed: Condvar::new() }),
            false => Err(Error::Internal { what: "there are not as many digests as tensors" }),
        }
    }

    /// Compares the digest that `digest` gives with that of the file, unless that has been done. If another thread is at it, waits.
    fn check(&self, tensor: &Tensor<'_>, digest: impl FnOnce() -> Result<Digest, Error>) -> Result<(), Error> {
        let entry = self.tensors.get(tensor.index());
        let entry = entry.ok_or(Error::Internal { what: "a tensor to be verified has no digest" })?;
        match entry.state.load(Ordering::Acquire) {
            GOOD => Ok(()),
            _ => self.check_slowly(entry, tensor, digest),
        }
    }

    #[cold]
    fn check_slowly(
        &self,
        entry: &Entry,
        tensor: &Tensor<'_>,
        digest: impl FnOnce() -> Result<Digest, Error>,
    ) -> Result<(), Error> {
        let mut changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match entry.state.load(Ordering::Relaxed) {
                GOOD => return Ok(()),
                BAD => return Err(mismatch(tensor)),
                RUNNING => changing = self.changed.wait(changing).unwrap_or_else(PoisonError::into_inner),
                _ => break,
            }
        }
        entry.state.store(RUNNING, Ordering::Relaxed);
        drop(changing);
        let mut running = Running { first_use: self, entry, becomes: UNKNOWN };
        if digest()? == entry.digest {
            running.becomes = GOOD;
            Ok(())
        } else {
            running.becomes = BAD;
            Err(mismatch(tensor))
        }
    }
}

/// A thread is at it until this goes, by whatever way.
struct Running<'f> {
    first_use: &'f FirstUse,
    entry: &'f Entry,
    /// Unknown if the bytes could not be read: the next one tries again.
    becomes: u8,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let changing = self.first_use.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.entry.state.store(self.becomes, Ordering::Release);
        drop(changing);
        self.first_use.changed.notify_all();
    }
}

impl Checkpoint {
    /// Before tensor is handed out: checks its digest if that is wanted and has not been done.
    #[inline]
    pub(in crate::checkpoint) fn check_first_use(&self, tensor: &Tensor<'_>) -> Result<(), Error> {
        self.check_first_use_unless(tensor, &|| Ok(()))
    }

    /// The same for somebody who may lose interest: `go_on` says so by an error, which is the outcome then.
    #[inline]
    pub(in crate::checkpoint) fn check_first_use_unless(
        &self,
        tensor: &Tensor<'_>,
        go_on: GoOn<'_>,
    ) -> Result<(), Error> {
        match &self.first_use {
            None => Ok(()),
            Some(first_use) => first_use.check(tensor, || self.digest(tensor, go_on)),
        }
    }

    /// After all of a tensor was read to the caller's memory: as [`Checkpoint::check_first_use_unless`], of these bytes.
    pub(in crate::checkpoint) fn check_read(
        &self,
        tensor: &Tensor<'_>,
        bytes: &[u8],
        go_on: GoOn<'_>,
    ) -> Result<(), Error> {
        match &self.first_use {
            None => Ok(()),
            Some(first_use) => first_use.check(tensor, || match bytes.len() as u64 {
                0..BYTES_PER_WORKER => Ok(blake3::hash(bytes).into()),
                _ => digest_of(tensor, &ReadBytes { bytes, start: tensor.file_range().start }, go_on),
            }),
        }
    }

    /// Whether the file of a tensor has changed, where that is wanted to be known.
    pub(in crate::checkpoint) fn check_unchanged(&self, tensor: &Tensor<'_>) -> Result<(), Error> {
        match self.watches_changes {
            true => tensor
                .shard
                .storage
                .check_unchanged()
                .map_err(|source| tensor.shard.storage_error(Some(tensor.name()), source)),
            false => Ok(()),
        }
    }

    /// What the bytes of a tensor come to: those of the file, or of memory.
    fn digest(&self, tensor: &Tensor<'_>, go_on: GoOn<'_>) -> Result<Digest, Error> {
        let source = ShardBytes { shards: std::slice::from_ref(tensor.shard), around_cache: false };
        let digest = digest_of(tensor, &source, go_on)?;
        self.check_unchanged(tensor)?;
        Ok(digest)
    }
}

/// Says, by an error, that nobody waits any more. Asked for each MiB.
pub(in crate::checkpoint) type GoOn<'g> = &'g (dyn Fn() -> Result<(), Error> + Sync);

/// By several threads, if it is large.
fn digest_of<S: Source>(tensor: &Tensor<'_>, source: &S, go_on: GoOn<'_>) -> Result<Digest, Error> {
    let bytes = tensor.file_range();
    let wanted = Wanted { blake3: true, ..Wanted::default() };
    let input = Input { data_start: bytes.start, tensors: vec![bytes], wanted };
    let workers = workers_for((tensor.nbytes() / BYTES_PER_WORKER) as usize).max(1);
    let sums = pass(source, &[input], workers, |_, _| go_on())?;
    match sums.first().map(|sums| &*sums.tensors) {
        Some([sums]) => Ok(sums.blake3),
        _ => Err(Error::Internal { what: "a tensor has not one sum" }),
    }
}

/// All bytes of a tensor, in memory.
struct ReadBytes<'b> {
    bytes: &'b [u8],
    /// Where they start in the file.
    start: u64,
}

impl Source for ReadBytes<'_> {
    type Room = ();

    fn bytes<'a>(&'a self, _: usize, place: Range<u64>, (): &'a mut ()) -> Result<&'a [u8], Error> {
        let (from, to) = (place.start - self.start, place.end - self.start);
        let bytes = self.bytes.get(from as usize..to as usize);
        bytes.ok_or(Error::Internal { what: "a block leaves the tensor that was read" })
    }
}

#[cold]
fn mismatch(tensor: &Tensor<'_>) -> Error {
    let source = ChecksumError::Tensor { tensor: excerpt(tensor.name()) };
    Error::Checksum { path: tensor.shard.path_text(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::OpenOptions;
    use std::sync::atomic::AtomicUsize;
    use std::sync::Barrier;

    const DIGEST: Digest = [7; 32];

    fn checkpoint() -> Checkpoint {
        let header = br#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   "#;
        let file = [&(header.len() as u64).to_le_bytes()[..], header, b"x"].concat();
        Checkpoint::open_memory(file, OpenOptions::default()).unwrap()
    }

    fn first_use() -> FirstUse {
        let entry = Entry { state: AtomicU8::new(UNKNOWN), digest: DIGEST };
        FirstUse { tensors: vec![entry], changing: Mutex::new(()), changed: Condvar::new() }
    }

    #[test]
    fn check_is_done_once_by_many_threads() {
        let checkpoint = checkpoint();
        for right in [true, false] {
            let (first_use, calls, barrier) = (first_use(), AtomicUsize::new(0), Barrier::new(16));
            std::thread::scope(|scope| {
                for _ in 0..16 {
                    scope.spawn(|| {
                        barrier.wait();
                        let outcome = first_use.check(&checkpoint.tensor(0).unwrap(), || {
                            calls.fetch_add(1, Ordering::Relaxed);
                            std::thread::sleep(std::time::Duration::from_millis(20));
                            Ok(if right { DIGEST } else { [8; 32] })
                        });
                        assert_eq!(outcome.is_ok(), right);
                    });
                }
            });
            assert_eq!(calls.into_inner(), 1);
        }
    }

    #[test]
    fn check_refuses_what_has_no_digest() {
        let checkpoint = checkpoint();
        let none = FirstUse { tensors: vec![], ..first_use() };
        let outcome = none.check(&checkpoint.tensor(0).unwrap(), || Ok(DIGEST));
        assert!(matches!(outcome, Err(Error::Internal { .. })), "{outcome:?}");
    }

    #[test]
    fn check_is_tried_again_after_a_failure_or_a_panic() {
        let (checkpoint, first_use) = (checkpoint(), first_use());
        let tensor = checkpoint.tensor(0).unwrap();
        assert!(matches!(first_use.check(&tensor, || Err(Error::Cancelled)), Err(Error::Cancelled)));
        let panics = std::panic::AssertUnwindSafe(|| first_use.check(&tensor, || panic!("on purpose")));
        assert!(std::panic::catch_unwind(panics).is_err());
        first_use.check(&tensor, || Ok(DIGEST)).unwrap();
        first_use.check(&tensor, || Ok([0; 32])).unwrap();
    }
}
