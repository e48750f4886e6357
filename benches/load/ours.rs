//! What this library does: a whole checkpoint, in each of the ways in which it can be had.
//!
//! `block`, `separate`, `staged`, `staged-checked`, `populated` or `prefetched`; then, behind a colon, options that are not the defaults:
//! `block:engine=uring+workers=2+depth=16+block=4096`, where a block is in KiB.

use super::checksum::Checksum;
use super::child::{Loaded, Task};
use super::crates::touch;
use super::memory::Block;
use safetensors_lazy::storage::StorageOptions;
use safetensors_lazy::{
    Checkpoint, Destination, Engine, Load, LoadOptions, Loaded as Delivered, Next, OpenOptions, Request, Staging,
    Tensor,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const PAGE: u64 = 4096;

pub fn whole(task: &Task) -> Box<dyn Loaded> {
    let checkpoint = open(&task.files, false);
    let (layout, options) = options_of(&task.how);
    match layout {
        "block" => Box::new(in_one_block(checkpoint).load(options)),
        "separate" => Box::new(separate(checkpoint).load(options)),
        "staged" => Box::new(Staged::load(checkpoint, options, false)),
        "staged-checked" => Box::new(Staged::load(checkpoint, options, true)),
        "populated" => Box::new(Mapped(open(&task.files, true))),
        "prefetched" => Box::new(prefetched(checkpoint)),
        how => panic!("nothing is known of {how}"),
    }
}

/// Of several files it opens the folder.
pub fn open(files: &[PathBuf], populate: bool) -> Arc<Checkpoint> {
    let path: &Path = match files {
        [file] => file,
        files => files[0].parent().expect("a folder"),
    };
    let storage = StorageOptions { populate, ..StorageOptions::default() };
    Arc::new(Checkpoint::open(path, OpenOptions { storage, ..OpenOptions::default() }).expect("a checkpoint"))
}

/// What is in front of the colon, and the options behind it.
pub fn options_of(how: &str) -> (&str, LoadOptions) {
    let (layout, rest) = how.split_once(':').unwrap_or((how, ""));
    let mut options = LoadOptions::default();
    for option in rest.split('+').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').expect("NAME=VALUE");
        let number = || value.parse::<usize>().expect("a number");
        match name {
            "engine" => {
                options.engine = Some(match value {
                    "buffered" => Engine::Buffered,
                    "direct" => Engine::Direct,
                    "uring" => Engine::Uring,
                    _ => panic!("nothing is known of {value}"),
                })
            }
            "workers" => options.workers = number(),
            "depth" => options.queue_depth = number(),
            "block" => options.block_bytes = number() << 10,
            "over_read" => options.over_read = Some(number() as u32),
            _ => panic!("nothing is known of {name}"),
        }
    }
    (layout, options)
}

/// Takes all that is loaded, until nothing is left, and gives what has read it.
pub fn take(
    checkpoint: &Arc<Checkpoint>,
    requests: Vec<Request>,
    options: LoadOptions,
    mut deal_with: impl FnMut(&Delivered, &[u8]),
) -> Vec<String> {
    let mut left = requests.len();
    let load = Load::start(Arc::clone(checkpoint), requests, options).expect("a load");
    while let Next::Loaded(it) = load.next(None).expect("a tensor") {
        // SAFETY: delivered, and not yet recycled; and nobody writes to it.
        deal_with(&it, unsafe { it.bytes.as_ref().expect("bytes").as_slice() });
        left -= usize::from(it.is_last);
        if it.buffer != 0 {
            load.recycle(it.buffer).expect("the library's own");
        }
    }
    assert_eq!(left, 0, "all is there");
    load.progress().engines.iter().map(|engine| format!("{engine:?}").to_lowercase()).collect()
}

/// Tensors in memory of one's own, by index.
struct Placed {
    checkpoint: Arc<Checkpoint>,
    blocks: Vec<Block>,
    /// Block, and offset in it.
    places: Vec<(usize, usize)>,
    engines: Vec<String>,
}

/// One block in huge pages, in which each tensor's address is that of its bytes in the file modulo the page size.
fn in_one_block(checkpoint: Arc<Checkpoint>) -> Placed {
    let mut ends = vec![0; checkpoint.shard_len()];
    let mut starts = vec![u64::MAX; ends.len()];
    for tensor in checkpoint.tensors() {
        let shard = tensor.shard();
        starts[shard] = starts[shard].min(tensor.file_offset() / PAGE * PAGE);
        ends[shard] = ends[shard].max(tensor.file_offset() + tensor.nbytes());
    }
    let mut len = 0;
    let bases = starts.iter().zip(&ends).map(|(start, end)| {
        let base = len;
        len += (end - start.min(end)).next_multiple_of(PAGE);
        base
    });
    let bases: Vec<u64> = bases.collect();
    let place = |tensor: Tensor| (0, (bases[tensor.shard()] + tensor.file_offset() - starts[tensor.shard()]) as usize);
    let places = checkpoint.tensors().map(place).collect();
    Placed { blocks: vec![Block::fresh(len as usize)], checkpoint, places, engines: Vec::new() }
}

/// Memory of its own for each tensor.
fn separate(checkpoint: Arc<Checkpoint>) -> Placed {
    let blocks: Vec<Block> = checkpoint.tensors().map(|tensor| Block::fresh(tensor.nbytes() as usize)).collect();
    let places = (0..blocks.len()).map(|block| (block, 0)).collect();
    Placed { checkpoint, blocks, places, engines: Vec::new() }
}

impl Placed {
    fn load(mut self, options: LoadOptions) -> Placed {
        let request = |tensor: Tensor| {
            let (block, at) = self.places[tensor.index()];
            // SAFETY: a tensor has its place for itself, and nobody looks there before all is delivered.
            let destination = unsafe { Destination::new(self.blocks[block].start().add(at), tensor.nbytes() as usize) };
            Request { index: tensor.index(), ranges: Vec::new(), destination: Some(destination), tag: 0 }
        };
        let requests = self.checkpoint.tensors().map(request).collect();
        self.engines = take(&self.checkpoint, requests, options, |_, _| {});
        self
    }
}

impl Loaded for Placed {
    fn add_to(&self, checksum: &mut Checksum) -> bool {
        for tensor in self.checkpoint.tensors() {
            let (block, at) = self.places[tensor.index()];
            checksum.add(tensor.name(), &self.blocks[block].bytes()[at..at + tensor.nbytes() as usize]);
        }
        true
    }

    fn engines(&self) -> Vec<String> {
        self.engines.clone()
    }
}

/// In 256 MiB, whatever the size of the model. Whoever takes it lets it go at once, unless it is to be checked.
struct Staged {
    checksum: Option<Checksum>,
    engines: Vec<String>,
}

impl Staged {
    fn load(checkpoint: Arc<Checkpoint>, options: LoadOptions, check: bool) -> Staged {
        let request = |index| Request { index, ranges: Vec::new(), destination: None, tag: 0 };
        let requests = (0..checkpoint.len()).map(request).collect();
        let options = LoadOptions { staging: Staging::Own(256 << 20), ..options };
        let mut checksum = check.then(Checksum::default);
        let mut missing = checkpoint.tensors().map(|tensor| tensor.nbytes()).sum::<u64>();
        let engines = take(&checkpoint, requests, options, |it, bytes| {
            missing -= bytes.len() as u64;
            if let (Some(checksum), Some(tensor)) = (&mut checksum, checkpoint.tensor(it.index)) {
                checksum.add(tensor.name(), bytes);
            }
        });
        assert_eq!(missing, 0, "all is there");
        Staged { checksum, engines }
    }
}

impl Loaded for Staged {
    fn add_to(&self, checksum: &mut Checksum) -> bool {
        self.checksum.as_ref().is_some_and(|taken| {
            *checksum = taken.clone();
            true
        })
    }

    fn engines(&self) -> Vec<String> {
        self.engines.clone()
    }
}

/// No copy: the page cache itself, all of it there.
struct Mapped(Arc<Checkpoint>);

/// Asks for all of it, and touches what comes.
fn prefetched(checkpoint: Arc<Checkpoint>) -> Mapped {
    let mut in_order: Vec<(usize, u64, usize)> =
        checkpoint.tensors().map(|tensor| (tensor.shard(), tensor.file_offset(), tensor.index())).collect();
    in_order.sort();
    let indices: Vec<usize> = in_order.into_iter().map(|(_, _, index)| index).collect();
    checkpoint.prefetch(&indices).expect("tensors");
    let mapped = Mapped(checkpoint);
    indices.iter().for_each(|index| touch(mapped.bytes(*index)));
    mapped
}

impl Mapped {
    fn bytes(&self, index: usize) -> &[u8] {
        // SAFETY: nobody changes the file.
        unsafe { self.0.tensor_ptr(index).expect("bytes").as_slice() }
    }
}

impl Loaded for Mapped {
    fn add_to(&self, checksum: &mut Checksum) -> bool {
        self.0.tensors().for_each(|tensor| checksum.add(tensor.name(), self.bytes(tensor.index())));
        true
    }
}
