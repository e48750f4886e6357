//! The verdict of the reference implementation, the crate `safetensors`, on a file, and ours held against it.

use safetensors::tensor::Metadata;
use safetensors::{SafeTensorError, SafeTensors};
use safetensors_lazy::format::internals::{parse_json, scan};
use safetensors_lazy::format::HeaderError;
use safetensors_lazy::{Checkpoint, Error, OpenOptions};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// How a file fared, as far as both implementations can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Accepted,
    TooSmall,
    TooLarge,
    Length,
    Utf8,
    Json,
    Offsets,
    Overflow,
    PartialByte,
    Size,
    FileLength,
    /// Refused by us for a duplicate or a NUL, which the reference leaves to chance: it may say anything.
    Stricter,
}

impl Verdict {
    pub const ALL: [Verdict; 12] = [
        Verdict::Accepted,
        Verdict::TooSmall,
        Verdict::TooLarge,
        Verdict::Length,
        Verdict::Utf8,
        Verdict::Json,
        Verdict::Offsets,
        Verdict::Overflow,
        Verdict::PartialByte,
        Verdict::Size,
        Verdict::FileLength,
        Verdict::Stricter,
    ];
}

/// The verdict that both give on `file`, or in what they differ.
pub fn check(file: &[u8]) -> Result<Verdict, String> {
    parsers_agree(header_text(file))?;
    match Checkpoint::open_memory(file.to_vec(), OpenOptions::default()) {
        Ok(checkpoint) => match SafeTensors::read_metadata(file) {
            Ok((header_len, metadata)) => same_content(&checkpoint, header_len, &metadata, file),
            Err(error) => Err(format!("accepted here, but the reference says: {error}")),
        },
        Err(Error::Header { source, .. }) => match ours(&source) {
            Verdict::Stricter => stricter_is_true(header_text(file), &source),
            // The reference adds up beyond 64 bits here, and panics where overflow is checked. No file is that long.
            Verdict::FileLength if claims_beyond_64_bits(&source) => Ok(Verdict::FileLength),
            verdict => same_refusal(verdict, &source, file),
        },
        Err(other) => Err(format!("refused, but not for its header: {other}")),
    }
}

/// What the scan accepts, the JSON reader accepts, with the same result.
fn parsers_agree(text: Option<&str>) -> Result<(), String> {
    let Some(text) = text else { return Ok(()) };
    let Some(scanned) = scan(text.as_bytes()) else { return Ok(()) };
    match parse_json(text) {
        Ok(parsed) if parsed == scanned => Ok(()),
        other => Err(format!("scan gives {scanned:?}, parse_json {other:?}")),
    }
}

/// The header of a file, if the file has all of it and it is text.
fn header_text(file: &[u8]) -> Option<&str> {
    let (prefix, rest) = file.split_first_chunk::<8>()?;
    let len = usize::try_from(u64::from_le_bytes(*prefix)).ok()?;
    std::str::from_utf8(rest.get(..len)?).ok()
}

fn same_content(
    checkpoint: &Checkpoint,
    header_len: usize,
    metadata: &Metadata,
    file: &[u8],
) -> Result<Verdict, String> {
    let theirs = metadata.tensors();
    if checkpoint.len() != theirs.len() {
        return Err(format!("{} tensors here, {} in the reference", checkpoint.len(), theirs.len()));
    }
    for tensor in checkpoint.tensors() {
        let Some(info) = theirs.get(tensor.name()) else {
            return Err(format!("{:?} is not in the reference", tensor.name()));
        };
        let data_start = (8 + header_len) as u64;
        let shape: Vec<u64> = info.shape.iter().map(|dim| *dim as u64).collect();
        let (start, stop) = (data_start + info.data_offsets.0 as u64, data_start + info.data_offsets.1 as u64);
        let same = tensor.dtype().name() == info.dtype.to_string()
            && tensor.shape() == shape
            && (tensor.file_offset(), tensor.file_offset() + tensor.nbytes()) == (start, stop);
        if !same {
            return Err(format!("{tensor:?} here, {info:?} in the reference"));
        }
        let bytes = checkpoint.tensor_ptr(tensor.index()).map_err(|error| error.to_string())?;
        // SAFETY: the checkpoint is over memory that nobody else knows.
        if unsafe { bytes.as_slice() } != &file[start as usize..stop as usize] {
            return Err(format!("{:?} has other bytes here", tensor.name()));
        }
        if checkpoint.find(tensor.name()) != Some(tensor.index()) {
            return Err(format!("{:?} is not found by its name", tensor.name()));
        }
    }
    let theirs = metadata.metadata().iter().flatten();
    let same = |(key, value): (&String, &String)| checkpoint.metadata_get(key) == Some(value.as_bytes());
    if theirs.clone().count() != checkpoint.metadata_len() || !theirs.clone().all(same) {
        return Err(format!("the reference has other metadata: {:?}", metadata.metadata()));
    }
    Ok(Verdict::Accepted)
}

fn same_refusal(ours: Verdict, source: &HeaderError, file: &[u8]) -> Result<Verdict, String> {
    // The reference keeps tensors in a hash map and sorts them by their offsets alone: which of two tensors with the same
    // offsets it finds fault with first is left to chance. So it is asked until it says what we say.
    let mut says = String::new();
    for _ in 0..64 {
        match SafeTensors::read_metadata(file) {
            Ok(_) => return Err(format!("the reference accepts what is refused here: {source}")),
            Err(error) if theirs(&error) == Some(ours) => return Ok(ours),
            Err(error) => says = error.to_string(),
        }
    }
    Err(format!("{ours:?} here ({source}), but the reference says: {says}"))
}

fn ours(error: &HeaderError) -> Verdict {
    match error {
        HeaderError::Foreign { source, .. } => ours(source),
        HeaderError::TooSmall { .. } => Verdict::TooSmall,
        HeaderError::TooLarge { .. } => Verdict::TooLarge,
        HeaderError::LengthBeyondFile { .. } => Verdict::Length,
        HeaderError::Utf8 { .. } => Verdict::Utf8,
        HeaderError::OffsetsReversed { .. } | HeaderError::OffsetsGap { .. } | HeaderError::OffsetsOverlap { .. } => {
            Verdict::Offsets
        }
        HeaderError::Overflow { .. } => Verdict::Overflow,
        HeaderError::PartialByte { .. } => Verdict::PartialByte,
        HeaderError::Size { .. } => Verdict::Size,
        HeaderError::Truncated { .. } | HeaderError::TrailingBytes { .. } => Verdict::FileLength,
        HeaderError::DuplicateName { .. } | HeaderError::DuplicateMetadata { .. } | HeaderError::NulInName { .. } => {
            Verdict::Stricter
        }
        // Json, Structure, Metadata and Dtype are one error in the reference.
        _ => Verdict::Json,
    }
}

fn theirs(error: &SafeTensorError) -> Option<Verdict> {
    Some(match error {
        SafeTensorError::HeaderTooSmall => Verdict::TooSmall,
        SafeTensorError::HeaderTooLarge => Verdict::TooLarge,
        SafeTensorError::InvalidHeaderLength => Verdict::Length,
        SafeTensorError::InvalidHeader(_) => Verdict::Utf8,
        SafeTensorError::InvalidHeaderDeserialization(_) => Verdict::Json,
        SafeTensorError::InvalidOffset(_) => Verdict::Offsets,
        SafeTensorError::ValidationOverflow => Verdict::Overflow,
        SafeTensorError::MisalignedSlice => Verdict::PartialByte,
        SafeTensorError::TensorInvalidInfo => Verdict::Size,
        SafeTensorError::MetadataIncompleteBuffer => Verdict::FileLength,
        _ => return None,
    })
}

fn claims_beyond_64_bits(error: &HeaderError) -> bool {
    matches!(error, HeaderError::Truncated { header_len, data_len, .. } if data_len.checked_add(8 + *header_len as u64).is_none())
}

/// Whether the header has the duplicate, or the NUL, that it is refused for.
fn stricter_is_true(text: Option<&str>, source: &HeaderError) -> Result<Verdict, String> {
    let Some(header) = text.and_then(|text| serde_json::from_str(text).ok()) else {
        // The reference refuses whatever is not JSON.
        return Ok(Verdict::Stricter);
    };
    let names = keys(&header);
    let metadata: Vec<&str> = match &header {
        Json::Object(entries) => {
            entries.iter().filter(|(name, _)| name == "__metadata__").flat_map(|(_, value)| keys(value)).collect()
        }
        Json::Other => Vec::new(),
    };
    let twice = |keys: &[&str], named: &str| {
        let occurs = |wanted: &str| keys.iter().filter(|key| **key == wanted).count();
        keys.iter().any(|key| is_named(key, named) && occurs(key) > 1)
    };
    let is_true = match source {
        HeaderError::DuplicateName { name } => twice(&names, name),
        HeaderError::DuplicateMetadata { key } => {
            twice(&metadata, key) || (key == "__metadata__" && twice(&names, key))
        }
        HeaderError::NulInName { name } => {
            names.iter().chain(&metadata).any(|key| key.contains('\0') && is_named(key, name))
        }
        _ => false,
    };
    match is_true {
        true => Ok(Verdict::Stricter),
        false => Err(format!("refused without a reason: {source}")),
    }
}

/// Whether an error that names `name` is about `key`: of a long one it has both ends.
fn is_named(key: &str, name: &str) -> bool {
    const SHORT: usize = 200;
    let has_both_ends = |at: usize| key.starts_with(&name[..at]) && key.ends_with(&name[at..]);
    key == name
        || (name.len() >= SHORT && key.len() > name.len() && name.char_indices().any(|(at, _)| has_both_ends(at)))
}

/// JSON with every entry of its objects, where a map would keep the last of equal keys.
enum Json {
    Object(Vec<(String, Json)>),
    Other,
}

fn keys(json: &Json) -> Vec<&str> {
    match json {
        Json::Object(entries) => entries.iter().map(|(key, _)| key.as_str()).collect(),
        Json::Other => Vec::new(),
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Json::Object(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        while seq.next_element::<Json>()?.is_some() {}
        Ok(Json::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }
}
