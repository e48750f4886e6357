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

/// The functions that a section of the header declares, without `st_`.
fn functions_of(section: &str) -> Vec<String> {
    let source = fs::read_to_string(root().join("src/ffi").join(section).with_extension("rs")).unwrap();
    let declarations = source.lines().filter_map(|line| {
        let line =
            line.strip_prefix("pub unsafe extern \"C\" fn ").or_else(|| line.strip_prefix("pub extern \"C\" fn "))?;
        line.strip_prefix("st_")?.split('(').next()
    });
    declarations.map(str::to_owned).collect()
}

/// The names in the case table of a C source, and the body of each.
fn cases_of(source: &str) -> Vec<(String, String)> {
    let names = source.lines().filter_map(|line| line.trim().strip_prefix("CASE(")?.strip_suffix("),"));
    let body_of = |name: &str| {
        let (_, body) =
            source.split_once(&format!("static void {name}(void) {{\n")).unwrap_or_else(|| panic!("no {name}"));
        body.split("\n}\n").next().unwrap().to_owned()
    };
    names.map(|name| (name.to_owned(), body_of(name))).collect()
}

/// The functions of a section that no case is for. A case is for the function whose name it begins with, the longest if there are
/// several, and it calls that function.
fn functions_without_a_case(functions: &[String], cases: &[(String, String)]) -> Vec<String> {
    let is_for = |case: &str, function: &str| {
        case.strip_prefix(function).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
    };
    let tested = cases.iter().filter_map(|(case, body)| {
        let function =
            functions.iter().filter(|function| is_for(case, function)).max_by_key(|function| function.len())?;
        body.contains(&format!("st_{function}(")).then_some(function)
    });
    let tested: Vec<&String> = tested.collect();
    functions.iter().filter(|function| !tested.contains(function)).cloned().collect()
}

/// Whoever looks for the tests of `st_find_prefix`, of the section `directory`, finds them in `tests/c/directory.c`, as cases
/// `find_prefix` or `find_prefix_...`.
#[test]
fn every_function_has_a_case_in_the_file_of_its_section() {
    let mut functions_len = 0;
    for (section, _) in SECTIONS {
        let functions = functions_of(section);
        let source = fs::read_to_string(root().join("tests/c").join(section).with_extension("c")).unwrap();
        let missing = functions_without_a_case(&functions, &cases_of(&source));
        assert!(
            missing.is_empty(),
            "tests/c/{section}.c has no case that is named after and calls st_{}",
            missing.join(", st_")
        );
        functions_len += functions.len();
    }
    assert_eq!(functions_len, documented_functions().len());
}

#[test]
fn a_function_needs_a_case_of_its_own() {
    let functions = ["find".to_owned(), "find_n".to_owned(), "len".to_owned(), "tensor_info".to_owned()];
    let missing = |source: &str| functions_without_a_case(&functions, &cases_of(source)).join(" ");
    // Called, but not in a case of its name; in a case of its name, but not called; in none that is in the table.
    let source = "static void find_n_of_a_part(void) {\n    st_find(a);\n    st_find_n(a);\n    st_len(a);\n}\n\
                  static void tensor_info_outside(void) {\n    CHECK(1);\n}\n\
                  static void len(void) {\n    st_len(a);\n}\n\
                  static const test_case cases[] = {\n    CASE(find_n_of_a_part),\n    CASE(tensor_info_outside),\n};\n";
    assert_eq!(missing(source), "find len tensor_info");
    assert_eq!(missing(&source.replace("CHECK(1)", "st_tensor_info(a)").replace("};", "    CASE(len),\n};")), "find");
}
