//! Which part of a tensor belongs to which rank: what MindSpore says of it, and that the parts make a whole. Each question is put to the
//! Rust function and to the C function. The origin of the answers is in `tests/data/mindspore/README.md`.

use crate::properties::{config, read};
use proptest::collection::vec;
use proptest::prelude::*;
use safetensors_lazy::ffi::bytes::st_range;
use safetensors_lazy::ffi::ranks::{st_layout, st_layout_ranges, st_split_range};
use safetensors_lazy::format::{split_range, Layout};
use safetensors_lazy::{Checkpoint, OpenOptions};
use serde_json::Value;
use std::fs;
use std::ops::Range;
use std::ptr::{null, null_mut};

/// A layout that owns its arrays.
#[derive(Clone, Debug, Default)]
struct Owned {
    device_matrix: Vec<u64>,
    /// The axes of each dimension.
    lists: Vec<Vec<i64>>,
    optimizer_shard: i64,
}

impl Owned {
    /// As a strategy file writes it: an entry of the map is a number, or a list of them.
    fn of(device_matrix: &Value, tensor_map: &Value, optimizer_shard: &Value) -> Owned {
        let list = |entry: &Value| match entry {
            Value::Array(axes) => axes.iter().map(|axis| axis.as_i64().unwrap()).collect(),
            axis => vec![axis.as_i64().unwrap()],
        };
        Owned {
            device_matrix: numbers(device_matrix),
            lists: tensor_map.as_array().unwrap().iter().map(list).collect(),
            optimizer_shard: optimizer_shard.as_i64().unwrap(),
        }
    }

    fn devices(&self) -> u32 {
        self.device_matrix.iter().product::<u64>() as u32
    }

    /// The ranges of a rank, as all functions and both forms of the map agree on.
    fn ranges(&self, shape: &[u64], rank_id: u32) -> Vec<Range<u64>> {
        let tensor_map = self.lists.concat();
        let mut starts = vec![0];
        for list in &self.lists {
            starts.push(starts.last().unwrap() + list.len());
        }
        let nested = Layout {
            device_matrix: &self.device_matrix,
            tensor_map: &tensor_map,
            tensor_map_starts: Some(&starts),
            optimizer_shard: self.optimizer_shard,
        };
        let ranges = nested.ranges(shape, rank_id).unwrap();
        assert_eq!(in_c(&nested, shape, rank_id), ranges);
        if self.lists.iter().all(|list| list.len() == 1) {
            let plain = Layout { tensor_map_starts: None, ..nested };
            assert_eq!(plain.ranges(shape, rank_id).unwrap(), ranges);
            assert_eq!(in_c(&plain, shape, rank_id), ranges);
        }
        ranges
    }
}

fn in_c(layout: &Layout, shape: &[u64], rank_id: u32) -> Vec<Range<u64>> {
    let layout = st_layout {
        struct_size: size_of::<st_layout>(),
        device_matrix: layout.device_matrix.as_ptr(),
        device_dims: layout.device_matrix.len(),
        tensor_map: layout.tensor_map.as_ptr(),
        tensor_map_starts: layout.tensor_map_starts.map_or(null(), <[usize]>::as_ptr),
        tensor_map_len: layout.tensor_map.len(),
        optimizer_shard: layout.optimizer_shard,
    };
    let mut ranges = vec![st_range { start: 77, stop: 77 }; shape.len()];
    let (rank, out) = (shape.len(), ranges.as_mut_ptr());
    // SAFETY: the arrays have the lengths that are said.
    let status = unsafe { st_layout_ranges(&layout, shape.as_ptr(), rank, rank_id, out, null_mut()) };
    assert_eq!(status, 0);
    ranges.iter().map(|range| range.start..range.stop).collect()
}

fn numbers(array: &Value) -> Vec<u64> {
    array.as_array().unwrap().iter().map(|number| number.as_u64().unwrap()).collect()
}

fn json(path: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn layout_ranges_are_those_of_mindspore() {
    check_vectors("layout_vectors.json", 15);
    check_vectors("layout_vectors_random.json", 60);
}

fn check_vectors(file: &str, number: usize) {
    let vectors = json(&format!("tests/data/mindspore/{file}"));
    let cases = vectors["cases"].as_array().unwrap();
    assert_eq!(cases.len(), number);
    for case in cases {
        let layout = Owned::of(&case["device_matrix"], &case["tensor_map"], &case["opt_weight_shard_size"]);
        let ranks = case["ranks"].as_array().unwrap();
        assert_eq!(ranks.len(), layout.devices() as usize);
        for expected in ranks {
            let rank_id = expected["rank"].as_u64().unwrap() as u32;
            let slices = expected["slices"].as_array().unwrap();
            let slices: Vec<Range<u64>> = slices.iter().map(numbers).map(|slice| slice[0]..slice[1]).collect();
            assert_eq!(layout.ranges(&numbers(&case["shape"]), rank_id), slices, "rank {rank_id} of {case}");
        }
    }
}

#[test]
fn tensor_read_of_a_rank_is_the_file_that_mindspore_saved_for_it() {
    let folder = "tests/data/mindspore/distributed";
    let strategy = json(&format!("{folder}/strategy_dp2_mp4.json"));
    let items = strategy["parallel_layout_item"].as_object().unwrap();
    let open = |path: &str| Checkpoint::open(format!("{folder}/{path}"), OpenOptions::default()).unwrap();
    let full = open("full.safetensors");
    assert_eq!((items.len(), full.len()), (4, 4));
    for rank_id in 0..8 {
        let saved = open(&format!("src/rank_{rank_id}/net-1_1.safetensors"));
        for (name, item) in items {
            let layout = Owned::of(&item["dev_matrix"], &item["tensor_map"], &item["opt_weight_shard_size"]);
            let whole = full.tensor(full.find(name).unwrap()).unwrap();
            let part = saved.tensor(saved.find(name).unwrap()).unwrap();
            let ranges = layout.ranges(whole.shape(), rank_id);
            let shape: Vec<u64> = ranges.iter().map(|range| range.end - range.start).collect();
            assert_eq!((whole.dtype(), &shape[..]), (part.dtype(), part.shape()), "{name} of rank {rank_id}");
            let room = whole.nbytes() as usize;
            let sliced = read(&full, whole.index(), &ranges, room).unwrap();
            assert_eq!(sliced, read(&saved, part.index(), &[], room).unwrap(), "{name} of rank {rank_id}");
        }
    }
}

/// A layout that fits a tensor, its shape, and how many ranks hold each of the tensor's elements.
#[derive(Clone, Debug)]
struct Fitting {
    layout: Owned,
    shape: Vec<u64>,
    holders: u64,
}

fn fitting() -> impl Strategy<Value = Fitting> {
    // Each axis belongs to a dimension, or to none if its owner is beyond the last.
    let axes = vec((1..4u64, 0..5usize, any::<u32>()), 1..5);
    // Each dimension is so many times what it is split into; its list of axes may end in -1.
    let dimensions = vec((0..3u64, any::<bool>()), 0..4);
    (axes, dimensions, any::<prop::sample::Index>()).prop_map(|(axes, dimensions, shard)| {
        let last = axes.len() - 1;
        let owned_by = |dimension: usize| {
            let mut owned: Vec<usize> = (0..axes.len()).filter(|axis| axes[*axis].1 == dimension).collect();
            owned.sort_by_key(|axis| axes[*axis].2);
            owned
        };
        let (mut lists, mut shape) = (Vec::new(), Vec::new());
        for (dimension, (times, ends_in_none)) in dimensions.iter().enumerate() {
            let owned = owned_by(dimension);
            shape.push(times * owned.iter().map(|axis| axes[*axis].0).product::<u64>());
            lists.push(owned.iter().map(|axis| (last - axis) as i64).chain(ends_in_none.then_some(-1)).collect());
        }
        let free = axes.iter().filter(|(_, owner, _)| *owner >= dimensions.len()).map(|(devices, ..)| devices);
        let free: u64 = free.product();
        let mut optimizer_shard = 0;
        let mut holders = free;
        if let Some(first) = shape.first_mut() {
            let divisors = (1..=free as i64).filter(|shard| free as i64 % shard == 0);
            let shards: Vec<i64> = [0, -1].into_iter().chain(divisors).collect();
            optimizer_shard = shards[shard.index(shards.len())];
            let parts = match optimizer_shard {
                0 => 1,
                -1 => free,
                parts => parts as u64,
            };
            *first *= parts;
            holders /= parts;
        }
        let device_matrix = axes.iter().map(|(devices, ..)| *devices).collect();
        Fitting { layout: Owned { device_matrix, lists, optimizer_shard }, shape, holders }
    })
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn layout_ranges_of_all_ranks_hold_each_element_equally_often(fitting in fitting()) {
        let Fitting { layout, shape, holders } = fitting;
        let mut found = vec![0u64; shape.iter().product::<u64>() as usize];
        for rank_id in 0..layout.devices() {
            let ranges = layout.ranges(&shape, rank_id);
            prop_assert_eq!(&layout.ranges(&shape, rank_id + layout.devices()), &ranges);
            let mut elements = vec![0];
            for (range, len) in ranges.into_iter().zip(&shape) {
                elements = elements.iter().flat_map(|row| range.clone().map(move |i| row * len + i)).collect();
            }
            for element in elements {
                found[element as usize] += 1;
            }
        }
        prop_assert!(found.iter().all(|times| *times == holders), "{:?} are not all {}", found, holders);
    }

    #[test]
    fn split_ranges_of_all_ranks_follow_one_another(dim in prop_oneof![0..100u64, any::<u64>()], world in 1..200u32) {
        let mut stop = 0;
        let mut lens = Vec::new();
        for rank in 0..world {
            let range = split_range(dim, rank, world).unwrap();
            let mut out = st_range { start: 77, stop: 77 };
            // SAFETY: the output is a local.
            prop_assert_eq!(unsafe { st_split_range(dim, rank, world, &mut out, null_mut()) }, 0);
            prop_assert_eq!(out.start..out.stop, range.clone());
            prop_assert_eq!(range.start, stop);
            stop = range.end;
            lens.push(range.end - range.start);
        }
        prop_assert_eq!(stop, dim);
        // The longer ones first, by one element.
        prop_assert!(lens.is_sorted_by(|a, b| a >= b) && lens[0] - lens[lens.len() - 1] <= 1, "{:?}", lens);
    }
}
