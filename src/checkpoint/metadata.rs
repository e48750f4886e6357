//! The metadata of all shards as one.

use super::shards::Shards;
use crate::error::Error;
use crate::format::{BLAKE3_KEY, CRC_KEY, SHA256_KEY, SSHS_KEY};
use hashbrown::hash_table::{Entry, HashTable};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// The metadata of all shards, in their order, each key once: the first shard that has it decides.
#[derive(Debug)]
pub(super) struct Metadata {
    /// Shard, and entry of its header.
    entries: Vec<(usize, usize)>,
    /// Indices of `entries`, by key.
    keys: HashTable<usize>,
    /// Keyed by the operating system's randomness, as for names.
    hash: RandomState,
    conflicts: u64,
}

impl Metadata {
    /// # Errors
    ///
    /// [`Error::NoMemory`].
    pub(super) fn new(shards: &Shards) -> Result<Metadata, Error> {
        let mut merged =
            Metadata { entries: Vec::new(), keys: HashTable::new(), hash: RandomState::new(), conflicts: 0 };
        let len = shards.headers().map(|header| header.metadata_len()).sum();
        merged.entries.try_reserve_exact(len).map_err(|_| Error::NoMemory)?;
        // Room for all is made here, so nothing is ever rehashed.
        let rehash = |_: &usize| 0;
        merged.keys.try_reserve(len, rehash).map_err(|_| Error::NoMemory)?;
        for (shard, header) in shards.headers().enumerate() {
            for i in 0..header.metadata_len() {
                let entry = header.metadata(i);
                let (key, value) = entry.ok_or(Error::Internal { what: "metadata has less than its length" })?;
                let entry_of = |at: &usize| merged.entries.get(*at).and_then(|entry| get(shards, *entry));
                let is_key = |at: &usize| entry_of(at).is_some_and(|(known, _)| known == key);
                match merged.keys.entry(merged.hash.hash_one(key), is_key, rehash) {
                    Entry::Occupied(known) => {
                        let differs = entry_of(known.get()).is_some_and(|(_, known)| known != value);
                        merged.conflicts += u64::from(differs && !is_of_one_file(key));
                    }
                    Entry::Vacant(slot) => {
                        slot.insert(merged.entries.len());
                        merged.entries.push((shard, i));
                    }
                }
            }
        }
        Ok(merged)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Key and value of an entry, each followed by a NUL where it lies.
    pub(super) fn get<'s>(&self, shards: &'s Shards, index: usize) -> Option<(&'s [u8], &'s [u8])> {
        get(shards, *self.entries.get(index)?)
    }

    /// The value of a key.
    pub(super) fn find<'s>(&self, shards: &'s Shards, key: &[u8]) -> Option<&'s [u8]> {
        let entry_of = |at: &usize| self.get(shards, *at);
        let at = self.keys.find(self.hash.hash_one(key), |at| entry_of(at).is_some_and(|(known, _)| known == key))?;
        entry_of(at).map(|(_, value)| value)
    }

    /// How many entries were left out because an earlier shard has another value for their key. Checksums do not count.
    pub(super) fn conflicts(&self) -> u64 {
        self.conflicts
    }
}

/// Whether a key says something of its own file and no other: a checksum.
fn is_of_one_file(key: &[u8]) -> bool {
    [CRC_KEY, SHA256_KEY, SSHS_KEY, BLAKE3_KEY].iter().any(|known| known.as_bytes() == key)
}

fn get(shards: &Shards, (shard, entry): (usize, usize)) -> Option<(&[u8], &[u8])> {
    shards.list().get(shard)?.header.metadata(entry)
}
