//! Files cut into blocks, in the order in which they are hashed. No list of them is made: a tensor may have any size.

use super::{Input, Wanted};
use std::ops::Range;

/// The most that is read at once: as much as a core's own cache holds, so that what was read is hashed from there.
pub(super) const BLOCK: u64 = 1024 * 1024;

/// A run of bytes of an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) input: usize,
    /// How many blocks of this input come before it.
    pub(super) number: u64,
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
    /// Of this tensor. Pieces of a tensor are as long as a block, but for the last.
    Piece(usize),
}

/// The blocks of all inputs.
#[derive(Debug)]
pub(super) struct Plan {
    inputs: Vec<Cut>,
    /// So many inputs take turns, each in the order of its bytes.
    abreast: usize,
    len: u64,
}

/// An input, cut.
#[derive(Debug, Default)]
struct Cut {
    runs: Vec<Run>,
    len: u64,
}

/// Neighbouring blocks.
#[derive(Debug)]
struct Run {
    /// The number of the first of them.
    first: u64,
    bytes: Range<u64>,
    part: Part,
}

impl Plan {
    /// Where bytes have to be hashed in their order, `abreast` inputs take turns, so that as many threads have something to do. `None`
    /// if there is no memory.
    pub(super) fn new(inputs: &[Input], abreast: usize) -> Option<Plan> {
        let mut cuts = Vec::new();
        cuts.try_reserve_exact(inputs.len()).ok()?;
        for input in inputs {
            cuts.push(Cut::new(input)?);
        }
        let in_order = inputs.iter().any(|input| input.wanted.in_order());
        let len = cuts.iter().map(|cut| cut.len).fold(0, u64::saturating_add);
        Some(Plan { inputs: cuts, abreast: if in_order { abreast.max(1) } else { 1 }, len })
    }

    /// Number of blocks.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Block `number` in the order in which they are hashed.
    pub(super) fn block(&self, number: u64) -> Option<Block> {
        let mut number = number;
        for (group, cuts) in self.inputs.chunks(self.abreast).enumerate() {
            let len = cuts.iter().map(|cut| cut.len).fold(0, u64::saturating_add);
            if number >= len {
                number -= len;
                continue;
            }
            // In each round, every input has its turn that has not come to its end.
            let before = |round: u64| cuts.iter().map(|cut| cut.len.min(round)).fold(0, u64::saturating_add);
            let round = last_where(len, |round| before(round) <= number);
            let turn = number - before(round);
            let mut left = cuts.iter().enumerate().filter(|(_, cut)| cut.len > round);
            let (within, cut) = left.nth(turn as usize)?;
            return cut.block(group * self.abreast + within, round);
        }
        None
    }
}

/// The largest number up to `most` for which a condition holds that holds up to some number, and for 0.
fn last_where(most: u64, holds: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = high - (high - low) / 2;
        match holds(middle) {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    low
}

impl Cut {
    fn new(input: &Input) -> Option<Cut> {
        let mut cut = Cut::default();
        if input.wanted == Wanted::default() {
            return Some(cut);
        }
        if input.wanted.file_sha256 {
            cut.push(0..input.data_start, Part::Header)?;
        }
        // Small tensors that follow one another.
        let mut small = 0..0;
        let mut small_bytes = input.data_start..input.data_start;
        for (tensor, bytes) in input.tensors.iter().enumerate() {
            let is_small = bytes.end - bytes.start <= BLOCK;
            if !is_small || bytes.end - small_bytes.start > BLOCK {
                cut.push(small_bytes.clone(), Part::Whole(small.clone()))?;
                small = tensor..tensor;
                small_bytes = bytes.start..bytes.start;
            }
            match is_small {
                true => (small.end, small_bytes.end) = (tensor + 1, bytes.end),
                false => {
                    cut.push(bytes.clone(), Part::Piece(tensor))?;
                    small = tensor + 1..tensor + 1;
                    small_bytes = bytes.end..bytes.end;
                }
            }
        }
        cut.push(small_bytes, Part::Whole(small))?;
        Some(cut)
    }

    fn push(&mut self, bytes: Range<u64>, part: Part) -> Option<()> {
        let blocks = match &part {
            Part::Whole(tensors) => u64::from(!tensors.is_empty()),
            Part::Header | Part::Piece(_) => (bytes.end - bytes.start).div_ceil(BLOCK),
        };
        if blocks > 0 {
            self.runs.try_reserve(1).ok()?;
            self.runs.push(Run { first: self.len, bytes, part });
            self.len += blocks;
        }
        Some(())
    }

    fn block(&self, input: usize, number: u64) -> Option<Block> {
        let run = self.runs.get(self.runs.partition_point(|run| run.first <= number).checked_sub(1)?)?;
        let start = run.bytes.start + (number - run.first) * BLOCK;
        Some(Block {
            input,
            number,
            bytes: start..run.bytes.end.min(start.saturating_add(BLOCK)),
            part: run.part.clone(),
        })
    }
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

    fn blocks(inputs: &[Input], abreast: usize) -> Vec<Block> {
        let plan = Plan::new(inputs, abreast).unwrap();
        assert_eq!(plan.block(plan.len()), None);
        (0..plan.len()).map(|number| plan.block(number).unwrap()).collect()
    }

    const BLAKE3: Wanted = Wanted { blake3: true, crc: false, data_sha256: false, file_sha256: false };
    const FILE: Wanted = Wanted { file_sha256: true, blake3: false, crc: false, data_sha256: false };

    #[test]
    fn blocks_gather_small_tensors_and_cut_large_ones() {
        let input = input(100, &[10, 0, BLOCK - 10, 1, 2 * BLOCK + 1, 0, 5], BLAKE3);
        let parts: Vec<_> =
            blocks(&[input], 1).into_iter().map(|block| (block.bytes.end - block.bytes.start, block.part)).collect();
        assert_eq!(
            parts,
            [
                (BLOCK, Part::Whole(0..3)),
                (1, Part::Whole(3..4)),
                (BLOCK, Part::Piece(4)),
                (BLOCK, Part::Piece(4)),
                (1, Part::Piece(4)),
                (5, Part::Whole(5..7)),
            ]
        );
    }

    #[test]
    fn blocks_cover_every_byte_and_tensor_once() {
        for lens in
            [&[][..], &[0], &[0, 0, 0], &[BLOCK], &[BLOCK + 1, 0], &[7, 3 * BLOCK, 9, BLOCK - 9, 1], &[0, BLOCK]]
        {
            let input = input(2 * BLOCK + 3, lens, FILE);
            let end = 2 * BLOCK + 3 + lens.iter().sum::<u64>();
            let (mut at, mut whole, mut pieces) = (0, 0, Vec::new());
            for (number, block) in blocks(&[input], 2).into_iter().enumerate() {
                assert_eq!((block.number, block.bytes.start), (number as u64, at), "{lens:?}");
                assert!(block.bytes.end - at <= BLOCK);
                at = block.bytes.end;
                match block.part {
                    Part::Header => {}
                    Part::Whole(tensors) => whole += tensors.len(),
                    Part::Piece(tensor) => pieces.push(tensor),
                }
            }
            pieces.dedup();
            assert_eq!((at, whole + pieces.len()), (end, lens.len()), "{lens:?}");
        }
    }

    #[test]
    fn blocks_of_inputs_take_turns_where_order_counts() {
        let inputs = [1, 3, 2, 0, 2].map(|len| input(0, &[len * BLOCK], FILE));
        let order =
            |abreast| blocks(&inputs, abreast).iter().map(|block| (block.input, block.number)).collect::<Vec<_>>();
        assert_eq!(order(1), [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (4, 0), (4, 1)]);
        assert_eq!(order(3), [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (3, 0), (4, 0), (4, 1)]);
        let inputs = [1, 3].map(|len| input(0, &[len * BLOCK], BLAKE3));
        let order: Vec<_> = blocks(&inputs, 2).iter().map(|block| block.input).collect();
        assert_eq!(order, [0, 1, 1, 1]);
    }

    #[test]
    fn blocks_of_the_largest_tensor_are_found_at_once() {
        let plan = Plan::new(&[input(8, &[u64::MAX - 8], FILE)], 16).unwrap();
        assert_eq!(plan.len(), 1 + (u64::MAX - 8).div_ceil(BLOCK));
        let last = plan.block(plan.len() - 1).unwrap();
        assert_eq!((last.bytes.end, last.part), (u64::MAX, Part::Piece(0)));
        assert_eq!(plan.block(plan.len()), None);
    }
}
