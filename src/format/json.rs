//! Any header, read by serde_json straight into a [`Directory`], without a tree of values in between.
//!
//! Accepts what the reference implementation's derived `Deserialize` accepts, which is more than the format's description
//! says: a tensor may be an object with further fields or the array `[dtype, shape, data_offsets]`, a dtype may be
//! `{"F32": null}`, `__metadata__` may be `null`. Values of unknown fields are read as strictly as known ones, as there.

use super::directory::{Directory, NoRoom, Span};
use super::strings::{self, Failure};
use super::{Dtype, HeaderError};
use crate::quote::excerpt;
use serde::de::{DeserializeSeed, Deserializer, Error, Expected, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The directory of `text`.
pub fn parse(text: &str) -> Result<Directory, HeaderError> {
    let mut reader = Reader { header_len: text.len(), ..Reader::default() };
    match strings::read(text, Header(&mut reader)) {
        Ok(()) => Ok(reader.directory),
        Err(failure) => Err(reader.explain(failure)),
    }
}

/// Reads any value with a visitor, which says itself what it takes. (serde_json's typed calls put what they find instead, whole, into
/// messages.)
pub(super) struct Any<V>(pub(super) V);

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Any<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        deserializer.deserialize_any(self.0)
    }
}

/// What has been read so far.
#[derive(Default)]
struct Reader {
    header_len: usize,
    directory: Directory,
    context: Context,
    /// The cause, where it is one of ours and not serde_json's.
    failure: Option<HeaderError>,
}

/// What a type error is about.
#[derive(Clone, Copy, Default)]
enum Context {
    #[default]
    Header,
    Metadata,
    Tensor(Span),
}

impl Reader {
    /// Records the cause and gives an error that makes serde_json stop.
    fn fail<E: Error>(&mut self, cause: HeaderError) -> E {
        self.failure = Some(cause);
        E::custom("")
    }

    /// The value, or the error that there was no room for it.
    fn room<T, E: Error>(&mut self, pushed: Result<T, NoRoom>) -> Result<T, E> {
        let header_len = self.header_len;
        pushed.map_err(|NoRoom| self.fail(HeaderError::NoMemory { header_len }))
    }

    fn keep<E: Error>(&mut self, string: &str) -> Result<Span, E> {
        let kept = self.directory.keep(string.as_bytes());
        self.room(kept)
    }

    fn keep_name<E: Error>(&mut self, name: &str) -> Result<Span, E> {
        if name.contains('\0') {
            return Err(self.fail(HeaderError::NulInName { name: excerpt(name) }));
        }
        self.keep(name)
    }

    fn string(&self, span: Span) -> String {
        excerpt(std::str::from_utf8(span.of(&self.directory.text)).unwrap_or_default())
    }

    /// The name of the tensor being read; empty outside of one.
    fn tensor(&self) -> String {
        match self.context {
            Context::Tensor(name) => self.string(name),
            Context::Header | Context::Metadata => String::new(),
        }
    }

    fn wrong_structure<E: Error>(&mut self, reason: &str) -> E {
        let cause = HeaderError::Structure { tensor: Some(self.tensor()), reason: reason.to_owned() };
        self.fail(cause)
    }

    fn explain(mut self, failure: Failure) -> HeaderError {
        if let Some(failure) = self.failure.take() {
            return failure;
        }
        let (reason, is_data) = match failure {
            Failure::NoMemory => return HeaderError::NoMemory { header_len: self.header_len },
            Failure::Internal(what) => return HeaderError::Internal(what),
            Failure::Json { reason, is_data } => (excerpt(&reason), is_data),
        };
        if !is_data {
            return HeaderError::Json { reason };
        }
        match self.context {
            Context::Header => HeaderError::Structure { tensor: None, reason },
            Context::Metadata => HeaderError::Metadata { reason },
            Context::Tensor(name) => HeaderError::Structure { tensor: Some(self.string(name)), reason },
        }
    }
}

/// The error of a string where something else belongs. serde's own shows the string, which may be as long as the header.
pub(super) fn found_string<T, E: Error>(expected: &dyn Expected) -> Result<T, E> {
    Err(E::custom(format_args!("invalid type: string, expected {expected}")))
}

/// The header: tensors by name, and `__metadata__`.
struct Header<'r>(&'r mut Reader);

impl<'de> Visitor<'de> for Header<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        found_string(&self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut metadata_seen = false;
        while let Some(key) = map.next_key_seed(Any(HeaderKey(self.0)))? {
            match key {
                None if metadata_seen => {
                    let key = "__metadata__".to_owned();
                    return Err(self.0.fail(HeaderError::DuplicateMetadata { key }));
                }
                None => {
                    metadata_seen = true;
                    self.0.context = Context::Metadata;
                    map.next_value_seed(Any(Metadata(self.0)))?;
                }
                Some(name) => {
                    self.0.context = Context::Tensor(name);
                    map.next_value_seed(Any(Tensor { reader: self.0, name }))?;
                }
            }
            self.0.context = Context::Header;
        }
        Ok(())
    }
}

/// A key of the header: a tensor's name, or `None` for `__metadata__`.
struct HeaderKey<'r>(&'r mut Reader);

impl Visitor<'_> for HeaderKey<'_> {
    type Value = Option<Span>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Option<Span>, E> {
        if name == "__metadata__" {
            return Ok(None);
        }
        self.0.keep_name(name).map(Some)
    }
}

/// The value of `__metadata__`.
struct Metadata<'r>(&'r mut Reader);

impl<'de> Visitor<'de> for Metadata<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        found_string(&self)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Any(MetadataString { reader: self.0, is_key: true }))? {
            let value = map.next_value_seed(Any(MetadataString { reader: self.0, is_key: false }))?;
            let pushed = self.0.directory.push_metadata(key, value);
            self.0.room(pushed)?;
        }
        Ok(())
    }
}

/// A key or a value of `__metadata__`. A value may hold a NUL, a key may not: it is a name.
struct MetadataString<'r> {
    reader: &'r mut Reader,
    is_key: bool,
}

impl Visitor<'_> for MetadataString<'_> {
    type Value = Span;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: Error>(self, string: &str) -> Result<Span, E> {
        match self.is_key {
            true => self.reader.keep_name(string),
            false => self.reader.keep(string),
        }
    }
}

/// A tensor's description.
struct Tensor<'r> {
    reader: &'r mut Reader,
    name: Span,
}

impl Tensor<'_> {
    fn finish<E: Error>(self, dtype: Dtype, dims_start: usize, offsets: (u64, u64)) -> Result<(), E> {
        let pushed = self.reader.directory.push_tensor(self.name, dtype, dims_start, offsets);
        self.reader.room(pushed)
    }
}

impl<'de> Visitor<'de> for Tensor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        found_string(&self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut dtype, mut dims, mut offsets) = (None, None, None);
        while let Some(field) = map.next_key_seed(Any(FieldKey))? {
            match field {
                Field::Dtype if dtype.is_some() => return Err(self.reader.wrong_structure("dtype occurs twice")),
                Field::Shape if dims.is_some() => return Err(self.reader.wrong_structure("shape occurs twice")),
                Field::Offsets if offsets.is_some() => {
                    return Err(self.reader.wrong_structure("data_offsets occurs twice"))
                }
                Field::Dtype => dtype = Some(map.next_value_seed(Any(DtypeValue(self.reader)))?),
                Field::Shape => dims = Some(map.next_value_seed(Any(ShapeValue(self.reader)))?),
                Field::Offsets => offsets = Some(map.next_value_seed(Any(OffsetsValue))?),
                Field::Unknown => map.next_value_seed(Any(Anything))?,
            }
        }
        let Some(dtype) = dtype else { return Err(self.reader.wrong_structure("it has no dtype")) };
        let Some(dims) = dims else { return Err(self.reader.wrong_structure("it has no shape")) };
        let Some(offsets) = offsets else { return Err(self.reader.wrong_structure("it has no data_offsets")) };
        self.finish(dtype, dims, offsets)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let dtype = seq.next_element_seed(Any(DtypeValue(self.reader)))?;
        let dims = seq.next_element_seed(Any(ShapeValue(self.reader)))?;
        let offsets = seq.next_element_seed(Any(OffsetsValue))?;
        match (dtype, dims, offsets, seq.next_element::<IgnoredAny>()?) {
            (Some(dtype), Some(dims), Some(offsets), None) => self.finish(dtype, dims, offsets),
            _ => Err(self.reader.wrong_structure("as an array it needs just dtype, shape and data_offsets")),
        }
    }
}

enum Field {
    Dtype,
    Shape,
    Offsets,
    Unknown,
}

/// A key in a tensor's description.
struct FieldKey;

impl Visitor<'_> for FieldKey {
    type Value = Field;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Field, E> {
        Ok(match key {
            "dtype" => Field::Dtype,
            "shape" => Field::Shape,
            "data_offsets" => Field::Offsets,
            _ => Field::Unknown,
        })
    }
}

/// A dtype: its name, or an object whose only key is its name and whose value is null.
struct DtypeValue<'r>(&'r mut Reader);

impl<'de> Visitor<'de> for DtypeValue<'_> {
    type Value = Dtype;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a dtype")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Dtype, E> {
        Dtype::from_name(name.as_bytes()).ok_or_else(|| {
            let cause = HeaderError::Dtype { tensor: self.0.tensor(), dtype: excerpt(name) };
            self.0.fail(cause)
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Dtype, A::Error> {
        let Some(dtype) = map.next_key_seed(Any(DtypeValue(self.0)))? else {
            return Err(self.0.wrong_structure("its dtype is an empty object"));
        };
        map.next_value_seed(Any(Null))?;
        match map.next_key::<IgnoredAny>()? {
            None => Ok(dtype),
            Some(_) => Err(self.0.wrong_structure("its dtype is an object with several keys")),
        }
    }
}

/// A shape: an array of non-negative integers. What it gives is where they start in `Directory::dims`.
struct ShapeValue<'r>(&'r mut Reader);

impl<'de> Visitor<'de> for ShapeValue<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a shape: an array of non-negative integers")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<usize, E> {
        found_string(&self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<usize, A::Error> {
        let dims_start = self.0.directory.dims.len();
        while let Some(dim) = seq.next_element_seed(Any(Integer))? {
            let pushed = self.0.directory.push_dim(dim);
            self.0.room(pushed)?;
        }
        Ok(dims_start)
    }
}

/// `data_offsets`: exactly two non-negative integers.
struct OffsetsValue;

impl<'de> Visitor<'de> for OffsetsValue {
    type Value = (u64, u64);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("data_offsets: an array of two non-negative integers")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(u64, u64), E> {
        found_string(&self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(u64, u64), A::Error> {
        match (
            seq.next_element_seed(Any(Integer))?,
            seq.next_element_seed(Any(Integer))?,
            seq.next_element::<IgnoredAny>()?,
        ) {
            (Some(start), Some(stop), None) => Ok((start, stop)),
            (Some(_), Some(_), Some(_)) => Err(A::Error::custom("data_offsets has more than two numbers")),
            (first, ..) => Err(A::Error::invalid_length(usize::from(first.is_some()), &self)),
        }
    }
}

/// A non-negative integer of 64 bits.
struct Integer;

impl Visitor<'_> for Integer {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a non-negative integer")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<u64, E> {
        found_string(&self)
    }

    fn visit_u64<E>(self, value: u64) -> Result<u64, E> {
        Ok(value)
    }
}

/// The null that may follow a dtype written as an object.
struct Null;

impl Visitor<'_> for Null {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("null")
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        found_string(&self)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// A value that nobody asked for, yet read in full: `IgnoredAny` would let wrong escapes and numbers beyond f64 pass, which the
/// reference implementation refuses.
pub(super) struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Any(Anything))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Any(Anything))?.is_some() {
            map.next_value_seed(Any(Anything))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, HeaderError> {
        let directory = parse(text)?;
        let name = |i| String::from_utf8(directory.name(i).to_vec()).unwrap();
        Ok((0..directory.tensors.len()).map(name).collect())
    }

    #[test]
    fn parse_reads_every_form_that_the_reference_reads() {
        for form in [
            r#" { "a" : {"data_offsets":[0,4],"shape":[],"dtype":"F32"} } "#,
            r#"{"\u0061":{"dtype":"F32","shape":[],"data_offsets":[0,4],"more":[1e3,{"x":null}]}}"#,
            r#"{"a":["F32",[],[0,4]]}"#,
            r#"{"a":{"dtype":{"F32":null},"shape":[],"data_offsets":[0,4]},"__metadata__":null}"#,
        ] {
            assert_eq!(names(form).unwrap(), ["a"], "{form}");
        }
    }

    #[test]
    fn parse_ends_each_string_with_a_nul() {
        let directory = parse(r#"{"__metadata__":{"k":"v"},"n":["I8",[],[0,1]]}"#).unwrap();
        assert_eq!(directory.text, b"k\0v\0n\0");
        assert_eq!(directory.name(0), b"n");
    }

    #[test]
    fn parse_names_the_tensor_at_fault() {
        let tensor_of = |text| match parse(text).unwrap_err() {
            HeaderError::Structure { tensor, .. } => tensor,
            HeaderError::Dtype { tensor, .. } => Some(tensor),
            other => panic!("{other}"),
        };
        assert_eq!(tensor_of(r#"{"a":["I8",[],[0,1]],"b":5}"#).as_deref(), Some("b"));
        assert_eq!(tensor_of(r#"{"a":{"dtype":"I8","shape":[-1],"data_offsets":[0,1]}}"#).as_deref(), Some("a"));
        assert_eq!(tensor_of(r#"{"a":{"dtype":"I9","shape":[],"data_offsets":[0,1]}}"#).as_deref(), Some("a"));
        assert_eq!(tensor_of(r#"{"a":{"dtype":"I8","shape":[]}}"#).as_deref(), Some("a"));
        assert_eq!(tensor_of("5"), None);
    }

    #[test]
    fn parse_tells_json_from_structure_from_metadata() {
        assert!(matches!(parse(r#"{"a":"#), Err(HeaderError::Json { .. })));
        assert!(matches!(parse(r#"{} {}"#), Err(HeaderError::Json { .. })));
        assert!(matches!(parse("[]"), Err(HeaderError::Structure { tensor: None, .. })));
        assert!(matches!(parse(r#"{"__metadata__":{"k":1}}"#), Err(HeaderError::Metadata { .. })));
        assert!(matches!(
            parse(r#"{"__metadata__":{},"__metadata__":{}}"#),
            Err(HeaderError::DuplicateMetadata { .. })
        ));
        assert!(matches!(parse(r#"{"a\u0000":["I8",[],[0,1]]}"#), Err(HeaderError::NulInName { .. })));
        assert!(matches!(parse(r#"{"__metadata__":{"k\u0000":""}}"#), Err(HeaderError::NulInName { .. })));
        assert!(parse(r#"{"__metadata__":{"k":"\u0000"}}"#).is_ok());
    }
}
