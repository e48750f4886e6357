//! Opening costs the header, touching costs what is touched: a file of 100 GB, of which there is hardly anything.

use crate::child::run_test;
use crate::sample;
use safetensors_lazy::{Checkpoint, OpenOptions};
use std::fs;
use std::io::Write;
use std::path::Path;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// Set in the process that measures itself: the file to open.
const FILE: &str = "ST_MEASURE_RESIDENT";

/// A process of its own, because the other tests' memory comes and goes.
#[test]
fn a_file_of_100_gb_costs_its_header_and_what_is_touched() {
    if let Some(path) = std::env::var_os(FILE) {
        return measure(Path::new(&path));
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let header = header();
    file.write_all(&sample::file(header.as_bytes(), b"")).unwrap();
    if let Err(error) = file.as_file().set_len(8 + header.len() as u64 + 100 * GIB + 4 * MIB) {
        eprintln!("skipped: no sparse file of 100 GB here: {error}");
        return;
    }
    println!("{}", run_test("resident::a_file_of_100_gb_costs_its_header_and_what_is_touched", (FILE, file.path())));
}

fn measure(path: &Path) {
    let before = resident();
    let checkpoint = Checkpoint::open(path, OpenOptions::default()).unwrap();
    let opened = resident();
    assert_eq!((checkpoint.len(), checkpoint.info().tensor_bytes), (10_001, 100 * GIB + 4 * MIB));
    let header_bytes = checkpoint.info().header_bytes;
    // Also on the way: what was held only while opening counts.
    let opening = peak().saturating_sub(before).max(opened.saturating_sub(before));
    assert!(opening < 8 * MIB + header_bytes, "opening took {opening} bytes");

    let touched = checkpoint.tensor_ptr(checkpoint.find("touched").unwrap()).unwrap();
    assert_eq!(touched.len() as u64, 4 * MIB);
    let pointed = resident();
    assert!(pointed.saturating_sub(opened) < MIB, "pointing took {} bytes", pointed - opened);
    // SAFETY: nobody else knows the file.
    let sum: u64 = unsafe { touched.as_slice() }.iter().map(|byte| u64::from(*byte)).sum();
    assert_eq!(sum, 0);
    let growth = resident().saturating_sub(pointed);
    // The kernel maps neighbours of a page that it has at hand, up to a huge page on either side.
    assert!((4 * MIB..=9 * MIB).contains(&growth), "touching 4 MiB took {growth} bytes");
    println!("header {header_bytes}, opening {opening}, touching 4 MiB {growth}");
}

/// 10,000 tensors of 10 MiB and a bit, and one of 4 MiB in the middle, at the start of a page.
fn header() -> String {
    let step = 100 * GIB / 10_000;
    let mut entries = Vec::new();
    let mut at = 0;
    for i in 0..10_000u64 {
        if i == 5_000 {
            let stop = at + 4 * MIB;
            entries.push(format!(r#""touched":{{"dtype":"U8","shape":[{}],"data_offsets":[{at},{stop}]}}"#, 4 * MIB));
            at = stop;
        }
        let stop = if i == 9_999 { 100 * GIB + 4 * MIB } else { at + step };
        entries.push(format!(
            r#""layers.{i}.weight":{{"dtype":"U8","shape":[{}],"data_offsets":[{at},{stop}]}}"#,
            stop - at
        ));
        at = stop;
    }
    format!("{{{}}}", entries.join(","))
}

/// Physical memory of this process in bytes.
fn resident() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    // SAFETY: a call without pointers.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64
}

/// The most that has been resident so far, in bytes.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}
