//! Names to tensors: a hash index that holds no names itself.

use super::directory::Span;
use super::Header;
use hashbrown::hash_table::{Entry, HashTable};
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A hash index over the names in one or several headers, each of which it numbers. It holds where names lie, and each call is
/// told in what text.
///
/// The hash (SipHash) is keyed by the operating system's randomness, so that no file can be made whose names all collide.
///
/// Over several headers it is made in two steps, so that threads can share the work: a `NameHasher` gives the hashes of each header's
/// names, and each `NamePart` indexes those of all headers that belong to it.
#[derive(Debug)]
pub struct NameTable {
    hasher: NameHasher,
    /// As many as a power of two.
    parts: Box<[NamePart]>,
}

/// What hashes the names of one table.
#[derive(Clone, Debug, Default)]
pub(crate) struct NameHasher(RandomState);

/// The names of a table whose hashes have certain bits in common.
#[derive(Debug, Default)]
pub(crate) struct NamePart(HashTable<Slot>);

/// A name's number, and where it is. With both in the table a look-up touches the table, the text, and nothing else.
#[derive(Debug)]
struct Slot {
    number: u32,
    name: Span,
}

/// Why names could not be indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameTableError {
    /// The same name has two numbers.
    Duplicate {
        /// The smaller number.
        first: usize,
        /// The larger number.
        second: usize,
    },
    /// There was no memory for the table, or there are more than 2^32 names.
    NoMemory,
    /// A state that cannot happen: a bug in this library.
    Internal(&'static str),
}

impl NameHasher {
    /// The hash of a name.
    #[inline]
    fn hash(&self, name: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        hasher.write(name);
        hasher.finish()
    }

    /// The hashes of all names of a header, in its order. `None` if there is no memory for them.
    pub(crate) fn hashes(&self, header: &Header) -> Option<Vec<u64>> {
        let mut hashes = Vec::new();
        hashes.try_reserve_exact(header.len()).ok()?;
        hashes.extend(header.name_spans().map(|span| self.hash(span.of(header.text()))));
        Some(hashes)
    }
}

impl NamePart {
    /// Indexes those of the names whose hashes fall into part `part` of `parts`, a power of two. Names are numbered through all
    /// `headers`, in their order; `hashes` are those of each.
    pub fn new(
        headers: &[&Header],
        hashes: &[Vec<u64>],
        part: usize,
        parts: usize,
    ) -> Result<NamePart, NameTableError> {
        // What lacks a hash would not be found, nor be known as a duplicate.
        let is_hashed = |(header, hashes): (&&Header, &Vec<u64>)| header.len() == hashes.len();
        if headers.len() != hashes.len() || !headers.iter().zip(hashes).all(is_hashed) {
            return Err(NameTableError::Internal("there are not as many hashes as names"));
        }
        let belongs = |hash: &u64| part_of(*hash, parts) == part;
        let len = hashes.iter().flatten().filter(|hash| belongs(hash)).count();
        let mut table = NamePart::with_room(len)?;
        let mut first = 0usize;
        for (header, hashes) in headers.iter().zip(hashes) {
            for (index, (span, hash)) in header.name_spans().zip(hashes).enumerate() {
                if belongs(hash) {
                    table.insert(*hash, first + index, span, header.text(), |number| text_of(headers, number))?;
                }
            }
            first += header.len();
        }
        Ok(table)
    }

    fn with_room(len: usize) -> Result<NamePart, NameTableError> {
        let mut slots = HashTable::new();
        slots.try_reserve(len, rehash).map_err(|_| NameTableError::NoMemory)?;
        Ok(NamePart(slots))
    }

    #[inline]
    fn insert<'t>(
        &mut self,
        hash: u64,
        number: usize,
        span: Span,
        text: &[u8],
        text_of: impl Fn(usize) -> &'t [u8],
    ) -> Result<(), NameTableError> {
        let name = span.of(text);
        match self.0.entry(hash, |slot| slot.name.of(text_of(slot.number as usize)) == name, rehash) {
            Entry::Occupied(slot) => {
                Err(NameTableError::Duplicate { first: slot.get().number as usize, second: number })
            }
            Entry::Vacant(slot) => {
                let number = u32::try_from(number).map_err(|_| NameTableError::NoMemory)?;
                slot.insert(Slot { number, name: span });
                Ok(())
            }
        }
    }
}

impl NameTable {
    /// Indexes the names of one header.
    pub fn new(header: &Header) -> Result<NameTable, NameTableError> {
        let hasher = NameHasher::default();
        let text = header.text();
        let mut part = NamePart::with_room(header.len())?;
        for (number, span) in header.name_spans().enumerate() {
            part.insert(hasher.hash(span.of(text)), number, span, text, |_| text)?;
        }
        Ok(NameTable::of_parts(hasher, [part]))
    }

    /// The table of all its parts, in their order, made with the hashes of `hasher`.
    pub(crate) fn of_parts(hasher: NameHasher, parts: impl Into<Box<[NamePart]>>) -> NameTable {
        NameTable { hasher, parts: parts.into() }
    }

    /// The number of `name`; `text_of` gives the text in which the name of a number lies. Does not allocate.
    #[inline]
    pub fn find<'t>(&self, name: &[u8], text_of: impl Fn(usize) -> &'t [u8]) -> Option<usize> {
        let hash = self.hasher.hash(name);
        let part = self.parts.get(part_of(hash, self.parts.len()))?;
        let slot = part.0.find(hash, |slot| slot.name.of(text_of(slot.number as usize)) == name)?;
        Some(slot.number as usize)
    }
}

/// hashbrown places an entry by the lowest bits of its hash and tags it with the highest seven: these are free to divide names.
#[inline]
fn part_of(hash: u64, parts: usize) -> usize {
    (hash >> 40) as usize & parts.wrapping_sub(1)
}

/// Room for all names of a part is made at once, so nothing is ever rehashed.
fn rehash(_: &Slot) -> u64 {
    0
}

fn text_of<'h>(headers: &[&'h Header], number: usize) -> &'h [u8] {
    let mut number = number;
    for header in headers {
        match number.checked_sub(header.len()) {
            None => return header.text(),
            Some(rest) => number = rest,
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(names: &[&str]) -> Header {
        let tensor = |name: &&str| format!(r#""{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        let text = format!("{{{}}}", names.iter().map(tensor).collect::<Vec<_>>().join(","));
        Header::parse(text.as_bytes()).unwrap()
    }

    fn many(start: usize) -> Header {
        let names: Vec<String> = (start..start + 1000).map(|i| format!("layer.{i}")).collect();
        header(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn in_parts(headers: &[&Header], parts: usize) -> Result<NameTable, NameTableError> {
        let hasher = NameHasher::default();
        let hashes: Vec<Vec<u64>> = headers.iter().map(|header| hasher.hashes(header).unwrap()).collect();
        let parts: Result<Vec<NamePart>, _> =
            (0..parts).map(|part| NamePart::new(headers, &hashes, part, parts)).collect();
        Ok(NameTable::of_parts(hasher, parts?))
    }

    #[test]
    fn find_gives_each_name_its_number() {
        let header = many(0);
        let table = NameTable::new(&header).unwrap();
        for i in 0..1000 {
            assert_eq!(table.find(header.name(i), |_| header.text()), Some(i));
        }
        for absent in [&b"layer.1000"[..], b"layer.", b"", b"layer.1\0layer.2"] {
            assert_eq!(table.find(absent, |_| header.text()), None);
        }
    }

    #[test]
    fn find_in_a_table_of_parts_over_several_headers() {
        let headers = [&many(0), &header(&[]), &many(1000), &header(&["", "lm"])];
        for parts in [1, 2, 8] {
            let table = in_parts(&headers, parts).unwrap();
            let find = |name: &str| table.find(name.as_bytes(), |number| text_of(&headers, number));
            assert_eq!((find("layer.0"), find("layer.999"), find("layer.1000")), (Some(0), Some(999), Some(1000)));
            assert_eq!((find("layer.1999"), find(""), find("lm")), (Some(1999), Some(2000), Some(2001)));
            assert_eq!((find("layer.2000"), find("l")), (None, None));
        }
    }

    #[test]
    fn find_among_none_and_the_empty_name() {
        let none = header(&[]);
        assert_eq!(NameTable::new(&none).unwrap().find(b"", |_| none.text()), None);
        let empty = header(&["a", ""]);
        assert_eq!(NameTable::new(&empty).unwrap().find(b"", |_| empty.text()), Some(1));
    }

    #[test]
    fn new_refuses_a_name_that_occurs_twice() {
        let refused = |names: &[&str]| NameTable::new(&header(names)).unwrap_err();
        assert_eq!(refused(&["a", "b", "", "a"]), NameTableError::Duplicate { first: 0, second: 3 });
        assert_eq!(refused(&["", "b", ""]), NameTableError::Duplicate { first: 0, second: 2 });
        assert!(NameTable::new(&header(&["a", "aa", "", "b"])).is_ok());
        let refused = in_parts(&[&header(&["x", "a"]), &header(&["b", "a"])], 1).unwrap_err();
        assert_eq!(refused, NameTableError::Duplicate { first: 1, second: 3 });
    }

    #[test]
    fn part_refuses_names_without_hashes() {
        let header = Header::parse(br#"{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#).unwrap();
        let hashes = NameHasher::default().hashes(&header).unwrap();
        assert!(NamePart::new(&[&header], std::slice::from_ref(&hashes), 0, 1).is_ok());
        for hashes in [vec![], vec![vec![]], vec![hashes.clone(), hashes]] {
            assert!(matches!(NamePart::new(&[&header], &hashes, 0, 1), Err(NameTableError::Internal(_))));
        }
    }
}
