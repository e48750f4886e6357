//! Names to indices: a hash index that holds no names itself.

use hashbrown::HashTable;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A hash index over names that live elsewhere: each call is given the way from an index to its name.
///
/// The hash (SipHash) is keyed by the operating system's randomness per process, so that no file can be made whose names
/// all collide.
#[derive(Debug)]
pub struct NameTable {
    indices: HashTable<u32>,
    hash: RandomState,
}

/// Why a [`NameTable`] could not be built.
#[derive(Debug, PartialEq, Eq)]
pub enum NameTableError {
    /// The name of this index occurs at a smaller index too.
    Duplicate(usize),
    /// There was no memory for the table.
    NoMemory,
}

impl NameTable {
    /// Indexes the names of `0..len`.
    pub fn new<'n>(len: usize, name_of: impl Fn(usize) -> &'n [u8]) -> Result<NameTable, NameTableError> {
        let mut table = NameTable { indices: HashTable::new(), hash: RandomState::new() };
        let rehash = |_: &u32| 0;
        table.indices.try_reserve(len, rehash).map_err(|_| NameTableError::NoMemory)?;
        for index in 0..len {
            let name = name_of(index);
            let hash = table.hash_of(name);
            if table.indices.find(hash, |other| name_of(*other as usize) == name).is_some() {
                return Err(NameTableError::Duplicate(index));
            }
            let index = u32::try_from(index).map_err(|_| NameTableError::NoMemory)?;
            // Room for all was made above: nothing is ever rehashed.
            table.indices.insert_unique(hash, index, rehash);
        }
        Ok(table)
    }

    /// The index of `name`. Does not allocate.
    pub fn find<'n>(&self, name: &[u8], name_of: impl Fn(usize) -> &'n [u8]) -> Option<usize> {
        let found = self.indices.find(self.hash_of(name), |index| name_of(*index as usize) == name);
        found.map(|index| *index as usize)
    }

    fn hash_of(&self, name: &[u8]) -> u64 {
        let mut hasher = self.hash.build_hasher();
        hasher.write(name);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_gives_each_name_its_index() {
        let names: Vec<String> = (0..1000).map(|i| format!("layer.{i}")).collect();
        let name_of = |i: usize| names[i].as_bytes();
        let table = NameTable::new(names.len(), name_of).unwrap();
        for (i, name) in names.iter().enumerate() {
            assert_eq!(table.find(name.as_bytes(), name_of), Some(i));
        }
        assert_eq!(table.find(b"layer.1000", name_of), None);
        assert_eq!(NameTable::new(0, name_of).unwrap().find(b"", name_of), None);
    }

    #[test]
    fn new_refuses_a_name_that_occurs_twice() {
        let names = ["a", "b", "", "a"];
        let error = NameTable::new(names.len(), |i| names[i].as_bytes()).unwrap_err();
        assert_eq!(error, NameTableError::Duplicate(3));
    }
}
