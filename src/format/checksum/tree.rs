//! BLAKE3 of parts, joined.
//!
//! BLAKE3 is a binary tree (section 2.1 of the [paper](https://github.com/BLAKE3-team/BLAKE3-specs/blob/master/blake3.pdf)): parts of a length
//! that is a power of two are subtrees of it, whatever stands beside them.

use super::Digest;
use blake3::hazmat::{left_subtree_len, merge_subtrees_non_root, merge_subtrees_root, HasherExt, Mode};
use blake3::Hasher;

/// What a subtree comes to.
pub(crate) type ChainingValue = [u8; 32];

/// Of the part at `offset` of something longer. `offset` is a multiple of the part's length, or, for the last part, of that of all
/// others, which is a power of two of at least 1024.
pub(crate) fn subtree(bytes: &[u8], offset: u64) -> ChainingValue {
    Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

/// The digest of `len` bytes that were cut into parts of `part` bytes, at least two of them. `None` if that is not so.
pub(crate) fn join(parts: &[ChainingValue], part: u64, len: u64) -> Option<Digest> {
    let (left, right) = split(parts, part, len)?;
    Some(merge_subtrees_root(&left, &right, Mode::Hash).into())
}

/// The two halves of the tree.
fn split(parts: &[ChainingValue], part: u64, len: u64) -> Option<(ChainingValue, ChainingValue)> {
    if parts.len() < 2 || len.div_ceil(part) != parts.len() as u64 {
        return None;
    }
    let left_len = left_subtree_len(len);
    let (left, right) = parts.split_at_checked(usize::try_from(left_len / part).ok()?)?;
    Some((node(left, part, left_len)?, node(right, part, len - left_len)?))
}

fn node(parts: &[ChainingValue], part: u64, len: u64) -> Option<ChainingValue> {
    match parts {
        [only] => Some(*only),
        _ => {
            let (left, right) = split(parts, part, len)?;
            Some(merge_subtrees_non_root(&left, &right, Mode::Hash))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_gives_the_digest_of_the_whole() {
        const PART: usize = 2048;
        let bytes: Vec<u8> = (0..20 * PART).map(|i| (i % 251) as u8).collect();
        for len in
            (PART + 1..4 * PART + 2).step_by(511).chain((2..20).flat_map(|n| [n * PART - 1, n * PART, n * PART + 1]))
        {
            let bytes = &bytes[..len];
            let parts: Vec<_> =
                bytes.chunks(PART).enumerate().map(|(i, part)| subtree(part, (i * PART) as u64)).collect();
            assert_eq!(join(&parts, PART as u64, len as u64), Some(*blake3::hash(bytes).as_bytes()), "{len}");
        }
    }

    #[test]
    fn join_refuses_what_is_no_cut() {
        assert_eq!(join(&[], 1024, 0), None);
        assert_eq!(join(&[[0; 32]], 1024, 1024), None);
        assert_eq!(join(&[[0; 32]; 3], 1024, 2048), None);
    }
}
