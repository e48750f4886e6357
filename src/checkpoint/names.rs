//! The names of all tensors: found by a table; and in order, and as C strings, which are made when first asked for.

use super::shards::Shards;
use crate::error::Error;
use crate::format::{NameHasher, NamePart, NameTable, NameTableError};
use crate::quote::excerpt;
use crate::workers::{in_parallel, workers_for};
use std::ffi::c_char;
use std::sync::OnceLock;

/// So many names are worth a thread of their own when the table is made.
const NAMES_PER_PART: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Names {
    table: NameTable,
    order: Order,
}

impl Names {
    /// The names of one shard.
    pub(super) fn of_one(shards: &Shards) -> Result<Names, Error> {
        let Some(shard) = shards.list().first() else { return Names::of_many(shards, NameHasher::default(), &[]) };
        match NameTable::new(&shard.header) {
            Ok(table) => Ok(Names { table, order: Order::default() }),
            Err(error) => Err(error_of(shards, error)),
        }
    }

    /// The names of several shards, whose hashes were made by `hasher`. Several threads make a part of the table each.
    pub(super) fn of_many(shards: &Shards, hasher: NameHasher, hashes: &[Vec<u64>]) -> Result<Names, Error> {
        let mut headers = Vec::new();
        headers.try_reserve_exact(shards.list().len()).map_err(|_| Error::NoMemory)?;
        headers.extend(shards.headers());
        let workers = match shards.len() / NAMES_PER_PART {
            0 | 1 => 1,
            parts => workers_for(parts).min(std::thread::available_parallelism().map_or(1, usize::from)),
        };
        let parts = workers.next_power_of_two();
        let parts = in_parallel(parts, workers, |_: &mut (), part| Ok(NamePart::new(&headers, hashes, part, parts)))?;
        let duplicate = parts.iter().filter_map(|part| part.as_ref().err()).min_by_key(|error| match error {
            NameTableError::Duplicate { second, .. } => *second,
            NameTableError::NoMemory | NameTableError::Internal(_) => 0,
        });
        if let Some(error) = duplicate {
            return Err(error_of(shards, *error));
        }
        // None has failed, so that none is left out. There are as many as threads.
        let table = NameTable::of_parts(hasher, parts.into_iter().flatten().collect::<Vec<_>>());
        Ok(Names { table, order: Order::default() })
    }

    /// The index of the tensor of that name.
    #[inline]
    pub(super) fn find(&self, shards: &Shards, name: &[u8]) -> Option<usize> {
        self.table.find(name, |tensor| shards.text(tensor))
    }

    /// The indices of the names that start with `prefix`, in byte order of the names. `None` if there is no memory for the order.
    pub(super) fn find_prefix(&self, shards: &Shards, prefix: &[u8]) -> Option<&[usize]> {
        self.order.find_prefix(prefix, shards.len(), |index| shards.name(index))
    }

    /// The names as C strings, in the order of the indices. `None` if there is no memory for the array.
    pub(super) fn c_names(&self, shards: &Shards) -> Option<&[*const c_char]> {
        self.order.c_names(shards.len(), |index| shards.name(index))
    }
}

#[cold]
fn error_of(shards: &Shards, error: NameTableError) -> Error {
    let at = |tensor| shards.locate(tensor);
    match error {
        NameTableError::Duplicate { first, second } => match (at(first), at(second)) {
            (Some((a, a_number, _)), Some((b, b_number, _))) if a_number != b_number => Error::DuplicateName {
                tensor: excerpt(&String::from_utf8_lossy(shards.name(second))),
                first: a.path_text(),
                second: b.path_text(),
            },
            (_, Some((shard, _, within))) => {
                let error = NameTableError::Duplicate { first: within, second: within };
                Error::Header { path: shard.path_text(), source: shard.header.name_error(error) }
            }
            _ => Error::Internal { what: "a name occurs twice, and lies in no shard" },
        },
        NameTableError::NoMemory => Error::NoMemory,
        NameTableError::Internal(what) => Error::Internal { what },
    }
}

/// What is made when first asked for: most programs need only one of them, or none.
#[derive(Debug, Default)]
struct Order {
    /// All indices, in byte order of the names.
    sorted: OnceLock<Box<[usize]>>,
    c_names: OnceLock<CNames>,
}

#[derive(Debug)]
struct CNames(Box<[*const c_char]>);

// SAFETY: the pointers lead into the headers' text, which belongs to the same checkpoint and never changes.
unsafe impl Send for CNames {}
// SAFETY: as for `Send`.
unsafe impl Sync for CNames {}

impl Order {
    /// The indices of the names that start with `prefix`: a run of the sorted order.
    fn find_prefix<'n>(&self, prefix: &[u8], len: usize, name_of: impl Fn(usize) -> &'n [u8]) -> Option<&[usize]> {
        let sorted = match self.sorted.get() {
            Some(sorted) => sorted,
            None => {
                let sorted = sort(len, &name_of)?;
                self.sorted.get_or_init(|| sorted)
            }
        };
        let (_, rest) = sorted.split_at(sorted.partition_point(|index| name_of(*index) < prefix));
        let (found, _) = rest.split_at(rest.partition_point(|index| name_of(*index).starts_with(prefix)));
        Some(found)
    }

    /// The names, each followed by a NUL where it lies.
    fn c_names<'n>(&self, len: usize, name_of: impl Fn(usize) -> &'n [u8]) -> Option<&[*const c_char]> {
        if self.c_names.get().is_none() {
            let mut names = Vec::new();
            names.try_reserve_exact(len).ok()?;
            names.extend((0..len).map(|index| name_of(index).as_ptr().cast()));
            // Another thread may have been faster; both have made the same.
            let _ = self.c_names.set(CNames(names.into_boxed_slice()));
        }
        self.c_names.get().map(|names| &*names.0)
    }
}

fn sort<'n>(len: usize, name_of: &impl Fn(usize) -> &'n [u8]) -> Option<Box<[usize]>> {
    let mut sorted = Vec::new();
    sorted.try_reserve_exact(len).ok()?;
    sorted.extend(0..len);
    sorted.sort_unstable_by(|a, b| name_of(*a).cmp(name_of(*b)));
    Some(sorted.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    static NAMES: [&[u8]; 6] = [b"layer.1.w", b"layer.10.w", b"layer.1.b", b"lm", b"", b"layer.2.w"];

    fn found(prefix: &[u8]) -> Vec<&'static [u8]> {
        let names = Order::default();
        names.find_prefix(prefix, NAMES.len(), |i| NAMES[i]).unwrap().iter().map(|i| NAMES[*i]).collect()
    }

    #[test]
    fn find_prefix_gives_a_sorted_run() {
        assert_eq!(found(b"layer.1."), [b"layer.1.b", b"layer.1.w"]);
        assert_eq!(found(b"layer.1"), [&b"layer.1.b"[..], b"layer.1.w", b"layer.10.w"]);
        assert_eq!(found(b"lm"), [b"lm"]);
        assert_eq!(found(b"").len(), NAMES.len());
        assert!(found(b"lz").is_empty() && found(b"a").is_empty() && found(b"lmx").is_empty());
    }

    #[test]
    fn find_prefix_and_c_names_of_nothing() {
        let names = Order::default();
        assert_eq!(names.find_prefix(b"", 0, |_| b""), Some(&[][..]));
        assert_eq!(names.c_names(0, |_| b""), Some(&[][..]));
    }

    #[test]
    fn c_names_are_made_once() {
        let names = Order::default();
        let first = names.c_names(NAMES.len(), |i| NAMES[i]).unwrap();
        assert_eq!(first[3], NAMES[3].as_ptr().cast());
        assert!(std::ptr::eq(first, names.c_names(NAMES.len(), |i| NAMES[i]).unwrap()));
    }
}
