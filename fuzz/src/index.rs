//! Bytes as the text of an index: what is read of it, or why it is refused, is what a tree of its values says.

use safetensors_lazy::format::{Index, IndexError};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;

/// Longer messages than this hold more of the input than an excerpt.
const LONGEST_MESSAGE: usize = 400;

pub fn run(text: &[u8]) {
    let parsed = Index::parse(text);
    let shown = text.escape_ascii();
    if let Err(error) = &parsed {
        let message = error.to_string();
        assert!(message.len() < LONGEST_MESSAGE && !message.contains(char::is_control), "{message}\n{shown}");
    }
    if let Err(error) = std::str::from_utf8(text) {
        assert_eq!(parsed.err(), Some(IndexError::Utf8 { position: error.valid_up_to() }), "{shown}");
        return;
    }
    let tree: Option<Tree> = serde_json::from_slice(text).ok();
    assert_eq!(tree.is_some(), serde_json::from_slice::<serde_json::Value>(text).is_ok(), "{shown}");
    let Some(tree) = tree else {
        // What is wrong with the structure may have come first.
        let refused = parsed.as_ref().is_err_and(|error| {
            use IndexError as E;
            matches!(error, E::Json { .. } | E::Structure { .. } | E::Duplicate { .. })
        });
        assert!(refused, "{parsed:?}\n{shown}");
        return;
    };
    let (expected, parsed) = match (entries_of(&tree), parsed) {
        (Ok(expected), Ok(parsed)) => (expected, parsed),
        (Err(Wrong::Structure), Err(IndexError::Structure { .. })) => return,
        (Err(Wrong::Duplicate), Err(IndexError::Duplicate { name })) if name == "weight_map" => return,
        (expected, parsed) => panic!("{expected:?}, not {parsed:?}\n{shown}"),
    };
    let shards: Vec<&str> = parsed.shards().collect();
    assert!(shards.iter().eq(&expected.iter().map(|(_, shard)| *shard).collect::<BTreeSet<&str>>()), "{shown}");
    let entries = parsed.entries().map(|(name, shard)| (name, shards[shard]));
    assert!(entries.eq(expected.iter().map(|(name, shard)| (name.as_bytes(), *shard))), "{shown}");
    assert_eq!((parsed.len(), parsed.is_empty()), (expected.len(), false));
}

/// Any JSON value. Unlike `serde_json::Value` it keeps the order of an object's entries, and those whose key occurs twice.
enum Tree {
    String(String),
    Object(Vec<(String, Tree)>),
    Other,
}

#[derive(Debug)]
enum Wrong {
    Structure,
    Duplicate,
}

/// Names and shards in the order of the text.
fn entries_of(tree: &Tree) -> Result<Vec<(&str, &str)>, Wrong> {
    let Tree::Object(top) = tree else { return Err(Wrong::Structure) };
    let mut map = None;
    for (key, value) in top {
        match value {
            Tree::Object(_) if key == "weight_map" && map.is_some() => return Err(Wrong::Duplicate),
            Tree::Object(entries) if key == "weight_map" => map = Some(strings(entries)?),
            _ => {}
        }
    }
    let entries = map.map_or_else(|| strings(top), Ok)?;
    match entries.is_empty() {
        true => Err(Wrong::Structure),
        false => Ok(entries),
    }
}

fn strings(entries: &[(String, Tree)]) -> Result<Vec<(&str, &str)>, Wrong> {
    let mut pairs = Vec::new();
    for (key, value) in entries {
        let Tree::String(value) = value else { return Err(Wrong::Structure) };
        pairs.push((key.as_str(), value.as_str()));
    }
    Ok(pairs)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Tree, D::Error> {
        deserializer.deserialize_any(Anything)
    }
}

struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_str<E>(self, string: &str) -> Result<Tree, E> {
        Ok(Tree::String(string.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        while seq.next_element::<Tree>()?.is_some() {}
        Ok(Tree::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Object(entries))
    }
}
