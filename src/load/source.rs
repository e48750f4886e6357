//! How each block is best read, by looking at the machine.

use super::options::Engine;
use super::residency::Residency;
use super::segment::Block;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::storage::{Direct, Storage, StorageKind};
use crate::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The shards' files, and what is known of them.
#[derive(Debug)]
pub(super) struct Source {
    forced: Option<Engine>,
    /// Of a small load no more is looked at than it reads.
    is_small: bool,
    shards: Box<[ShardSource]>,
    refuses_uring: AtomicBool,
}

#[derive(Debug, Default)]
struct ShardSource {
    direct: OnceLock<Option<Direct>>,
    residency: Residency,
}

impl Source {
    /// For a checkpoint; by one engine only if that is asked for.
    ///
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn new(checkpoint: &Checkpoint, forced: Option<Engine>, is_small: bool) -> Result<Source, Error> {
        let (mut shards, len) = (Vec::new(), checkpoint.storages().len());
        shards.try_reserve_exact(len).map_err(|_| Error::NoMemory)?;
        shards.resize_with(len, ShardSource::default);
        Ok(Source { forced, is_small, shards: shards.into_boxed_slice(), refuses_uring: AtomicBool::new(false) })
    }

    /// How to read a block of this storage.
    ///
    /// What the page cache has is copied from there: a disk is slower. What it does not have is read around it, which saves a copy,
    /// and the cache for others. Where that is refused, or the system does not tell what the cache has, through it; and so are small reads
    /// over a network, since the system reads ahead what lies between them.
    pub(super) fn engine(&self, storage: &Storage, block: &Block) -> Engine {
        if storage.kind() == StorageKind::Memory {
            return Engine::Memory;
        }
        let remote = storage.is_remote();
        let around_cache = match self.forced {
            Some(Engine::Direct | Engine::Uring) => true,
            Some(_) => false,
            None => !(self.is_cached(storage, block) || (remote && is_of_small_reads(block))),
        };
        if !around_cache || self.direct(storage, block.shard).is_none() {
            return Engine::Buffered;
        }
        // Of a network file system io_uring makes threads, as many as there are reads: we have ours.
        let one_by_one = self.forced == Some(Engine::Direct) || (self.forced.is_none() && remote);
        match one_by_one || self.refuses_uring.load(Relaxed) {
            true => Engine::Direct,
            false => Engine::Uring,
        }
    }

    /// The file of a shard, to be read around the page cache. `None` where that is refused.
    pub(super) fn direct(&self, storage: &Storage, shard: usize) -> Option<&Direct> {
        let direct = self.shards.get(shard)?.direct.get_or_init(|| storage.open_direct());
        direct.as_ref().filter(|direct| !direct.is_refused())
    }

    /// A thread was refused io_uring: others need not try.
    pub(super) fn refuse_uring(&self) {
        self.refuses_uring.store(true, Relaxed);
    }

    /// Whether half of the bytes, or more, were in the page cache.
    fn is_cached(&self, storage: &Storage, block: &Block) -> bool {
        let Some(shard) = self.shards.get(block.shard) else { return true };
        if self.is_small {
            // To look at more, for the next block, is of no use: there is hardly one.
            let (Some(first), Some(last)) = (block.pieces.first(), block.pieces.last()) else { return true };
            let bytes = first.offset..last.end().min(storage.len()).max(first.offset);
            return storage.cached(bytes.clone()).is_none_or(|cached| cached >= (bytes.end - bytes.start) / 2);
        }
        let wanted: u64 = block.pieces.iter().map(|piece| piece.len).sum();
        let pieces = block.pieces.iter().map(|piece| piece.offset..piece.end());
        shard.residency.cached_of(storage, pieces) >= wanted / 2
    }
}

/// Whether the block takes reads of fewer bytes than are read ahead anyway.
fn is_of_small_reads(block: &Block) -> bool {
    /// What Linux reads ahead where nothing else is set.
    const READ_AHEAD: u64 = 128 * 1024;
    let bytes: u64 = block.pieces.iter().map(|piece| piece.len).sum();
    let reads = block.pieces.iter().filter(|piece| !piece.joined).count() as u64;
    reads > 1 && bytes < reads * READ_AHEAD
}
