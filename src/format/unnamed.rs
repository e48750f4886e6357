//! What an index for the time between says of files that it does not name.
//!
//! While a checkpoint replaces another, our writer puts an index in place that names the new files by the names that they have at that moment.
//! In its metadata it lists files that are to go, or to be replaced, so that whoever finds it can finish the work:
//!
//! ```text
//! {"metadata": {"safetensors_lazy.unnamed": ["model-00001-of-00002.safetensors"], "total_size": 8}, "weight_map": {...}}
//! ```

use super::json::Any;
use super::strings::{self, Failure};
use super::IndexError;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::collections::TryReserveError;
use std::fmt;

/// The key of the list.
pub(crate) const UNNAMED_KEY: &str = "safetensors_lazy.unnamed";

/// The files that an index lists so. None if it has no such list, or is not valid JSON.
///
/// # Errors
///
/// `NoMemory` or `Internal` of [`IndexError`]: there may be such a list.
pub(crate) fn unnamed(text: &[u8]) -> Result<Vec<String>, IndexError> {
    let len = text.len() as u64;
    let Ok(text) = std::str::from_utf8(text) else { return Ok(Vec::new()) };
    let mut names = Names::default();
    let mut list = Object { key: UNNAMED_KEY, then: &mut names };
    let read = strings::read(text, Object { key: "metadata", then: &mut list });
    match read {
        _ if names.no_memory => Err(IndexError::NoMemory { len }),
        Ok(()) => Ok(names.list),
        Err(Failure::Json { .. }) => Ok(Vec::new()),
        Err(Failure::NoMemory) => Err(IndexError::NoMemory { len }),
        Err(Failure::Internal(what)) => Err(IndexError::Internal(what)),
    }
}

#[derive(Default)]
struct Names {
    list: Vec<String>,
    no_memory: bool,
}

impl Names {
    fn push(&mut self, name: &str) -> Result<(), TryReserveError> {
        let mut copy = String::new();
        self.list.try_reserve(1)?;
        copy.try_reserve_exact(name.len())?;
        copy.push_str(name);
        self.list.push(copy);
        Ok(())
    }
}

/// Takes what is found where something is looked for.
trait Take {
    fn take<'de, D: Deserializer<'de>>(&mut self, value: D) -> Result<(), D::Error>;
}

/// Looks for one entry of an object.
struct Object<'t, T> {
    key: &'static str,
    then: &'t mut T,
}

impl<T: Take> Take for Object<'_, T> {
    fn take<'de, D: Deserializer<'de>>(&mut self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(Object { key: self.key, then: &mut *self.then })
    }
}

impl<'de, T: Take> Visitor<'de> for Object<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(is_it) = map.next_key_seed(Any(Is(self.key)))? {
            match is_it {
                true => map.next_value_seed(Value(&mut *self.then))?,
                false => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// Whether a string is this one.
struct Is(&'static str);

impl Visitor<'_> for Is {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        Ok(text == self.0)
    }
}

struct Value<'t, T>(&'t mut T);

impl<'de, T: Take> DeserializeSeed<'de> for Value<'_, T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<(), D::Error> {
        self.0.take(value)
    }
}

impl Take for Names {
    fn take<'de, D: Deserializer<'de>>(&mut self, value: D) -> Result<(), D::Error> {
        value.deserialize_any(List(self))
    }
}

/// A list of strings.
struct List<'l>(&'l mut Names);

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of names")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(()) = list.next_element_seed(Any(Push(self.0)))? {}
        Ok(())
    }
}

/// Appends a string to a list.
struct Push<'l>(&'l mut Names);

impl Visitor<'_> for Push<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.push(text).map_err(|error| {
            self.0.no_memory = true;
            E::custom(error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_index_does_not_name_is_listed_in_its_metadata() {
        let index = |metadata: &str| {
            format!(r#"{{"weight_map": {{"safetensors_lazy.unnamed": "x"}}, "metadata": {metadata}, "x": 1}}"#)
        };
        let unnamed = |text: &[u8]| unnamed(text).unwrap();
        let listed = |metadata: &str| unnamed(index(metadata).as_bytes());
        assert_eq!(listed(r#"{"a": ["b"], "safetensors_lazy.unnamed": ["c", "d\n"], "total_size": 8}"#), ["c", "d\n"]);
        for none in ["{}", "8", r#"{"safetensors_lazy.unnamed": 1}"#, r#"{"safetensors_lazy.unnamed": ["a", 1]}"#, "{"]
        {
            assert!(listed(none).is_empty(), "{none}");
        }
        assert!(unnamed(b"").is_empty() && unnamed(b"\xff").is_empty() && unnamed(b"[]").is_empty());
        assert!(unnamed(br#"{"metadata": {"safetensors_lazy.unnamed": ["c"]}} x"#).is_empty());
    }
}
