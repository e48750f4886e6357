//! Rank 1 of 4: the rows of q, k, v, gate and up, the columns of o and down; and nothing of the others.

use super::checksum::Checksum;
use super::child::{Loaded, Task};
use super::crates::{map, Copied};
use super::memory::Block;
use super::ours::{open, options_of, take};
use safetensors::slice::IndexOp;
use safetensors::SafeTensors;
use safetensors_lazy::{Checkpoint, Destination, OpenOptions, Request};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

const PAGE: u64 = 4096;

/// What a rank has of a tensor of two dimensions.
pub enum Part {
    Rows(Range<u64>),
    Columns(Range<u64>),
}

/// What rank 1 of 4 has of this one, if anything. peers.py has the same rule.
pub fn part(name: &str, shape: &[u64]) -> Option<Part> {
    let quarter = |dim: u64| dim / 4..dim / 2;
    let is = |parts: &[&str]| parts.iter().any(|part| name.ends_with(&format!("{part}_proj.weight")));
    match shape {
        [rows, _] if is(&["q", "k", "v", "gate", "up"]) => Some(Part::Rows(quarter(*rows))),
        [_, columns] if is(&["o", "down"]) => Some(Part::Columns(quarter(*columns))),
        _ => None,
    }
}

/// Bytes of the slices, and of the pages on which they and the headers lie: whoever reads pages reads no less.
pub fn needed(files: &[PathBuf]) -> (u64, u64) {
    let (mut wanted, mut pages) = (0, 0);
    for file in files {
        let checkpoint = Checkpoint::open(file, OpenOptions::default()).expect("a checkpoint");
        let mut touched = vec![false; checkpoint.info().file_bytes.div_ceil(PAGE) as usize];
        let data_start = checkpoint.tensors().map(|tensor| tensor.file_offset()).min().unwrap_or(0);
        touched[..data_start.div_ceil(PAGE) as usize].fill(true);
        for tensor in checkpoint.tensors() {
            let shape = tensor.shape();
            let Some(part) = part(tensor.name(), shape) else { continue };
            let row = shape[1] * 2;
            let runs: Vec<Range<u64>> = match part {
                Part::Rows(rows) => vec![rows.start * row..rows.end * row],
                Part::Columns(columns) => {
                    (0..shape[0]).map(|i| i * row + columns.start * 2..i * row + columns.end * 2).collect()
                }
            };
            for run in runs {
                wanted += run.end - run.start;
                let first = (tensor.file_offset() + run.start) / PAGE;
                let end = (tensor.file_offset() + run.end).div_ceil(PAGE);
                touched[first as usize..end as usize].fill(true);
            }
        }
        pages += touched.iter().filter(|touched| **touched).count() as u64 * PAGE;
    }
    (wanted, pages)
}

/// Slices packed one after the other.
struct Packed {
    checkpoint: Arc<Checkpoint>,
    block: Block,
    /// Tensor, offset in the block, bytes.
    places: Vec<(usize, usize, usize)>,
    engines: Vec<String>,
}

impl Loaded for Packed {
    fn add_to(&self, checksum: &mut Checksum) -> bool {
        for (index, at, len) in &self.places {
            let tensor = self.checkpoint.tensor(*index).expect("a tensor");
            checksum.add(tensor.name(), &self.block.bytes()[*at..at + len]);
        }
        true
    }

    fn engines(&self) -> Vec<String> {
        self.engines.clone()
    }
}

pub fn ours(task: &Task) -> Box<dyn Loaded> {
    let checkpoint = open(&task.files, false);
    let (_, options) = options_of(&task.how);
    let mut places = Vec::new();
    let mut all_ranges = Vec::new();
    let mut end = 0;
    for tensor in checkpoint.tensors() {
        let shape = tensor.shape();
        let Some(part) = part(tensor.name(), shape) else { continue };
        let (ranges, first) = match part {
            Part::Rows(rows) => (vec![rows.clone()], rows.start * shape[1] * 2),
            Part::Columns(columns) => (vec![0..shape[0], columns.clone()], columns.start * 2),
        };
        let wanted = ranges.iter().map(|range| range.end - range.start);
        let len = wanted.product::<u64>() * shape[ranges.len()..].iter().product::<u64>() * 2;
        // Where it lies in its page in the file, it lies here: then rows need no copy.
        let at = u64::next_multiple_of(end, PAGE) + (tensor.file_offset() + first) % PAGE;
        end = at + len;
        places.push((tensor.index(), at as usize, len as usize));
        all_ranges.push(ranges);
    }
    let block = Block::fresh(end as usize);
    let requests = places.iter().zip(all_ranges).map(|((index, at, len), ranges)| {
        // SAFETY: places do not overlap, and nobody looks there before all is delivered.
        let destination = unsafe { Destination::new(block.start().add(*at), *len) };
        Request { index: *index, ranges, destination: Some(destination), tag: 0 }
    });
    let engines = take(&checkpoint, requests.collect(), options, |_, _| {});
    Box::new(Packed { checkpoint, block, places, engines })
}

/// The crate's slices of a mapping, which are runs of bytes, copied together.
pub fn crates(task: &Task) -> Box<dyn Loaded> {
    let mut copied = Vec::new();
    for file in &task.files {
        let map = map(file);
        let tensors = SafeTensors::deserialize(&map).expect("a header");
        for (name, tensor) in tensors.iter() {
            let shape: Vec<u64> = tensor.shape().iter().map(|dim| *dim as u64).collect();
            let range = |range: Range<u64>| range.start as usize..range.end as usize;
            let runs = match part(name, &shape) {
                Some(Part::Rows(rows)) => tensor.slice(range(rows)),
                Some(Part::Columns(columns)) => tensor.slice((.., range(columns))),
                None => continue,
            };
            let runs = runs.expect("a slice");
            let mut bytes = Vec::with_capacity(runs.remaining_byte_len());
            runs.for_each(|run| bytes.extend_from_slice(run));
            copied.push((name.to_owned(), bytes));
        }
    }
    Box::new(Copied(copied))
}
