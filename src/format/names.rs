//! Names to indices: a hash index that holds no names itself.

use super::directory::Span;
use hashbrown::hash_table::{Entry, HashTable};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A hash index over the strings of a directory's text, which each call is given.
///
/// The hash (SipHash) is keyed by the operating system's randomness, so that no file can be made whose names all collide.
#[derive(Debug)]
pub struct NameTable {
    slots: HashTable<Slot>,
    hash: RandomState,
}

/// A name's index, and where the name is. With both in the table a look-up touches the table, the text, and nothing else.
#[derive(Debug)]
struct Slot {
    index: u32,
    name: Span,
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
    /// Indexes `names`, whose spans lie in `text`, in their order.
    pub fn new(text: &[u8], names: impl ExactSizeIterator<Item = Span>) -> Result<NameTable, NameTableError> {
        let mut table = NameTable { slots: HashTable::new(), hash: RandomState::new() };
        // Room for all is made here, so nothing is ever rehashed.
        let rehash = |_: &Slot| 0;
        table.slots.try_reserve(names.len(), rehash).map_err(|_| NameTableError::NoMemory)?;
        for (index, span) in names.enumerate() {
            let name = span.of(text);
            let hash = table.hash_of(name);
            match table.slots.entry(hash, |slot| slot.name.of(text) == name, rehash) {
                Entry::Occupied(_) => return Err(NameTableError::Duplicate(index)),
                Entry::Vacant(slot) => {
                    let index = u32::try_from(index).map_err(|_| NameTableError::NoMemory)?;
                    slot.insert(Slot { index, name: span });
                }
            }
        }
        Ok(table)
    }

    /// The index of `name`. Does not allocate.
    pub fn find(&self, text: &[u8], name: &[u8]) -> Option<usize> {
        let slot = self.slots.find(self.hash_of(name), |slot| slot.name.of(text) == name)?;
        Some(slot.index as usize)
    }

    #[inline]
    fn hash_of(&self, name: &[u8]) -> u64 {
        let mut hasher = self.hash.build_hasher();
        hasher.write(name);
        hasher.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::directory::Directory;
    use super::*;

    fn table(names: &[&str]) -> (Directory, Result<NameTable, NameTableError>) {
        let mut directory = Directory::default();
        let spans: Vec<Span> = names.iter().map(|name| directory.keep(name.as_bytes()).unwrap()).collect();
        let table = NameTable::new(&directory.text, spans.into_iter());
        (directory, table)
    }

    #[test]
    fn find_gives_each_name_its_index() {
        let names: Vec<String> = (0..1000).map(|i| format!("layer.{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (directory, table) = table(&names);
        let table = table.unwrap();
        for (i, name) in names.iter().enumerate() {
            assert_eq!(table.find(&directory.text, name.as_bytes()), Some(i));
        }
        for absent in [&b"layer.1000"[..], b"layer.", b"", b"layer.1\0layer.2"] {
            assert_eq!(table.find(&directory.text, absent), None);
        }
    }

    #[test]
    fn find_among_none_and_the_empty_name() {
        let (directory, none) = table(&[]);
        assert_eq!(none.unwrap().find(&directory.text, b""), None);
        let (directory, empty) = table(&["a", ""]);
        assert_eq!(empty.unwrap().find(&directory.text, b""), Some(1));
    }

    #[test]
    fn new_refuses_a_name_that_occurs_twice() {
        assert_eq!(table(&["a", "b", "", "a"]).1.unwrap_err(), NameTableError::Duplicate(3));
        assert_eq!(table(&["", "b", ""]).1.unwrap_err(), NameTableError::Duplicate(2));
        assert!(table(&["a", "aa", "", "b"]).1.is_ok());
    }
}
