//! A header: from bytes in private memory to a directory that has been checked.

use super::directory::{Directory, Span};
use super::names::{NameTable, NameTableError};
use super::{json, scan, validate, Dtype, HeaderError};
use crate::quote::excerpt;
use std::collections::HashSet;

/// The longest header that is accepted, in bytes. The reference implementation's limit.
pub const MAX_HEADER_LEN: usize = 100_000_000;

/// No header describes a tensor of more dimensions: each takes a digit and a comma.
pub(crate) const MAX_DIMENSIONS: usize = MAX_HEADER_LEN / 2;

/// The bytes before the header: its length as a 64-bit little-endian number.
pub const PREFIX_LEN: usize = 8;

/// Length in bytes of a file with such a header. 128 bits, because the data may claim nearly 2^64 bytes.
pub(super) fn described_len(header_len: usize, data_len: u64) -> u128 {
    PREFIX_LEN as u128 + header_len as u128 + u128::from(data_len)
}

/// The length in bytes of the header of a file of `file_len` bytes that starts with `prefix`.
///
/// # Errors
///
/// `TooSmall`, `TooLarge` or `LengthBeyondFile` of [`HeaderError`], checked in this order.
pub fn header_len(prefix: &[u8], file_len: u64) -> Result<usize, HeaderError> {
    let prefix: &[u8; PREFIX_LEN] = prefix.first_chunk().ok_or(HeaderError::TooSmall { file_len })?;
    let stated = u64::from_le_bytes(*prefix);
    let header_len = usize::try_from(stated).unwrap_or(usize::MAX);
    if header_len > MAX_HEADER_LEN {
        return Err(HeaderError::TooLarge { header_len: stated });
    }
    if stated > file_len.saturating_sub(PREFIX_LEN as u64) {
        return Err(HeaderError::LengthBeyondFile { header_len: stated, file_len });
    }
    Ok(header_len)
}

/// A header that has been read and found true: every tensor's name, dtype, shape and place, and the metadata.
///
/// True but for one thing: whether a name occurs twice is found by [`NameTable`], which looks at all headers that share a name space.
#[derive(Debug)]
pub struct Header {
    header_len: usize,
    data_len: u64,
    directory: Directory,
}

impl Header {
    /// Reads and checks a header. `text` is exactly the header's bytes, without the prefix.
    ///
    /// # Errors
    ///
    /// [`HeaderError`]: every variant but those of [`header_len`] and [`Header::check_file_len`]. Duplicate names are seen to by
    /// [`NameTable`]; here they are an error only where something else is wrong too.
    ///
    /// ```
    /// use safetensors_lazy::format::{Dtype, Header};
    ///
    /// let text = br#"{"bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    /// let header = Header::parse(text)?;
    /// let bias = header.tensor(0).unwrap();
    /// assert_eq!((bias.name, bias.dtype, bias.shape), (&b"bias"[..], Dtype::F32, &[2][..]));
    /// assert_eq!(header.data_len(), 8);
    /// # Ok::<(), safetensors_lazy::format::HeaderError>(())
    /// ```
    pub fn parse(text: &[u8]) -> Result<Header, HeaderError> {
        let header_len = text.len();
        let directory = match scan::scan(text) {
            // What the scan takes is ASCII but for the strings, and those it has kept.
            Some(directory) if std::str::from_utf8(&directory.text).is_ok() => directory,
            _ => json::parse(utf8(text)?)?,
        };
        let mut header = Header { header_len, data_len: 0, directory };
        header.check_metadata_keys()?;
        match validate::validate(&header.directory) {
            Ok(data_len) => header.data_len = data_len,
            Err(error) => return Err(header.duplicate_name().unwrap_or(error)),
        }
        Ok(header)
    }

    /// Where something else is wrong: two tensors of the same name often have the same offsets, and the name says more.
    #[cold]
    fn duplicate_name(&self) -> Option<HeaderError> {
        NameTable::new(self).err().map(|error| self.name_error(error))
    }

    /// The error of a name table over this header alone.
    pub(crate) fn name_error(&self, error: NameTableError) -> HeaderError {
        match error {
            NameTableError::Duplicate { second, .. } => HeaderError::DuplicateName { name: string(self.name(second)) },
            NameTableError::NoMemory => HeaderError::NoMemory { header_len: self.header_len },
            NameTableError::Internal(what) => HeaderError::Internal(what),
        }
    }

    fn check_metadata_keys(&self) -> Result<(), HeaderError> {
        if self.metadata_len() < 2 {
            return Ok(());
        }
        let mut keys: HashSet<&[u8]> = HashSet::new();
        if keys.try_reserve(self.metadata_len()).is_err() {
            return Err(HeaderError::NoMemory { header_len: self.header_len });
        }
        match (0..self.metadata_len()).filter_map(|i| self.metadata(i)).find(|(key, _)| !keys.insert(key)) {
            Some((key, _)) => Err(HeaderError::DuplicateMetadata { key: string(key) }),
            None => Ok(()),
        }
    }

    /// Checks that a file with this header has `file_len` bytes.
    ///
    /// # Errors
    ///
    /// `Truncated` or `TrailingBytes` of [`HeaderError`]; `DuplicateName` where that is wrong too.
    pub fn check_file_len(&self, file_len: u64) -> Result<(), HeaderError> {
        let (header_len, data_len) = (self.header_len, self.data_len);
        let error = match u64::try_from(described_len(header_len, data_len)) {
            Ok(expected_len) if expected_len == file_len => return Ok(()),
            Ok(expected_len) if expected_len < file_len => HeaderError::TrailingBytes { expected_len, file_len },
            _ => HeaderError::Truncated { header_len, data_len, file_len },
        };
        Err(self.duplicate_name().unwrap_or(error))
    }

    /// Length of the header in bytes, without the prefix.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Length of the data section in bytes.
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.directory.tensors.len()
    }

    /// Whether there are no tensors.
    pub fn is_empty(&self) -> bool {
        self.directory.tensors.is_empty()
    }

    /// Tensor `index`, in the order of the header.
    pub fn tensor(&self, index: usize) -> Option<TensorInfo<'_>> {
        let entry = self.directory.tensors.get(index)?;
        Some(TensorInfo {
            name: entry.name.of(&self.directory.text),
            dtype: entry.dtype,
            shape: self.directory.shape(entry),
            start: entry.start,
            stop: entry.stop,
        })
    }

    /// The name of tensor `index` in UTF-8; empty for an index that is not in the header. A NUL follows the last byte.
    pub fn name(&self, index: usize) -> &[u8] {
        self.directory.name(index)
    }

    /// The text in which names lie.
    pub(crate) fn text(&self) -> &[u8] {
        &self.directory.text
    }

    /// Where the names lie in the text, in the order of the header.
    pub(super) fn name_spans(&self) -> impl ExactSizeIterator<Item = Span> + '_ {
        self.directory.tensors.iter().map(|entry| entry.name)
    }

    /// Number of entries in `__metadata__`.
    pub fn metadata_len(&self) -> usize {
        self.directory.metadata.len()
    }

    /// Key and value of metadata entry `index` in UTF-8, in the order of the header. A NUL follows the last byte of each.
    pub fn metadata(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let (key, value) = self.directory.metadata.get(index)?;
        Some((key.of(&self.directory.text), value.of(&self.directory.text)))
    }
}

/// A tensor as its header describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorInfo<'h> {
    /// Its name in UTF-8. A NUL follows the last byte.
    pub name: &'h [u8],
    /// Its element type.
    pub dtype: Dtype,
    /// Its shape, in elements per dimension.
    pub shape: &'h [u64],
    /// Where its data starts, in bytes from the start of the data section.
    pub start: u64,
    /// Where its data stops, in bytes from the start of the data section.
    pub stop: u64,
}

fn utf8(text: &[u8]) -> Result<&str, HeaderError> {
    std::str::from_utf8(text).map_err(|error| HeaderError::Utf8 { position: error.valid_up_to() })
}

fn string(utf8: &[u8]) -> String {
    excerpt(std::str::from_utf8(utf8).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;

    fn both_forms() -> [Header; 2] {
        [TEXT.to_owned(), format!("\t{TEXT}")].map(|text| Header::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn parse_keeps_the_order_of_the_header() {
        for header in both_forms() {
            assert_eq!(header.name(0), b"b");
            assert_eq!(header.tensor(1).unwrap().shape, [2]);
            assert_eq!((header.tensor(0).unwrap().start, header.tensor(0).unwrap().stop), (2, 10));
            assert_eq!(header.tensor(2), None);
            assert_eq!((header.len(), header.is_empty(), header.data_len()), (2, false, 10));
        }
    }

    #[test]
    fn parse_puts_a_nul_after_each_string() {
        for header in both_forms() {
            let text = &header.directory.text;
            let after = |string: &[u8]| text[string.as_ptr_range().end as usize - text.as_ptr() as usize];
            let (key, value) = header.metadata(0).unwrap();
            for string in [header.name(0), header.name(1), key, value] {
                assert_eq!(after(string), 0);
            }
        }
    }

    #[test]
    fn metadata_gives_entries_in_order() {
        for header in both_forms() {
            assert_eq!(header.metadata(0), Some((&b"format"[..], &b"pt"[..])));
            assert_eq!((header.metadata(1), header.metadata_len()), (None, 1));
        }
    }

    #[test]
    fn parse_refuses_duplicates_in_either_form() {
        // Names are looked at here only when the offsets are wrong, as they are when both tensors have the same.
        let tensor = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        for text in [format!(r#"{{"a":{tensor},"a":{tensor}}}"#), format!(r#"{{"a":{tensor},"\u0061":{tensor}}}"#)] {
            let error = Header::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error, HeaderError::DuplicateName { name: "a".to_owned() });
        }
        for text in [r#"{"__metadata__":{"k":"1","k":"1"}}"#, r#"{"__metadata__":{"k":"1","\u006b":"2"}}"#] {
            let error = Header::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error, HeaderError::DuplicateMetadata { key: "k".to_owned() });
        }
    }

    #[test]
    fn header_len_checks_the_prefix() {
        let prefix = |len: u64| len.to_le_bytes();
        assert_eq!(header_len(&prefix(2), 10), Ok(2));
        assert_eq!(header_len(&[1; 7], 7), Err(HeaderError::TooSmall { file_len: 7 }));
        assert!(matches!(header_len(&prefix(3), 10), Err(HeaderError::LengthBeyondFile { .. })));
        assert_eq!(header_len(&prefix(100_000_000), 200_000_000), Ok(MAX_HEADER_LEN));
        assert!(matches!(header_len(&prefix(100_000_001), 200_000_000), Err(HeaderError::TooLarge { .. })));
        assert!(matches!(header_len(&prefix(u64::MAX), 10), Err(HeaderError::TooLarge { .. })));
    }

    #[test]
    fn check_file_len_tells_short_from_long() {
        let header = Header::parse(TEXT.as_bytes()).unwrap();
        let len = (8 + TEXT.len() + 10) as u64;
        assert_eq!(header.check_file_len(len), Ok(()));
        assert!(matches!(header.check_file_len(len - 1), Err(HeaderError::Truncated { .. })));
        assert!(matches!(header.check_file_len(len + 1), Err(HeaderError::TrailingBytes { .. })));
    }
}
