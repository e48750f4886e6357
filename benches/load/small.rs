//! Little data, all of it in the page cache: what a load costs besides reading, beside the calls that do without one.
//! `scripts/bench load small` prints ratios; below 1 the load is faster.

use super::common::arguments::Arguments;
use safetensors_lazy::{Checkpoint, Destination, Load, LoadOptions, Next, OpenOptions, Request};
use std::io::{BufWriter, Write};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

const TINY: usize = 96_000;
const TINY_BYTES: usize = 128;
const ROWS: usize = 33_792;
const ROW_BYTES: usize = 2048;

pub fn run(arguments: &Arguments, root: &Path, scratch: &Path) {
    let rounds = arguments.rounds(11);
    let tiny = open(&write(scratch, "tiny", TINY, &[TINY_BYTES]));
    let rows = open(&write(scratch, "rows", 1, &[ROWS, 2 * ROW_BYTES]));
    let model = root.join("build/model/sharded");
    let mut bench = Bench { rounds, to: Vec::new() };
    bench.compare("one load of 96,000 tensors of 128 bytes / tensor_read of each", &tiny, read_each, load_all);
    if model.is_dir() {
        bench.compare("a load for each tensor of the model / tensor_read of each", &open(&model), read_each, load_each);
    }
    bench.compare("a load of 33,792 rows of 2 KiB / views and memcpy", &rows, copy_rows, load_rows);
}

/// A file of tensors of one shape.
fn write(folder: &Path, name: &str, count: usize, shape: &[usize]) -> PathBuf {
    let len: usize = shape.iter().product();
    let entry = |n: usize| {
        format!(r#""t{n:06}":{{"dtype":"U8","shape":{shape:?},"data_offsets":[{},{}]}}"#, n * len, (n + 1) * len)
    };
    let header = format!("{{{}}}", (0..count).map(entry).collect::<Vec<_>>().join(","));
    let path = folder.join(format!("{name}.safetensors"));
    let mut file = BufWriter::new(std::fs::File::create(&path).expect("a file"));
    let write = |bytes: &[u8], file: &mut BufWriter<_>| file.write_all(bytes).expect("room on the disk");
    write(&(header.len() as u64).to_le_bytes(), &mut file);
    write(header.as_bytes(), &mut file);
    for at in 0..(count * len / 8) as u64 {
        write(&at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes(), &mut file);
    }
    file.flush().expect("room on the disk");
    path
}

fn open(path: &Path) -> Arc<Checkpoint> {
    Arc::new(Checkpoint::open(path, OpenOptions::default()).expect("a checkpoint"))
}

struct Bench {
    rounds: usize,
    /// Where everything goes.
    to: Vec<u8>,
}

type Way = fn(&Arc<Checkpoint>, &mut [u8]);

impl Bench {
    /// Alternates, and tells how many times longer the second takes than the first.
    fn compare(&mut self, what: &str, checkpoint: &Arc<Checkpoint>, first: Way, second: Way) {
        let len: usize = checkpoint.tensors().map(|tensor| tensor.nbytes() as usize).sum();
        self.to.resize(len, 1);
        let mut times = [Vec::new(), Vec::new()];
        let mut sums = [0, 0];
        for round in 0..=self.rounds {
            for (way, number) in [(first, 0), (second, 1)] {
                self.to[..len].fill(0);
                let (start, processors) = (Instant::now(), processors());
                way(checkpoint, &mut self.to[..len]);
                let time = (start.elapsed(), self::processors() - processors);
                sums[number] = crc32fast::hash(&self.to[..len]);
                if round > 0 {
                    times[number].push(time);
                }
            }
            assert_eq!(sums[0], sums[1], "{what}: other bytes");
        }
        let median = |of: fn(&(Duration, Duration)) -> Duration| {
            [0, 1].map(|number| {
                let mut all: Vec<_> = times[number].iter().map(of).collect();
                all.sort_unstable();
                all[all.len() / 2].as_secs_f64() * 1e3
            })
        };
        let ([wall, other_wall], [cpu, other_cpu]) = (median(|time| time.0), median(|time| time.1));
        println!(
            "{what}: {:.2} of the time ({other_wall:.1} / {wall:.1} ms), {:.2} of the processors ({other_cpu:.1} / {cpu:.1} ms)",
            other_wall / wall,
            other_cpu / cpu
        );
    }
}

/// The time of processors that the process has taken.
fn processors() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the call fills `usage` in, which is of integers and was zeroed.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let of = |time: libc::timeval| Duration::new(time.tv_sec as u64, time.tv_usec as u32 * 1000);
    of(usage.ru_utime) + of(usage.ru_stime)
}

fn uninit(to: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: only initialised bytes are written to it.
    unsafe { &mut *(std::ptr::from_mut(to) as *mut [MaybeUninit<u8>]) }
}

fn read_each(checkpoint: &Arc<Checkpoint>, mut to: &mut [u8]) {
    for index in 0..checkpoint.len() {
        let len = checkpoint.tensor_read(index, &[], uninit(to)).expect("bytes");
        to = &mut to[len..];
    }
}

fn request(index: usize, ranges: Vec<Range<u64>>, to: &mut [u8]) -> Request {
    // SAFETY: nobody else touches the bytes while the load runs.
    let destination = unsafe { Destination::new(NonNull::from(&mut *to).cast(), to.len()) };
    Request { index, ranges, destination: Some(destination), tag: 0 }
}

fn whole<'t>(checkpoint: &Checkpoint, index: usize, to: &mut &'t mut [u8]) -> &'t mut [u8] {
    let len = checkpoint.tensor(index).expect("a tensor").nbytes() as usize;
    let (now, later) = std::mem::take(to).split_at_mut(len);
    *to = later;
    now
}

fn load(checkpoint: &Arc<Checkpoint>, requests: Vec<Request>) {
    let load = Load::start(checkpoint.clone(), requests, LoadOptions::default()).expect("a load");
    while let Next::Loaded(loaded) = load.next(None).expect("a load that goes on") {
        loaded.bytes.expect("bytes");
    }
}

fn load_all(checkpoint: &Arc<Checkpoint>, mut to: &mut [u8]) {
    let all = (0..checkpoint.len()).map(|index| request(index, vec![], whole(checkpoint, index, &mut to)));
    load(checkpoint, all.collect());
}

fn load_each(checkpoint: &Arc<Checkpoint>, mut to: &mut [u8]) {
    for index in 0..checkpoint.len() {
        load(checkpoint, vec![request(index, vec![], whole(checkpoint, index, &mut to))]);
    }
}

fn row(number: usize) -> [Range<u64>; 2] {
    [number as u64..number as u64 + 1, ROW_BYTES as u64 / 2..3 * ROW_BYTES as u64 / 2]
}

fn copy_rows(checkpoint: &Arc<Checkpoint>, to: &mut [u8]) {
    for (number, to) in to.chunks_exact_mut(ROW_BYTES).take(ROWS).enumerate() {
        let view = checkpoint.tensor_view(0, &row(number)).expect("a view");
        // SAFETY: a row of the mapping, and as many bytes of memory.
        unsafe { std::ptr::copy_nonoverlapping(view.as_ptr(), to.as_mut_ptr(), ROW_BYTES) };
    }
}

fn load_rows(checkpoint: &Arc<Checkpoint>, to: &mut [u8]) {
    let rows = to.chunks_exact_mut(ROW_BYTES).take(ROWS).enumerate();
    load(checkpoint, rows.map(|(number, to)| request(0, row(number).to_vec(), to)).collect());
}
