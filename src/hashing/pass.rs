//! Reads each block once and feeds all sums with it.

use super::plan::{Block, Part, Plan};
use super::turns::Turns;
use super::{Input, Sums, TensorSums};
use crate::error::Error;
use crate::format::checksum::{subtree, Crc, Tree};
use crate::workers::for_each;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Where the bytes of the inputs come from.
pub(crate) trait Source: Sync {
    /// Where a thread can keep what it reads.
    type Room: Default;

    /// The bytes of an input, read into `room` if they have to be.
    fn bytes<'a>(&'a self, input: usize, place: Range<u64>, room: &'a mut Self::Room) -> Result<&'a [u8], Error>;
}

/// The sums of all inputs, in their order. `done` is told how many bytes and tensors have been added, and says whether to go on.
pub(crate) fn pass<S: Source>(
    source: &S,
    inputs: &[Input],
    workers: usize,
    done: impl Fn(u64, u64) -> Result<(), Error> + Sync,
) -> Result<Vec<Sums>, Error> {
    let plan = Plan::new(inputs, workers).ok_or(Error::NoMemory)?;
    let turns = Turns::new(inputs).ok_or(Error::NoMemory)?;
    let mut joined = Vec::new();
    joined.try_reserve_exact(inputs.len()).map_err(|_| Error::NoMemory)?;
    joined.resize_with(inputs.len(), Mutex::<Joined>::default);
    for_each(plan.len(), workers, |room: &mut S::Room, number| {
        // A thread that fails, or panics, must leave nobody waiting for it.
        let unless_done = GiveUp(&turns);
        let block = plan.block(number).ok_or(NO_BLOCK)?;
        let (input, joined) = inputs.get(block.input).zip(joined.get(block.input)).ok_or(NO_BLOCK)?;
        done(0, 0)?;
        let bytes = source.bytes(block.input, block.bytes.clone(), room)?;
        if bytes.len() as u64 != block.bytes.end - block.bytes.start {
            return Err(Error::Internal { what: "a block is not as long as it was cut" });
        }
        let sums = sums_of(&block, input, bytes)?;
        if input.wanted.in_order() {
            turns.take(block.input, block.bytes.clone(), bytes)?;
        }
        done(bytes.len() as u64, ended(&block, input))?;
        let mut joined = joined.lock().unwrap_or_else(PoisonError::into_inner);
        joined.add(block, input, sums)?;
        drop(joined);
        std::mem::forget(unless_done);
        Ok(())
    })?;
    let mut sums = Vec::new();
    sums.try_reserve_exact(inputs.len()).map_err(|_| Error::NoMemory)?;
    for (joined, input) in joined.into_iter().zip(inputs) {
        let joined = joined.into_inner().unwrap_or_else(PoisonError::into_inner);
        let expected = if input.wanted.of_tensors() { input.tensors.len() } else { 0 };
        if !joined.early.is_empty() || joined.sums.tensors.len() != expected {
            return Err(Error::Internal { what: "not every tensor has a sum" });
        }
        sums.push(joined.sums);
    }
    turns.finish(inputs, &mut sums)?;
    Ok(sums)
}

const NO_BLOCK: Error = Error::Internal { what: "a plan has no such block" };
const NO_TENSOR: Error = Error::Internal { what: "a block is of no tensor" };

/// Lets all that wait for their turn go, unless it is forgotten.
struct GiveUp<'t>(&'t Turns);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// The sums of a block: of each tensor that is whole in it, or of a piece, whose hash is a chaining value then.
fn sums_of(block: &Block, input: &Input, bytes: &[u8]) -> Result<Vec<TensorSums>, Error> {
    let wanted = input.wanted;
    let mut sums = Vec::new();
    if !wanted.of_tensors() {
        return Ok(sums);
    }
    let crc = |bytes: &[u8]| if wanted.crc { Crc::of(bytes) } else { Crc::default() };
    match &block.part {
        Part::Header => {}
        Part::Whole(tensors) => {
            sums.try_reserve_exact(tensors.len()).map_err(|_| Error::NoMemory)?;
            for tensor in input.tensors.get(tensors.clone()).ok_or(NO_TENSOR)? {
                let place = (tensor.start - block.bytes.start) as usize..(tensor.end - block.bytes.start) as usize;
                let bytes = bytes.get(place).ok_or(NO_TENSOR)?;
                let blake3 = if wanted.blake3 { blake3::hash(bytes).into() } else { [0; 32] };
                sums.push(TensorSums { crc: crc(bytes), blake3 });
            }
        }
        Part::Piece(tensor) => {
            let offset = block.bytes.start - input.tensors.get(*tensor).ok_or(NO_TENSOR)?.start;
            let blake3 = if wanted.blake3 { subtree(bytes, offset) } else { [0; 32] };
            sums.try_reserve_exact(1).map_err(|_| Error::NoMemory)?;
            sums.push(TensorSums { crc: crc(bytes), blake3 });
        }
    }
    Ok(sums)
}

/// How many tensors end with a block.
fn ended(block: &Block, input: &Input) -> u64 {
    match &block.part {
        Part::Header => 0,
        Part::Whole(tensors) => tensors.len() as u64,
        Part::Piece(tensor) => u64::from(input.tensors.get(*tensor).is_some_and(|all| all.end == block.bytes.end)),
    }
}

/// The sums of an input, growing with its blocks.
#[derive(Default)]
struct Joined {
    sums: Sums,
    /// Of the tensor whose pieces come.
    tree: Tree,
    /// The block that comes next.
    next: u64,
    /// Those that have come before their turn: as many as threads are ahead of the slowest.
    early: BinaryHeap<Early>,
}

/// A block and its sums. The first of several is the greatest.
#[derive(Debug)]
struct Early(Block, Vec<TensorSums>);

impl Ord for Early {
    fn cmp(&self, other: &Early) -> Ordering {
        other.0.number.cmp(&self.0.number)
    }
}

impl PartialOrd for Early {
    fn partial_cmp(&self, other: &Early) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Early {
    fn eq(&self, other: &Early) -> bool {
        self.0.number == other.0.number
    }
}

impl Eq for Early {}

impl Joined {
    fn add(&mut self, block: Block, input: &Input, sums: Vec<TensorSums>) -> Result<(), Error> {
        self.early.try_reserve(1).map_err(|_| Error::NoMemory)?;
        self.early.push(Early(block, sums));
        while self.early.peek().is_some_and(|Early(block, _)| block.number == self.next) {
            let Early(block, sums) = self.early.pop().ok_or(NO_BLOCK)?;
            self.next += 1;
            self.add_next(&block, input, &sums)?;
        }
        Ok(())
    }

    fn add_next(&mut self, block: &Block, input: &Input, sums: &[TensorSums]) -> Result<(), Error> {
        if !input.wanted.of_tensors() {
            return Ok(());
        }
        let tensors = &mut self.sums.tensors;
        tensors.try_reserve(sums.len()).map_err(|_| Error::NoMemory)?;
        let Part::Piece(tensor) = block.part else {
            tensors.extend(sums);
            return Ok(());
        };
        let (piece, place) = sums.first().zip(input.tensors.get(tensor)).ok_or(NO_TENSOR)?;
        if block.bytes.start == place.start {
            tensors.push(TensorSums::default());
        }
        let sums = tensors.last_mut().ok_or(NO_TENSOR)?;
        sums.crc = sums.crc.then(piece.crc);
        match (input.wanted.blake3, block.bytes.end == place.end) {
            (false, _) => {}
            (true, false) => self.tree.push(piece.blake3),
            (true, true) => sums.blake3 = self.tree.finish(piece.blake3).ok_or(NO_TENSOR)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::BLOCK;
    use super::super::Wanted;
    use super::*;
    use crate::task::Task;
    use sha2::Digest as _;

    /// Inputs in memory.
    struct Bytes(Vec<Vec<u8>>);

    impl Source for Bytes {
        type Room = ();

        fn bytes<'a>(&'a self, input: usize, place: Range<u64>, _: &'a mut ()) -> Result<&'a [u8], Error> {
            Ok(&self.0[input][place.start as usize..place.end as usize])
        }
    }

    fn inputs(layouts: &[(u64, &[u64])], wanted: Wanted) -> (Bytes, Vec<Input>) {
        let mut inputs = Vec::new();
        let mut bytes = Vec::new();
        for (data_start, lens) in layouts {
            let mut at = *data_start;
            let tensors = lens.iter().map(|len| {
                at += len;
                at - len..at
            });
            inputs.push(Input { data_start: *data_start, tensors: tensors.collect(), wanted });
            bytes.push((0..at).map(|i| ((i + data_start) % 251) as u8).collect());
        }
        (Bytes(bytes), inputs)
    }

    #[test]
    fn pass_gives_the_sums_of_the_whole() {
        let layouts: [(u64, &[u64]); 4] = [
            (16, &[0, 5, 3 * BLOCK + 7, 0, BLOCK, 2 * BLOCK, 1]),
            (BLOCK + 9, &[BLOCK + 1]),
            (8, &[]),
            (24, &[100, 2 * BLOCK - 1]),
        ];
        for in_order in [false, true] {
            let wanted = Wanted { crc: true, blake3: true, data_sha256: in_order, file_sha256: in_order };
            let (source, inputs) = inputs(&layouts, wanted);
            for workers in [1, 2, 5] {
                let task = Task::default();
                let sums = pass(&source, &inputs, workers, |bytes, items| task.done(bytes, items)).unwrap();
                for ((sums, input), bytes) in sums.iter().zip(&inputs).zip(&source.0) {
                    let expected: Vec<_> = input
                        .tensors
                        .iter()
                        .map(|place| &bytes[place.start as usize..place.end as usize])
                        .map(|bytes| TensorSums { crc: Crc::of(bytes), blake3: blake3::hash(bytes).into() })
                        .collect();
                    assert_eq!(sums.tensors, expected);
                    if in_order {
                        assert_eq!(sums.file_sha256, <[u8; 32]>::from(sha2::Sha256::digest(bytes)));
                        let data = &bytes[input.data_start as usize..];
                        assert_eq!(sums.data_sha256, <[u8; 32]>::from(sha2::Sha256::digest(data)));
                    }
                }
                assert_eq!(task.progress().items_done, 10);
            }
        }
    }

    #[test]
    fn pass_does_only_what_is_wanted() {
        let (source, inputs) = inputs(&[(8, &[10, 2 * BLOCK])], Wanted { data_sha256: true, ..Wanted::default() });
        let sums = pass(&source, &inputs, 2, |_, _| Ok(())).unwrap();
        assert!(sums[0].tensors.is_empty());
        assert_eq!(sums[0].file_sha256, [0; 32]);
        assert_eq!(sums[0].data_sha256, <[u8; 32]>::from(sha2::Sha256::digest(&source.0[0][8..])));
    }

    #[test]
    fn pass_gives_empty_blocks_no_turn() {
        // Between large tensors an empty one is a block of its own, which starts where the next block does.
        const LARGE: u64 = BLOCK + 1;
        let wanted = Wanted { file_sha256: true, ..Wanted::default() };
        let (source, inputs) = inputs(&[(8, &[LARGE, 0, LARGE, 0, LARGE, 0, LARGE, 0, LARGE])], wanted);
        let expected = <[u8; 32]>::from(sha2::Sha256::digest(&source.0[0]));
        for _ in 0..50 {
            let sums = pass(&source, &inputs, 8, |_, _| Ok(())).unwrap();
            assert_eq!(sums[0].file_sha256, expected);
        }
    }

    #[test]
    fn pass_tells_of_blocks_that_have_no_turn() {
        let input =
            Input { data_start: 8, tensors: vec![8..20], wanted: Wanted { data_sha256: true, ..Wanted::default() } };
        let turns = || Turns::new(std::slice::from_ref(&input)).unwrap();
        let is_bug = |outcome| assert!(matches!(outcome, Err(Error::Internal { .. })));
        let all = turns();
        all.take(0, 8..20, &[0; 12]).unwrap();
        is_bug(all.take(0, 8..20, &[0; 12]));
        is_bug(all.take(1, 8..20, &[0; 12]));
        all.finish(std::slice::from_ref(&input), &mut [Sums::default()]).unwrap();
        is_bug(turns().finish(std::slice::from_ref(&input), &mut [Sums::default()]));
    }

    /// Fails, or panics, at some block.
    struct Failing(Bytes, u64, bool);

    impl Source for Failing {
        type Room = ();

        fn bytes<'a>(&'a self, input: usize, place: Range<u64>, room: &'a mut ()) -> Result<&'a [u8], Error> {
            assert!(!(self.2 && place.contains(&self.1)), "meant to fail");
            match place.contains(&self.1) {
                true => Err(Error::NoMemory),
                false => self.0.bytes(input, place, room),
            }
        }
    }

    #[test]
    fn pass_ends_when_a_block_fails() {
        let wanted = Wanted { file_sha256: true, ..Wanted::default() };
        for panics in [false, true] {
            for at in 0..8 {
                let (source, inputs) = inputs(&[(8, &[8 * BLOCK]), (8, &[BLOCK])], wanted);
                let source = Failing(source, at * BLOCK + 10, panics);
                let ended =
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pass(&source, &inputs, 4, |_, _| Ok(()))));
                match ended {
                    Ok(outcome) => assert!(!panics && matches!(outcome, Err(Error::NoMemory))),
                    Err(_) => assert!(panics),
                }
            }
        }
    }

    #[test]
    fn pass_ends_when_it_is_cancelled() {
        let wanted = Wanted { file_sha256: true, blake3: true, ..Wanted::default() };
        let (source, inputs) = inputs(&[(8, &[8 * BLOCK])], wanted);
        let task = Task::default();
        task.cancel();
        assert!(matches!(pass(&source, &inputs, 4, |bytes, items| task.done(bytes, items)), Err(Error::Cancelled)));
        assert_eq!(task.progress().bytes_done, 0);
    }
}
