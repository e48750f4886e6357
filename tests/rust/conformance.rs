//! The files of `tests/data/hostile` and `tests/data/valid`: what becomes of each is written down beside them, in
//! `expected.tsv`. `tests/data/make_hostile.py` makes both.

use crate::c_api::{open, open_buffer, Failure};
use crate::reference::{check, Verdict};
use safetensors_lazy::ffi::directory::st_len;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The codes of section "Errors" of the C header that are about what a file holds.
const CODES: [&str; 19] = [
    "ST_ERR_TRUNCATED",
    "ST_ERR_HEADER_TOO_SMALL",
    "ST_ERR_HEADER_TOO_LARGE",
    "ST_ERR_HEADER_LENGTH",
    "ST_ERR_HEADER_UTF8",
    "ST_ERR_HEADER_JSON",
    "ST_ERR_HEADER_STRUCTURE",
    "ST_ERR_HEADER_METADATA",
    "ST_ERR_HEADER_DTYPE",
    "ST_ERR_DUPLICATE_NAME",
    "ST_ERR_DUPLICATE_METADATA",
    "ST_ERR_NUL_IN_NAME",
    "ST_ERR_OFFSETS_REVERSED",
    "ST_ERR_OFFSETS_GAP",
    "ST_ERR_OFFSETS_OVERLAP",
    "ST_ERR_TENSOR_OVERFLOW",
    "ST_ERR_TENSOR_PARTIAL_BYTE",
    "ST_ERR_TENSOR_SIZE",
    "ST_ERR_TRAILING_BYTES",
];

/// A table, as the columns of each line. The folder is relative, so that messages have room for more than a path.
fn table(folder: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(Path::new(folder).join("expected.tsv")).unwrap();
    text.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

#[test]
fn hostile_files_are_refused_for_the_right_reason() {
    let folder = Path::new("tests/data/hostile");
    let mut wrong = Vec::new();
    for row in table("tests/data/hostile") {
        let [name, status, fragment] = &row[..] else { panic!("{row:?}") };
        let from_file = open(&folder.join(name)).unwrap_err();
        let buffer = fs::read(folder.join(name)).unwrap();
        let from_buffer = open_buffer(&buffer).unwrap_err();
        if from_file.status != status || !from_file.message.contains(fragment) {
            wrong.push(format!("{name}: {from_file:?}, not {status} with {fragment}"));
        }
        assert_eq!((from_file.status, from_file.os_error), (from_buffer.status, 0), "{name}");
        assert!(from_file.message.contains(name), "{name} is not in: {}", from_file.message);
        for Failure { message, .. } in [&from_file, &from_buffer] {
            assert!((1..504).contains(&message.len()) && is_one_plain_line(message), "{name}: {message:?}");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Nothing that would move the cursor, change colours or turn the reading direction of a terminal.
fn is_one_plain_line(message: &str) -> bool {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !message.contains(|c: char| c.is_control() || turns(c))
}

#[test]
fn hostile_files_cover_each_code_several_times() {
    let table = table("tests/data/hostile");
    for code in CODES {
        let files = table.iter().filter(|row| row[1] == code).count();
        assert!(files >= 3, "{code} has {files} files");
    }
    for row in &table {
        assert!(CODES.contains(&&*row[1]), "{row:?}");
    }
}

#[test]
fn valid_files_open() {
    let folder = Path::new("tests/data/valid");
    for row in table("tests/data/valid") {
        let [name, tensors] = &row[..] else { panic!("{row:?}") };
        let handle = open(&folder.join(name)).unwrap_or_else(|failure| panic!("{name}: {failure:?}"));
        // SAFETY: the handle is open.
        assert_eq!(unsafe { st_len(handle.0) }.to_string(), *tensors, "{name}");
    }
}

#[test]
fn the_reference_agrees_on_each_file() {
    for folder in ["tests/data/hostile", "tests/data/valid"] {
        for row in table(folder) {
            let file = fs::read(Path::new(folder).join(&row[0])).unwrap();
            let verdict = check(&file).unwrap_or_else(|difference| panic!("{}: {difference}", row[0]));
            let stricter = ["ST_ERR_DUPLICATE_NAME", "ST_ERR_DUPLICATE_METADATA", "ST_ERR_NUL_IN_NAME"];
            assert_eq!(verdict == Verdict::Stricter, stricter.contains(&&*row[1]), "{row:?}");
            assert_eq!(verdict == Verdict::Accepted, folder.ends_with("valid"), "{row:?}");
        }
    }
}

/// Whoever adds a file by hand, or edits a table, finds it gone after the next run of the script.
#[test]
fn files_are_those_that_the_script_writes() {
    let fresh = tempfile::tempdir().unwrap();
    let script = Command::new("python3").arg("tests/data/make_hostile.py").arg(fresh.path()).status();
    let Ok(status) = script else {
        eprintln!("skipped: there is no python3 here");
        return;
    };
    assert!(status.success());
    for folder in ["hostile", "valid"] {
        let committed = Path::new("tests/data").join(folder);
        let written = fresh.path().join(folder);
        assert_eq!(names(&committed), names(&written), "run tests/data/make_hostile.py and commit what it writes");
        for name in names(&written) {
            let same = fs::read(committed.join(&name)).unwrap() == fs::read(written.join(&name)).unwrap();
            assert!(same, "{folder}/{}: run tests/data/make_hostile.py", name.display());
        }
    }
}

fn names(folder: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into()).collect()
}
