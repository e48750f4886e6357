//! Writing headers and indices, as the reference implementations spell them.
//!
//! A header is what `safetensors` 0.8 writes, to the byte: serde_json's compact form, the metadata first, then the tensors in the order
//! of their data, then spaces. An index is what Python's `json.dumps(index, indent=2, sort_keys=True)` gives.

use super::{Dtype, PREFIX_LEN, UNNAMED_KEY};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::io::{self, Write};

/// What a header says of one tensor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Described<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: Dtype,
    pub(crate) shape: &'a [u64],
    /// Its first byte in the data section.
    pub(crate) start: u64,
    /// The byte after its last one.
    pub(crate) stop: u64,
}

/// Writes the text of a header, without its length and without padding. Without metadata there is no `__metadata__`.
pub(crate) fn encode_header<'m, 't>(
    to: &mut impl Write,
    metadata: impl Iterator<Item = (&'m str, &'m str)>,
    tensors: impl Iterator<Item = Described<'t>>,
) -> io::Result<()> {
    to.write_all(b"{")?;
    let mut separator: &[u8] = b"\"__metadata__\":{";
    let mut has_metadata = false;
    for (key, value) in metadata {
        to.write_all(separator)?;
        encode_metadata(to, key, value)?;
        (separator, has_metadata) = (b",", true);
    }
    if has_metadata {
        to.write_all(b"}")?;
    }
    let mut separator: &[u8] = if has_metadata { b"," } else { b"" };
    for tensor in tensors {
        to.write_all(separator)?;
        encode_tensor(to, tensor)?;
        separator = b",";
    }
    to.write_all(b"}")
}

fn encode_metadata(to: &mut impl Write, key: &str, value: &str) -> io::Result<()> {
    encode_string(to, key)?;
    to.write_all(b":")?;
    encode_string(to, value)
}

fn encode_tensor(to: &mut impl Write, tensor: Described<'_>) -> io::Result<()> {
    encode_string(to, tensor.name)?;
    write!(to, ":{{\"dtype\":\"{}\",\"shape\":[", tensor.dtype.name())?;
    for (i, dim) in tensor.shape.iter().enumerate() {
        write!(to, "{}{dim}", if i == 0 { "" } else { "," })?;
    }
    write!(to, "],\"data_offsets\":[{},{}]}}", tensor.start, tensor.stop)
}

/// How many bytes a tensor adds to a header, with the comma before it.
pub(crate) fn tensor_text_len(tensor: Described<'_>) -> u64 {
    1 + text_len(|to| encode_tensor(to, tensor))
}

/// How many bytes an entry adds to the metadata, with the comma before it.
pub(crate) fn metadata_text_len(key: &str, value: &str) -> u64 {
    1 + text_len(|to| encode_metadata(to, key, value))
}

/// How many bytes `write` writes.
pub(crate) fn text_len(write: impl FnOnce(&mut Count) -> io::Result<()>) -> u64 {
    let mut count = Count(0);
    // Counting does not fail.
    let _ = write(&mut count);
    count.0
}

/// Counts what is written to it.
pub(crate) struct Count(u64);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The length of a header, padding included, whose text has `text_len` bytes, so that the data begins at a multiple of `alignment`.
pub(crate) fn padded_len(text_len: u64, alignment: u64) -> Option<u64> {
    let prefix = PREFIX_LEN as u64;
    text_len.checked_add(prefix)?.checked_next_multiple_of(alignment)?.checked_sub(prefix)
}

/// Writes an index. The entries are sorted by name already. `unnamed`: what it lists under [`UNNAMED_KEY`].
pub(crate) fn encode_index<'a>(
    to: &mut impl Write,
    unnamed: impl Iterator<Item = &'a str>,
    total_size: u64,
    entries: impl Iterator<Item = (&'a str, &'a str)>,
) -> io::Result<()> {
    to.write_all(b"{\n  \"metadata\": {\n    ")?;
    let mut end: &[u8] = b"";
    for (i, name) in unnamed.enumerate() {
        match i {
            0 => write!(to, "\"{UNNAMED_KEY}\": [\n      ")?,
            _ => to.write_all(b",\n      ")?,
        }
        encode_ascii_string(to, name)?;
        end = b"\n    ],\n    ";
    }
    to.write_all(end)?;
    write!(to, "\"total_size\": {total_size}\n  }},\n  \"weight_map\": {{")?;
    let mut separator: &[u8] = b"\n    ";
    let mut end: &[u8] = b"}\n}\n";
    for (name, shard) in entries {
        to.write_all(separator)?;
        encode_ascii_string(to, name)?;
        to.write_all(b": ")?;
        encode_ascii_string(to, shard)?;
        separator = b",\n    ";
        end = b"\n  }\n}\n";
    }
    to.write_all(end)
}

fn encode_string(to: &mut impl Write, text: &str) -> io::Result<()> {
    Ok(serde_json::to_writer(to, text)?)
}

/// A string as Python's json writes it.
fn encode_ascii_string(to: &mut impl Write, text: &str) -> io::Result<()> {
    Ok(text.serialize(&mut Serializer::with_formatter(to, Ascii))?)
}

/// Escapes what is no printable ASCII.
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: Write + ?Sized>(&mut self, to: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !(' '..='~').contains(&c)) {
            let (plain, special) = rest.split_at_checked(at).unwrap_or((rest, ""));
            to.write_all(plain.as_bytes())?;
            let mut characters = special.chars();
            for unit in characters.next().unwrap_or_default().encode_utf16(&mut [0; 2]) {
                write!(to, "\\u{unit:04x}")?;
            }
            rest = characters.as_str();
        }
        to.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(text: &str, in_ascii: bool) -> String {
        let mut to = Vec::new();
        let encode = if in_ascii { encode_ascii_string } else { encode_string };
        encode(&mut to, text).unwrap();
        String::from_utf8(to).unwrap()
    }

    proptest! {
        #[test]
        fn strings_are_those_of_serde_json(text in any::<String>()) {
            prop_assert_eq!(string(&text, false), serde_json::to_string(&text).unwrap());
            prop_assert_eq!(serde_json::from_str::<String>(&string(&text, true)).unwrap(), text);
        }
    }

    #[test]
    fn every_control_character_is_escaped_as_by_serde_json() {
        let text: String = (0..=0xa0u8).map(char::from).chain(['\u{2028}', '\u{ffff}', '\u{10ffff}']).collect();
        assert_eq!(string(&text, false), serde_json::to_string(&text).unwrap());
    }

    #[test]
    fn strings_in_ascii_are_those_of_python() {
        assert_eq!(string("a\u{7f}é权😀\0\u{1f}\"\\/", true), r#""a\u007f\u00e9\u6743\ud83d\ude00\u0000\u001f\"\\/""#);
    }

    #[test]
    fn header_without_anything() {
        let mut to = Vec::new();
        encode_header(&mut to, [].into_iter(), [].into_iter()).unwrap();
        assert_eq!(to, b"{}");
        to.clear();
        encode_header(&mut to, [("k", "v"), ("", "")].into_iter(), [].into_iter()).unwrap();
        assert_eq!(to, br#"{"__metadata__":{"k":"v","":""}}"#);
    }

    #[test]
    fn header_of_tensors() {
        let tensors = [
            Described { name: "a\n", dtype: Dtype::F32, shape: &[2, 1], start: 0, stop: 8 },
            Described { name: "b", dtype: Dtype::U8, shape: &[], start: 8, stop: 9 },
        ];
        let mut to = Vec::new();
        encode_header(&mut to, [("k", "v")].into_iter(), tensors.into_iter()).unwrap();
        let text = r#"{"__metadata__":{"k":"v"},"a\n":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[],"data_offsets":[8,9]}}"#;
        assert_eq!(String::from_utf8(to).unwrap(), text);
        let added: u64 = tensors.into_iter().map(tensor_text_len).sum();
        assert_eq!(added + metadata_text_len("k", "v") + r#"{"__metadata__":{}}"#.len() as u64 - 1, text.len() as u64);
    }

    #[test]
    fn padded_len_aligns_the_data() {
        assert_eq!(padded_len(2, 8), Some(8));
        assert_eq!(padded_len(8, 8), Some(8));
        assert_eq!(padded_len(9, 64), Some(56));
        assert_eq!(padded_len(57, 64), Some(120));
        assert_eq!(padded_len(u64::MAX, 8), None);
    }

    #[test]
    fn index_is_indented() {
        let mut to = Vec::new();
        encode_index(&mut to, [].into_iter(), 12, [("a", "1.safetensors"), ("b", "2.safetensors")].into_iter())
            .unwrap();
        let text = "{\n  \"metadata\": {\n    \"total_size\": 12\n  },\n  \"weight_map\": {\n    \"a\": \"1.safetensors\",\n    \"b\": \"2.safetensors\"\n  }\n}\n";
        assert_eq!(String::from_utf8(to).unwrap(), text);
        let mut to = Vec::new();
        encode_index(&mut to, [].into_iter(), 0, [].into_iter()).unwrap();
        let text = "{\n  \"metadata\": {\n    \"total_size\": 0\n  },\n  \"weight_map\": {}\n}\n";
        assert_eq!(String::from_utf8(to).unwrap(), text);
    }
    #[test]
    fn what_an_index_does_not_name_is_read_back() {
        let mut to = Vec::new();
        encode_index(&mut to, ["x", "y\n"].into_iter(), 1, [("a", "1")].into_iter()).unwrap();
        let text = "{\n  \"metadata\": {\n    \"safetensors_lazy.unnamed\": [\n      \"x\",\n      \"y\\n\"\n    ],\n    \"total_size\": 1\n  },\n  \"weight_map\": {\n    \"a\": \"1\"\n  }\n}\n";
        assert_eq!(std::str::from_utf8(&to).unwrap(), text);
        assert_eq!(crate::format::unnamed(&to).unwrap(), ["x", "y\n"]);
        assert!(crate::format::Index::parse(&to).unwrap().shards().eq(["1"]));
    }
}
