//! Damage to files: of bytes, and of the JSON's tokens, which leaves more of the header readable and so reaches further.

use crate::random::Random;
use crate::sample;
use std::ops::Range;

/// What takes the place of a token or of a whole value.
const INTERESTING: [&str; 60] = [
    "null",
    "true",
    "{}",
    "[]",
    "[[]]",
    "0",
    "-0",
    "-1",
    "00",
    "01",
    "1.0",
    "1e0",
    "1e400",
    "-1e400",
    "NaN",
    "Infinity",
    "0x1",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "184467440737095516150",
    // Both are 4 modulo 2^64; the second has 24 digits, which the scan takes in eights.
    "18446744073709551620",
    "100018246367653188861956",
    "\"\"",
    "\"a\"",
    "\"F32\"",
    "\"f32\"",
    "\"F4\"",
    "\"F6_E2M3\"",
    "\"F8_E4M3FN\"",
    "\"U64\"",
    "\"\\u0046\\u0033\\u0032\"",
    "\"0\"",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"\\u0000\"",
    "\"\\x\"",
    "\"\u{1}\"",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "\"__metadata\\u005f_\"",
    "{\"F32\":null}",
    "{\"F32\":{}}",
    "{\"F32\":[]}",
    "{\"F32\":{\"a\":null}}",
    "{\"F32\":null,\"F32\":null}",
    "{\"\\u00463\\u0032\":null}",
    "[\"F32\",[1],[0,4]]",
    "[\"F32\",[1],[0,4],null]",
    "[\"F32\",[1]]",
    "[0,0]",
    "[0,4]",
    "[0,4,4]",
    "[18446744073709551615,18446744073709551615]",
    "{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}",
    "{\"a\":\"b\",\"a\":\"c\"}",
];

/// What is put in at the start of an object.
const ENTRIES: [&str; 12] = [
    "\"x\":null",
    "\"x\":{\"dtype\":1,\"dtype\":2}",
    "\"dtype\":\"U8\"",
    "\"shape\":[]",
    "\"data_offsets\":[0,0]",
    "\"__metadata__\":null",
    "\"__metadata__\":{}",
    "\"__metadata\\u005f_\":{\"a\":\"\\u0000\"}",
    "\"__metadata__\":{\"\\u0061\":\"1\",\"a\":\"2\"}",
    "\"empty\":[\"F64\",[0],[0,0]]",
    "\"\\u0000\":[\"F64\",[0],[0,0]]",
    "\"huge\":[\"U8\",[18446744073709551615],[0,18446744073709551615]]",
];

/// A damaged copy of `file`, whose header must be all there.
pub fn mutate(file: &[u8], random: &mut Random) -> Vec<u8> {
    let header_len = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let (header, data) = file[8..].split_at(header_len);
    let mut header = header.to_vec();
    let rounds = 1 + random.below(2);
    if random.once_in(5) {
        let mut file = file.to_vec();
        (0..rounds).for_each(|_| mutate_bytes(&mut file, random));
        return file;
    }
    for _ in 0..rounds {
        match random.below(6) {
            0 => mutate_bytes(&mut header, random),
            _ => mutate_tokens(&mut header, random),
        }
    }
    sample::file(&header, data)
}

pub fn mutate_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    // The 8 bytes in front and the end are where the lengths are decided.
    let at = match random.below(8) {
        0 => random.below(9).min(bytes.len()),
        1 => bytes.len() - random.below(9).min(bytes.len()),
        _ => random.below(bytes.len() + 1),
    };
    let byte = match random.below(3) {
        0 => *random.pick(b"\"\\{}[]:, 019-.eEtnu\0\x7f\x80\xc3\xff\n/"),
        _ => random.next() as u8,
    };
    match random.below(6) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 if at < bytes.len() => bytes[at] = byte,
        2 if at < bytes.len() => drop(bytes.remove(at)),
        3 => bytes.truncate(at),
        4 => bytes.extend(vec![byte; 1 + random.below(9)]),
        _ => bytes.insert(at, byte),
    }
}

fn mutate_tokens(header: &mut Vec<u8>, random: &mut Random) {
    let tokens = tokens(header);
    if tokens.is_empty() {
        return header.extend(b"{}");
    }
    let index = random.below(tokens.len());
    let token = tokens[index].clone();
    match random.below(12) {
        0 => replace(header, token, random.pick(&INTERESTING).as_bytes()),
        1 | 2 => replace(header, value_at(header, &tokens, index), random.pick(&INTERESTING).as_bytes()),
        3 => replace(header, token, b""),
        4 => {
            let other = random.pick(&tokens).clone();
            swap(header, token, other);
        }
        5..=7 => nudge_number(header, &tokens, random),
        8 => insert_entry(header, &tokens, random),
        9 => duplicate_entry(header, &tokens, random),
        10 => escape(header, token, random),
        _ => replace(
            header,
            token.start..token.start,
            random.pick(&[" ", "\n", "\t ", ",", "\u{a0}", "/**/"]).as_bytes(),
        ),
    }
}

/// Strings, numbers and words, brackets, commas and colons: where each stands. White space is left out.
fn tokens(text: &[u8]) -> Vec<Range<usize>> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while start < text.len() {
        let len = match text[start] {
            b'"' => string_len(&text[start..]),
            b' ' | b'\n' | b'\t' | b'\r' => {
                start += 1;
                continue;
            }
            byte if is_word(byte) => text[start..].iter().take_while(|byte| is_word(**byte)).count(),
            _ => 1,
        };
        tokens.push(start..start + len);
        start += len;
    }
    tokens
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.')
}

/// Length of the string at the start of `text`, with its quotes; up to the end if it is not closed.
fn string_len(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// From token `index` to the bracket that closes it; the token itself if it is no bracket.
fn value_at(text: &[u8], tokens: &[Range<usize>], index: usize) -> Range<usize> {
    let mut depth = 0;
    for token in &tokens[index..] {
        match text[token.start] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        if depth <= 0 {
            return tokens[index].start..token.end;
        }
    }
    tokens[index].clone()
}

fn replace(text: &mut Vec<u8>, range: Range<usize>, with: &[u8]) {
    text.splice(range, with.iter().copied());
}

fn swap(text: &mut Vec<u8>, one: Range<usize>, other: Range<usize>) {
    let (first, second) = if one.start <= other.start { (one, other) } else { (other, one) };
    let (first_bytes, second_bytes) = (text[first.clone()].to_vec(), text[second.clone()].to_vec());
    replace(text, second, &first_bytes);
    replace(text, first, &second_bytes);
}

/// Offsets and dimensions that are wrong by one, or by a lot.
fn nudge_number(text: &mut Vec<u8>, tokens: &[Range<usize>], random: &mut Random) {
    let numbers: Vec<&Range<usize>> = tokens.iter().filter(|token| text[token.start].is_ascii_digit()).collect();
    if numbers.is_empty() {
        return;
    }
    let range = (*random.pick(&numbers)).clone();
    let number: u64 = std::str::from_utf8(&text[range.clone()]).unwrap().parse().unwrap_or(0);
    let nudged = match random.below(5) {
        0 => number.wrapping_add(1),
        1 => number.wrapping_sub(1),
        2 => number.wrapping_mul(2),
        3 => u64::MAX - number,
        _ => 1 << random.below(64),
    };
    replace(text, range, nudged.to_string().as_bytes());
}

fn insert_entry(text: &mut Vec<u8>, tokens: &[Range<usize>], random: &mut Random) {
    let objects: Vec<usize> = (0..tokens.len()).filter(|index| text[tokens[*index].start] == b'{').collect();
    if objects.is_empty() {
        return;
    }
    let at = tokens[*random.pick(&objects)].end;
    let entry = match random.below(4) {
        // serde_json stops at a depth of 128, of which a field of a tensor uses two.
        0 => format!("\"x\":{}", nested(124 + random.below(8), random)),
        _ => (*random.pick(&ENTRIES)).to_owned(),
    };
    let is_empty = text[at..].iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
    let comma = if is_empty { "" } else { "," };
    replace(text, at..at, format!("{entry}{comma}").as_bytes());
}

fn nested(depth: usize, random: &mut Random) -> String {
    match random.once_in(2) {
        true => "[".repeat(depth) + &"]".repeat(depth),
        false => "{\"a\":".repeat(depth - 1) + "{}" + &"}".repeat(depth - 1),
    }
}

/// Writes a key with its value once more.
fn duplicate_entry(text: &mut Vec<u8>, tokens: &[Range<usize>], random: &mut Random) {
    let is_key = |index: &usize| text[tokens[*index].start] == b'"' && text[tokens[*index + 1].start] == b':';
    let keys: Vec<usize> = (0..tokens.len().saturating_sub(2)).filter(is_key).collect();
    if keys.is_empty() {
        return;
    }
    let key = *random.pick(&keys);
    let entry = text[tokens[key].start..value_at(text, tokens, key + 2).end].to_vec();
    let at = tokens[*random.pick(&keys)].start;
    replace(text, at..at, &[&entry, &b","[..]].concat());
}

/// Spells a character of a string by its number.
fn escape(text: &mut Vec<u8>, token: Range<usize>, random: &mut Random) {
    let plain: Vec<usize> = token.filter(|at| text[*at].is_ascii_alphanumeric() || text[*at] == b'_').collect();
    if !plain.is_empty() {
        let at = *random.pick(&plain);
        let escaped = format!("\\u{:04x}", text[at]);
        replace(text, at..at + 1, escaped.as_bytes());
    }
}

#[test]
fn tokens_are_found_in_json_and_in_what_was_json() {
    let found = |text: &str| -> Vec<String> {
        tokens(text.as_bytes()).into_iter().map(|range| text[range].to_owned()).collect()
    };
    assert_eq!(found(r#"{"a\"b": [-1e3,null]}"#), ["{", r#""a\"b""#, ":", "[", "-1e3", ",", "null", "]", "}"]);
    assert_eq!(found(r#""open\"#), [r#""open\"#]);
    let text = br#"{"a":[{},2]}"#;
    assert_eq!(value_at(text, &tokens(text), 3), 5..11);
}

#[test]
fn mutate_changes_most_files() {
    let file = sample::file(br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#, &[1, 2]);
    let changed = (0..1000).filter(|seed| mutate(&file, &mut Random::new(*seed)) != file).count();
    assert!(changed > 900, "{changed}");
}
