//! What was added: tensors by name, and metadata.

use super::error::WriterError;
use crate::format::encode::{metadata_text_len, Described};
use crate::format::Dtype;
use hashbrown::hash_table::{Entry as Slot, HashTable};
use std::cmp::Ordering;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// The tensors, in the order in which they were added.
#[derive(Debug, Default)]
pub(super) struct Entries<'d> {
    /// The names, one after the other.
    text: String,
    /// The shapes, one after the other.
    dims: Vec<u64>,
    list: Vec<Entry<'d>>,
    /// Positions in `list`, by name.
    by_name: HashTable<usize>,
    /// Keyed by the operating system's randomness: names may come from strangers.
    hash: RandomState,
}

/// A tensor to be written.
#[derive(Debug)]
pub(super) struct Entry<'d> {
    name_start: usize,
    name_len: usize,
    shape_start: usize,
    rank: usize,
    pub(super) dtype: Dtype,
    pub(super) nbytes: u64,
    pub(super) source: Source<'d>,
    /// The number of its shard, in the order in which shards were begun.
    pub(super) shard: usize,
}

/// Where a tensor's bytes come from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'d> {
    /// All of them are here.
    Added(&'d [u8]),
    /// They come in pieces; so many have come.
    Declared {
        /// Bytes that have come.
        written: u64,
    },
}

impl<'d> Entries<'d> {
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&Entry<'d>> {
        self.list.get(index)
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut Entry<'d>> {
        self.list.get_mut(index)
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, Entry<'d>> {
        self.list.iter()
    }

    pub(super) fn name(&self, entry: &Entry<'_>) -> &str {
        self.text.get(entry.name_start..entry.name_start + entry.name_len).unwrap_or_default()
    }

    /// What a header says of it, with `start` as its first byte.
    pub(super) fn described(&self, entry: &Entry<'_>, start: u64) -> Described<'_> {
        let shape = self.dims.get(entry.shape_start..entry.shape_start + entry.rank).unwrap_or_default();
        Described { name: self.name(entry), dtype: entry.dtype, shape, start, stop: start.saturating_add(entry.nbytes) }
    }

    /// The order of two tensors by name, byte by byte.
    pub(super) fn by_name(&self, a: &Entry<'_>, b: &Entry<'_>) -> Ordering {
        self.name(a).cmp(self.name(b))
    }

    pub(super) fn find(&self, name: &str) -> Option<usize> {
        let is_name = |at: &usize| self.list.get(*at).is_some_and(|entry| self.name(entry) == name);
        self.by_name.find(self.hash.hash_one(name), is_name).copied()
    }

    /// Adds a tensor, all or nothing.
    pub(super) fn push(
        &mut self,
        name: &str,
        shape: &[u64],
        entry: impl FnOnce(Place) -> Entry<'d>,
    ) -> Result<(), WriterError> {
        let no_memory = |_| WriterError::NoMemory;
        self.text.try_reserve(name.len()).map_err(no_memory)?;
        self.dims.try_reserve(shape.len()).map_err(no_memory)?;
        self.list.try_reserve(1).map_err(no_memory)?;
        let (list, text, hash) = (&self.list, &self.text, &self.hash);
        let name_of = |at: usize| {
            let entry = list.get(at);
            entry.and_then(|entry| text.get(entry.name_start..entry.name_start + entry.name_len)).unwrap_or_default()
        };
        let rehash = |at: &usize| hash.hash_one(name_of(*at));
        self.by_name.try_reserve(1, rehash).map_err(|_| WriterError::NoMemory)?;
        match self.by_name.entry(hash.hash_one(name), |at| name_of(*at) == name, rehash) {
            Slot::Occupied(_) => return Err(WriterError::DuplicateName { name: crate::quote::excerpt(name) }),
            Slot::Vacant(slot) => slot.insert(list.len()),
        };
        let place =
            Place { name_start: text.len(), name_len: name.len(), shape_start: self.dims.len(), rank: shape.len() };
        self.text.push_str(name);
        self.dims.extend_from_slice(shape);
        self.list.push(entry(place));
        Ok(())
    }
}

/// Where the name and the shape of a tensor are kept.
pub(super) struct Place {
    name_start: usize,
    name_len: usize,
    shape_start: usize,
    rank: usize,
}

impl Place {
    pub(super) fn entry<'d>(self, dtype: Dtype, nbytes: u64, source: Source<'d>, shard: usize) -> Entry<'d> {
        let Place { name_start, name_len, shape_start, rank } = self;
        Entry { name_start, name_len, shape_start, rank, dtype, nbytes, source, shard }
    }
}

/// The metadata, in the order in which it was added.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    entries: Vec<(String, String)>,
    by_key: HashTable<usize>,
    hash: RandomState,
    text_len: u64,
}

impl Metadata {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// How many bytes of a header it takes, about and at least.
    pub(super) fn text_len(&self) -> u64 {
        self.text_len
    }

    /// Adds an entry, all or nothing.
    pub(super) fn push(&mut self, key: &str, value: &str) -> Result<(), WriterError> {
        let no_memory = |_| WriterError::NoMemory;
        let copy = |text: &str| {
            let mut copy = String::new();
            copy.try_reserve_exact(text.len()).map_err(no_memory)?;
            copy.push_str(text);
            Ok(copy)
        };
        let entry = (copy(key)?, copy(value)?);
        self.entries.try_reserve(1).map_err(no_memory)?;
        let (entries, hash) = (&self.entries, &self.hash);
        let key_of = |at: &usize| entries.get(*at).map(|(key, _)| key.as_str()).unwrap_or_default();
        let rehash = |at: &usize| hash.hash_one(key_of(at));
        self.by_key.try_reserve(1, rehash).map_err(|_| WriterError::NoMemory)?;
        match self.by_key.entry(hash.hash_one(key), |at| key_of(at) == key, rehash) {
            Slot::Occupied(_) => return Err(WriterError::DuplicateMetadata { key: crate::quote::excerpt(key) }),
            Slot::Vacant(slot) => slot.insert(entries.len()),
        };
        self.text_len = self.text_len.saturating_add(metadata_text_len(key, value));
        self.entries.push(entry);
        Ok(())
    }
}
