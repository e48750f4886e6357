//! What of a checkpoint is in memory: held, let go, read ahead.

use super::shard::Shard;
use super::{strays, Checkpoint, Tensor, TensorBytes};
use crate::error::Error;
use crate::quote::excerpt;
use crate::residency::{AcquireError, Source};
use crate::storage::{Buffer, Storage, StorageError, StorageKind};
use std::ops::Range;
use std::ptr::NonNull;

/// What is in memory of one tensor, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Residency {
    /// Bytes in physical memory now, on this process's account: measured for what is mapped, and all of what is held in copies. `None`
    /// where the system does not tell.
    pub resident_bytes: Option<u64>,
    /// Bytes of tensors that are in use, which are never evicted.
    pub in_use_bytes: u64,
    /// Bytes of tensors that are held in copies.
    pub copied_bytes: u64,
    /// Bytes that count against the budget.
    pub charged_bytes: u64,
    /// The budget; 0 if there is none.
    pub budget: u64,
    /// How often a tensor was found to be held when it was pinned.
    pub hits: u64,
    /// How often it was not.
    pub misses: u64,
    /// How often a tensor was evicted, for whatever reason.
    pub evictions: u64,
}

/// A tensor in use: it is not evicted before this is dropped. Made by [`Checkpoint::pin`].
#[derive(Debug)]
pub struct Pinned<'c> {
    checkpoint: &'c Checkpoint,
    index: usize,
    bytes: TensorBytes<'c>,
}

/// As [`TensorBytes`], but all that is given lives only as long as this: a copy may go then.
impl Pinned<'_> {
    /// The first byte, aligned for the tensor's dtype; never NULL.
    pub fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    /// The first byte, to write to: under the same condition as [`TensorBytes::as_mut_ptr`].
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.bytes.as_mut_ptr()
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The bytes as a slice.
    ///
    /// # Safety
    ///
    /// As for [`TensorBytes::as_slice`].
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the bytes stay as long as they are pinned; the rest is the caller's promise.
        unsafe { self.bytes.as_slice() }
    }
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        // It was pinned when this was made.
        let _ = self.checkpoint.release(self.index);
    }
}

impl Checkpoint {
    /// Marks tensor `index` as in use and as the most recently used, and gives its bytes. If it is not held yet, it counts against the
    /// budget from now on, and the least recently used tensors that are not in use are evicted until it fits.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`]; [`Error::Budget`] if it does not fit beside what is in use; [`Error::Storage`] if a copy is needed and
    /// cannot be made.
    pub fn pin(&self, index: usize) -> Result<Pinned<'_>, Error> {
        Ok(Pinned { checkpoint: self, index, bytes: self.acquire(index)? })
    }

    /// As [`Checkpoint::pin`], to be undone by [`Checkpoint::release`]: a copy may go then.
    pub(crate) fn acquire(&self, index: usize) -> Result<TensorBytes<'_>, Error> {
        let tensor = self.tensor_at(index)?;
        self.check_first_use(&tensor)?;
        let start = self.ledger.acquire(index, self).map_err(|error| acquire_error(&tensor, error))?;
        Ok(TensorBytes::new(start, tensor.nbytes()))
    }

    /// Undoes one [`Checkpoint::acquire`].
    pub(crate) fn release(&self, index: usize) -> Result<(), Error> {
        // Before it is released, since it may be evicted by that.
        let used = self.strays.note(index, self.len());
        let released = self.ledger.release(index, self);
        if let Some(used) = used {
            self.drop_strays(used);
        }
        released.map_err(|_| match self.tensor_at(index) {
            Ok(tensor) => Error::NotInUse { tensor: excerpt(tensor.name()) },
            Err(error) => error,
        })
    }

    /// Takes tensor `index` out of memory: its copy is freed, or its pages leave this process. Pointers to it stay valid, and its pages
    /// come back when they are touched. With `page_cache` they also leave the page cache, where no other process has them mapped.
    ///
    /// Pages that another tensor has a part in which is held stay, and so do pages that were written to after copy-on-write.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`]; [`Error::InUse`]: it is pinned, or [`Checkpoint::tensor_ptr`] has given a pointer to its copy away;
    /// [`Error::Storage`]: the checkpoint is locked into memory.
    pub fn evict(&self, index: usize, page_cache: bool) -> Result<(), Error> {
        let tensor = self.tensor_at(index)?;
        self.check_not_locked()?;
        self.expect_drops();
        let evicted = self.ledger.evict(index, self);
        let was_held = evicted.map_err(|_| Error::InUse { tensor: excerpt(tensor.name()) })?;
        self.ledger.drop_pages(|is_held| {
            // Another thread may have acquired it meanwhile.
            if !is_held(index) {
                // What was held in place has left with its pages. What was not may have been touched all the same.
                if !was_held || in_place(&tensor).is_none() {
                    self.drop_pages_of(&tensor, is_held);
                }
                if page_cache {
                    self.drop_cached_of(&tensor, is_held);
                }
            }
        });
        Ok(())
    }

    /// Takes all tensors that are not in use out of memory, as [`Checkpoint::evict`] does.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]: the checkpoint is locked into memory.
    pub fn evict_all(&self, page_cache: bool) -> Result<(), Error> {
        self.check_not_locked()?;
        self.expect_drops();
        self.ledger.evict_all(self);
        self.ledger.drop_pages(|is_held| {
            for (number, shard) in self.shards.list().iter().enumerate() {
                self.neighbours.unused(&self.shards, number, 0..shard.storage.size(), is_held, |bytes| {
                    shard.storage.drop_pages(bytes.clone());
                    if page_cache {
                        shard.storage.drop_cached(bytes);
                    }
                });
            }
        });
        Ok(())
    }

    /// Changes the budget, in bytes; 0 is none. What exceeds it is evicted, except what is in use, which goes when it is released.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`]: the checkpoint is locked into memory.
    pub fn set_budget(&self, bytes: u64) -> Result<(), Error> {
        if bytes > 0 {
            self.check_not_locked()?;
            self.expect_drops();
        }
        // After copy-on-write, pages are not dropped but read again.
        let has_strays = |shard: &Shard| shard.storage.kind() == StorageKind::Mmap && !shard.storage.is_writable();
        self.strays.want(bytes > 0 && self.shards.list().iter().any(has_strays));
        self.ledger.set_budget(bytes, self);
        Ok(())
    }

    /// Asks for tensors to be read into the page cache, in this order, by a thread that ends with the checkpoint. With a budget, at most as many
    /// bytes as that: what comes after them in `indices` is left out.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`], before anything is read.
    pub fn prefetch(&self, indices: &[usize]) -> Result<(), Error> {
        for index in indices {
            self.tensor_at(*index)?;
        }
        let mut left = match self.ledger.budget() {
            0 => u64::MAX,
            budget => budget,
        };
        // Neighbours in the file are asked for at once.
        let mut run: Option<(usize, Range<u64>)> = None;
        for tensor in indices.iter().filter_map(|index| self.tensor(*index)) {
            let mut bytes = tensor.file_range();
            bytes.end = bytes.start + tensor.nbytes().min(left);
            left -= bytes.end - bytes.start;
            match &mut run {
                Some((shard, run)) if *shard == tensor.shard() && run.end == bytes.start => run.end = bytes.end,
                _ => {
                    self.ask_for(run.replace((tensor.shard(), bytes)));
                }
            }
        }
        self.ask_for(run);
        Ok(())
    }

    fn ask_for(&self, run: Option<(usize, Range<u64>)>) {
        if let Some((shard, bytes)) = run.and_then(|(shard, bytes)| Some((self.shards.list().get(shard)?, bytes))) {
            shard.storage.read_ahead(&self.read_ahead, bytes);
        }
    }

    /// What is in memory of tensor `index`.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchTensor`].
    pub fn residency(&self, index: usize) -> Result<Residency, Error> {
        let tensor = self.tensor_at(index)?;
        let mapped = tensor.shard.storage.resident(tensor.file_range());
        Ok(self.residency_of(self.ledger.stats(index, self), mapped))
    }

    /// What is in memory of all tensors. Takes time in proportion to their number and their bytes.
    pub fn total_residency(&self) -> Residency {
        let shards = self.shards.list().iter().map(|shard| &shard.storage);
        let mapped = shards.map(|storage| storage.resident(0..storage.size())).sum();
        self.residency_of(self.ledger.total_stats(self), mapped)
    }

    fn residency_of(&self, stats: crate::residency::Stats, mapped: Option<u64>) -> Residency {
        Residency {
            resident_bytes: mapped.map(|mapped| mapped.saturating_add(stats.copied_bytes)),
            in_use_bytes: stats.in_use_bytes,
            copied_bytes: stats.copied_bytes,
            charged_bytes: stats.charged_bytes,
            budget: self.ledger.budget(),
            hits: stats.hits,
            misses: stats.misses,
            evictions: stats.evictions,
        }
    }

    /// Where a tensor lies for ever: in place, or in a copy that is kept.
    pub(super) fn start_of(&self, tensor: &Tensor<'_>) -> Result<NonNull<u8>, Error> {
        self.check_first_use(tensor)?;
        match in_place(tensor) {
            Some(start) => Ok(start),
            None => self.ledger.keep(tensor.index(), self).map_err(|error| acquire_error(tensor, error)),
        }
    }

    /// Takes the pages of a tensor, and those that may have come in with it, out of this process's memory: all but those that a tensor
    /// which is held has a part in, since that may be in use.
    fn drop_pages_of(&self, tensor: &Tensor<'_>, is_held: &dyn Fn(usize) -> bool) {
        let storage = &tensor.shard.storage;
        if storage.kind() != StorageKind::Mmap {
            return;
        }
        let came_in = storage.mapped_with(tensor.file_range());
        let near = self.neighbours.near(&self.shards, tensor, came_in);
        self.neighbours.unused(&self.shards, tensor.shard(), near, is_held, |bytes| storage.drop_pages(bytes));
    }

    /// Drops what may have come in with these tensors.
    fn drop_strays(&self, mut used: [usize; strays::AT_A_TIME]) {
        used.sort_unstable();
        self.ledger.drop_pages(|is_held| {
            let mut last = None;
            for tensor in used.iter().filter_map(|index| self.tensor(*index)) {
                // Those that follow one another often lie in the same block.
                let here = Some((tensor.shard(), tensor.shard.storage.mapped_with(tensor.file_range())));
                if here != last {
                    self.drop_pages_of(&tensor, is_held);
                }
                last = here;
            }
        });
    }

    /// Asks the system to take a tensor, and what keeps it there, out of the page cache.
    fn drop_cached_of(&self, tensor: &Tensor<'_>, is_held: &dyn Fn(usize) -> bool) {
        let storage = &tensor.shard.storage;
        let near = self.neighbours.near(&self.shards, tensor, Storage::cached_with(tensor.file_range()));
        self.neighbours.unused(&self.shards, tensor.shard(), near, is_held, |bytes| storage.drop_cached(bytes));
    }

    fn expect_drops(&self) {
        self.shards.list().iter().for_each(|shard| shard.storage.expect_drops());
    }

    pub(super) fn check_not_locked(&self) -> Result<(), Error> {
        match self.shards.list().iter().find(|shard| shard.storage.is_locked()) {
            None => Ok(()),
            Some(shard) => {
                let why = "what is locked into memory cannot be evicted, nor have a budget";
                Err(shard.storage_error(None, StorageError::Unsupported(why)))
            }
        }
    }
}

impl Source for Checkpoint {
    fn nbytes(&self, index: usize) -> u64 {
        self.tensor(index).map_or(0, |tensor| tensor.nbytes())
    }

    fn in_place(&self, index: usize) -> Option<NonNull<u8>> {
        in_place(&self.tensor(index)?)
    }

    fn copy(&self, index: usize) -> Result<Buffer, StorageError> {
        match self.tensor(index) {
            Some(tensor) => {
                let storage = &tensor.shard.storage;
                let copy = storage.read(tensor.file_offset(), tensor.nbytes())?;
                if self.watches_changes {
                    storage.check_unchanged()?;
                }
                Ok(copy)
            }
            None => Err(StorageError::Internal("a copy is wanted of a tensor that there is not")),
        }
    }

    fn drop_pages(&self, index: usize, is_held: &dyn Fn(usize) -> bool) {
        self.strays.forget(index, self.len());
        if let Some(tensor) = self.tensor(index) {
            self.drop_pages_of(&tensor, is_held);
        }
    }

    fn copies_may_go(&self) -> bool {
        !self.is_writable()
    }
}

/// Where a tensor lies, if it can be pointed to there.
#[inline]
fn in_place(tensor: &Tensor<'_>) -> Option<NonNull<u8>> {
    if tensor.nbytes() == 0 {
        return Some(NonNull::from(&NOTHING).cast());
    }
    let start = tensor.shard.storage.pointer(tensor.file_offset(), tensor.nbytes())?;
    (start.addr().get() % tensor.dtype().alignment() == 0).then_some(start)
}

/// What tensors without bytes point to: an address of no meaning, but aligned and not NULL.
static NOTHING: u64 = 0;

#[cold]
fn acquire_error(tensor: &Tensor<'_>, error: AcquireError) -> Error {
    let name = excerpt(tensor.name());
    match error {
        AcquireError::Budget { needed, in_use, budget } => Error::Budget { tensor: name, needed, in_use, budget },
        AcquireError::Storage(source) => tensor.shard.storage_error(Some(tensor.name()), source),
        AcquireError::TooManyPins => Error::TooManyPins { tensor: name },
        AcquireError::NoSuchPiece => Error::Internal { what: "the ledger has fewer pieces than there are tensors" },
    }
}
