//! Indices in every form, as serde_json writes and reads them, and damaged ones.

use crate::fuzz_corpus::index::run;
use crate::mutation::mutate;
use crate::random::Random;
use crate::sample;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use safetensors_lazy::format::Index;
use serde::{Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write;

/// Damaged copies that are read.
const MUTATIONS: u64 = 20_000;

/// An index, before it is spelled out.
#[derive(Clone, Debug)]
struct Sample {
    /// Names and shards, in the order of the file.
    entries: Vec<(String, String)>,
    /// What is beside the `weight_map`, before and after it; `None` for the map alone.
    beside: Option<[Vec<(String, Value)>; 2]>,
    indented: bool,
    /// Whether all that is not ASCII is escaped, as Python does.
    ascii: bool,
}

/// An object whose entries stay in their order.
struct Object<'a>(Vec<(&'a str, Entry<'a>)>);

enum Entry<'a> {
    String(&'a str),
    Value(&'a Value),
    Object(Object<'a>),
}

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (key, value)))
    }
}

impl Serialize for Entry<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Entry::String(string) => string.serialize(serializer),
            Entry::Value(value) => value.serialize(serializer),
            Entry::Object(object) => object.serialize(serializer),
        }
    }
}

impl Sample {
    fn text(&self) -> String {
        let map = self.entries.iter().map(|(name, shard)| (name.as_str(), Entry::String(shard)));
        let mut top = Object(map.collect());
        if let Some([before, after]) = &self.beside {
            let mut entries = values(before);
            entries.push(("weight_map", Entry::Object(top)));
            entries.extend(values(after));
            top = Object(entries);
        }
        let text = match self.indented {
            true => serde_json::to_string_pretty(&top),
            false => serde_json::to_string(&top),
        };
        match self.ascii {
            true => ascii(&text.unwrap()),
            false => text.unwrap(),
        }
    }
}

fn values(others: &[(String, Value)]) -> Vec<(&str, Entry<'_>)> {
    others.iter().map(|(key, value)| (key.as_str(), Entry::Value(value))).collect()
}

/// The same JSON in ASCII.
fn ascii(text: &str) -> String {
    let mut escaped = String::new();
    for unit in text.encode_utf16() {
        match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => escaped.push(byte.into()),
            _ => write!(escaped, "\\u{unit:04x}").unwrap(),
        }
    }
    escaped
}

fn sample() -> impl Strategy<Value = Sample> {
    let name = prop_oneof![
        6 => sample::name(),
        1 => any::<String>(),
        1 => proptest::sample::select(vec!["weight_map", "metadata", ""]).prop_map(str::to_owned),
    ];
    let shard = prop_oneof![4 => "model-0000[1-9]-of-00009\\.safetensors", 1 => any::<String>()];
    let entries = btree_map(name, shard, 1..20).prop_map(|map| map.into_iter().collect::<Vec<_>>()).prop_shuffle();
    let other = prop_oneof![
        any::<String>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(serde_json::json!({"total_size": 1.5e9, "weight_map": {"a": "b"}, "n": [null, true]})),
    ];
    let beside = || vec((prop_oneof![Just("metadata".to_owned()), any::<String>()], other.clone()), 0..3);
    let beside = proptest::option::of((beside(), beside()).prop_map(|(before, after)| [before, after]));
    (entries, beside, any::<bool>(), any::<bool>()).prop_map(|(entries, beside, indented, ascii)| Sample {
        entries,
        beside,
        indented,
        ascii,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5000) })]

    #[test]
    fn indices_are_read_as_they_were_written(sample in sample()) {
        let text = sample.text();
        let index = Index::parse(text.as_bytes()).unwrap();
        let shards: Vec<&str> = index.shards().collect();
        let found: Vec<(&str, &str)> =
            index.entries().map(|(name, shard)| (std::str::from_utf8(name).unwrap(), shards[shard])).collect();
        let expected: Vec<(&str, &str)> =
            sample.entries.iter().map(|(name, shard)| (name.as_str(), shard.as_str())).collect();
        prop_assert_eq!(&found, &expected);
        let distinct: BTreeSet<&str> = expected.iter().map(|(_, shard)| *shard).collect();
        prop_assert!(shards.iter().eq(&distinct));

        let value: Value = serde_json::from_str(&text).unwrap();
        let map = if sample.beside.is_some() { &value["weight_map"] } else { &value };
        let map = map.as_object().unwrap();
        prop_assert_eq!(map.len(), found.len());
        prop_assert!(found.iter().all(|(name, shard)| map[*name] == *shard));
    }
}

#[test]
fn damaged_indices_are_read_as_a_tree_of_values_says() {
    let mut runner = TestRunner::deterministic();
    let mut base = || sample().new_tree(&mut runner).unwrap().current().text();
    let bases: Vec<Vec<u8>> = (0..300).map(|_| sample::file(base().as_bytes(), b"")).collect();
    let mut accepted = 0;
    for seed in 0..MUTATIONS {
        let mut random = Random::new(seed);
        let base: &Vec<u8> = random.pick(&bases);
        let damaged = mutate(base, &mut random);
        // Without the length, which makes a header of it.
        let text = damaged.get(8..).unwrap_or_default();
        run(text);
        accepted += u64::from(Index::parse(text).is_ok());
    }
    println!("{MUTATIONS} damaged indices, {accepted} of them valid");
    assert!((MUTATIONS / 10..MUTATIONS * 9 / 10).contains(&accepted));
}
