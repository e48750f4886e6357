//! How long does it take to open a checkpoint of many shards?
//!
//! Beside the reference implementation's crate over the same files, and, where there is no index to read and check, beside opening the
//! shards one after another. A checkpoint of four small shards is opened on an idle and on a busy machine. Arguments: `--rounds N` (11 if absent), `--json FILE`.

mod common;

use common::arguments::{introduce, Arguments};
use common::input::{self, Input};
use common::measure::{take_turns, timed};
use common::report::{self, Report};
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use safetensors::SafeTensors;
use safetensors_lazy::{Checkpoint, OpenOptions};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

const SHARDS: usize = 64;
const TENSORS: usize = 4000;

fn main() {
    let arguments = Arguments::of_process();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let machine = introduce(folder.path());
    let mut report = Report::default();
    for index in [false, true] {
        let input = input::sharded(folder.path(), SHARDS, TENSORS, index).expect("shards");
        measure(&input, index, arguments.rounds(11), &mut report);
    }
    measure_few(folder.path(), 50 * arguments.rounds(11), &mut report);
    arguments.finish(&report, &machine);
}

fn measure(input: &Input, index: bool, rounds: usize, report: &mut Report) {
    let files: Vec<PathBuf> =
        (1..=SHARDS).map(|shard| input.path.join(format!("model-{shard:05}-of-{SHARDS:05}.safetensors"))).collect();
    let checkpoint = open(&input.path);
    assert_eq!((checkpoint.len(), checkpoint.shard_len()), (SHARDS * TENSORS, SHARDS));
    let about =
        format!("{SHARDS} shards of {TENSORS} tensors, {} of headers", report::size(checkpoint.info().header_bytes));
    drop(checkpoint);

    report.section(input.name, &about, ["ours", "other", "ratio (quartiles)"]);
    let mut together = || timed(|| open(&input.path));
    let mut reference = || timed(|| open_with_reference(&input.path, &files, index));
    let [ours, other] = take_turns(rounds, [&mut together, &mut reference]);
    report.compare("the reference, file by file", &ours, &other);
    if !index {
        let mut one_by_one = || timed(|| files.iter().map(|file| open(file)).collect::<Vec<_>>());
        let [ours, other] = take_turns(rounds, [&mut together, &mut one_by_one]);
        report.compare("ours, shards one after another", &ours, &other);
    }
}

/// Opening a small checkpoint of a few shards costs about what opening its files one by one does, also on a machine that has other things
/// to do: threads would cost more.
fn measure_few(folder: &Path, rounds: usize, report: &mut Report) {
    const FEW: usize = 4;
    let input = input::sharded(&folder.join("few"), FEW, 25, true).expect("shards");
    let files = |path: &Path| -> Vec<PathBuf> {
        (1..=FEW).map(|shard| path.join(format!("model-{shard:05}-of-{FEW:05}.safetensors"))).collect()
    };
    let model = Path::new("build/model/sharded");
    let path = if files(model).iter().all(|file| file.exists()) { model } else { &input.path };
    let files = files(path);
    let checkpoint = open(path);
    let about = format!("{FEW} shards of {} tensors in all, and an index", checkpoint.len());
    drop(checkpoint);
    report.section("few shards", &about, ["directory", "one by one", "ratio"]);
    for busy in [0, 16] {
        let processes = Busy::start(busy);
        // As a program opens a checkpoint: after it has done something else.
        let pause = || std::thread::sleep(Duration::from_millis(2));
        let mut together = || (pause(), timed(|| open(path))).1;
        let mut one_by_one = || (pause(), timed(|| files.iter().map(|file| open(file)).collect::<Vec<_>>())).1;
        let [ours, other] = take_turns(rounds, [&mut together, &mut one_by_one]);
        drop(processes);
        report.tails(&format!("beside {busy} busy processes"), &ours, &other);
    }
}

/// Processes that do nothing but compute, until this is dropped.
struct Busy(Vec<Child>);

impl Busy {
    fn start(count: usize) -> Busy {
        let busy = || Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("a process");
        Busy((0..count).map(|_| busy()).collect())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, OpenOptions::default()).expect("a checkpoint")
}

/// What its users do: map each file, read its metadata, remember which tensor is where. With an index, read that first.
fn open_with_reference(folder: &Path, files: &[PathBuf], index: bool) -> Vec<(Mmap, Metadata)> {
    if index {
        let text = std::fs::read(folder.join("model.safetensors.index.json")).expect("an index");
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let index: Index = serde_json::from_slice(&text).expect("an index");
        assert_eq!(index.weight_map.len(), SHARDS * TENSORS);
    }
    let open = |file: &PathBuf| {
        // SAFETY: nobody changes the file.
        let map = unsafe { Mmap::map(&File::open(file).expect("a shard")) }.expect("a mapping");
        let metadata = SafeTensors::read_metadata(&map).expect("a header").1;
        (map, metadata)
    };
    files.iter().map(open).collect()
}
