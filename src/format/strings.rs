//! JSON, read by serde_json without memory that it allocates in sizes of the text.
//!
//! serde_json unescapes a string in a buffer of its own, which it grows without a way to fail. So
//! what it reads is a copy of the text in which the strings with escapes are blank: as long as they
//! were, without escapes. It then points into the copy, and the string that stood in that place of
//! the text is unescaped here, in a buffer that can fail. Text without a backslash needs no copy.
//!
//! Values are read with `deserialize_any` only. (With `deserialize_ignored_any` serde_json keeps a
//! stack of nested values in the same buffer.)

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::cell::{Cell, RefCell};
use std::collections::TryReserveError;
use std::fmt;

/// Why a text was not read.
#[derive(Debug)]
pub(super) enum Failure {
    NoMemory,
    /// What serde_json says.
    Json {
        reason: String,
        /// A value is not of the kind that the visitor expects, or the visitor has failed. The text
        /// may be JSON all the same.
        is_data: bool,
    },
    /// A state that cannot happen.
    Internal(&'static str),
}

/// Reads a text that is one JSON value. Whatever strings there are, the visitor gets them by
/// `visit_str`, unescaped.
pub(super) fn read<T>(text: &str, visitor: impl for<'de> Visitor<'de, Value = T>) -> Result<T, Failure> {
    let strings = Strings::of(text)?;
    let mut json = serde_json::Deserializer::from_str(strings.readable());
    let value = json.deserialize_any(Unescaping { inner: visitor, strings: &strings });
    value.and_then(|value| json.end().map(|()| value)).map_err(|error| strings.explain(&error))
}

/// The strings of a text.
struct Strings<'t> {
    text: &'t str,
    /// The text with blank strings, if one has an escape.
    blank: Option<String>,
    /// Whether the text has an escape that is none, and the copy a control character in its place:
    /// there serde_json stops.
    has_wrong_escape: bool,
    unescaped: RefCell<String>,
    failure: Cell<Option<Failure>>,
}

impl<'t> Strings<'t> {
    fn of(text: &'t str) -> Result<Strings<'t>, Failure> {
        let mut strings = Strings {
            text,
            blank: None,
            has_wrong_escape: false,
            unescaped: RefCell::default(),
            failure: Cell::default(),
        };
        if text.as_bytes().contains(&b'\\') {
            strings.blank = Some(strings.blank_copy()?);
        }
        Ok(strings)
    }

    /// The text for serde_json.
    fn readable(&self) -> &str {
        self.blank.as_deref().unwrap_or(self.text)
    }

    /// Ends with the first string that serde_json will refuse.
    fn blank_copy(&mut self) -> Result<String, Failure> {
        let mut copy = String::new();
        copy.try_reserve_exact(self.text.len()).map_err(|_| Failure::NoMemory)?;
        let mut rest = self.text;
        while let Some((before, string)) = rest.split_once('"') {
            copy.push_str(before);
            copy.push('"');
            let Content { content, has_escapes, end, after } = Content::of(string);
            match has_escapes {
                true => copy.extend(std::iter::repeat_n(BLANK, content.len())),
                false => copy.push_str(content),
            }
            rest = after;
            match end {
                End::Quote => copy.push('"'),
                // The text ends here, or serde_json does.
                End::Other => break,
                End::WrongEscape => {
                    self.has_wrong_escape = true;
                    copy.push(CONTROL);
                    break;
                }
            }
        }
        // No more than there is room for: each character has taken the place of one or more bytes.
        copy.push_str(rest);
        Ok(copy)
    }

    /// What stood in the place of a string that serde_json has found.
    fn original(&self, found: &str) -> Option<&'t str> {
        let start = (found.as_ptr() as usize).checked_sub(self.readable().as_ptr() as usize)?;
        self.text.get(start..start.checked_add(found.len())?)
    }

    fn visit<'de, V: Visitor<'de>, E: Error>(&self, visitor: V, found: &str) -> Result<V::Value, E> {
        if self.blank.is_none() {
            return visitor.visit_str(found);
        }
        let Some(original) = self.original(found) else {
            return self.fail(Failure::Internal("a string of a text does not lie in it"));
        };
        if !original.contains('\\') {
            return visitor.visit_str(original);
        }
        let mut unescaped = self.unescaped.borrow_mut();
        match unescape(original, &mut unescaped) {
            Ok(true) => visitor.visit_str(&unescaped),
            Ok(false) => self.fail(Failure::Internal("an escape is wrong that was right")),
            Err(_) => self.fail(Failure::NoMemory),
        }
    }

    /// Makes serde_json stop.
    fn fail<T, E: Error>(&self, failure: Failure) -> Result<T, E> {
        self.failure.set(Some(failure));
        Err(E::custom(""))
    }

    fn explain(&self, error: &serde_json::Error) -> Failure {
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        let (line, column, is_data) = (error.line(), error.column(), error.is_data());
        let reason = error.to_string();
        // A control character that is really there ends the copy before any that stands for an escape.
        match self.has_wrong_escape && reason.starts_with("control character") {
            true => Failure::Json {
                reason: format!("invalid escape, or half of a surrogate pair, at line {line} column {column}"),
                is_data,
            },
            false => Failure::Json { reason, is_data },
        }
    }
}

/// Stands for each byte of a string with escapes.
const BLANK: char = ' ';
/// Nothing that a string may hold.
const CONTROL: char = '\u{1}';

/// A string from its first character on.
struct Content<'t> {
    content: &'t str,
    has_escapes: bool,
    end: End,
    after: &'t str,
}

enum End {
    Quote,
    WrongEscape,
    /// A control character, which is the first one after it; or the text ends.
    Other,
}

impl Content<'_> {
    fn of(string: &str) -> Content<'_> {
        let (mut rest, mut has_escapes) = (string, false);
        let is_special = |c: char| matches!(c, '"' | '\\' | '\0'..='\x1f');
        // What is a character of its own is told apart by its first byte: all of these have one.
        let (end, after) = loop {
            let at = rest.find(is_special).unwrap_or(rest.len());
            let special = rest.get(at..).unwrap_or_default();
            match special.chars().next() {
                Some('"') => break (End::Quote, special.get(1..).unwrap_or_default()),
                Some('\\') => match escaped(special.get(1..).unwrap_or_default()) {
                    Some((_, after)) => (rest, has_escapes) = (after, true),
                    // Of the escape the backslash is left out, since something else takes its place.
                    None => break (End::WrongEscape, special.get(1..).unwrap_or_default()),
                },
                _ => break (End::Other, special),
            }
        };
        let ended = match end {
            End::Other => after.len(),
            End::Quote | End::WrongEscape => after.len() + 1,
        };
        let content = string.get(..string.len() - ended).unwrap_or_default();
        Content { content, has_escapes, end, after }
    }
}

/// The character that an escape stands for, and what follows the escape. `text` starts after the
/// backslash. `None` for what is no escape, which includes half of a surrogate pair.
fn escaped(text: &str) -> Option<(char, &str)> {
    let mut characters = text.chars();
    let character = match characters.next()? {
        '"' => '"',
        '\\' => '\\',
        '/' => '/',
        'b' => '\x08',
        'f' => '\x0c',
        'n' => '\n',
        'r' => '\r',
        't' => '\t',
        'u' => {
            let (first, rest) = hex(characters.as_str())?;
            characters = rest.chars();
            match char::from_u32(first) {
                Some(character) => character,
                None => {
                    let (second, rest) = hex(rest.strip_prefix("\\u")?)?;
                    characters = rest.chars();
                    let pair = [u16::try_from(first).ok()?, u16::try_from(second).ok()?];
                    char::decode_utf16(pair).next()?.ok()?
                }
            }
        }
        _ => return None,
    };
    Some((character, characters.as_str()))
}

/// Four hexadecimal digits, and what follows them.
fn hex(text: &str) -> Option<(u32, &str)> {
    let (digits, rest) = text.split_at_checked(4)?;
    // `from_str_radix` takes a sign, too.
    let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)?;
    Some((number, rest))
}

/// Replaces `to` by the string. Whether all of its escapes are such.
fn unescape(string: &str, to: &mut String) -> Result<bool, TryReserveError> {
    to.clear();
    // No escape is shorter than what it stands for.
    to.try_reserve(string.len())?;
    let mut rest = string;
    while let Some((before, escape)) = rest.split_once('\\') {
        to.push_str(before);
        let Some((character, after)) = escaped(escape) else { return Ok(false) };
        to.push(character);
        rest = after;
    }
    to.push_str(rest);
    Ok(true)
}

/// Whatever reads values, with strings as they were.
struct Unescaping<'s, T> {
    inner: T,
    strings: &'s Strings<'s>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Unescaping<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<V::Value, E> {
        self.inner.visit_bool(value)
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<V::Value, E> {
        self.inner.visit_i64(value)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<V::Value, E> {
        self.inner.visit_u64(value)
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
        self.inner.visit_f64(value)
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_borrowed_str<E: Error>(self, found: &'de str) -> Result<V::Value, E> {
        self.strings.visit(self.inner, found)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<V::Value, E> {
        self.strings.fail(Failure::Internal("serde_json has copied a string without escapes"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Unescaping { inner: seq, strings: self.strings })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Unescaping { inner: map, strings: self.strings })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Unescaping<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(Unescaping { inner: seed, strings: self.strings })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Unescaping<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(Unescaping { inner: seed, strings: self.strings })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.next_value_seed(Unescaping { inner: seed, strings: self.strings })
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Unescaping<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Unescaping { inner: deserializer, strings: self.strings })
    }
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Unescaping<'_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Unescaping { inner: visitor, strings: self.strings })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All strings of a value, keys included, in their order.
    struct All<'a>(&'a mut Vec<String>);

    impl<'de> Visitor<'de> for All<'_> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("anything with strings")
        }

        fn visit_u64<E>(self, _: u64) -> Result<(), E> {
            Ok(())
        }

        fn visit_str<E>(self, string: &str) -> Result<(), E> {
            self.0.push(string.to_owned());
            Ok(())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
            while seq.next_element_seed(All(self.0))?.is_some() {}
            Ok(())
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
            while map.next_key_seed(All(self.0))?.is_some() {
                map.next_value_seed(All(self.0))?;
            }
            Ok(())
        }
    }

    impl<'de> DeserializeSeed<'de> for All<'_> {
        type Value = ();

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
            deserializer.deserialize_any(self)
        }
    }

    fn ours(text: &str) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        match read(text, All(&mut found)) {
            Ok(()) => Ok(found),
            Err(Failure::Json { reason, .. }) => Err(reason),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn theirs(text: &str) -> Result<Vec<String>, String> {
        let mut found = Vec::new();
        let mut json = serde_json::Deserializer::from_str(text);
        let read = json.deserialize_any(All(&mut found)).and_then(|()| json.end());
        read.map(|()| found).map_err(|error| error.to_string())
    }

    #[test]
    fn read_unescapes_as_serde_json() {
        for text in [
            r#"{"a\"b":["\\\/\b\f\n\r\t","plain","\u0041\u00e9\u6743\uD83D\uDE00\uFFFF\u0000"],"权":"é\n权"}"#,
            r#"["",  "\n", "a\\", "\\", "\\\"", 1]"#,
            r#""\u00e9""#,
        ] {
            assert_eq!(ours(text), theirs(text), "{text}");
            assert!(ours(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn read_refuses_what_serde_json_refuses() {
        for text in [
            r#"["\x"]"#,
            r#"["\u12"]"#,
            r#"["\u+123"]"#,
            r#"["\uD800"]"#,
            r#"["\uD800x"]"#,
            r#"["\uD800\n"]"#,
            r#"["\uD800\u0041"]"#,
            r#"["\uDC00\uD800"]"#,
            r#"["\"#,
            r#"["\n"#,
            r#"["\n" "\q"]"#,
            "[\"\\n\u{2}\"]",
            "[\"\u{2}\\q\"]",
            r#"{"\n":x}"#,
            r#"\"\q""#,
            r#"["\u权"]"#,
        ] {
            assert!(theirs(text).is_err() && ours(text).is_err(), "{text}: {:?}", ours(text));
        }
        assert_eq!(
            ours("[1,\n\"ab\\q\"]").unwrap_err(),
            "invalid escape, or half of a surrogate pair, at line 2 column 4"
        );
        // What comes first is told.
        assert_eq!(ours("[\"\\n\u{2}\\q\"]").unwrap_err(), theirs("[\"\\n\u{2}\\q\"]").unwrap_err());
        assert_eq!(ours(r#"["\n" "\q"]"#).unwrap_err(), theirs(r#"["\n" "\q"]"#).unwrap_err());
    }

    #[test]
    fn serde_json_gets_no_escapes_and_all_else_in_its_place() {
        let text = r#"{"a\n":"plain","b":"\u0041权"} \ "#;
        let strings = Strings::of(text).unwrap();
        assert_eq!(strings.readable(), r#"{"   ":"plain","b":"         "} \ "#);
        assert!(Strings::of(r#"{"a":1}"#).unwrap().blank.is_none());
    }

    proptest! {
        #[test]
        fn read_is_serde_json(text in r#"[\[{]("[ab"\\nu0dD8c\u{1}权]{0,9}"[,:]?){0,4}[\]}]"#) {
            match (ours(&text), theirs(&text)) {
                (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs),
                (ours, theirs) => prop_assert!(ours.is_err() && theirs.is_err(), "{ours:?} {theirs:?}"),
            }
        }

        #[test]
        fn read_gives_every_string(string in any::<String>(), key in any::<String>()) {
            let text = serde_json::json!({ key.clone(): [string.clone()] }).to_string();
            prop_assert_eq!(ours(&text).unwrap(), [key, string]);
        }
    }
}
