//! Every source that holds tests is compiled, and every fuzz target is run.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The names in a directory, without what follows the first dot.
fn stems(path: &str) -> Vec<String> {
    let names = fs::read_dir(root().join(path)).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut stems: Vec<String> = names.map(|name| name.split('.').next().unwrap().to_owned()).collect();
    stems.sort();
    stems
}

/// The source that must declare the module `path`: `a/mod.rs`, or `a.rs`, for `a/b.rs`.
fn parent(path: &Path) -> PathBuf {
    let directory = match path.file_name().unwrap() == "mod.rs" {
        true => path.parent().unwrap().parent().unwrap(),
        false => path.parent().unwrap(),
    };
    ["mod.rs", "lib.rs", "main.rs"]
        .iter()
        .map(|name| directory.join(name))
        .find(|candidate| candidate.exists())
        .unwrap_or_else(|| directory.with_extension("rs"))
}

fn check_modules(directory: &Path, checked: &mut usize) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            check_modules(&path, checked);
            continue;
        }
        let stem = match path.file_name().unwrap().to_str().unwrap() {
            "lib.rs" | "main.rs" => continue,
            "mod.rs" => path.parent().unwrap().file_name().unwrap().to_str().unwrap(),
            name => match name.strip_suffix(".rs") {
                Some(stem) => stem,
                None => continue,
            },
        };
        let parent = parent(&path);
        let declared = fs::read_to_string(&parent).unwrap();
        let is_declared = declared.lines().any(|line| {
            let line =
                line.trim().trim_start_matches("pub").trim_start_matches("(crate)").trim_start_matches("(super)");
            line.trim() == format!("mod {stem};")
        });
        assert!(is_declared, "{} is compiled by nothing: {} does not declare it", path.display(), parent.display());
        *checked += 1;
    }
}

/// rustc says nothing of a file that no `mod` names: its tests would never run.
#[test]
fn every_module_is_declared() {
    let mut checked = 0;
    check_modules(&root().join("src"), &mut checked);
    check_modules(&root().join("tests/rust"), &mut checked);
    assert!(checked > 50, "{checked}");
}

#[test]
fn every_fuzz_target_is_built_run_and_replayed() {
    let targets = stems("fuzz/fuzz_targets");
    assert!(targets.len() >= 8, "{targets:?}");
    assert_eq!(stems("fuzz/corpus"), targets);
    let (manifest, script, replay) = (read("fuzz/Cargo.toml"), read("scripts/fuzz"), read("tests/rust/fuzz_corpus.rs"));
    let all = script.lines().find(|line| line.contains("|| set -- ")).unwrap();
    let mut run: Vec<&str> = all.split("set -- ").nth(1).unwrap().split(' ').collect();
    run.sort();
    assert_eq!(run, targets);
    for target in &targets {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")), "fuzz/Cargo.toml lacks {target}");
        let replayed = format!("replay(\"fuzz/corpus/{target}\", {target}::run)");
        assert!(replay.contains(&replayed), "tests/rust/fuzz_corpus.rs does not replay {target}");
    }
}
