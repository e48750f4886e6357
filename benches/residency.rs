//! What does keeping to a budget cost, and does it keep memory within it?
//!
//! `st_acquire` and `st_release` of a tensor that is held, by one thread and by two on different tensors; and walks, every page touched,
//! with a budget of 512 MiB and without one, each in a process of its own: over a model of 40 GB, and over one of 8 GB whose tensors have to
//! be copied to be used. Arguments: `--rounds N` (5 if absent),
//! `--gigabytes N`, `--json FILE`.

mod common;

use common::arguments::{introduce, Arguments};
use common::input;
use common::measure::{take_turns, timed};
use common::memory::Resident;
use common::report::{self, Report};
use safetensors_lazy::ffi::bytes::st_tensor_ptr;
use safetensors_lazy::ffi::open::{st_checkpoint, st_close, st_open};
use safetensors_lazy::ffi::residency::{st_acquire, st_release};
use safetensors_lazy::{Checkpoint, OpenOptions};
use serde_json::{json, Value};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::ptr::{null, null_mut};
use std::time::{Duration, Instant};

const CALLS: usize = 1_000_000;
const BUDGET: u64 = 512 << 20;
const TENSOR: usize = 32 << 20;
const CHILD: &str = "walk";

fn main() {
    let arguments = Arguments::of_process();
    if let Some([path, budget]) = arguments.of_child(CHILD) {
        return walk(Path::new(path), budget.parse().expect("bytes"));
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let machine = introduce(folder.path());
    let mut report = Report::default();
    measure_calls(folder.path(), &arguments, &mut report);
    let gigabytes = arguments.number("--gigabytes", 40);
    measure_walk(folder.path(), gigabytes, false, &arguments, &mut report);
    measure_walk(folder.path(), gigabytes.min(8), true, &arguments, &mut report);
    arguments.finish(&report, &machine);
}

fn measure_calls(folder: &Path, arguments: &Arguments, report: &mut Report) {
    let input = input::llama(folder).expect("a file");
    let path = CString::new(input.path.as_os_str().as_bytes()).expect("a path");
    let mut handle = null_mut();
    // SAFETY: a string, and an output.
    assert_eq!(unsafe { st_open(path.as_ptr(), null(), &mut handle, null_mut()) }, 0);
    let handle = Handle(handle);
    let [pointer, one, two] = take_turns(
        arguments.rounds(5) * 5,
        [
            &mut || timed(|| (0..CALLS).for_each(|_| handle.point(7))),
            &mut || timed(|| (0..CALLS).for_each(|_| handle.acquire_and_release(7))),
            &mut || {
                timed(|| {
                    std::thread::scope(|scope| {
                        for tensor in [7, 8] {
                            let handle = &handle;
                            scope.spawn(move || (0..CALLS).for_each(|_| handle.acquire_and_release(tensor)));
                        }
                    })
                })
            },
        ],
    );
    report.section("calls", "of a tensor that is held", ["each", "", ""]);
    report.ours("st_tensor_ptr", pointer.per(CALLS).median());
    report.ours("st_acquire and st_release", one.per(CALLS).median());
    report.ours("the same on two threads, each its own tensor", two.per(2 * CALLS).median());
    println!("  two threads have {:.2} times the throughput of one", 2.0 * two.ratios(&one).median());
}

struct Handle(*mut st_checkpoint);

// SAFETY: handles may be used from any thread.
unsafe impl Sync for Handle {}

impl Handle {
    fn point(&self, index: usize) {
        let mut data = null();
        // SAFETY: the handle is open; outputs are locals.
        assert_eq!(unsafe { st_tensor_ptr(self.0, index, &mut data, null_mut(), null_mut()) }, 0);
        std::hint::black_box(data);
    }

    fn acquire_and_release(&self, index: usize) {
        let mut data = null();
        // SAFETY: the handle is open; outputs are locals.
        unsafe {
            assert_eq!(st_acquire(self.0, index, &mut data, null_mut(), null_mut()), 0);
            std::hint::black_box(data);
            assert_eq!(st_release(self.0, index, null_mut()), 0);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened by `measure_calls`.
        unsafe { st_close(self.0) };
    }
}

fn measure_walk(folder: &Path, gigabytes: usize, copies: bool, arguments: &Arguments, report: &mut Report) {
    const SHARDS: usize = 16;
    let input = input::holes(folder, SHARDS, gigabytes * 1_000_000_000 / SHARDS, TENSOR, copies).expect("holes");
    let mut peaks = [0u64; 2];
    let all = Checkpoint::open(&input.path, OpenOptions::default()).expect("a checkpoint");
    // A virtual machine may have given memory back to its host, and gets it again at the first touch.
    in_new_process(&input.path, 0);
    let mut run = |which: usize, budget| {
        // All start alike: the page cache holds less than the model.
        all.evict_all(true).expect("an empty page cache");
        let said = in_new_process(&input.path, budget);
        peaks[which] = peaks[which].max(said["peak"].as_u64().expect("bytes"));
        Duration::from_secs_f64(said["seconds"].as_f64().expect("seconds"))
    };
    let run = std::cell::RefCell::new(&mut run);
    let [with, without] =
        take_turns(arguments.rounds(5), [&mut || (run.borrow_mut())(0, BUDGET), &mut || (run.borrow_mut())(1, 0)]);
    let about = format!("{gigabytes} GB in {SHARDS} shards, every page touched; a budget of 512 MiB");
    report.section(if copies { "walk over copies" } else { "walk" }, &about, ["budget", "none", "ratio (quartiles)"]);
    report.compare("open, walk and close", &with, &without);
    report.sizes("peak of resident memory", peaks[0], peaks[1]);
    println!("  {} beyond the budget", report::size(peaks[0].saturating_sub(BUDGET)));
}

fn in_new_process(path: &Path, budget: u64) -> Value {
    let program = std::env::current_exe().expect("this program");
    let output = Command::new(program).arg(CHILD).arg(path).arg(budget.to_string()).output().expect("a process");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("what the process says")
}

/// Touches every page of every tensor, tensor by tensor.
fn walk(path: &Path, budget: u64) {
    let start = Instant::now();
    let checkpoint = Checkpoint::open(path, OpenOptions { budget, ..OpenOptions::default() }).expect("a checkpoint");
    let mut sum = 0u64;
    for tensor in checkpoint.tensors() {
        let pinned = checkpoint.pin(tensor.index()).expect("a tensor");
        // SAFETY: nobody writes to the file.
        let bytes = unsafe { pinned.as_slice() };
        sum += bytes.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>();
    }
    std::hint::black_box(sum);
    drop(checkpoint);
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", json!({ "seconds": seconds, "peak": Resident::now().peak }));
}
