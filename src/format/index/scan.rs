//! One pass over an index in the form that writers write, as [`crate::format`]'s `scan` is over a header: what it does not know it leaves
//! to serde_json without a word, and what it accepts serde_json accepts with the same result.
//!
//! An index is read before any shard is opened, by the calling thread: for a small checkpoint this is a good part of opening it.

use super::{Draft, Entry, WEIGHT_MAP};
use crate::format::directory::try_push;
use crate::format::scan::Scanner;

/// An entry takes about this many bytes; a first guess of how many there are.
const TYPICAL_ENTRY_LEN: usize = 88;

/// The entries of `text`; `None` when it is not in that form, or there is no memory.
pub(super) fn scan(text: &str) -> Option<Draft> {
    let mut draft = Draft::default();
    // As much is not filled, and so costs nothing: names take about half of the text.
    draft.text.try_reserve_exact(text.len()).ok()?;
    draft.entries.try_reserve(text.len() / TYPICAL_ENTRY_LEN).ok()?;
    let mut scanner = Scanner { rest: text.as_bytes() };
    token(&mut scanner, b"{")?;
    let first = key(&mut scanner)?;
    let is_map_alone = match first {
        b"metadata" => {
            passed_over(&mut scanner)?;
            token(&mut scanner, b",")?;
            if key(&mut scanner)? != WEIGHT_MAP {
                return None;
            }
            false
        }
        WEIGHT_MAP => false,
        first => {
            entry(&mut scanner, first, &mut draft)?;
            true
        }
    };
    if is_map_alone {
        while accepts(&mut scanner, b",") {
            let name = key(&mut scanner)?;
            if name == WEIGHT_MAP {
                return None;
            }
            entry(&mut scanner, name, &mut draft)?;
        }
    } else {
        token(&mut scanner, b"{")?;
        loop {
            let name = key(&mut scanner)?;
            entry(&mut scanner, name, &mut draft)?;
            if !accepts(&mut scanner, b",") {
                break;
            }
        }
        token(&mut scanner, b"}")?;
    }
    token(&mut scanner, b"}")?;
    skip_space(&mut scanner);
    scanner.rest.is_empty().then_some(draft)
}

/// A shard, and with it the entry of `name`.
#[inline]
fn entry(scanner: &mut Scanner<'_>, name: &[u8], draft: &mut Draft) -> Option<()> {
    skip_space(scanner);
    let name = draft.keep(name).ok()?;
    // Mostly the same one again, of which is known that it has no escapes.
    if let Some((shard, span)) = draft.last {
        let quoted = scanner.rest.get(..span.len as usize + 2).unwrap_or_default();
        if quoted.get(1..=span.len as usize) == Some(span.of(&draft.text))
            && quoted.first() == Some(&b'"')
            && quoted.last() == Some(&b'"')
        {
            scanner.rest = scanner.rest.get(quoted.len()..)?;
            return try_push(&mut draft.entries, Entry { name, shard }).ok();
        }
    }
    let shard = scanner.string()?;
    draft.push(name, shard).ok()
}

/// A name and the colon behind it.
#[inline]
fn key<'a>(scanner: &mut Scanner<'a>) -> Option<&'a [u8]> {
    skip_space(scanner);
    let key = scanner.string()?;
    token(scanner, b":")?;
    Some(key)
}

/// An object of strings and whole numbers.
fn passed_over(scanner: &mut Scanner<'_>) -> Option<()> {
    token(scanner, b"{")?;
    if accepts(scanner, b"}") {
        return Some(());
    }
    loop {
        key(scanner)?;
        skip_space(scanner);
        match scanner.rest.first()? {
            b'"' => scanner.string().map(drop)?,
            _ => scanner.integer().map(drop)?,
        }
        if !accepts(scanner, b",") {
            return token(scanner, b"}");
        }
    }
}

#[inline]
fn token(scanner: &mut Scanner<'_>, token: &[u8]) -> Option<()> {
    accepts(scanner, token).then_some(())
}

#[inline]
fn accepts(scanner: &mut Scanner<'_>, token: &[u8]) -> bool {
    skip_space(scanner);
    scanner.accept(token)
}

#[inline]
fn skip_space(scanner: &mut Scanner<'_>) {
    // The indentation of Python's json module inside of a map.
    scanner.accept(b"\n    ");
    while let Some((b' ' | b'\n' | b'\r' | b'\t', rest)) = scanner.rest.split_first() {
        scanner.rest = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::super::read_slowly;
    use super::*;

    type Said = (Vec<(Vec<u8>, Vec<u8>)>, Vec<Vec<u8>>);

    fn said(draft: &Draft) -> Said {
        let string = |span: &crate::format::directory::Span| span.of(&draft.text).to_vec();
        let shards: Vec<_> = draft.shards.iter().map(string).collect();
        let entry = |entry: &super::super::Entry| (string(&entry.name), shards[entry.shard as usize].clone());
        (draft.entries.iter().map(entry).collect(), shards)
    }

    /// What is accepted, which serde_json must have read in the same way.
    fn accepted(text: &str) -> bool {
        let Some(draft) = scan(text) else { return false };
        let read = read_slowly(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(said(&draft), said(&read), "{text}");
        true
    }

    const FORMS: [&str; 7] = [
        r#"{"weight_map":{"b":"2","c":"1","a":"2"}}"#,
        "{\n  \"metadata\": {\n    \"total_size\": 90868376\n  },\n  \"weight_map\": {\n    \"b\": \"2\",\n    \"c\": \"1\"\n  }\n}\n",
        r#"{"metadata":{},"weight_map":{"a":"1"}}"#,
        r#"{"metadata":{"total_size":0,"format":"pt","a":"b"},"weight_map":{"weight_map":"1","metadata":"1"}}"#,
        r#"{"a":"1","b":"2","c":"1","metadata":"3"}"#,
        "\t{ \"a\"\r\n:\t\"1\" } ",
        r#"{"weight_map":{"权重":"é"}}"#,
    ];

    #[test]
    fn scan_accepts_what_writers_write() {
        for text in FORMS {
            assert!(accepted(text), "{text}");
        }
    }

    #[test]
    fn scan_leaves_everything_else() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"weight_map":{}}"#,
            r#"{"weight_map":{"a":1}}"#,
            r#"{"weight_map":{"a":"\u0031"}}"#,
            r#"{"weight_map":{"a":"1"},"x":"2"}"#,
            r#"{"weight_map":{"a":"1"}}}"#,
            r#"{"weight_map":{"a":"1",}}"#,
            r#"{"weight_map":"1","a":"2"}"#,
            r#"{"a":"2","weight_map":"1"}"#,
            r#"{"a":"2","weight_map":{"b":"1"}}"#,
            r#"{"metadata":{"x":[1]},"weight_map":{"a":"1"}}"#,
            r#"{"metadata":{"x":-1},"weight_map":{"a":"1"}}"#,
            r#"{"metadata":{"x":01},"weight_map":{"a":"1"}}"#,
            r#"{"metadata":"1","a":"2"}"#,
            r#"{"metadata":{},"a":"2"}"#,
        ] {
            assert!(!accepted(text), "{text}");
        }
    }

    /// Each byte left out, doubled, and replaced by others that mean something.
    #[test]
    fn scan_agrees_with_serde_json_on_what_is_nearly_right() {
        let mut count = 0;
        for text in FORMS {
            for at in 0..text.len() {
                if !text.is_char_boundary(at) || !text.is_char_boundary(at + 1) {
                    continue;
                }
                let (before, after) = (&text[..at], &text[at + 1..]);
                for put in ["", "\"\"", "{", "}", ",", ":", "\\", "0", "-", " ", "\n", "\u{1}", "é", "x"] {
                    count += usize::from(accepted(&format!("{before}{put}{after}")));
                    count += usize::from(accepted(&format!("{before}{put}{}", &text[at..])));
                }
            }
        }
        assert!(count > 500);
    }
}
