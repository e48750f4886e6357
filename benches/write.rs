//! How fast is a checkpoint written, and in how much memory?
//!
//! Of 4 GiB of BF16 tensors in memory. Beside `safetensors::serialize_to_file`, with and without waiting for the disk, and beside the best of
//! some bare loops of writes. Each writes a new file; removing it is not timed. Arguments: `--rounds N` (5 if absent), `--gigabytes N`,
//! `--json FILE`.

mod common;

use common::arguments::{introduce, Arguments};
use common::input;
use common::measure::{take_turns, timed};
use common::memory::Resident;
use common::report::Report;
use safetensors::tensor::TensorView;
use safetensors_lazy::{Checksums, Dtype, Writer, WriterOptions};
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

const TENSORS: usize = 64;

fn main() {
    let arguments = Arguments::of_process();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let machine = introduce(folder.path());
    let mut report = Report::default();
    let gigabytes = arguments.number("--gigabytes", 4);
    let data = input::noise(gigabytes << 30, TENSORS);
    let path = folder.path().join("model.safetensors");
    let path = path.as_path();
    let rounds = arguments.rounds(5);

    let before = Resident::now();
    ours(path, &data, WriterOptions::default());
    let peak = Resident::now().peak - before.all;

    let no_sync = || WriterOptions { no_sync: true, ..WriterOptions::default() };
    let checksums = |crc, sha256, blake3| WriterOptions {
        checksums: Checksums { crc, sha256, blake3 },
        ..WriterOptions::default()
    };
    let [synced, with_crc, with_blake3, with_sha256, streamed, unsynced, theirs_synced, theirs, direct_one, direct_four, buffered] =
        take_turns(
            rounds,
            [
                &mut || fresh(path, || ours(path, &data, WriterOptions::default())),
                &mut || fresh(path, || ours(path, &data, checksums(true, false, false))),
                &mut || fresh(path, || ours(path, &data, checksums(false, false, true))),
                &mut || fresh(path, || ours(path, &data, checksums(false, true, false))),
                &mut || fresh(path, || ours_streamed(path, &data)),
                &mut || fresh(path, || ours(path, &data, no_sync())),
                &mut || fresh(path, || reference(path, &data, true)),
                &mut || fresh(path, || reference(path, &data, false)),
                &mut || fresh(path, || bare(path, &data, libc::O_DIRECT, 1)),
                &mut || fresh(path, || bare(path, &data, libc::O_DIRECT, 4)),
                &mut || fresh(path, || bare(path, &data, 0, 1)),
            ],
        );
    report.section("write", &format!("{gigabytes} GiB in memory"), ["ours", "reference", "ratio (quartiles)"]);
    report.compare("until the disk has it", &synced, &theirs_synced);
    report.compare("without waiting for the disk", &unsynced, &theirs);
    report.compare("synced, beside the reference unsynced", &synced, &theirs);
    report.section("variants", "until the disk has it", ["plain", "variant", "ratio (quartiles)"]);
    report.compare("with crc_num", &synced, &with_crc);
    report.compare("with BLAKE3 digests", &synced, &with_blake3);
    report.compare("with the SHA-256 of the data", &synced, &with_sha256);
    report.compare("streamed in pieces of 8 MiB", &synced, &streamed);
    report.section("limits", "bare loops of writes, then fsync", ["ours", "limit", "ratio (quartiles)"]);
    report.compare("direct, 4 MiB blocks, one thread", &synced, &direct_one);
    report.compare("direct, 4 MiB blocks, four threads", &synced, &direct_four);
    report.compare("buffered, preallocated", &synced, &buffered);
    report.section("memory", "beyond the tensors", ["ours", "", ""]);
    report.sizes("peak", peak, 64 << 20);
    arguments.finish(&report, &machine);
}

/// Times what makes a new file, and removes it.
fn fresh(path: &Path, write: impl FnOnce()) -> Duration {
    let time = timed(write);
    std::fs::remove_file(path).expect("a file");
    // Nothing of it must be left to be written back while the next one is measured.
    File::open(path.parent().expect("a folder")).and_then(|folder| folder.sync_all()).expect("a folder");
    time
}

fn ours(path: &Path, data: &[u8], options: WriterOptions) {
    let mut writer = Writer::create(path, options).expect("a writer");
    for (name, shape, bytes) in input::matrices(data, TENSORS) {
        writer.add(name, Dtype::BF16, &shape, bytes).expect("a tensor");
    }
    writer.finish().expect("a file");
}

fn ours_streamed(path: &Path, data: &[u8]) {
    let mut writer = Writer::create(path, WriterOptions::default()).expect("a writer");
    for (name, shape, _) in input::matrices(data, TENSORS) {
        writer.declare(name, Dtype::BF16, &shape).expect("a tensor");
    }
    for (name, _, bytes) in input::matrices(data, TENSORS) {
        for piece in bytes.chunks(8 << 20) {
            writer.write(&name, piece).expect("a piece");
        }
    }
    writer.finish().expect("a file");
}

fn reference(path: &Path, data: &[u8], sync: bool) {
    let views = input::matrices(data, TENSORS).map(|(name, shape, bytes)| {
        let shape = shape.map(|dim| dim as usize).to_vec();
        (name, TensorView::new(safetensors::Dtype::BF16, shape, bytes).expect("a tensor"))
    });
    safetensors::serialize_to_file(views, None, path).expect("a file");
    if sync {
        File::open(path).and_then(|file| file.sync_all()).expect("a file");
    }
}

/// Only the bytes, as fast as these calls can.
fn bare(path: &Path, data: &[u8], flags: i32, threads: usize) {
    const BLOCK: usize = 4 << 20;
    let file = OpenOptions::new().write(true).create_new(true).custom_flags(flags).open(path).expect("a file");
    // SAFETY: the descriptor is open.
    let allocated = unsafe { libc::fallocate64(file.as_raw_fd(), 0, 0, data.len() as i64) };
    assert_eq!(allocated, 0, "{}", std::io::Error::last_os_error());
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let file = &file;
            scope.spawn(move || {
                for at in (thread * BLOCK..data.len()).step_by(threads * BLOCK) {
                    let block = &data[at..data.len().min(at + BLOCK)];
                    file.write_all_at(block, at as u64).expect("a block");
                }
            });
        }
    });
    file.sync_all().expect("a file");
}
