//! Loads by the Rust API: the bytes are those of the reference, and whatever is done in between, nothing is lost.

use safetensors::slice::TensorIndexer;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::SafeTensors;
use safetensors_lazy::{
    Checkpoint, Destination, Engine, Error, Load, LoadOptions, Next, OpenOptions, Request, Staging,
};
use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Columns of a matrix, rows of another, and tensors of several sizes: in the order of their names.
const SHAPES: [(&str, &[usize]); 5] =
    [("a", &[300, 500]), ("b", &[]), ("c", &[0, 7]), ("d", &[1000, 30, 7]), ("e", &[400_001])];

/// A file of them, written by the reference.
fn write(folder: &Path) -> std::path::PathBuf {
    let data = |shape: &[usize]| -> Vec<u8> {
        let nbytes = shape.iter().product::<usize>() * 2;
        (0..nbytes).map(|i| (i ^ (i >> 8).wrapping_mul(37) ^ (i >> 16).wrapping_mul(11)) as u8).collect()
    };
    let tensors: Vec<_> = SHAPES.map(|(name, shape)| (name, shape.to_vec(), data(shape))).into();
    let views = tensors
        .iter()
        .map(|(name, shape, data)| (name.to_string(), TensorView::new(Dtype::BF16, shape.clone(), data).unwrap()));
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}

/// Threads of a load; 0: whoever takes from it reads, since it is small.
const WORKERS: [usize; 2] = [0, 3];

fn staged(index: usize, ranges: &[Range<u64>], tag: u64) -> Request {
    Request { index, ranges: ranges.to_vec(), destination: None, tag }
}

/// All of each, columns, rows, and a block.
fn requests(checkpoint: &Checkpoint) -> Vec<(usize, Vec<Range<u64>>)> {
    let of = |name: &str| checkpoint.find(name).unwrap();
    let mut requests: Vec<_> = (0..checkpoint.len()).map(|index| (index, vec![])).collect();
    requests.push((of("a"), vec![0..300, 120..250]));
    requests.push((of("a"), vec![100..200]));
    requests.push((of("d"), vec![10..900, 3..29, 2..5]));
    requests.push((of("e"), vec![77..399_999]));
    requests
}

/// The same by the reference.
fn expected(file: &[u8], checkpoint: &Checkpoint, index: usize, ranges: &[Range<u64>]) -> Vec<u8> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let tensor = tensors.tensor(checkpoint.tensor(index).unwrap().name()).unwrap();
    if ranges.is_empty() {
        return tensor.data().to_vec();
    }
    let every = NonZeroUsize::MIN;
    let mut indexers: Vec<_> = ranges
        .iter()
        .map(|range| TensorIndexer::Narrow(Included(range.start as usize), Excluded(range.end as usize), every))
        .collect();
    indexers.resize(tensor.shape().len(), TensorIndexer::Narrow(Unbounded, Unbounded, every));
    tensor.sliced_data(&indexers).unwrap().flatten().copied().collect()
}

/// Takes all, and gives the bytes by request.
fn take(load: &Load) -> HashMap<usize, Vec<u8>> {
    let mut all: HashMap<usize, Vec<u8>> = HashMap::new();
    while let Next::Loaded(loaded) = load.next(None).unwrap() {
        let bytes = all.entry(loaded.request).or_default();
        assert_eq!(bytes.len() as u64, loaded.offset);
        // SAFETY: delivered, and not recycled yet.
        bytes.extend_from_slice(unsafe { loaded.bytes.as_ref().unwrap().as_slice() });
        load.recycle(loaded.buffer).unwrap();
    }
    all
}

#[test]
fn load_gives_the_bytes_of_the_reference() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = write(folder.path());
    let file = std::fs::read(&path).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(&path, OpenOptions::default()).unwrap());
    let wanted = requests(&checkpoint);
    for engine in [None, Some(Engine::Buffered), Some(Engine::Direct), Some(Engine::Uring)] {
        let ways = [(0, 0, false), (1 << 16, 0, true), (1 << 18, 5000, false)];
        for ((staging, piece_bytes, in_order), workers) in ways.into_iter().flat_map(|way| WORKERS.map(|n| (way, n))) {
            let requests = wanted.iter().map(|(index, ranges)| staged(*index, ranges, 0)).collect();
            let staging = Staging::Own(staging);
            let options = LoadOptions { engine, in_order, piece_bytes, workers, staging, ..Default::default() };
            let loaded = take(&Load::start(Arc::clone(&checkpoint), requests, options).unwrap());
            for (request, (index, ranges)) in wanted.iter().enumerate() {
                assert!(loaded[&request] == expected(&file, &checkpoint, *index, ranges), "{engine:?} {request}");
            }
        }
        for workers in WORKERS {
            let mut rooms: Vec<Vec<u8>> = wanted
                .iter()
                .map(|(index, ranges)| vec![0; expected(&file, &checkpoint, *index, ranges).len()])
                .collect();
            let requests = wanted.iter().zip(&mut rooms).map(|((index, ranges), room)| {
                // SAFETY: nobody looks at the rooms before the load is gone.
                let destination = unsafe { Destination::new(NonNull::from(&mut room[..]).cast(), room.len()) };
                Request { destination: Some(destination), ..staged(*index, ranges, 0) }
            });
            let options = LoadOptions { engine, workers, ..Default::default() };
            let load = Load::start(Arc::clone(&checkpoint), requests.collect(), options).unwrap();
            assert_eq!(take(&load).len(), wanted.len());
            drop(load);
            for ((index, ranges), room) in wanted.iter().zip(&rooms) {
                assert!(*room == expected(&file, &checkpoint, *index, ranges), "{engine:?} {index} {ranges:?}");
            }
        }
    }
}

#[test]
fn next_gives_each_to_one_of_many_threads() {
    for workers in WORKERS {
        give_each_to_one_of_many_threads(workers);
    }
}

fn give_each_to_one_of_many_threads(workers: usize) {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(write(folder.path()), OpenOptions::default()).unwrap());
    let e = checkpoint.find("e").unwrap();
    // Each fills the staging memory, so that threads wait for one another.
    let rows = (0..50).map(|row| staged(e, &[row * 8000..row * 8000 + 8000], row)).collect();
    let options = LoadOptions { workers, staging: Staging::Own(1 << 16), ..Default::default() };
    let load = Load::start(Arc::clone(&checkpoint), rows, options).unwrap();
    let seen = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| loop {
                match load.next(Some(Duration::from_secs(600))).unwrap() {
                    Next::Loaded(loaded) => {
                        std::thread::sleep(Duration::from_micros(300));
                        seen.lock().unwrap().push(loaded.tag);
                        load.recycle(loaded.buffer).unwrap();
                    }
                    Next::Done => return,
                    Next::Timeout => panic!("nothing has come for ten minutes"),
                }
            });
        }
    });
    let mut seen = seen.into_inner().unwrap();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..50));
    assert_eq!(load.progress().done.items_done, 50);
}

#[test]
fn recycle_knows_the_buffers_of_its_own_load() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(write(folder.path()), OpenOptions::default()).unwrap());
    let start = || {
        Load::start(Arc::clone(&checkpoint), vec![staged(checkpoint.find("a").unwrap(), &[], 0)], Default::default())
            .unwrap()
    };
    let loads = [start(), start()];
    let [one, other] = [&loads[0], &loads[1]].map(|load| match load.next(None).unwrap() {
        Next::Loaded(loaded) => loaded.buffer,
        other => panic!("{other:?}"),
    });
    for (load, buffer) in [(&loads[0], other), (&loads[1], one)] {
        assert!(matches!(load.recycle(buffer), Err(Error::InvalidArgument { .. })));
    }
    for (load, buffer) in [(&loads[0], one), (&loads[1], other)] {
        load.recycle(buffer).unwrap();
        assert!(matches!(load.recycle(buffer), Err(Error::InvalidArgument { .. })));
        load.recycle(0).unwrap();
    }
}

#[test]
fn cancel_ends_it_for_who_waits_and_dropping_it_for_all() {
    for workers in WORKERS {
        cancel_ends_it(workers);
    }
}

fn cancel_ends_it(workers: usize) {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(write(folder.path()), OpenOptions::default()).unwrap());
    let e = checkpoint.find("e").unwrap();
    let requests = || (0..50).map(|row| staged(e, &[row * 8000..row * 8000 + 8000], row)).collect::<Vec<_>>();
    let options = || LoadOptions { workers, staging: Staging::Own(1 << 16), ..Default::default() };
    let load = Load::start(Arc::clone(&checkpoint), requests(), options()).unwrap();
    // What is held, and never recycled, keeps the others from coming.
    let held: Vec<_> = std::iter::from_fn(|| match load.next(None) {
        Ok(Next::Loaded(loaded)) => Some(loaded),
        Err(Error::StagingFull { .. }) => None,
        other => panic!("{other:?}"),
    })
    .collect();
    assert!(!held.is_empty() && matches!(load.next(Some(Duration::ZERO)), Ok(Next::Timeout)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| load.next(Some(Duration::from_secs(3600))));
        std::thread::sleep(Duration::from_millis(20));
        load.cancel();
        assert!(matches!(waiting.join().unwrap(), Err(Error::Cancelled)));
    });
    drop(load);
    // All that had it has gone.
    assert_eq!(Arc::strong_count(&checkpoint), 1);
    for _ in 0..100 {
        drop(Load::start(Arc::clone(&checkpoint), requests(), options()).unwrap());
    }
    assert_eq!(Arc::strong_count(&checkpoint), 1);
}

#[test]
fn start_refuses_what_is_wrong_before_anything_is_read() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let checkpoint = Arc::new(Checkpoint::open(write(folder.path()), OpenOptions::default()).unwrap());
    let start = |request: Request, options: LoadOptions| {
        let fine = staged(0, &[], 0);
        Load::start(Arc::clone(&checkpoint), vec![fine, request], options).unwrap_err()
    };
    let a = checkpoint.find("a").unwrap();
    assert!(matches!(start(staged(5, &[], 0), Default::default()), Error::NoSuchTensor { index: 5, len: 5 }));
    assert!(matches!(start(staged(a, &[0..301], 0), Default::default()), Error::Slice { .. }));
    let mut room = [0u8; 8];
    // SAFETY: nothing is started.
    let destination = unsafe { Destination::new(NonNull::from(&mut room[..]).cast(), 8) };
    let small = Request { destination: Some(destination), ..staged(a, &[], 0) };
    assert!(matches!(start(small, Default::default()), Error::BufferTooSmall { needed: 300_000, given: 8, .. }));
    let memory = LoadOptions { engine: Some(Engine::Memory), ..Default::default() };
    assert!(matches!(start(staged(a, &[], 0), memory), Error::Storage { .. }));
    let deep = LoadOptions { queue_depth: 2000, ..Default::default() };
    assert!(matches!(start(staged(a, &[], 0), deep), Error::InvalidArgument { .. }));
}

/// How many bytes of a file the page cache has.
fn cached(file: &File) -> usize {
    let map = memmap2::MmapOptions::new().map_raw_read_only(file).unwrap();
    let mut pages = vec![0u8; map.len().div_ceil(4096)];
    // SAFETY: the mapping is that long, and there is a byte for each of its pages.
    let failed = unsafe { libc::mincore(map.as_mut_ptr().cast(), map.len(), pages.as_mut_ptr()) };
    assert_eq!(failed, 0);
    pages.iter().filter(|page| **page & 1 != 0).count() * 4096
}

#[test]
fn load_leaves_the_page_cache_as_it_is_but_for_what_was_begun_there() {
    const MIB: usize = 1 << 20;
    const SIZE: usize = 256 * MIB;
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = folder.path().join("large.safetensors");
    let header = format!(r#"{{"zeros":{{"dtype":"U8","shape":[{SIZE}],"data_offsets":[0,{SIZE}]}}}}"#);
    std::fs::write(&path, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.set_len((8 + header.len() + SIZE) as u64).unwrap();
    file.sync_all().unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) }, 0);
    if cached(&file) > 0 {
        return eprintln!("skipped: the page cache of this file system keeps what it has");
    }
    let checkpoint = Arc::new(Checkpoint::open(&path, OpenOptions::default()).unwrap());
    let engines = || {
        let options = LoadOptions { workers: 1, staging: Staging::Own(16 * MIB), ..Default::default() };
        let load = Load::start(Arc::clone(&checkpoint), vec![staged(0, &[], 0)], options).unwrap();
        let mut arrived = 0;
        while let Next::Loaded(loaded) = load.next(None).unwrap() {
            arrived += loaded.bytes.unwrap().len();
            load.recycle(loaded.buffer).unwrap();
        }
        assert_eq!(arrived, SIZE);
        load.progress().engines
    };
    let cold = engines();
    if !cold.contains(&Engine::Direct) && !cold.contains(&Engine::Uring) {
        assert!(cold == [Engine::Buffered]);
        return eprintln!("skipped: files are not read around the page cache here, or it does not tell what it has");
    }
    // As somebody may have begun to read it.
    file.read_exact_at(&mut vec![0; 12 * MIB], 0).unwrap();
    let before = cached(&file);
    let engines = engines();
    // What is there in a region of 64 MiB is read from there, and the system reads ahead from that; but not further and further.
    assert!(
        engines.contains(&Engine::Buffered) && cached(&file) <= before.max(64 * MIB) + 32 * MIB,
        "{}",
        cached(&file)
    );
}
