//! Several threads open the shards, and whichever comes first, what is said of them is the same every time.

use super::{shard, Model};
use crate::c_api::open;
use crate::sample;
use std::fs;
use std::path::Path;

const SHARDS: usize = 40;

fn numbered(number: usize) -> String {
    format!("m-{number:05}-of-{SHARDS:05}.safetensors")
}

/// A shard with one tensor, or with a header that is wrong in one of three ways.
fn write_shard(folder: &Path, number: usize, is_bad: bool) {
    let header = format!(r#"{{"t{number}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#);
    let sound = sample::file(header.as_bytes(), b"x");
    let file = match (is_bad, number % 3) {
        (false, _) => sound,
        (true, 0) => sample::file(header.replace("U8", "Q8").as_bytes(), b"x"),
        (true, 1) => sample::file(header.as_bytes(), b""),
        (true, _) => sample::file(b"[]", b""),
    };
    fs::write(folder.join(numbered(number)), file).unwrap();
}

#[test]
fn the_first_bad_shard_is_the_one_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for first in [1, 2, 9, 20, SHARDS] {
        for number in 1..=SHARDS {
            // Large and slow to parse just where the first failure is, so that later ones come earlier.
            write_shard(folder.path(), number, number >= first);
        }
        let slow = format!("{{{}", " ".repeat(1 << 20));
        fs::write(folder.path().join(numbered(first)), sample::file(slow.as_bytes(), b"")).unwrap();
        for _ in 0..100 {
            let failure = open(folder.path()).unwrap_err();
            assert_eq!(failure.status, "ST_ERR_HEADER_JSON", "{failure:?}");
            assert!(failure.message.contains(&numbered(first)), "{failure:?}");
        }
    }
}

#[test]
fn a_missing_shard_comes_before_all_that_are_bad() {
    let model = Model::new();
    fs::write(model.path(&shard(1)), "bad").unwrap();
    fs::remove_file(model.path(&shard(3))).unwrap();
    for _ in 0..100 {
        model.refuses("ST_ERR_SHARD_MISSING", &[&shard(3)]);
    }
}

/// So many names that several threads index them, some of them several times.
#[test]
fn the_first_name_that_occurs_twice_is_the_one_that_is_named() {
    const NAMES: usize = 30_000;
    let folder = tempfile::tempdir().unwrap();
    let write = |number: usize, repeated: &[usize]| {
        let own = (0..NAMES).map(|i| format!("{number}.{i}"));
        let repeated = repeated.iter().map(|i| format!("1.{i}"));
        let described = |name| format!(r#""{name}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#);
        let header = format!("{{{}}}", own.chain(repeated).map(described).collect::<Vec<_>>().join(","));
        let name = format!("m-{number:05}-of-00003.safetensors");
        fs::write(folder.path().join(name), sample::file(header.as_bytes(), b"")).unwrap();
    };
    write(1, &[]);
    write(2, &[]);
    write(3, &[]);
    let all = safetensors_lazy::Checkpoint::open(folder.path(), Default::default()).unwrap();
    assert_eq!((all.len(), all.find("2.17"), all.find("3.29999")), (3 * NAMES, Some(NAMES + 17), Some(3 * NAMES - 1)));

    write(2, &[20_000, 3, 7, 11, 13]);
    write(3, &[1, 5, 20_000]);
    for _ in 0..20 {
        let failure = open(folder.path()).unwrap_err();
        assert_eq!(failure.status, "ST_ERR_DUPLICATE_NAME");
        for named in ["\"1.20000\"", "m-00001-of-00003", "m-00002-of-00003"] {
            assert!(failure.message.contains(named), "{failure:?}");
        }
    }
}
