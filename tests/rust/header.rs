//! `include/safetensors_lazy.h` is what `src/ffi/` says: it is generated, committed, and never edited.
//!
//! `scripts/header` runs this test with `ST_WRITE_HEADER` set, which writes the header instead of comparing it.

use safetensors_lazy::ffi::SECTIONS;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn committed() -> String {
    fs::read_to_string(root().join("include/safetensors_lazy.h")).unwrap_or_default()
}

fn generate() -> String {
    let prologue = fs::read_to_string(root().join("src/ffi/prologue.h")).unwrap();
    let mut header = prologue
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@MAJOR@", env!("CARGO_PKG_VERSION_MAJOR"))
        .replace("@MINOR@", env!("CARGO_PKG_VERSION_MINOR"))
        .replace("@PATCH@", env!("CARGO_PKG_VERSION_PATCH"));
    for (file, title) in SECTIONS {
        let section = generate_section(&root().join("src/ffi").join(file).with_extension("rs"));
        let bar = "=".repeat(100);
        write!(header, "\n/* {bar}\n * {title}\n * {bar} */\n\n{}\n", section.trim()).unwrap();
    }
    header.push_str("\n#ifdef __cplusplus\n}\n#endif\n\n#endif /* SAFETENSORS_LAZY_H */\n");
    header
}

/// What cbindgen makes of one file.
fn generate_section(file: &Path) -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_config(config).with_src(file).generate().unwrap();
    let mut section = Vec::new();
    bindings.write(&mut section);
    tidy(&String::from_utf8(section).unwrap())
}

/// Puts comments of one line on one line, and constants next to each other.
fn tidy(section: &str) -> String {
    let mut tidied: Vec<String> = Vec::new();
    let mut lines = section.lines().peekable();
    while let Some(line) = lines.next() {
        let next_is_define = |lines: &mut std::iter::Peekable<std::str::Lines>| {
            lines.peek().is_some_and(|next| next.starts_with("/**") || next.starts_with("#define"))
        };
        if line.trim() == "*/" && tidied.len() >= 2 && tidied[tidied.len() - 2].trim() == "/**" {
            let text = tidied.pop().unwrap();
            let open = tidied.pop().unwrap();
            let indent = &open[..open.len() - open.trim_start().len()];
            tidied.push(format!("{indent}/** {} */", text.trim().trim_start_matches('*').trim()));
        } else if line.is_empty() && tidied.last().is_some_and(|last| last.starts_with("#define")) {
            // Kept only where the constants end, which the lines after the next comment tell.
            let next: Vec<&str> = lines.clone().take(4).collect();
            let define_follows = next_is_define(&mut lines) && next.iter().any(|next| next.starts_with("#define"));
            if !define_follows {
                tidied.push(String::new());
            }
        } else {
            tidied.push(line.to_owned());
        }
    }
    tidied.join("\n")
}

#[test]
fn header_is_fresh() {
    let generated = generate();
    if std::env::var_os("ST_WRITE_HEADER").is_some() {
        fs::write(root().join("include/safetensors_lazy.h"), &generated).unwrap();
    }
    assert!(generated == committed(), "include/safetensors_lazy.h is stale: run scripts/header and commit it");
}

/// cbindgen leaves out, without a word, what it cannot translate or sees no use for.
#[test]
fn header_has_every_public_item_of_ffi() {
    let header = committed();
    for (file, _) in SECTIONS {
        let source = fs::read_to_string(root().join("src/ffi").join(file).with_extension("rs")).unwrap();
        for line in source.lines().filter(|line| !line.contains("SECTIONS")) {
            for (start, before, after) in [
                ("pub unsafe extern \"C\" fn ", "", "("),
                ("pub extern \"C\" fn ", "", "("),
                ("pub const ", "#define ", " "),
                ("pub struct ", "typedef struct ", " "),
                ("pub type ", "typedef int32_t ", ";"),
            ] {
                let Some(rest) = line.strip_prefix(start) else { continue };
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                assert!(header.contains(&format!("{before}{name}{after}")), "{name} of {file}.rs is not in the header");
            }
        }
    }
    for name in [
        "ST_OPEN_OPTIONS_INIT",
        "ST_LOAD_OPTIONS_INIT",
        "ST_VERIFY_OPTIONS_INIT",
        "ST_LAYOUT_INIT",
        "ST_WRITER_OPTIONS_INIT",
        "ST_END",
        "ST_MAX_RANK",
        "ST_VERSION",
        "ST_VERSION_MAJOR",
    ] {
        assert!(header.contains(&format!("#define {name} ")), "{name}");
    }
}

/// The functions declared in the header, each with the comment before it.
fn documented_functions() -> Vec<(String, String)> {
    let header = committed();
    let mut functions = Vec::new();
    for (position, _) in header.match_indices("st_") {
        let name: String = header[position..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        let line_start = header[..position].rfind('\n').map_or(0, |at| at + 1);
        let before = &header[line_start..position];
        let is_declaration = header[position + name.len()..].starts_with('(')
            && !before.is_empty()
            && before.starts_with(|c: char| c.is_ascii_lowercase())
            && before.ends_with([' ', '*']);
        if is_declaration {
            let comment_end = header[..line_start].trim_end();
            let comment = match comment_end.ends_with("*/") {
                true => comment_end[comment_end.rfind("/**").unwrap_or(comment_end.len())..].to_owned(),
                false => String::new(),
            };
            functions.push((name, comment));
        }
    }
    functions
}

#[test]
fn every_function_is_documented() {
    let functions = documented_functions();
    assert!(functions.len() >= 25, "{functions:?}");
    for (name, comment) in functions {
        assert!(comment.len() > 25, "{name} has no comment");
        assert!(!comment.contains("# Safety"), "{name}: Rust talk in the comment");
    }
}

/// Whoever looks for the test of `st_find_prefix` finds `find_prefix` in the C tests.
#[test]
fn every_function_is_called_by_a_c_test() {
    let tests: String = fs::read_dir(root().join("tests/c"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    for (name, _) in documented_functions() {
        assert!(tests.contains(&format!("{name}(")), "no C test calls {name}");
    }
}
