//! The index of a sharded checkpoint: which shard holds which tensor.
//!
//! Two forms are read, whatever the file is called. In the one that Hugging Face's libraries and MindSpore write, the map is an entry of
//! an object, whose other entries say nothing about where tensors are:
//!
//! ```text
//! {"metadata": {"total_size": 8}, "weight_map": {"tensor": "shard.safetensors"}}
//! ```
//!
//! MindSpore also writes the map alone: an object of strings without a `weight_map` that is an object. There, a `metadata` or a
//! `weight_map` that is a string is a tensor like any other.
//!
//! What writers write is read by `scan`, and any other form by serde_json. What is not asked for is read as strictly as the rest. Whether a name occurs twice is not looked into here: that takes a table of
//! all names, and whoever opens the shards has one.

mod scan;

use super::directory::{try_push, NoRoom, Span};
use super::json::{found_string, Any, Anything};
use super::strings::{self, Failure};
use super::IndexError;
use crate::quote::{excerpt, Quoted};
use hashbrown::hash_table::HashTable;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;

/// The most shards that an index may name. No process can have so many files open by far.
pub const MAX_SHARDS: usize = 65_536;

/// The longest index that is accepted, in bytes.
pub const MAX_INDEX_LEN: u64 = 100_000_000;

/// The key of the map, in an index that holds more than the map.
const WEIGHT_MAP: &[u8] = b"weight_map";

/// The length in bytes of an index whose file has `file_len` bytes: to be asked before it is read.
///
/// # Errors
///
/// [`IndexError::TooLarge`].
pub fn index_len(file_len: u64) -> Result<usize, IndexError> {
    match usize::try_from(file_len) {
        Ok(len) if file_len <= MAX_INDEX_LEN => Ok(len),
        _ => Err(IndexError::TooLarge { len: file_len }),
    }
}

/// Which shard holds which tensor.
#[derive(Debug)]
pub struct Index {
    /// The names of the tensors and of the shards, in UTF-8.
    text: Vec<u8>,
    /// The shards' names, each once.
    shards: Vec<Span>,
    entries: Vec<Entry>,
}

/// A tensor's name, and the index of its shard.
#[derive(Clone, Copy, Debug)]
struct Entry {
    name: Span,
    shard: u32,
}

impl Index {
    /// Reads an index. A name that occurs twice has two entries, which the caller refuses with [`IndexError::duplicate`].
    ///
    /// # Errors
    ///
    /// [`IndexError`]: every variant. `Duplicate` only for a second `weight_map`.
    ///
    /// ```
    /// use safetensors_lazy::format::Index;
    ///
    /// let index = Index::parse(br#"{"weight_map": {"bias": "2.safetensors", "weight": "1.safetensors"}}"#)?;
    /// assert!(index.shards().eq(["1.safetensors", "2.safetensors"]));
    /// assert!(index.entries().eq([(&b"bias"[..], 1), (b"weight", 0)]));
    /// # Ok::<(), safetensors_lazy::format::IndexError>(())
    /// ```
    pub fn parse(text: &[u8]) -> Result<Index, IndexError> {
        let len = text.len() as u64;
        index_len(len)?;
        let text = std::str::from_utf8(text).map_err(|error| IndexError::Utf8 { position: error.valid_up_to() })?;
        let draft = read(text)?;
        if draft.entries.is_empty() {
            return Err(IndexError::Structure { reason: "it names no tensors".to_owned() });
        }
        if draft.shards.len() > MAX_SHARDS {
            let reason = format!("it names {} shards, more than the limit of {MAX_SHARDS}", draft.shards.len());
            return Err(IndexError::Structure { reason });
        }
        draft.finish(len)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries. There always are: an index without is refused.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The file names of the shards, as they are written, each once, in byte order.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = &str> {
        self.shards.iter().map(|span| std::str::from_utf8(span.of(&self.text)).unwrap_or_default())
    }

    /// The name of each tensor in UTF-8, and the index of its shard among [`Index::shards`], in the order of the file.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&[u8], usize)> {
        self.entries.iter().map(|entry| (entry.name.of(&self.text), entry.shard as usize))
    }
}

impl IndexError {
    /// The error of a tensor that an index names twice.
    #[cold]
    pub fn duplicate(name: &[u8]) -> IndexError {
        IndexError::Duplicate { name: excerpt(std::str::from_utf8(name).unwrap_or_default()) }
    }
}

/// An index while it is read: its shards are in the order in which they occur.
#[derive(Default)]
struct Draft {
    text: Vec<u8>,
    shards: Vec<Span>,
    entries: Vec<Entry>,
    /// The shards by name.
    table: HashTable<u32>,
    /// Keyed by the operating system's randomness, as in [`super::names`]: shards' names are chosen by strangers too.
    hash: RandomState,
    /// The shard of the last entry: most often that of the next one too.
    last: Option<(u32, Span)>,
}

impl Draft {
    /// Appends a string to the text.
    fn keep(&mut self, string: &[u8]) -> Result<Span, NoRoom> {
        let span = Span { start: u32::try_from(self.text.len())?, len: u32::try_from(string.len())? };
        self.text.try_reserve(string.len())?;
        self.text.extend_from_slice(string);
        Ok(span)
    }

    /// Takes back the string that was kept last.
    fn take_back(&mut self, string: Span) {
        self.text.truncate(string.start as usize);
    }

    /// Appends an entry.
    fn push(&mut self, name: Span, shard: &[u8]) -> Result<(), NoRoom> {
        let shard = match self.last {
            Some((last, span)) if span.of(&self.text) == shard => last,
            _ => self.shard(shard)?,
        };
        Ok(try_push(&mut self.entries, Entry { name, shard })?)
    }

    /// The index of a shard, which may be new.
    fn shard(&mut self, name: &[u8]) -> Result<u32, NoRoom> {
        let hash = self.hash.hash_one(name);
        let name_of = |shard: &u32| self.shards.get(*shard as usize).map_or(&[][..], |span| span.of(&self.text));
        let shard = match self.table.find(hash, |shard| name_of(shard) == name) {
            Some(shard) => *shard,
            None => {
                let shard = u32::try_from(self.shards.len())?;
                let rehash = |shard: &u32| self.hash.hash_one(name_of(shard));
                self.table.try_reserve(1, rehash).map_err(|_| NoRoom)?;
                self.table.insert_unique(hash, shard, rehash);
                let span = self.keep(name)?;
                try_push(&mut self.shards, span)?;
                shard
            }
        };
        self.last = self.shards.get(shard as usize).map(|span| (shard, *span));
        Ok(shard)
    }

    /// Forgets all entries.
    fn clear(&mut self) {
        self.text.clear();
        self.shards.clear();
        self.entries.clear();
        self.table.clear();
        self.last = None;
    }

    /// The index, with its shards in byte order.
    fn finish(self, len: u64) -> Result<Index, IndexError> {
        const NO_PLACE: IndexError = IndexError::Internal("a shard of an index has no place among them");
        let no_memory = |_| IndexError::NoMemory { len };
        let Draft { text, mut shards, mut entries, .. } = self;
        if !shards.is_sorted_by_key(|shard| shard.of(&text)) {
            let mut order: Vec<(Span, u32)> = Vec::new();
            order.try_reserve_exact(shards.len()).map_err(no_memory)?;
            order.extend(shards.iter().copied().zip(0..));
            order.sort_unstable_by_key(|(shard, _)| shard.of(&text));

            let mut places: Vec<u32> = Vec::new();
            places.try_reserve_exact(shards.len()).map_err(no_memory)?;
            places.resize(shards.len(), 0);
            for ((slot, (shard, was)), place) in shards.iter_mut().zip(order).zip(0..) {
                *slot = shard;
                *places.get_mut(was as usize).ok_or(NO_PLACE)? = place;
            }
            for entry in &mut entries {
                entry.shard = *places.get(entry.shard as usize).ok_or(NO_PLACE)?;
            }
        }
        Ok(Index { text, shards, entries })
    }
}

/// The entries of `text`, which may be none.
fn read(text: &str) -> Result<Draft, IndexError> {
    match scan::scan(text) {
        Some(draft) => Ok(draft),
        None => read_slowly(text),
    }
}

/// The same in whatever form.
fn read_slowly(text: &str) -> Result<Draft, IndexError> {
    let len = text.len() as u64;
    // The names need less room than the text that spells them: with this much, nothing moves while they are kept.
    let mut reader = Reader { len, ..Reader::default() };
    reader.draft.text.try_reserve_exact(text.len()).map_err(|_| IndexError::NoMemory { len })?;
    match strings::read(text, Top(&mut reader)) {
        Ok(()) => reader.finish(),
        Err(failure) => Err(reader.explain(failure)),
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    len: u64,
    draft: Draft,
    /// Whether there has been a `weight_map` that is an object: it is the map, and nothing else is.
    has_weight_map: bool,
    /// Why the whole is no map from names to shards, should there be no `weight_map`.
    not_a_map: Option<String>,
    /// The entry of the `weight_map` whose value is being read.
    entry: Option<Span>,
    /// The cause, where it is one of ours and not serde_json's.
    failure: Option<IndexError>,
}

impl Reader {
    /// Records the cause and gives an error that makes serde_json stop.
    fn fail<E: Error>(&mut self, cause: IndexError) -> E {
        self.failure = Some(cause);
        E::custom("")
    }

    /// The value, or the error that there was no room for it.
    fn room<T, E: Error>(&mut self, pushed: Result<T, NoRoom>) -> Result<T, E> {
        let len = self.len;
        pushed.map_err(|NoRoom| self.fail(IndexError::NoMemory { len }))
    }

    fn push<E: Error>(&mut self, name: Span, shard: &str) -> Result<(), E> {
        let pushed = self.draft.push(name, shard.as_bytes());
        self.room(pushed)
    }

    fn string(&self, span: Span) -> &str {
        std::str::from_utf8(span.of(&self.draft.text)).unwrap_or_default()
    }

    fn finish(self) -> Result<Draft, IndexError> {
        match self.not_a_map {
            Some(reason) if !self.has_weight_map => Err(IndexError::Structure { reason }),
            _ => Ok(self.draft),
        }
    }

    #[cold]
    fn explain(mut self, failure: Failure) -> IndexError {
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        let (reason, is_data) = match failure {
            Failure::NoMemory => return IndexError::NoMemory { len: self.len },
            Failure::Internal(what) => return IndexError::Internal(what),
            Failure::Json { reason, is_data } => (excerpt(&reason), is_data),
        };
        match self.entry {
            _ if !is_data => IndexError::Json { reason },
            Some(name) => IndexError::Structure { reason: format!("tensor {}: {reason}", Quoted(self.string(name))) },
            None => IndexError::Structure { reason },
        }
    }
}

/// The index as a whole.
struct Top<'r>(&'r mut Reader);

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        found_string(&self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Any(Name(self.0)))? {
            map.next_value_seed(Any(TopValue { reader: self.0, key }))?;
        }
        Ok(())
    }
}

/// A key, kept in the text.
struct Name<'r>(&'r mut Reader);

impl Visitor<'_> for Name<'_> {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Span, E> {
        let kept = self.0.draft.keep(name.as_bytes());
        self.0.room(kept)
    }
}

/// The value of an entry of the whole: the map, or a shard if the whole is the map, or anything.
struct TopValue<'r> {
    reader: &'r mut Reader,
    key: Span,
}

impl TopValue<'_> {
    fn is_weight_map(&self) -> bool {
        self.key.of(&self.reader.draft.text) == WEIGHT_MAP
    }

    /// Notes that the value is neither the map nor a string.
    fn other<E>(self) -> Result<(), E> {
        if self.is_weight_map() {
            self.reader.not_a_map = Some("its weight_map is not an object".to_owned());
        } else if self.reader.not_a_map.is_none() {
            let reason = format!("it has no weight_map, and {} is not a string", Quoted(self.reader.string(self.key)));
            self.reader.not_a_map = Some(reason);
        }
        self.reader.draft.take_back(self.key);
        Ok(())
    }
}

impl<'de> Visitor<'de> for TopValue<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        self.other()
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        self.other()
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        self.other()
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        self.other()
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.other()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        Anything.visit_seq(seq)?;
        self.other()
    }

    fn visit_str<E: Error>(self, shard: &str) -> Result<(), E> {
        match self.reader.has_weight_map {
            true => {
                self.reader.draft.take_back(self.key);
                Ok(())
            }
            false => self.reader.push(self.key, shard),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if !self.is_weight_map() {
            Anything.visit_map(map)?;
            return self.other();
        }
        let reader = self.reader;
        if std::mem::replace(&mut reader.has_weight_map, true) {
            return Err(reader.fail(IndexError::duplicate(WEIGHT_MAP)));
        }
        // Strings that came before it are no shards after all.
        reader.draft.clear();
        while let Some(name) = map.next_key_seed(Any(Name(reader)))? {
            reader.entry = Some(name);
            map.next_value_seed(Any(Shard { reader, name }))?;
        }
        reader.entry = None;
        Ok(())
    }
}

/// The value of an entry of the `weight_map`.
struct Shard<'r> {
    reader: &'r mut Reader,
    name: Span,
}

impl Visitor<'_> for Shard<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the file name of a shard")
    }

    fn visit_str<E: Error>(self, shard: &str) -> Result<(), E> {
        self.reader.push(self.name, shard)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Names and shards, and the shards' names.
    type Said = (Vec<(String, usize)>, Vec<String>);

    fn said(text: &str) -> Result<Said, IndexError> {
        let index = Index::parse(text.as_bytes())?;
        assert!(!index.is_empty() && index.len() == index.entries().len());
        let string = |name: &[u8]| String::from_utf8(name.to_vec()).unwrap();
        let entries = index.entries().map(|(name, shard)| (string(name), shard)).collect();
        Ok((entries, index.shards().map(str::to_owned).collect()))
    }

    fn expect(text: &str, entries: &[(&str, usize)], shards: &[&str]) {
        let entries = entries.iter().map(|(name, shard)| (name.to_string(), *shard)).collect();
        let shards = shards.iter().map(|shard| shard.to_string()).collect();
        assert_eq!(said(text), Ok((entries, shards)), "{text}");
    }

    fn reason(text: &str) -> String {
        match said(text).unwrap_err() {
            IndexError::Structure { reason } => reason,
            other => panic!("{text}: {other}"),
        }
    }

    #[test]
    fn parse_reads_both_forms_in_the_order_of_the_file() {
        let map = r#"{"b":"2","c":"1","a":"2","d":"10"}"#;
        for text in [
            map.to_owned(),
            format!(r#"{{"weight_map":{map}}}"#),
            format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{map}}}"#),
            format!(
                " {{\n  \"metadata\" : {{ }},\r\n\t\"weight_map\": {map} , \"x\": [1.5e3, null, {{\"x\":true}}]}} \n"
            ),
        ] {
            expect(&text, &[("b", 2), ("c", 0), ("a", 2), ("d", 1)], &["1", "10", "2"]);
        }
        expect(r#"{"a":"1","b":"2","c":"1"}"#, &[("a", 0), ("b", 1), ("c", 0)], &["1", "2"]);
    }

    #[test]
    fn parse_takes_a_weight_map_that_is_a_string_for_a_tensor() {
        expect(r#"{"weight_map":"1","metadata":"2"}"#, &[("weight_map", 0), ("metadata", 1)], &["1", "2"]);
        expect(r#"{"weight_map":{"weight_map":"1"}}"#, &[("weight_map", 0)], &["1"]);
    }

    #[test]
    fn parse_ignores_what_is_beside_the_weight_map() {
        for text in [
            r#"{"format":"pt","x":"9","weight_map":{"a":"1"}}"#,
            r#"{"weight_map":{"a":"1"},"format":"pt","a":"2"}"#,
            r#"{"weight_map":"9","weight_map":{"a":"1"},"weight_map":null}"#,
            r#"{"weight_map":[],"weight\u005fmap":{"a":"1"},"weight_map":"9"}"#,
            r#"{"metadata":{"weight_map":{"b":"2"}},"weight_map":{"a":"1"}}"#,
        ] {
            expect(text, &[("a", 0)], &["1"]);
        }
    }

    #[test]
    fn parse_unescapes_and_keeps_any_unicode() {
        expect(
            r#"{"weight_map":{"\u6743\u91cd":"\ud83d\ude00","权":"😀","a\u0000b":"\u0000","":"","\"\\\/\n":"x"}}"#,
            &[("权重", 3), ("权", 3), ("a\0b", 1), ("", 0), ("\"\\/\n", 2)],
            &["", "\0", "x", "😀"],
        );
    }

    #[test]
    fn parse_leaves_names_that_occur_twice_to_the_caller() {
        expect(r#"{"a":"1","\u0061":"2","a":"1"}"#, &[("a", 0), ("a", 1), ("a", 0)], &["1", "2"]);
        expect(r#"{"weight_map":{"a":"1","a":"1"}}"#, &[("a", 0), ("a", 0)], &["1"]);
    }

    #[test]
    fn parse_refuses_a_second_weight_map() {
        for second in ["weight_map", r"weight\u005fmap", r"\u0077eight_map"] {
            let text = format!(r#"{{"weight_map":{{"a":"1"}},"x":0,"{second}":{{"b":"2"}}}}"#);
            assert_eq!(said(&text), Err(IndexError::Duplicate { name: "weight_map".to_owned() }), "{text}");
        }
    }

    #[test]
    fn parse_says_what_is_no_map_of_shards() {
        for text in ["{}", r#"{"weight_map":{}}"#, r#"{"a":"1","weight_map":{},"b":"2"}"#] {
            assert_eq!(reason(text), "it names no tensors", "{text}");
        }
        for (other, name) in
            [("null", "x"), ("true", "y"), ("-1", "z"), ("1", "a"), ("1.5", "b"), ("[]", "c"), ("{}", "d")]
        {
            let expected = format!("it has no weight_map, and \"{name}\" is not a string");
            assert_eq!(reason(&format!(r#"{{"t":"1","{name}":{other},"u":"1","v":0}}"#)), expected);
        }
        for text in [r#"{"weight_map":["a"]}"#, r#"{"metadata":{},"weight_map":null,"x":1}"#] {
            assert_eq!(reason(text), "its weight_map is not an object", "{text}");
        }
        for text in ["[]", "null", "\"x\"", "1", "[{\"a\":\"1\"}]"] {
            assert!(reason(text).contains("expected an object"), "{text}");
        }
        for other in ["null", "true", "-1", "1", "1.5", "[\"1\"]", "{\"a\":\"1\"}"] {
            let reason = reason(&format!(r#"{{"weight_map":{{"t":"1","a\n":{other}}}}}"#));
            assert!(reason.starts_with(r#"tensor "a\n": invalid type: "#), "{reason}");
            assert!(reason.contains("expected the file name of a shard at line 1 column"), "{reason}");
        }
    }

    #[test]
    fn parse_refuses_what_is_not_json() {
        let nested =
            |depth: usize| format!(r#"{{"weight_map":{{"a":"1"}},"x":{}1{}}}"#, "[".repeat(depth), "]".repeat(depth));
        assert!(said(&nested(126)).is_ok());
        for text in [
            "",
            " ",
            "{",
            "{}x",
            "{} {}",
            "\u{feff}{\"a\":\"1\"}",
            r#"{"a":"1",}"#,
            r#"{"a":"1"}}"#,
            r#"{"weight_map":{"a":"1"}"#,
            r#"{"weight_map":{"a":"1"},"x":1e400}"#,
            r#"{"weight_map":{"a":"1"},"x":"\ud800"}"#,
            r#"{"weight_map":{"a":"1"},"x":{"\ud800":0}}"#,
            r#"{"weight_map":{"a":"1"},"x":NaN}"#,
            r#"{"weight_map":{"a\ud800":"1"}}"#,
            "{\"a\":\"1\n\"}",
            "{'a':'1'}",
            &nested(127),
            &"{\"a\":".repeat(1 << 20),
        ] {
            let error = said(text).unwrap_err();
            assert!(matches!(error, IndexError::Json { .. }), "{text:.99}: {error}");
        }
    }

    #[test]
    fn parse_refuses_what_is_not_utf8() {
        for (text, position) in [(&b"\xff"[..], 0), (b"{\"a\":\"\xc3\"}", 6), (b"{\"a\":\"1\"}\x80", 9)] {
            assert_eq!(Index::parse(text).unwrap_err(), IndexError::Utf8 { position });
        }
    }

    #[test]
    fn parse_and_index_len_refuse_what_is_too_long() {
        assert_eq!(index_len(0), Ok(0));
        assert_eq!(index_len(MAX_INDEX_LEN), Ok(100_000_000));
        for len in [MAX_INDEX_LEN + 1, u64::MAX] {
            assert_eq!(index_len(len), Err(IndexError::TooLarge { len }));
        }
        let error = Index::parse(&vec![0; MAX_INDEX_LEN as usize + 1]).unwrap_err();
        assert_eq!(error, IndexError::TooLarge { len: MAX_INDEX_LEN + 1 });
    }

    #[test]
    fn parse_puts_no_more_than_excerpts_into_errors() {
        let long = "\\u001b".repeat(1 << 16);
        for text in [
            format!(r#""{long}""#),
            format!(r#"{{"{long}":0}}"#),
            format!(r#"{{"weight_map":"{long}","x":["{long}"]}}"#),
            format!(r#"{{"weight_map":{{"{long}":["{long}"]}}}}"#),
            format!(r#"{{"weight_map":{{"a":{}}}}}"#, "1".repeat(1 << 16)),
            format!(r#"{{"{long}":"{long}" 0"#),
        ] {
            let shown = said(&text).unwrap_err().to_string();
            assert!(shown.len() < 400 && !shown.contains(char::is_control), "{shown}");
        }
        let name = "权".repeat(1 << 16);
        let IndexError::Duplicate { name } = IndexError::duplicate(name.as_bytes()) else { panic!() };
        assert!(name.starts_with("权权") && name.len() < 400);
    }

    #[test]
    fn parse_refuses_more_shards_than_can_be_opened() {
        let map = |shards: usize| {
            let entries: Vec<String> = (0..shards).map(|i| format!(r#""{i}":"{i}""#)).collect();
            Index::parse(format!("{{{}}}", entries.join(",")).as_bytes())
        };
        assert_eq!(map(MAX_SHARDS).unwrap().shards().len(), MAX_SHARDS);
        assert!(matches!(map(MAX_SHARDS + 1), Err(IndexError::Structure { .. })));
    }

    #[test]
    fn shards_are_found_again_among_thousands() {
        let shard = |i: usize| i * 7919 % 5000;
        let entries: Vec<String> = (0..20_000).map(|i| format!(r#""t{i}":"{:04}""#, shard(i))).collect();
        let index = Index::parse(format!("{{{}}}", entries.join(",")).as_bytes()).unwrap();
        assert!(index.shards().eq((0..5000).map(|i| format!("{i:04}"))));
        assert!(index.entries().map(|(_, shard)| shard).eq((0..20_000).map(shard)));
    }
}
