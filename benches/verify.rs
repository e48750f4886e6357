//! How fast are checksums verified, and what does it cost to have tensors verified when they are first used?
//!
//! Of 4 GiB of BF16 tensors in the page cache. Beside the tools that people use: Python's binascii.crc32, sha256sum. Arguments:
//! `--rounds N` (5 if absent), `--gigabytes N`, `--json FILE`.

mod common;

use common::arguments::{introduce, Arguments};
use common::input;
use common::measure::{take_turns, timed};
use common::report::Report;
use safetensors_lazy::{
    Checkpoint, Checks, Checksums, Dtype, OpenOptions, Verify, VerifyOptions, Writer, WriterOptions,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn main() {
    let arguments = Arguments::of_process();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let machine = introduce(folder.path());
    let mut report = Report::default();
    let gigabytes = arguments.number("--gigabytes", 4);
    let path = write(folder.path(), gigabytes);
    let rounds = arguments.rounds(5);
    let checkpoint = Checkpoint::open(&path, OpenOptions::default()).expect("a checkpoint");
    let file = File::open(&path).expect("a file");
    read(&file, 1);

    report.section("verify", &format!("{gigabytes} GiB in the page cache"), ["ours", "other", "ratio (quartiles)"]);
    let sha256 = sha256_of(&path);
    let crc = Checks { crc: true, ..Checks::default() };
    let blake3 = Checks { blake3: true, ..Checks::default() };
    let data = Checks { sha256: true, ..Checks::default() };
    let whole = Checks { file_sha256: true, ..Checks::default() };
    let verify = |checks, workers| timed(|| verified(&checkpoint, checks, workers, None));
    let [crc_one, crc_all, blake3_one, blake3_two, blake3_all, data, whole, python, sha256sum, read_one, read_two] =
        take_turns(
            rounds,
            [
                &mut || verify(crc, 1),
                &mut || verify(crc, 0),
                &mut || verify(blake3, 1),
                &mut || verify(blake3, 2),
                &mut || verify(blake3, 0),
                &mut || verify(data, 0),
                &mut || timed(|| verified(&checkpoint, whole, 0, Some(sha256))),
                &mut || python_crc(&path),
                &mut || timed(|| _ = sha256_of(&path)),
                &mut || timed(|| read(&file, 1)),
                &mut || timed(|| read(&file, 2)),
            ],
        );
    report.compare("CRC, beside binascii.crc32", &crc_all, &python);
    report.compare("CRC, one thread, beside binascii.crc32", &crc_one, &python);
    report.compare("SHA-256 of the file, beside sha256sum", &whole, &sha256sum);
    report.compare("SHA-256 of the data, beside sha256sum", &data, &sha256sum);
    report.compare("BLAKE3, two threads, beside one", &blake3_two, &blake3_one);
    report.compare("BLAKE3, all threads, beside one", &blake3_all, &blake3_one);

    report.section("limits", "the same bytes, only read, by one thread and by two", ["read", "ours", "ratio"]);
    report.compare("CRC, one thread", &read_one, &crc_one);
    report.compare("BLAKE3, one thread", &read_one, &blake3_one);
    report.compare("CRC, all threads", &read_two, &crc_all);
    report.compare("BLAKE3, two threads", &read_two, &blake3_two);

    first_use(&path, rounds, &mut report);
    arguments.finish(&report, &machine);
}

/// A pass over all tensors: a pointer to each, and a byte of each page.
fn first_use(path: &Path, rounds: usize, report: &mut Report) {
    report.section("first use", "a pass over all tensors", ["verified", "plain", "ratio (quartiles)"]);
    let open = |verify| Checkpoint::open(path, OpenOptions { verify, ..OpenOptions::default() }).expect("a checkpoint");
    let (plain, verified) = (open(Verify::None), open(Verify::FirstUse));
    let touched = [&plain, &verified].map(touch);
    assert_eq!(touched[0], touched[1], "all have read the same");
    let [first, without] = take_turns(
        rounds,
        [&mut || timed_on(open(Verify::FirstUse), touch), &mut || timed_on(open(Verify::None), touch)],
    );
    report.compare("the first one", &first, &without);
    let [second, without] =
        take_turns(rounds.max(21), [&mut || timed(|| touch(&verified)), &mut || timed(|| touch(&plain))]);
    report.compare("the second one", &second, &without);
    let many = 1_000_000;
    let pointers = |checkpoint: &Checkpoint| {
        timed(|| (0..many).map(|i| checkpoint.tensor_ptr(i % checkpoint.len()).expect("bytes").len()).sum::<usize>())
    };
    let [with, without] = take_turns(rounds.max(21), [&mut || pointers(&verified), &mut || pointers(&plain)]);
    report.compare("a pointer", &with.per(many), &without.per(many));
}

fn timed_on(checkpoint: Checkpoint, pass: impl FnOnce(&Checkpoint) -> u64) -> Duration {
    timed(|| pass(&checkpoint))
}

fn touch(checkpoint: &Checkpoint) -> u64 {
    let mut sum = 0;
    for index in 0..checkpoint.len() {
        let bytes = checkpoint.tensor_ptr(index).expect("bytes");
        // SAFETY: nobody writes to the file.
        sum += unsafe { bytes.as_slice() }.iter().step_by(4096).map(|byte| u64::from(*byte)).sum::<u64>();
    }
    sum
}

fn write(folder: &Path, gigabytes: usize) -> PathBuf {
    let path = folder.join("model.safetensors");
    let tensors = input::noise(gigabytes << 30, 64);
    let checksums = Checksums { crc: true, sha256: true, blake3: true };
    let mut writer = Writer::create(&path, WriterOptions { checksums, ..WriterOptions::default() }).expect("a writer");
    for (name, shape, bytes) in input::matrices(&tensors, 64) {
        writer.add(name, Dtype::BF16, &shape, bytes).expect("a tensor");
    }
    writer.finish().expect("a file");
    path
}

fn verified(checkpoint: &Checkpoint, checks: Checks, workers: usize, sha256: Option<[u8; 32]>) {
    let options = VerifyOptions { checks, workers, file_sha256: &[sha256], ..VerifyOptions::default() };
    checkpoint.verify(options).expect("bytes").into_result().expect("right ones");
}

/// As much as is read at once elsewhere.
const BLOCK: u64 = 1 << 20;

fn read(file: &File, threads: u64) {
    let len = file.metadata().expect("a file").len();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                let mut room = vec![0; BLOCK as usize];
                for at in (thread * BLOCK..len).step_by((threads * BLOCK) as usize) {
                    let room = &mut room[..(len - at).min(BLOCK) as usize];
                    file.read_exact_at(room, at).expect("bytes");
                }
            });
        }
    });
}

/// As Python takes to read the file and sum it, without its own start.
fn python_crc(path: &Path) -> Duration {
    const PASS: &str = "import binascii, sys, time
start, crc = time.perf_counter(), 0
with open(sys.argv[1], 'rb', buffering=0) as file:
    while block := file.read(1 << 20):
        crc = binascii.crc32(block, crc)
print(time.perf_counter() - start)";
    let output = Command::new("python3").arg("-c").arg(PASS).arg(path).output().expect("python3");
    let seconds = String::from_utf8(output.stdout).expect("text");
    Duration::from_secs_f64(seconds.trim().parse().expect("a number"))
}

fn sha256_of(path: &Path) -> [u8; 32] {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum");
    let digit = |at: usize| (output.stdout[at] as char).to_digit(16).expect("a digit") as u8;
    std::array::from_fn(|i| digit(2 * i) << 4 | digit(2 * i + 1))
}
