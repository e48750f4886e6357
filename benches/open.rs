//! How long from a path to the first pointer, how long per lookup, and what does it cost in memory?
//!
//! Beside the reference implementation's crate, `safetensors`, in the same run, and beside what no reader can avoid. Arguments:
//! `--rounds N` (11 if absent; small files take 50 times as many), `--json FILE`. `README.md` explains the rows.

mod common;

use common::allocations;
use common::arguments::{introduce, Arguments};
use common::input::{self, Input};
use common::measure::{take_turns, timed, Samples};
use common::memory::Resident;
use common::report::{self, Report};
use memmap2::{Advice, Mmap, MmapMut};
use safetensors::tensor::Metadata;
use safetensors::SafeTensors;
use safetensors_lazy::format::internals::{parse_json, scan, validate};
use safetensors_lazy::format::{Header, NameTable, PREFIX_LEN};
use safetensors_lazy::{Checkpoint, OpenOptions};
use serde_json::{json, Value};
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn main() {
    let arguments = Arguments::of_process();
    if let Some([library, path, name]) = arguments.of_child(CHILD) {
        return open_as_child(library, Path::new(path), name);
    }
    let rounds = arguments.rounds(11);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let machine = introduce(folder.path());
    let mut report = Report::default();
    let experts = input::experts(folder.path()).expect("a file of 232,670 tensors");
    let llama = input::llama(folder.path()).expect("a file of 291 tensors");
    measure_file(&experts, rounds, &mut report);
    measure_limits(&experts, rounds, &mut report);
    measure_file(&llama, rounds, &mut report);
    match input::model() {
        Some(model) => measure_file(&model, rounds, &mut report),
        None => println!("\nmodel: skipped, there is no build/model/model.safetensors"),
    }
    arguments.finish(&report, &machine);
}

/// A reader of safetensors files that has opened one. Each call is one measurement, which times itself so that what it leaves
/// behind is dropped off the clock.
trait Library {
    fn name(&self) -> &'static str;
    /// Reads the header of the file in memory.
    fn parse(&self) -> Duration;
    /// From the path to where the tensor called `name` starts.
    fn first_pointer(&self, path: &Path, name: &str) -> Duration;
    /// Looks each name up in the open file.
    fn look_up(&self, names: &[&str]) -> Duration;
    /// Finds the names that start with `prefix` in the open file.
    fn find_prefix(&self, prefix: &str) -> Duration;
}

const OURS: &str = "ours";

struct Ours<'m> {
    map: &'m Mmap,
    checkpoint: Checkpoint,
}

impl Library for Ours<'_> {
    fn name(&self) -> &'static str {
        OURS
    }

    fn parse(&self) -> Duration {
        timed(|| parse(header_of(self.map)))
    }

    fn first_pointer(&self, path: &Path, name: &str) -> Duration {
        timed(|| {
            let checkpoint = open(path);
            black_box(checkpoint.tensor_ptr(checkpoint.find(name).unwrap()).unwrap().as_ptr());
            checkpoint
        })
    }

    fn look_up(&self, names: &[&str]) -> Duration {
        timed(|| {
            for name in names {
                black_box(self.checkpoint.find(black_box(name)).unwrap());
            }
        })
    }

    fn find_prefix(&self, prefix: &str) -> Duration {
        timed(|| self.checkpoint.find_prefix(black_box(prefix)).unwrap().len())
    }
}

fn parse(header: &[u8]) -> (Header, NameTable) {
    let header = Header::parse(header).unwrap();
    let names = NameTable::new(&header).unwrap();
    (header, names)
}

struct Reference<'m> {
    map: &'m Mmap,
    /// `SafeTensors::tensor` allocates at each call; `Metadata::info` is the fastest lookup that the crate has.
    metadata: Metadata,
    tensors: SafeTensors<'m>,
}

impl Library for Reference<'_> {
    fn name(&self) -> &'static str {
        "reference"
    }

    fn parse(&self) -> Duration {
        timed(|| SafeTensors::deserialize(self.map).unwrap())
    }

    fn first_pointer(&self, path: &Path, name: &str) -> Duration {
        let start = Instant::now();
        let map = map(path);
        let tensors = SafeTensors::deserialize(&map).unwrap();
        black_box(tensors.tensor(name).unwrap().data().as_ptr());
        start.elapsed()
    }

    fn look_up(&self, names: &[&str]) -> Duration {
        timed(|| {
            for name in names {
                black_box(self.metadata.info(black_box(name)).unwrap());
            }
        })
    }

    /// There is no such call; one goes through all names.
    fn find_prefix(&self, prefix: &str) -> Duration {
        timed(|| self.tensors.iter().filter(|(name, _)| name.starts_with(black_box(prefix))).count())
    }
}

/// Everything that can be asked of both, for one file.
fn measure_file(input: &Input, rounds: usize, report: &mut Report) {
    let path = &input.path;
    let map = map(path);
    let ours = Ours { map: &map, checkpoint: open(path) };
    let metadata = SafeTensors::read_metadata(&map).unwrap().1;
    let reference = Reference { map: &map, metadata, tensors: SafeTensors::deserialize(&map).unwrap() };
    check_same(&ours, &reference);

    let (checkpoint, info) = (&ours.checkpoint, ours.checkpoint.info());
    let count = checkpoint.len();
    let about = format!(
        "{count} tensors, {} of header, {} of data",
        report::size(info.header_bytes),
        report::size(info.tensor_bytes)
    );
    report.section(input.name, &about, ["ours", "reference", "ratio (quartiles)"]);

    // What is asked for is not what either library holds, and lies in memory in the order of asking.
    let in_order = Queries::new(checkpoint, 0..count);
    let shuffled = Queries::new(checkpoint, shuffled(count));
    let (in_order, shuffled) = (in_order.names(), shuffled.names());
    let name = in_order[count / 2];
    let prefix = &name[..name.rfind('.').map_or(0, |dot| dot + 1)];
    let with_prefix = in_order.iter().filter(|name| name.starts_with(prefix)).count();
    assert_eq!(checkpoint.find_prefix(prefix).unwrap().len(), with_prefix);
    let rounds_here = if count > 10_000 { rounds } else { rounds * 50 };
    let libraries: [&dyn Library; 2] = [&ours, &reference];

    let [a, b] = compare(rounds_here, libraries, |library| library.parse());
    report.compare("header in memory", &a, &b);
    let [a, b] = compare(rounds_here, libraries, |library| library.first_pointer(path, name));
    report.compare("path to first pointer", &a, &b);
    let [a, b] = compare(rounds, libraries, |library| {
        let said = in_new_process(library, path, name);
        Duration::from_secs_f64(said["seconds"].as_f64().unwrap())
    });
    report.compare("path to first pointer, in a new process", &a, &b);
    let [a, b] = compare(rounds_here, libraries, |library| library.look_up(&in_order));
    report.compare("lookup, in header order", &a.per(count), &b.per(count));
    let [a, b] = compare(rounds_here, libraries, |library| library.look_up(&shuffled));
    report.compare("lookup, in random order", &a.per(count), &b.per(count));
    let [first] = take_turns(
        rounds,
        [&mut || {
            let checkpoint = open(path);
            timed(|| checkpoint.find_prefix(prefix).unwrap().len())
        }],
    );
    report.ours("names by prefix, first time (sorts)", first.median());
    let [a, b] = compare(rounds_here, libraries, |library| library.find_prefix(prefix));
    report.compare("names by prefix, later", &a, &b);

    report.counts(
        "allocations of path to first pointer",
        allocations::during(|| _ = ours.first_pointer(path, name)),
        allocations::during(|| _ = reference.first_pointer(path, name)),
    );
    let in_lookups = |library: &dyn Library| {
        allocations::during(|| {
            library.look_up(&in_order);
            library.find_prefix(prefix);
        })
    };
    let (a, b) = (in_lookups(&ours), in_lookups(&reference));
    assert_eq!(a, 0, "lookups must not allocate");
    report.counts("allocations of all lookups", a, b);

    let [ours, reference] = libraries.map(|library| in_new_process(library, path, name));
    for (what, when, which) in [
        ("memory once open", "opened", "all"),
        ("  of it private", "opened", "private"),
        ("  at its peak", "opened", "peak"),
        ("memory once the tensor is touched", "touched", "all"),
    ] {
        report.sizes(what, ours[when][which].as_u64().unwrap(), reference[when][which].as_u64().unwrap());
    }
}

/// Names, one after the other.
struct Queries {
    text: String,
    ends: Vec<usize>,
}

impl Queries {
    fn new(checkpoint: &Checkpoint, order: impl IntoIterator<Item = usize>) -> Queries {
        let mut queries = Queries { text: String::new(), ends: Vec::new() };
        for index in order {
            queries.text.push_str(checkpoint.tensor(index).unwrap().name());
            queries.ends.push(queries.text.len());
        }
        queries
    }

    fn names(&self) -> Vec<&str> {
        let starts = std::iter::once(&0).chain(&self.ends);
        starts.zip(&self.ends).map(|(start, end)| &self.text[*start..*end]).collect()
    }
}

/// One question to both, by turns.
fn compare(
    rounds: usize,
    [ours, reference]: [&dyn Library; 2],
    ask: impl Fn(&dyn Library) -> Duration,
) -> [Samples; 2] {
    take_turns(rounds, [&mut || ask(ours), &mut || ask(reference)])
}

/// Every tensor is the same, in the same place.
fn check_same(ours: &Ours<'_>, reference: &Reference<'_>) {
    assert_eq!(ours.checkpoint.len(), reference.tensors.len());
    for tensor in ours.checkpoint.tensors() {
        let expected = reference.tensors.tensor(tensor.name()).unwrap();
        let shape: Vec<u64> = expected.shape().iter().map(|dim| *dim as u64).collect();
        let offset = expected.data().as_ptr() as usize - reference.map.as_ptr() as usize;
        assert_eq!(tensor.dtype().to_string(), expected.dtype().to_string(), "{}", tensor.name());
        assert_eq!(tensor.shape(), shape, "{}", tensor.name());
        assert_eq!(tensor.file_offset(), offset as u64, "{}", tensor.name());
        assert_eq!(tensor.nbytes(), expected.data().len() as u64, "{}", tensor.name());
        assert_eq!(ours.checkpoint.find(tensor.name()), Some(tensor.index()));
    }
    if let Some(last) = ours.checkpoint.tensors().max_by_key(|tensor| tensor.file_offset() + tensor.nbytes()) {
        let bytes = ours.checkpoint.tensor_ptr(last.index()).unwrap();
        // SAFETY: nobody writes to the file.
        let ends = [unsafe { bytes.as_slice() }, reference.tensors.tensor(last.name()).unwrap().data()]
            .map(|bytes| &bytes[bytes.len().saturating_sub(64)..]);
        assert_eq!(ends[0], ends[1]);
    }
}

/// What opening the file cannot do without, each alone, and where our time goes.
fn measure_limits(input: &Input, rounds: usize, report: &mut Report) {
    let map = map(&input.path);
    let header = header_of(&map);
    let text = std::str::from_utf8(header).unwrap();
    let checkpoint = open(&input.path);
    let names: Vec<&[u8]> = checkpoint.tensors().map(|tensor| tensor.name_bytes()).collect();
    let file = File::open(&input.path).unwrap();
    let directory = scan(header).expect("the form that writers write");
    let hash = RandomState::new();
    let hash_of = |name: &[u8]| {
        let mut hasher = hash.build_hasher();
        hasher.write(name);
        hasher.finish()
    };
    // Which pages the copy goes to can cost more than the copy itself; the limit is the better of both.
    let read = |huge_pages| {
        let mut fresh = MmapMut::map_anon(header.len()).unwrap();
        if huge_pages {
            // Refused where the kernel has none; then it is the same measurement twice.
            let _ = fresh.advise(Advice::HugePage);
        }
        file.read_exact_at(&mut fresh, PREFIX_LEN as u64).unwrap();
        fresh
    };
    let hashes: Vec<u64> = names.iter().map(|name| hash_of(name)).collect();

    let samples = take_turns(
        rounds,
        [
            &mut || timed(|| read(false)),
            &mut || timed(|| read(true)),
            &mut || timed(|| std::str::from_utf8(black_box(header)).is_ok()),
            &mut || timed(|| words(black_box(header)).fold(0, u64::wrapping_add)),
            &mut || timed(|| names.iter().fold(0, |sum: u64, name| sum ^ hash_of(name))),
            &mut || {
                timed(|| {
                    let mut table = hashbrown::HashTable::with_capacity(hashes.len());
                    for (index, hash) in hashes.iter().enumerate() {
                        table.insert_unique(*hash, index as u64, |index| hashes[*index as usize]);
                    }
                    table
                })
            },
            &mut || timed(|| open(&input.path)),
            &mut || timed(|| parse(header)),
            &mut || timed(|| scan(header).unwrap()),
            &mut || timed(|| validate(&directory).unwrap()),
            &mut || timed(|| parse_json(text).unwrap()),
        ],
    );
    let [read, read_huge, utf8, pass, sip, table, open, parse, scanned, validated, by_json] =
        samples.map(|times| times.median());

    let sum = read.min(read_huge) + utf8 + pass + sip + table;
    report.section(&format!("{}, limits", input.name), "of opening", ["alone", "of the sum", ""]);
    report.share("read of the header into fresh memory", read, sum);
    report.share("  into fresh huge pages", read_huge, sum);
    report.share("UTF-8 validation of the header", utf8, sum);
    report.share("one pass over the header's bytes", pass, sum);
    report.share("SipHash of all names", sip, sum);
    report.share("hash table of all names, hashes known", table, sum);
    report.share("sum (of the better read)", sum, sum);
    report.share("our open", open, sum);

    report.section(&format!("{}, our time", input.name), "of opening", ["alone", "of parse", ""]);
    report.share("scan", scanned, parse);
    report.share("validate", validated, parse);
    report.share("UTF-8 and index of the names (what remains)", parse - scanned - validated, parse);
    report.share("parse", parse, parse);
    report.share("serde_json instead of the scan", by_json, parse);
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()))
}

/// The first argument of a process that opens one file and says what that took.
const CHILD: &str = "open-in-child";

fn open_as_child(library: &str, path: &Path, name: &str) {
    let before = Resident::now();
    let start = Instant::now();
    if library == OURS {
        let checkpoint = open(path);
        let tensor = checkpoint.tensor_ptr(checkpoint.find(name).unwrap()).unwrap();
        let elapsed = start.elapsed();
        // SAFETY: nobody writes to the file.
        print_from_child(elapsed, before, unsafe { tensor.as_slice() });
    } else {
        let map = map(path);
        let tensors = SafeTensors::deserialize(&map).unwrap();
        let tensor = tensors.tensor(name).unwrap();
        let elapsed = start.elapsed();
        print_from_child(elapsed, before, tensor.data());
    }
}

fn print_from_child(elapsed: Duration, before: Resident, tensor: &[u8]) {
    let opened = Resident::now();
    black_box(tensor.chunks(4096).fold(0, |sum, page| sum ^ page[0]));
    let touched = Resident::now();
    let seconds = elapsed.as_secs_f64();
    println!("{}", json!({ "seconds": seconds, "opened": opened.since(before), "touched": touched.since(before) }));
}

/// What a new process says that opens the file and touches the tensor called `name`.
fn in_new_process(library: &dyn Library, path: &Path, name: &str) -> Value {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).args([CHILD, library.name()]).arg(path).arg(name).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, OpenOptions::default()).unwrap()
}

fn map(path: &Path) -> Mmap {
    let file = File::open(path).unwrap();
    // SAFETY: nobody writes to the file.
    unsafe { Mmap::map(&file).unwrap() }
}

fn header_of(file: &[u8]) -> &[u8] {
    let (prefix, rest) = file.split_first_chunk::<PREFIX_LEN>().unwrap();
    &rest[..u64::from_le_bytes(*prefix) as usize]
}

/// The numbers below `n` in an order without pattern, the same in each run.
fn shuffled(n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut state = 1u64;
    for last in (1..n).rev() {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        order.swap(last, (state >> 33) as usize % (last + 1));
    }
    order
}
