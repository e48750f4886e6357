//! What does a rank's slice of a tensor cost: time, bytes read, system calls?
//!
//! Of a BF16 matrix of 4096 x 4096 in the page cache, for rank 1 of 4. Beside one `pread` per row, and beside reading all of it and
//! copying the slice out. Arguments: `--rounds N` (101 if absent), `--json FILE`.

mod common;

use common::arguments::{introduce, Arguments};
use common::input;
use common::measure::{take_turns, timed};
use common::report::Report;
use safetensors_lazy::format::END;
use safetensors_lazy::{Checkpoint, OpenOptions};
use std::fs::File;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::unix::fs::FileExt;

const SIDE: usize = 4096;
const ROW: usize = SIDE * 2;

fn main() {
    let arguments = Arguments::of_process();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let machine = introduce(folder.path());
    let mut report = Report::default();
    let input = input::matrix(folder.path()).expect("a matrix");
    let checkpoint = Checkpoint::open(&input.path, OpenOptions::default()).expect("a checkpoint");
    let file = File::open(&input.path).expect("a file");
    let start = checkpoint.tensor(0).expect("a tensor").file_offset();
    let quarter = SIDE as u64 / 4..SIDE as u64 / 2;

    let mut slice = vec![MaybeUninit::new(0); SIDE * ROW / 4];
    let (mut other, mut copied) = (vec![0u8; SIDE * ROW / 4], vec![0u8; SIDE * ROW / 4]);
    let mut whole = vec![0u8; SIDE * ROW];
    for (what, ranges) in [("rows", vec![quarter.clone()]), ("columns", vec![0..END, quarter])] {
        report.section(
            what,
            &format!("rank 1 of 4, {} MiB", slice.len() >> 20),
            ["ours", "other", "ratio (quartiles)"],
        );
        let runs: Vec<Range<usize>> = match what {
            "rows" => vec![SIDE * ROW / 4..SIDE * ROW / 2],
            _ => (0..SIDE).map(|row| row * ROW + ROW / 4..row * ROW + ROW / 2).collect(),
        };
        let [ours, per_run, all] = take_turns(
            arguments.rounds(101),
            [
                &mut || timed(|| checkpoint.tensor_read(0, &ranges, &mut slice).expect("bytes")),
                &mut || timed(|| read_runs(&file, start, &runs, &mut other)),
                &mut || {
                    timed(|| {
                        file.read_exact_at(&mut whole, start).expect("bytes");
                        copy_runs(&whole, &runs, &mut copied);
                    })
                },
            ],
        );
        // SAFETY: initialised from the start.
        let bytes = unsafe { &*(&raw const *slice as *const [u8]) };
        assert!(bytes == other && bytes == copied, "all have read the same");
        report.compare("one pread per run", &ours, &per_run);
        report.compare("all of it, and a copy", &ours, &all);
        let ours = io_of(|| _ = checkpoint.tensor_read(0, &ranges, &mut slice).expect("bytes"));
        let per_run = io_of(|| read_runs(&file, start, &runs, &mut other));
        report.sizes("bytes read", ours.bytes, per_run.bytes);
        report.counts("system calls", ours.calls, per_run.calls);
    }
    arguments.finish(&report, &machine);
}

fn read_runs(file: &File, start: u64, runs: &[Range<usize>], dst: &mut [u8]) {
    let mut rest = dst;
    for run in runs {
        let (now, later) = rest.split_at_mut(run.len());
        file.read_exact_at(now, start + run.start as u64).expect("bytes");
        rest = later;
    }
}

fn copy_runs(whole: &[u8], runs: &[Range<usize>], dst: &mut [u8]) {
    let mut rest = dst;
    for run in runs {
        let (now, later) = rest.split_at_mut(run.len());
        now.copy_from_slice(&whole[run.clone()]);
        rest = later;
    }
}

/// What this process has read.
struct Io {
    bytes: u64,
    calls: u64,
}

fn io_of(work: impl FnOnce()) -> Io {
    let now = || {
        let text = std::fs::read_to_string("/proc/self/io").expect("proc");
        let field = |name| {
            let line: &str = text.lines().find_map(|line: &str| line.strip_prefix(name)).expect("a line of each name");
            line.trim().parse::<u64>().expect("a number")
        };
        (field("rchar:"), field("syscr:"), text.len() as u64)
    };
    let before = now();
    work();
    let after = now();
    // Looking is itself one call for the text and one for its end.
    Io { bytes: after.0 - before.0 - before.2, calls: after.1 - before.1 - 2 }
}
