//! Whether the bytes are those of which there are checksums.
//!
//! ```text
//! claims      what the headers say, and whether they are themselves what they say
//! compare     what the bytes come to, beside that
//! first_use   each tensor's digest, checked once, when it is first used
//! ```

mod claims;
mod compare;
mod first_use;

pub(in crate::checkpoint) use first_use::{FirstUse, GoOn};

use super::shard::Shard;
use super::Checkpoint;
use crate::error::Error;
use crate::hashing::{pass, Input, Source};
use crate::storage::{physical_memory, Scratch};
use crate::task::Task;
use crate::workers::workers_for;
use claims::claims_of_all;
use compare::{compare, input_of, Known};
use std::ops::Range;

/// When the bytes of a checkpoint are compared with its checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verify {
    /// Never, unless [`Checkpoint::verify`] is called.
    #[default]
    None,
    /// When it is opened: the headers, where they have digests. No tensor is read.
    Structure,
    /// As `Structure`; and each tensor once, when it is first handed out. Every shard needs BLAKE3 digests.
    FirstUse,
    /// When it is opened: everything, by all checksums that there are. Every shard needs one.
    Full,
}

/// Kinds of checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checks {
    /// MindSpore's [`CRC_KEY`](crate::format::CRC_KEY).
    pub crc: bool,
    /// [`SHA256_KEY`](crate::format::SHA256_KEY).
    pub sha256: bool,
    /// Our digests of the header and of each tensor, [`BLAKE3_KEY`](crate::format::BLAKE3_KEY).
    pub blake3: bool,
    /// SHA-256 of whole files, which the caller knows.
    pub file_sha256: bool,
}

impl Checks {
    fn none(self) -> bool {
        self == Checks::default()
    }

    fn add(&mut self, other: Checks) {
        self.crc |= other.crc;
        self.sha256 |= other.sha256;
        self.blake3 |= other.blake3;
        self.file_sha256 |= other.file_sha256;
    }
}

/// What to verify, and how.
#[derive(Clone, Copy, Debug, Default)]
pub struct VerifyOptions<'a> {
    /// Kinds that every shard must have. None: whatever each has, which must be at least one.
    pub checks: Checks,
    /// The SHA-256 of each shard's file, in the order of the shards, where it is known. May be shorter. Needed for
    /// [`Checks::file_sha256`], but may be given without it.
    pub file_sha256: &'a [Option<[u8; 32]>],
    /// The most threads; 0 leaves the number to the library.
    pub workers: usize,
    /// Read around the page cache (Linux 6.14) whatever the size. Otherwise that is done for more than half of this machine's memory.
    pub around_cache: bool,
    /// How far it is.
    pub task: Option<&'a Task>,
}

/// What came out.
#[derive(Debug, Default)]
#[must_use = "a mismatch is not an error of the call"]
#[non_exhaustive]
pub struct Report {
    /// Tensors whose bytes were verified, by whatever kind.
    pub tensors: u64,
    /// Tensors that are known to be bad. A CRC or SHA-256 that does not match says only that something of a shard is.
    pub bad_tensors: u64,
    /// The first of them.
    pub first_bad_tensor: Option<usize>,
    /// Shards of which something does not match.
    pub bad_shards: u64,
    /// The first of them.
    pub first_bad_shard: Option<usize>,
    /// Bytes that were read.
    pub bytes: u64,
    /// The kinds that were verified, of any shard.
    pub checks: Checks,
    /// The kinds that did not match.
    pub bad_checks: Checks,
    first_error: Option<Error>,
}

impl Report {
    /// # Errors
    ///
    /// [`Error::Checksum`]: the first mismatch.
    pub fn into_result(self) -> Result<(), Error> {
        self.first_error.map_or(Ok(()), Err)
    }
}

impl Checkpoint {
    /// Reads all tensors and compares them with the checksums that the shards carry, or that the caller knows. The file's bytes are
    /// verified, not what was written to copy-on-write pages. Takes several threads, which have ended when this returns, and a MiB for each.
    ///
    /// A mismatch is in the [`Report`]; an error is whatever kept this from finding out.
    ///
    /// # Errors
    ///
    /// [`Error::Checksum`]: a checksum is missing, or malformed; [`Error::Storage`]: bytes could not be read, or a file was changed
    /// since it was opened; [`Error::Cancelled`]; [`Error::NoMemory`]; [`Error::InvalidArgument`]: more digests of files than shards.
    ///
    /// ```no_run
    /// # let checkpoint = safetensors_lazy::Checkpoint::open("model.safetensors", Default::default())?;
    /// let report = checkpoint.verify(Default::default())?;
    /// println!("{} of {} tensors are bad", report.bad_tensors, report.tensors);
    /// report.into_result()?;
    /// # Ok::<(), safetensors_lazy::Error>(())
    /// ```
    pub fn verify(&self, options: VerifyOptions<'_>) -> Result<Report, Error> {
        let shards = self.shards.list();
        self.check_digests(options.file_sha256.len())?;
        let unwatched = Task::default();
        let task = options.task.unwrap_or(&unwatched);
        task.check()?;
        let claims = claims_of_all(shards)?;
        let mut known = Vec::new();
        known.try_reserve_exact(shards.len()).map_err(|_| Error::NoMemory)?;
        for (number, (shard, claims)) in shards.iter().zip(claims).enumerate() {
            known.push(Known::new(shard, claims, options.file_sha256.get(number).copied().flatten())?);
        }
        let mut inputs = Vec::new();
        inputs.try_reserve_exact(shards.len()).map_err(|_| Error::NoMemory)?;
        for (shard, known) in shards.iter().zip(&known) {
            inputs.push(input_of(shard, known, options.checks)?);
        }

        let bytes = inputs.iter().map(Input::bytes).fold(0, u64::saturating_add);
        task.begin(bytes, inputs.iter().map(|input| input.tensors.len() as u64).sum());
        let source = ShardBytes { shards, around_cache: options.around_cache || bytes > physical_memory() / 2 };
        let sums = pass(&source, &inputs, workers(options.workers), |bytes, items| task.done(bytes, items));
        task.end();
        let sums = sums?;
        if [known.len(), inputs.len(), sums.len()] != [shards.len(); 3] {
            return Err(Error::Internal { what: "not every shard has been summed" });
        }
        // What has changed does not match either, but that is not the news.
        for shard in shards {
            shard.storage.check_unchanged().map_err(|source| shard.storage_error(None, source))?;
        }

        let mut report = Report { bytes, ..Report::default() };
        for (number, (((shard, known), input), sums)) in shards.iter().zip(&known).zip(&inputs).zip(&sums).enumerate() {
            let compared = compare(shard, known, input, sums)?;
            report.tensors += compared.tensors;
            report.checks.add(compared.checks);
            report.bad_checks.add(compared.bad_checks);
            report.bad_tensors += compared.bad_tensors;
            let first = compared.first_bad_tensor.map(|within| self.shards.first(number) + within);
            report.first_bad_tensor = report.first_bad_tensor.or(first);
            if let Some(source) = compared.first_error {
                report.bad_shards += 1;
                report.first_bad_shard = report.first_bad_shard.or(Some(number));
                report.first_error.get_or_insert_with(|| Error::Checksum { path: shard.path_text(), source });
            }
        }
        Ok(report)
    }

    /// Refuses more digests of files than there are shards. To be asked before an array from C is
    /// read: its length may be garbage.
    pub(crate) fn check_digests(&self, len: usize) -> Result<(), Error> {
        let shards = self.shards.list().len();
        match len > shards {
            true => {
                let what = format!("{len} digests of files were given for {shards} shards");
                Err(Error::InvalidArgument { what })
            }
            false => Ok(()),
        }
    }

    /// What opening does besides, where that is wanted.
    pub(super) fn verify_as(&mut self, when: Verify) -> Result<(), Error> {
        self.watches_changes = when != Verify::None;
        match when {
            Verify::None => Ok(()),
            Verify::Structure => claims::check_headers(self.shards.list()),
            Verify::FirstUse => {
                self.first_use = Some(FirstUse::new(self.shards.list(), self.len())?);
                Ok(())
            }
            Verify::Full => self.verify(VerifyOptions::default())?.into_result(),
        }
    }
}

fn workers(wanted: usize) -> usize {
    let most = workers_for(usize::MAX);
    match wanted {
        0 => most,
        _ => wanted.min(most),
    }
}

/// The bytes of shards, as the hashing wants them.
struct ShardBytes<'c> {
    shards: &'c [Shard],
    around_cache: bool,
}

impl Source for ShardBytes<'_> {
    type Room = Scratch;

    fn bytes<'a>(&'a self, input: usize, place: Range<u64>, room: &'a mut Scratch) -> Result<&'a [u8], Error> {
        let shard = self.shards.get(input).ok_or(Error::Internal { what: "a block is of no shard" })?;
        let len = place.end - place.start;
        let read = match self.around_cache {
            true => room.read_around_cache(&shard.storage, place.start, len),
            false => room.read(&shard.storage, place.start, len),
        };
        read.map_err(|source| shard.storage_error(None, source))
    }
}
