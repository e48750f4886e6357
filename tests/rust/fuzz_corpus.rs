//! The fuzz targets over their corpus, without a fuzzer: what was found once stays found.

#[path = "../../fuzz/src/header.rs"]
mod header;
#[path = "../../fuzz/src/index.rs"]
pub mod index;
#[path = "../../fuzz/src/input.rs"]
mod input;
#[path = "../../fuzz/src/layout.rs"]
mod layout;
#[path = "../../fuzz/src/load.rs"]
mod load;
#[path = "../../fuzz/src/open.rs"]
mod open;
#[path = "../../fuzz/src/slice.rs"]
mod slice;
#[path = "../../fuzz/src/verify.rs"]
mod verify;
#[path = "../../fuzz/src/write.rs"]
mod write;

use crate::mutation::mutate_bytes;
use crate::random::Random;
use std::fs;

/// Damaged copies of each file, so that a target is not only right about its corpus.
const COPIES: u64 = 200;

fn replay(folder: &str, run: fn(&[u8])) {
    let files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() > 10, "{folder}");
    for file in files {
        let input = fs::read(&file).unwrap();
        println!("{}", file.display());
        run(&input);
        for seed in 0..COPIES {
            let mut damaged = input.clone();
            mutate_bytes(&mut damaged, &mut Random::new(seed));
            run(&damaged);
        }
    }
}

#[test]
fn header_holds_over_its_corpus() {
    replay("fuzz/corpus/header", header::run);
}

#[test]
fn index_holds_over_its_corpus() {
    replay("fuzz/corpus/index", index::run);
}

#[test]
fn slice_holds_over_its_corpus() {
    replay("fuzz/corpus/slice", slice::run);
}

#[test]
fn layout_holds_over_its_corpus() {
    replay("fuzz/corpus/layout", layout::run);
}

#[test]
fn open_holds_over_its_corpus() {
    replay("fuzz/corpus/open", open::run);
}

#[test]
fn open_holds_over_the_files_of_the_tests() {
    replay("tests/data/hostile", open::run);
    replay("tests/data/valid", open::run);
}

#[test]
fn load_holds_over_its_corpus() {
    replay("fuzz/corpus/load", load::run);
}

#[test]
fn verify_holds_over_its_corpus() {
    replay("fuzz/corpus/verify", verify::run);
}

#[test]
fn write_holds_over_its_corpus() {
    replay("fuzz/corpus/write", write::run);
}
