//! Bytes as a shape and a layout: the block of a rank lies inside the tensor, whatever the numbers, and the blocks of all ranks make a
//! whole.

use super::input::Input;
use safetensors_lazy::format::{Layout, RankError};
use std::ops::Range;

/// More ranks, or elements, than this are not counted one by one.
const MOST_RANKS: u64 = 64;
const MOST_ELEMENTS: u64 = 1 << 12;

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let shape: Vec<u64> = (0..input.byte() % 7).map(|_| input.number()).collect();
    let device_matrix: Vec<u64> = (0..input.byte() % 70).map(|_| input.number()).collect();
    // One less than a number, so that -1 is a byte too.
    let entry = |input: &mut Input| (input.number() as i64).wrapping_sub(1);
    let tensor_map: Vec<i64> = (0..input.byte() % 9).map(|_| entry(&mut input)).collect();
    let optimizer_shard = entry(&mut input);
    let rank_id = input.number() as u32;
    let starts: Vec<usize> = (0..input.byte() % 9).map(|_| input.number() as usize).collect();
    let layout = Layout {
        device_matrix: &device_matrix,
        tensor_map: &tensor_map,
        tensor_map_starts: (!starts.is_empty()).then_some(&starts[..]),
        optimizer_shard,
    };
    let devices = device_matrix.iter().try_fold(1u64, |product, devices| product.checked_mul(*devices));
    let ranks = devices.unwrap_or(0).min(MOST_RANKS);
    match layout.ranges(&shape, rank_id) {
        Ok(ranges) => {
            let devices = devices.expect("a number of devices beyond 64 bits is refused");
            lies_inside(&ranges, &shape);
            if let Some(rank_id) = u32::try_from(devices).ok().and_then(|devices| rank_id.checked_add(devices)) {
                assert_eq!(layout.ranges(&shape, rank_id).as_ref(), Ok(&ranges), "ranks beyond the last begin again");
            }
            if devices <= MOST_RANKS {
                makes_a_whole(&layout, &shape, devices);
            }
        }
        Err(refused) => {
            is_true(&refused, &shape);
            for rank_id in 0..ranks {
                assert_eq!(layout.ranges(&shape, rank_id as u32).as_ref(), Err(&refused), "of another rank");
            }
        }
    }
}

fn lies_inside(ranges: &[Range<u64>], shape: &[u64]) {
    assert_eq!(ranges.len(), shape.len());
    for (range, len) in ranges.iter().zip(shape) {
        assert!(range.start <= range.end && range.end <= *len, "{range:?} of {len}");
    }
}

fn is_true(refused: &RankError, shape: &[u64]) {
    match refused {
        RankError::NotDivisible { dimension, len, parts } => {
            assert!(*len <= shape[*dimension] && len % parts != 0, "{refused}");
        }
        RankError::Layout { reason } => assert!(!reason.is_empty() && reason.len() < 200, "{reason}"),
        other => panic!("{other}"),
    }
}

/// All blocks have one size, and every element has as many holders as any other.
fn makes_a_whole(layout: &Layout, shape: &[u64], devices: u64) {
    let blocks: Vec<Vec<Range<u64>>> =
        (0..devices).map(|rank_id| layout.ranges(shape, rank_id as u32).expect("as for another rank")).collect();
    let size_of = |block: &[Range<u64>]| block.iter().map(|range| range.end - range.start).collect::<Vec<u64>>();
    assert!(blocks.iter().all(|block| size_of(block) == size_of(&blocks[0])), "{blocks:?}");
    // Of a tensor without elements, too, the dimensions before the empty one are walked.
    let walked = shape.iter().try_fold(1u64, |product, len| product.checked_mul((*len).max(1)));
    if walked.is_none_or(|walked| walked > MOST_ELEMENTS) {
        return;
    }
    let mut holders = vec![0u64; shape.iter().product::<u64>() as usize];
    for block in &blocks {
        let mut held = vec![0];
        for (range, len) in block.iter().zip(shape) {
            held = held.iter().flat_map(|row| range.clone().map(move |i| row * len + i)).collect();
        }
        held.iter().for_each(|element| holders[*element as usize] += 1);
    }
    let each = holders.first().copied().unwrap_or(0);
    assert!(holders.iter().all(|number| *number == each), "{blocks:?}");
}
