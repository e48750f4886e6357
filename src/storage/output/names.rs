//! Names of temporary files.

use crate::storage::StorageError;
use std::collections::hash_map::RandomState;
use std::ffi::{CStr, CString};
use std::hash::BuildHasher;

/// How the names end: by this they are known, and by no reader taken for a checkpoint.
const END: &[u8] = b".st-tmp";

/// Hexadecimal digits that tell temporary files of the same output apart.
const DIGITS: usize = 16;

/// The longest name that a file can have.
const MAX_NAME_LEN: usize = 255;

/// Makes names `.<output>.<random>.st-tmp`, and knows them again.
#[derive(Debug)]
pub(crate) struct TemporaryNames {
    /// `.<output>.`
    start: Vec<u8>,
}

impl TemporaryNames {
    /// Names for the files of an output. A name that is too long is cut, and a number made of all of it keeps it apart.
    pub(crate) fn of(output: &[u8]) -> TemporaryNames {
        let room = MAX_NAME_LEN - END.len() - DIGITS - 2;
        let mut start = vec![b'.'];
        match output.get(..room - DIGITS - 1) {
            Some(cut) if output.len() > room => {
                let text = String::from_utf8_lossy(cut);
                // A character that was cut in two is left out: some file systems take whole ones only.
                let whole = if std::str::from_utf8(output).is_ok() {
                    text.trim_end_matches('\u{fffd}').as_bytes()
                } else {
                    cut
                };
                start.extend_from_slice(whole);
                start.extend_from_slice(format!("~{:016x}", fingerprint(output)).as_bytes());
            }
            _ => start.extend_from_slice(output),
        }
        start.push(b'.');
        TemporaryNames { start }
    }

    /// A name that very likely no file has.
    pub(crate) fn next(&self) -> Result<CString, StorageError> {
        // Keys of the system's randomness; the process, because a fork would go on with the same ones.
        let random = RandomState::new().hash_one(std::process::id());
        let mut name = self.start.clone();
        name.extend_from_slice(format!("{random:016x}").as_bytes());
        name.extend_from_slice(END);
        CString::new(name).map_err(|_| StorageError::Internal("the name of an output has a NUL"))
    }

    /// Whether a name is one of these.
    pub(crate) fn is_one(&self, name: &CStr) -> bool {
        let rest = name.to_bytes().strip_prefix(self.start.as_slice());
        let digits = rest.and_then(|rest| rest.strip_suffix(END));
        digits.is_some_and(|digits| {
            digits.len() == DIGITS && digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
        })
    }
}

/// FNV-1a: the same in every process, which is what matters here.
fn fingerprint(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_again_and_fit() {
        let long = ["x".repeat(255), "权".repeat(85), "y".repeat(231), "y".repeat(230)].map(String::into_bytes);
        for output in [&b"model.safetensors"[..], b"\xff"].into_iter().chain(long.iter().map(Vec::as_slice)) {
            let names = TemporaryNames::of(output);
            let name = names.next().unwrap();
            assert!(name.to_bytes().len() <= MAX_NAME_LEN && names.is_one(&name), "{name:?}");
            assert_ne!(name, names.next().unwrap());
            assert_eq!(std::str::from_utf8(output).is_ok(), name.to_str().is_ok());
            assert!(!TemporaryNames::of(b"other").is_one(&name));
        }
        let (one, other) = ([b"x".repeat(254), vec![b'1']].concat(), [b"x".repeat(254), vec![b'2']].concat());
        assert!(!TemporaryNames::of(&one).is_one(&TemporaryNames::of(&other).next().unwrap()));
    }

    #[test]
    fn is_one_refuses_what_only_looks_alike() {
        let names = TemporaryNames::of(b"a");
        assert!(names.is_one(c".a.0123456789abcdef.st-tmp"));
        for other in [c".a.0123456789abcdef.st-tmp2", c".a.0123456789abcde.st-tmp", c"a", c".a.0123456789ABCDEF.st-tmp"]
        {
            assert!(!names.is_one(other), "{other:?}");
        }
    }
}
