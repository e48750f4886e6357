//! Files cut into blocks, in the order in which they are hashed.

use super::{Input, Wanted};
use std::ops::Range;

/// The most that is read at once: as much as a core's own cache holds, so that what was read is hashed from there.
pub(super) const BLOCK: u64 = 1024 * 1024;

/// A run of bytes of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) input: usize,
    pub(super) bytes: Range<u64>,
    pub(super) part: Part,
}

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Of what lies before the data section.
    Header,
    /// These tensors, whole.
    Whole(Range<usize>),
    /// Of this tensor, at this offset in it: a multiple of [`BLOCK`], and as long, unless it is the last one.
    Piece(usize, u64),
}

/// The blocks of all inputs. Each input's are in the order of its bytes; where these have to be hashed in that order, `abreast` inputs
/// take turns, so that as many threads have something to do. `None` if there is no memory.
pub(super) fn blocks(inputs: &[Input], abreast: usize) -> Option<Vec<Block>> {
    let mut blocks = Vec::new();
    for (number, input) in inputs.iter().enumerate().filter(|(_, input)| input.wanted != Wanted::default()) {
        let mut push = |bytes: Range<u64>, part| {
            blocks.try_reserve(1).ok()?;
            blocks.push(Block { input: number, bytes, part });
            Some(())
        };
        if input.wanted.file_sha256 {
            for (bytes, _) in cut(0..input.data_start) {
                push(bytes, Part::Header)?;
            }
        }
        let mut small = 0..0;
        for (tensor, bytes) in input.tensors.iter().enumerate() {
            let first = input.tensors.get(small.start).map_or(bytes.start, |first| first.start);
            if !small.is_empty() && bytes.end - first > BLOCK {
                push(first..bytes.start, Part::Whole(small.clone()))?;
                small = tensor..tensor;
            }
            if bytes.end - bytes.start <= BLOCK {
                small = small.start..tensor + 1;
                continue;
            }
            for (piece, offset) in cut(bytes.clone()) {
                push(piece, Part::Piece(tensor, offset))?;
            }
            small = tensor + 1..tensor + 1;
        }
        if let (false, Some(first), Some(last)) =
            (small.is_empty(), input.tensors.get(small.start), input.tensors.last())
        {
            push(first.start..last.end, Part::Whole(small))?;
        }
    }
    if inputs.iter().any(|input| input.wanted.in_order()) {
        let abreast = abreast.max(1);
        // Stable: each input's blocks keep their order.
        blocks.sort_by_cached_key(|block| (block.input / abreast, block.bytes.start / BLOCK));
    }
    Some(blocks)
}

/// Runs of at most a block, each with its offset.
fn cut(bytes: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> {
    let len = bytes.end - bytes.start;
    (0..len.div_ceil(BLOCK)).map(move |i| {
        let offset = i * BLOCK;
        (bytes.start + offset..bytes.start + len.min(offset + BLOCK), offset)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(data_start: u64, lens: &[u64], wanted: Wanted) -> Input {
        let mut at = data_start;
        let tensors = lens.iter().map(|len| {
            at += len;
            at - len..at
        });
        Input { data_start, tensors: tensors.collect(), wanted }
    }

    const BLAKE3: Wanted = Wanted { blake3: true, crc: false, data_sha256: false, file_sha256: false };
    const FILE: Wanted = Wanted { file_sha256: true, blake3: false, crc: false, data_sha256: false };

    #[test]
    fn blocks_gather_small_tensors_and_cut_large_ones() {
        let input = input(100, &[10, 0, BLOCK - 10, 1, 2 * BLOCK + 1, 0, 5], BLAKE3);
        let parts: Vec<_> = blocks(&[input], 1)
            .unwrap()
            .into_iter()
            .map(|block| (block.bytes.end - block.bytes.start, block.part))
            .collect();
        assert_eq!(
            parts,
            [
                (BLOCK, Part::Whole(0..3)),
                (1, Part::Whole(3..4)),
                (BLOCK, Part::Piece(4, 0)),
                (BLOCK, Part::Piece(4, BLOCK)),
                (1, Part::Piece(4, 2 * BLOCK)),
                (5, Part::Whole(5..7)),
            ]
        );
    }

    #[test]
    fn blocks_cover_every_byte_once() {
        for lens in [&[][..], &[0], &[0, 0, 0], &[BLOCK], &[BLOCK + 1, 0], &[7, 3 * BLOCK, 9, BLOCK - 9, 1]] {
            let input = input(2 * BLOCK + 3, lens, FILE);
            let end = 2 * BLOCK + 3 + lens.iter().sum::<u64>();
            let mut at = 0;
            for block in blocks(&[input], 2).unwrap() {
                assert_eq!(block.bytes.start, at, "{lens:?}");
                assert!(block.bytes.end - at <= BLOCK);
                at = block.bytes.end;
            }
            assert_eq!(at, end, "{lens:?}");
        }
    }

    #[test]
    fn blocks_of_inputs_take_turns_where_order_counts() {
        let inputs = [(); 3].map(|()| input(8, &[3 * BLOCK], FILE));
        let order: Vec<_> = blocks(&inputs, 2).unwrap().iter().map(|block| block.input).collect();
        assert_eq!(order[..4], [0, 0, 1, 1]);
        assert_eq!(order[8..], [2, 2, 2, 2]);
        let inputs = [(); 3].map(|()| input(8, &[2 * BLOCK], BLAKE3));
        let order: Vec<_> = blocks(&inputs, 2).unwrap().iter().map(|block| block.input).collect();
        assert_eq!(order, [0, 0, 1, 1, 2, 2]);
    }
}
