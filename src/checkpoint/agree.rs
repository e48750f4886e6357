//! Whether an index and the shards say the same.

use super::names::Names;
use super::shards::Shards;
use crate::error::{Error, Mismatch};
use crate::format::{Index, IndexError};
use crate::quote::excerpt;

/// Checks that each tensor of the index is in the shard that the index names, once, and that the index names all tensors of these
/// shards. `shards` starts with those of the index, in its order; what comes after them the index need not name.
pub(super) fn check_index(path: &str, index: &Index, shards: &Shards, names: &Names) -> Result<(), Error> {
    let mut seen = Seen::new(shards.len()).ok_or_else(|| Error::Index {
        path: path.to_owned(),
        source: IndexError::NoMemory { len: shards.len() as u64 },
    })?;
    // Indices are mostly sorted by name, and so are headers: where the last tensor of a shard was found, the next one follows.
    let mut next: Vec<usize> = Vec::new();
    next.try_reserve_exact(shards.list().len()).map_err(|_| Error::NoMemory)?;
    next.extend((0..shards.list().len()).map(|shard| shards.first(shard)));
    for (name, shard) in index.entries() {
        let next = next.get_mut(shard).ok_or(Error::Internal { what: "an index names a shard that was not opened" })?;
        let is_next = shards.name_in(shard, *next) == Some(name);
        let found = if is_next { Some(*next) } else { names.find(shards, name) };
        let Some(tensor) = found else {
            return Err(mismatch_or_duplicate(path, index, name, shards, shard, Mismatch::NotInShard));
        };
        let shard_of_it = if is_next { shard } else { shard_of(shards, tensor)? };
        if shard_of_it != shard {
            return Err(mismatch_or_duplicate(path, index, name, shards, shard_of_it, Mismatch::InOtherShard));
        }
        if !seen.insert(tensor)? {
            return Err(duplicate(path, name));
        }
        *next = tensor + 1;
    }
    let named = shards.first(index.shards().len());
    match (0..named).find(|tensor| !seen.contains(*tensor)) {
        None => Ok(()),
        Some(tensor) => {
            let shard = shard_of(shards, tensor)?;
            Err(mismatch(path, shards.name(tensor), shards, shard, Mismatch::NotInIndex))
        }
    }
}

/// The shard of a tensor that there is.
fn shard_of(shards: &Shards, tensor: usize) -> Result<usize, Error> {
    let located = shards.locate(tensor).map(|(_, number, _)| number);
    located.ok_or(Error::Internal { what: "a tensor lies in no shard" })
}

/// A name that occurs twice is the cause of whatever else is wrong with it.
#[cold]
fn mismatch_or_duplicate(
    path: &str,
    index: &Index,
    name: &[u8],
    shards: &Shards,
    shard: usize,
    mismatch: Mismatch,
) -> Error {
    match index.entries().filter(|(other, _)| *other == name).nth(1) {
        Some(_) => duplicate(path, name),
        None => self::mismatch(path, name, shards, shard, mismatch),
    }
}

fn duplicate(path: &str, name: &[u8]) -> Error {
    Error::Index { path: path.to_owned(), source: IndexError::duplicate(name) }
}

fn mismatch(path: &str, name: &[u8], shards: &Shards, shard: usize, mismatch: Mismatch) -> Error {
    let shard = shards.list().get(shard).map(|shard| excerpt(&shard.path_text())).unwrap_or_default();
    Error::IndexMismatch { path: path.to_owned(), tensor: excerpt(&String::from_utf8_lossy(name)), shard, mismatch }
}

/// A set of tensors.
struct Seen(Vec<u64>);

impl Seen {
    fn new(len: usize) -> Option<Seen> {
        let mut words = Vec::new();
        words.try_reserve_exact(len.div_ceil(64)).ok()?;
        words.resize(len.div_ceil(64), 0);
        Some(Seen(words))
    }

    /// Whether `tensor` was not in it yet.
    fn insert(&mut self, tensor: usize) -> Result<bool, Error> {
        let word = self.0.get_mut(tensor / 64).ok_or(Error::Internal { what: "a name belongs to no tensor" })?;
        let bit = 1 << (tensor % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        Ok(is_new)
    }

    fn contains(&self, tensor: usize) -> bool {
        self.0.get(tensor / 64).is_some_and(|word| word & (1 << (tensor % 64)) != 0)
    }
}
