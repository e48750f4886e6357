//! Any requests, in any way: what arrives is what a naive copy gives.

use super::model::{Ask, How, Model, Tensor};
use crate::format::{Dtype, Slice};
use proptest::collection::vec;
use proptest::prelude::*;

fn tensors() -> impl Strategy<Value = Vec<Tensor>> {
    let shape = prop_oneof![
        4 => vec(0u64..40, 0..4),
        2 => vec(1u64..400, 2),
        1 => (1u64..300_000).prop_map(|len| vec![len]),
        1 => (1u64..60, 1000u64..9000).prop_map(|(rows, len)| vec![rows, len]),
    ];
    let dtype = prop_oneof![Just(Dtype::U8), Just(Dtype::BF16), Just(Dtype::F32)];
    // Shards of a few tensors, which follow one another as in files, and some of which start anywhere.
    vec((0usize..2, dtype, shape, prop_oneof![4 => Just(0u64), 1 => 0u64..20_000]), 1..20).prop_map(|all| {
        let mut ends = [177u64, 4096];
        let place = |(shard, dtype, shape, gap): (usize, Dtype, Vec<u64>, u64)| {
            let start = ends[shard] + gap;
            ends[shard] = start + Slice::new(dtype, &shape, &[]).unwrap().nbytes();
            Tensor { shard, start, dtype, shape }
        };
        all.into_iter().map(place).collect()
    })
}

/// A tensor, ranges by thousandths of its dimensions, and how far the destination is from where it would lie as in the file.
type Asked = (usize, Vec<(u32, u32)>, Option<u64>);

fn asks() -> impl Strategy<Value = Vec<Asked>> {
    let shift = prop_oneof![2 => Just(None), 1 => Just(Some(0)), 1 => (0u64..4096).prop_map(Some)];
    let ranges = prop_oneof![2 => Just(vec![]), 3 => vec((0u32..=1000, 0u32..=1000), 0..3)];
    vec((0usize..20, ranges, shift), 1..40)
}

fn how() -> impl Strategy<Value = How> {
    let staging = prop_oneof![Just(64 * 1024usize), 64usize * 1024..512 * 1024, Just(16 << 20)];
    let piece_bytes = prop_oneof![2 => Just(u64::MAX), 1 => 4096u64..100_000];
    let alignment = prop_oneof![Just(0u64), Just(512), Just(4096)];
    let over_read = prop_oneof![Just(0u64), Just(10), Just(300)];
    let block = (16u64..100).prop_map(|pages| pages * 4096);
    (any::<bool>(), over_read, block, (32u64..60).prop_map(|pages| pages * 4096), piece_bytes, staging, alignment)
        .prop_map(|(in_order, over_read, block, bounce, piece_bytes, staging, alignment)| How {
            in_order,
            over_read,
            block,
            bounce,
            piece_bytes,
            staging,
            alignment,
        })
}

fn asks_of(tensors: &[Tensor], asked: Vec<Asked>) -> Vec<Ask> {
    let of = |(tensor, parts, shift): Asked| {
        let tensor = tensor % tensors.len();
        let range = |(len, (one, other)): (&u64, &(u32, u32))| {
            let at = |part: u32| len * u64::from(part) / 1000;
            at(*one.min(other))..at(*one.max(other))
        };
        Ask { tensor, ranges: tensors[tensor].shape.iter().zip(&parts).map(range).collect(), shift }
    };
    asked.into_iter().map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 600 }))]

    #[test]
    fn whatever_is_asked_for_arrives(
        tensors in tensors(), asks in asks(), how in how(), choices in vec(any::<u16>(), 64), fails in any::<bool>(),
    ) {
        let asks = asks_of(&tensors, asks);
        let mut model = Model::new(&tensors, &asks, how);
        let (mut under_way, mut held, mut failed) = (Vec::new(), Vec::new(), vec![false; asks.len()]);
        let (mut arrived, mut ended) = (vec![0u64; asks.len()], Vec::new());
        for choice in choices.into_iter().cycle() {
            let choose = |len: usize| usize::from(choice) % len;
            match choice % 4 {
                // A thread takes a block.
                0 | 1 if under_way.len() < 8 => if let Some(block) = model.deal() {
                    under_way.push(block);
                },
                // A thread has read one, not necessarily the first.
                1 | 2 if !under_way.is_empty() => {
                    let block = under_way.swap_remove(choose(under_way.len()));
                    let good = !fails || choice % 7 != 0;
                    if good {
                        model.read(&block);
                    }
                    model.give(&block, good);
                }
                // The caller takes what has arrived, and gives back what it took before.
                _ => match model.deliver() {
                    Some(loaded) => {
                        match &loaded.bytes {
                            Ok(bytes) => {
                                prop_assert!(model.is_right(&loaded), "{:?}", loaded);
                                prop_assert!(loaded.offset >= arrived[loaded.request]);
                                arrived[loaded.request] = loaded.offset + bytes.len() as u64;
                            }
                            Err(_) => failed[loaded.request] = true,
                        }
                        prop_assert!(!how.in_order || loaded.request == ended.len());
                        if loaded.is_last {
                            ended.push(loaded.request);
                        }
                        held.push(loaded);
                    }
                    None if !held.is_empty() => {
                        let loaded = held.swap_remove(choose(held.len()));
                        // Nobody has written to it meanwhile.
                        prop_assert!(loaded.bytes.is_err() || model.is_right(&loaded));
                        prop_assert!(loaded.buffer == 0 || model.recycle(loaded.buffer).is_some());
                        prop_assert!(loaded.buffer == 0 || model.recycle(loaded.buffer).is_none());
                    }
                    None => {}
                },
            }
            let stalled = model.state.is_stalled(&model.work);
            if stalled && model.state.left() > 0 {
                prop_assert!(under_way.is_empty() && model.deal().is_none() && !model.state.is_ready());
                prop_assert!(held.iter().any(|loaded| loaded.buffer != 0), "nobody could help");
            }
            if model.state.left() == 0 {
                break;
            }
        }
        prop_assert!(under_way.is_empty() && model.state.is_read(&model.work));
        ended.sort_unstable();
        prop_assert!(ended.into_iter().eq(0..asks.len()));
        prop_assert!(model.surroundings_are_untouched());
        for (request, wanted) in model.work.wanted.iter().enumerate() {
            prop_assert!(failed[request] || arrived[request] == wanted.nbytes);
            prop_assert!(fails || !failed[request]);
        }
    }

    #[test]
    fn no_more_is_read_than_is_allowed(tensors in tensors(), asks in asks(), how in how()) {
        let asks = asks_of(&tensors, asks);
        let mut model = Model::new(&tensors, &asks, how);
        model.run();
        // Each run may lie on a part of a page more at each end, and each block begins and ends somewhere.
        let runs: u64 = model.work.wanted.iter().map(|wanted| wanted.runs_within(0..u64::MAX).count() as u64).sum();
        let wanted: u64 = model.work.wanted.iter().map(|wanted| wanted.nbytes).sum();
        let edges = 2 * how.alignment.max(1) * (runs + model.reads as u64);
        let within_pages = if how.over_read > 0 { 2 * 4096 * runs } else { 0 };
        prop_assert!(model.bytes_read <= wanted + wanted * how.over_read / 100 + edges + within_pages);
    }
}
