//! What a file is that has no header: most reports of broken files are about something else under the name of one.

use super::{MAX_HEADER_LEN, PREFIX_LEN};

/// So many bytes from the start of a file tell.
pub(crate) const TELLING_LEN: usize = 512;

/// How other formats begin, and what to say about a file that does.
const BEGINNINGS: [(&[u8], &str); 16] = [
    (b"version https://git-lfs", "the file is a Git LFS pointer: run \"git lfs pull\" to get what it points to"),
    (b"oid sha256:", "the file is part of a Git LFS pointer: run \"git lfs pull\" to get what it points to"),
    (b"<!DOCTYPE", HTML),
    (b"<!doctype", HTML),
    (b"<html", HTML),
    (b"<HTML", HTML),
    (b"<?xml", "the file is an XML document, as servers send for errors: download it again"),
    (b"\x1f\x8b\x08", "the file is compressed by gzip: decompress it first"),
    (b"\x28\xb5\x2f\xfd", "the file is compressed by zstd: decompress it first"),
    (b"\xfd7zXZ\0", "the file is compressed by xz: decompress it first"),
    (b"BZh", "the file is compressed by bzip2: decompress it first"),
    (b"7z\xbc\xaf\x27\x1c", "the file is a 7z archive: unpack it first"),
    (b"PK\x03\x04", "the file is a zip archive, as PyTorch's .bin and .pt files are: convert it to safetensors"),
    (b"GGUF", "the file is a GGUF file, another format of weights"),
    (b"\x89HDF\r\n\x1a\n", "the file is an HDF5 file (.h5), another format of weights: convert it to safetensors"),
    (b"\x93NUMPY", "the file is a NumPy array (.npy): convert it to safetensors"),
];

const HTML: &str = "the file is an HTML page, as servers send for errors and for logins: download it again";

/// What a file is whose header cannot be read, by its first [`TELLING_LEN`] bytes, or all of them if it has fewer. `None` for a file
/// that looks like nothing else.
pub(crate) fn recognise(start: &[u8]) -> Option<String> {
    let stated = start.first_chunk().map(|prefix| u64::from_le_bytes(*prefix));
    let may_have_header = stated.is_some_and(|len| len <= MAX_HEADER_LEN as u64);
    if may_have_header && start.get(PREFIX_LEN) == Some(&b'{') && stated != Some(0) {
        return None;
    }
    if let Some((_, what)) = BEGINNINGS.iter().find(|(beginning, _)| start.starts_with(beginning)) {
        return Some((*what).to_owned());
    }
    if stated == Some(0) {
        return Some(match start.iter().all(|byte| *byte == 0) {
            true => "the file begins with zeros (a header of 0 bytes): it was allocated, but not written".to_owned(),
            false => "the file begins with a header of 0 bytes".to_owned(),
        });
    }
    // Protocols 2 to 5 begin with their number. So may a length.
    if matches!(start, [0x80, 2..=5, ..]) && !may_have_header {
        return Some(
            "the file is a Python pickle, as PyTorch's older .bin and .pt files are: convert it to safetensors"
                .to_owned(),
        );
    }
    if start.get(257..262) == Some(b"ustar") {
        return Some("the file is a tar archive: unpack it first".to_owned());
    }
    let text = text(start)?;
    Some(match text.trim_start().starts_with(['{', '[']) {
        true => "the file is JSON text; an index of shards must have a name that ends with .json".to_owned(),
        false => format!("the file is a text that begins {:?}", first_words(text)),
    })
}

/// The bytes as text, if they are: with a length in front of it no header is. Fewer bytes than a length has say nothing.
fn text(start: &[u8]) -> Option<&str> {
    start.get(PREFIX_LEN..)?;
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // Cut inside a character.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(start.get(..error.valid_up_to())?).ok()?,
        Err(_) => return None,
    };
    let is_text = |character: char| !character.is_control() || matches!(character, '\t' | '\n' | '\r');
    (!text.trim().is_empty() && text.chars().all(is_text)).then_some(text)
}

/// The first line, or as much of it as a message has room for.
fn first_words(text: &str) -> &str {
    const MOST: usize = 60;
    let line = text.trim_start().lines().next().unwrap_or_default().trim_end();
    let end = (0..=MOST.min(line.len())).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    line.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recognise_knows_what_lies_in_the_place_of_files() {
        let mut tar = vec![b'a'; 300];
        tar[100..200].fill(0);
        tar[257..262].copy_from_slice(b"ustar");
        for (start, word) in [
            (&b"version https://git-lfs.github.com/spec/v1\noid sha256:00"[..], "git lfs pull"),
            (b"<!DOCTYPE html><html>", "HTML"),
            (b"<html lang=\"en\">", "HTML"),
            (b"<?xml version=\"1.0\"?><Error>", "XML"),
            (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
            (b"\x28\xb5\x2f\xfd\0\0\0\0", "zstd"),
            (b"\xfd7zXZ\0\0\x04", "xz"),
            (b"BZh91AY&SY", "bzip2"),
            (b"7z\xbc\xaf\x27\x1c\0\x04", "7z"),
            (b"PK\x03\x04\0\0\0\0", "zip"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"\x93NUMPY\x01\0", "NumPy"),
            (b"\x80\x02\x8a\nl\xfc\x9cF", "pickle"),
            (b"\x80\x05\x95\x10\0\x01\0\0\0\0\0", "pickle"),
            (&tar, "tar"),
            (&[0; 8], "zeros"),
            (&[0; 512], "zeros"),
            (b"\0\0\0\0\0\0\0\0{}", "header of 0 bytes"),
            (b" {\"weight_map\": {}}", "JSON"),
            (b"[1, 2, 3]", "JSON"),
            (b"Entry not found", "\"Entry not found\""),
            (b"\r\nInvalid username or password.\n<more>", "\"Invalid username or password.\""),
            ("Zugriff verweigert für ä".as_bytes(), "für ä"),
        ] {
            let said = recognise(start).unwrap_or_default();
            assert!(said.contains(word), "{word}: {said}");
        }
        // Cut inside a character.
        assert!(recognise(&"ääääää".as_bytes()[..11]).unwrap().ends_with("\"äääää\""));
        assert!(recognise(&b"x".repeat(512)).unwrap().len() < 120);
    }

    #[test]
    fn recognise_takes_no_header_for_something_else() {
        for header in [
            &b"\x10\0\0\0\0\0\0\0{\"a\":"[..],
            b"\x4b\x50\0\0\0\0\0\0<!DOCTYPE",
            b"\x80\x02\0\0\0\0\0\0{\"a\":",
            b"\x80\x02\0\0\0\0\0\0?",
            b"\x1f\x8b\x08\0\0\0\0\0{\"a\":",
            b"",
            b"\0",
            b"\0\0\0\0\0\0\0",
            b"   ",
            b"\xff\xfe{",
        ] {
            assert_eq!(recognise(header), None, "{header:?}");
        }
        // Any length that is not over the limit has bytes that no text has.
        for len in [1u64, 255, 0x7f7f, 0x20_2020, super::super::MAX_HEADER_LEN as u64] {
            let start = [&len.to_le_bytes()[..], b"{\"a\":{}}"].concat();
            let said = recognise(&start);
            assert_eq!(said, None, "{len}");
        }
    }
}
