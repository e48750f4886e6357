//! How fast is a checkpoint loaded, or a rank's part of it, beside the libraries that people use and beside what the machine can do?
//!
//! Each load is a process of its own. benches/README.md has the arguments.

#[path = "../common/mod.rs"]
mod common;

mod ballast;
mod best;
mod cache;
mod chart;
mod checksum;
mod child;
mod contenders;
mod crates;
mod figures;
mod fio;
mod limits;
mod memory;
mod model;
mod ours;
mod python;
mod rounds;
mod slices;
mod slow;
mod small;
mod suite;
mod tables;
mod tune;

use common::arguments::{introduce, Arguments};
use serde_json::json;
use std::path::{Path, PathBuf};
use tables::Table;

fn main() {
    let arguments = Arguments::of_process();
    if let Some(task) = arguments.of_child("child") {
        return child::run(task);
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if arguments.has("small") {
        let scratch = tempfile::tempdir_in(root.join("target")).expect("a temporary folder");
        introduce(scratch.path());
        return small::run(&arguments, root, scratch.path());
    }
    let folder = arguments.value_of("--folder").map_or(root.join("build/bench-model"), PathBuf::from);
    std::fs::create_dir_all(&folder).expect("a folder");
    let machine = introduce(&folder.canonicalize().expect("a folder"));
    let markdown = arguments.value_of("--markdown").map(|file| (file, Frame::of(file)));
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let suite = suite::Suite::new(&arguments, folder, scratch.path());
    let tables = suite.run();
    let versions = suite.peers.versions.join(", ");
    let write = |file: &str, text: String| std::fs::write(file, text).unwrap_or_else(|error| panic!("{file}: {error}"));
    if let Some(file) = arguments.value_of("--json") {
        let rows: Vec<_> = tables.iter().map(Table::json).collect();
        write(file, format!("{:#}\n", json!({ "machine": machine, "versions": versions, "tables": rows })));
    }
    if let Some(file) = arguments.value_of("--chart") {
        write(file, chart::draw(&tables, &machine));
    }
    if let Some((file, Frame(head, tail))) = markdown {
        let text: String = tables.iter().map(|table| table.markdown() + "\n").collect();
        write(file, format!("{head}{}\n\n{text}({machine}. {versions}.)\n\n{}{tail}", MARKS[0], MARKS[1]));
    }
}

/// Between these a document has the tables.
const MARKS: [&str; 2] = ["<!-- scripts/bench load -->", "<!-- until here -->"];

/// What stands around the tables, and stays.
struct Frame(String, String);

impl Frame {
    /// Of a document that is not there yet, nothing. One without marks is not overwritten.
    fn of(file: &str) -> Frame {
        let Ok(text) = std::fs::read_to_string(file) else { return Frame(String::new(), "\n".to_owned()) };
        let parts = text.split_once(MARKS[0]).and_then(|(head, rest)| Some((head, rest.split_once(MARKS[1])?.1)));
        let (head, tail) = parts.unwrap_or_else(|| panic!("{file} has no place between {} and {}", MARKS[0], MARKS[1]));
        Frame(head.to_owned(), tail.to_owned())
    }
}
