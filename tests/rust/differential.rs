//! Our verdict on files against that of the reference implementation: valid files of every kind, and damaged ones by the
//! hundred thousand. What may differ, and nothing else, is said in [`crate::reference`].
//!
//! `ST_MUTATIONS=1000000 cargo test --release --features internals differential` damages a million.

use crate::mutation::mutate;
use crate::random::Random;
use crate::reference::{check, Verdict};
use crate::sample::{self, sample};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::collections::BTreeMap;

const DEFAULT_MUTATIONS: u64 = 100_000;

/// Different valid files that are damaged.
const BASES: usize = 300;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5000) })]

    #[test]
    fn valid_files_are_read_alike(sample in sample()) {
        prop_assert_eq!(check(&sample.file()), Ok(Verdict::Accepted));
    }
}

#[test]
fn damaged_files_are_read_alike() {
    let bases = bases();
    let mutations = match std::env::var("ST_MUTATIONS") {
        Ok(number) => number.parse().expect("ST_MUTATIONS is a number"),
        Err(_) => DEFAULT_MUTATIONS,
    };
    let mut verdicts: BTreeMap<Verdict, u64> = BTreeMap::new();
    for seed in 0..mutations {
        let mut random = Random::new(seed);
        let base: &Vec<u8> = random.pick(&bases);
        let file = mutate(base, &mut random);
        match check(&file) {
            Ok(verdict) => *verdicts.entry(verdict).or_default() += 1,
            Err(difference) => panic!("seed {seed}: {difference}\n{}", file.escape_ascii()),
        }
    }
    println!("{mutations} damaged files: {verdicts:?}");
    if mutations >= DEFAULT_MUTATIONS {
        for verdict in Verdict::ALL {
            assert!(verdicts.contains_key(&verdict), "no damage leads to {verdict:?}: {verdicts:?}");
        }
    }
}

/// The same files in every run.
fn bases() -> Vec<Vec<u8>> {
    let mut runner = TestRunner::deterministic();
    let mut base = || sample().new_tree(&mut runner).unwrap().current().file();
    (0..BASES).map(|_| base()).collect()
}

#[test]
fn each_short_file_is_read_alike() {
    for len in 0..8 {
        assert_eq!(check(&vec![0; len]), Ok(Verdict::TooSmall));
    }
    for text in ["", " ", "{", "}", "{}", "[]", "{} ", "\n{\n}\n", "{}\0", "null", "\u{feff}{}"] {
        let file = sample::file(text.as_bytes(), b"");
        check(&file).unwrap_or_else(|difference| panic!("{text:?}: {difference}"));
        for wrong in [-1i64, 1, 100_000_000, 100_000_001, i64::MAX, i64::MIN] {
            let mut file = file.clone();
            file[..8].copy_from_slice(&(text.len() as u64).wrapping_add_signed(wrong).to_le_bytes());
            check(&file).unwrap_or_else(|difference| panic!("{text:?} {wrong}: {difference}"));
        }
    }
}

#[test]
fn each_truncation_and_each_flipped_bit_is_read_alike() {
    let header = br#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F16","shape":[2,1],"data_offsets":[0,4]},"b":["U8",[],[4,5]]}"#;
    let file = sample::file(header, &sample::data(5));
    for len in 0..file.len() {
        check(&file[..len]).unwrap_or_else(|difference| panic!("{len} bytes: {difference}"));
    }
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        check(&flipped).unwrap_or_else(|difference| panic!("bit {bit}: {difference}"));
    }
}

/// A header of exactly 100,000,000 bytes is read, one more is not.
#[test]
fn headers_at_the_limit_are_read_alike() {
    for (len, expected) in [(100_000_000, Verdict::Accepted), (100_000_001, Verdict::TooLarge)] {
        let mut header = b"{}".to_vec();
        header.resize(len, b' ');
        assert_eq!(check(&sample::file(&header, b"")), Ok(expected), "{len}");
    }
}

/// serde_json counts how deep values are nested; both must count from the same level.
#[test]
fn nesting_at_the_limit_is_read_alike() {
    let mut verdicts = Vec::new();
    for depth in 120..135 {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let nested = format!("{}0{}", open.repeat(depth), close.repeat(depth));
            for header in [
                nested.clone(),
                format!(r#"{{"a":{nested}}}"#),
                format!(r#"{{"__metadata__":{nested}}}"#),
                format!(r#"{{"a":{{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":{nested}}}}}"#),
                format!(r#"{{"a":{{"dtype":{nested},"shape":[0],"data_offsets":[0,0]}}}}"#),
                format!(r#"{{"a":{{"dtype":"U8","shape":{nested},"data_offsets":[0,0]}}}}"#),
            ] {
                let verdict = check(&sample::file(header.as_bytes(), b""));
                verdicts.push(verdict.unwrap_or_else(|difference| panic!("{depth} levels in {header}: {difference}")));
            }
        }
    }
    assert!(verdicts.contains(&Verdict::Accepted) && verdicts.contains(&Verdict::Json));
}
