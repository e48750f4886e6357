//! BLAKE3 of parts, joined.
//!
//! BLAKE3 is a binary tree (section 2.1 of the [paper](https://github.com/BLAKE3-team/BLAKE3-specs/blob/master/blake3.pdf)): parts of a length
//! that is a power of two are subtrees of it, whatever stands beside them.

use super::Digest;
use blake3::hazmat::{merge_subtrees_non_root, merge_subtrees_root, HasherExt, Mode};
use blake3::Hasher;

/// What a subtree comes to.
pub(crate) type ChainingValue = [u8; 32];

/// Of the part at `offset` of something longer. `offset` is a multiple of the part's length, or, for the last part, of that of all
/// others, which is a power of two of at least 1024.
pub(crate) fn subtree(bytes: &[u8], offset: u64) -> ChainingValue {
    Hasher::new().set_input_offset(offset).update(bytes).finalize_non_root()
}

/// The parts of something longer, joined as they come. All but the last are of one length, a power of two of at least 1024 bytes.
///
/// Keeps one chaining value for each bit of their number.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Of complete subtrees, the largest first.
    subtrees: Vec<ChainingValue>,
    parts: u64,
}

impl Tree {
    /// Adds a part that is not the last.
    pub(crate) fn push(&mut self, part: ChainingValue) {
        self.parts += 1;
        // As in binary counting: what has become even is complete.
        let mut joined = part;
        for _ in 0..self.parts.trailing_zeros() {
            match self.subtrees.pop() {
                Some(left) => joined = merge_subtrees_non_root(&left, &joined, Mode::Hash),
                None => break,
            }
        }
        self.subtrees.push(joined);
    }

    /// The digest of the whole with `last`, and begins anew. `None` if that is the only part: then it is no subtree, but the whole.
    pub(crate) fn finish(&mut self, last: ChainingValue) -> Option<Digest> {
        let mut subtrees = std::mem::take(self).subtrees.into_iter();
        let root = subtrees.next()?;
        let right = subtrees.rev().fold(last, |right, left| merge_subtrees_non_root(&left, &right, Mode::Hash));
        Some(merge_subtrees_root(&root, &right, Mode::Hash).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finish_gives_the_digest_of_the_whole() {
        const PART: usize = 2048;
        let bytes: Vec<u8> = (0..70 * PART).map(|i| (i % 251) as u8).collect();
        let lens = (PART + 1..4 * PART + 2).step_by(511);
        let mut tree = Tree::default();
        for len in lens.chain((2..70).flat_map(|n| [n * PART - 1, n * PART, n * PART + 1])) {
            let bytes = &bytes[..len];
            let mut parts =
                bytes.chunks(PART).enumerate().map(|(i, part)| subtree(part, (i * PART) as u64)).collect::<Vec<_>>();
            let last = parts.pop().unwrap();
            parts.into_iter().for_each(|part| tree.push(part));
            assert_eq!(tree.finish(last), Some(*blake3::hash(bytes).as_bytes()), "{len}");
        }
        assert_eq!(tree.finish([0; 32]), None);
    }
}
