//! Loads with their threads, and several that take from one: for ThreadSanitizer, which sees whether bytes are there before they are
//! delivered, and are let alone from then on. Each by threads of its own, and read by those that take from it.

use crate::load::{Destination, Load, LoadOptions, Next, Request, Staging};
use crate::{Checkpoint, OpenOptions};
use std::io::Write;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

const TENSORS: u64 = 24;
const LEN: u64 = 30_000;
/// Threads of a load; 0: whoever takes from it reads, since it is small.
const WORKERS: [usize; 2] = [0, 3];

fn byte(at: u64) -> u8 {
    (at ^ (at >> 8).wrapping_mul(167)) as u8
}

/// The same in memory and in a file.
fn checkpoints() -> ([Arc<Checkpoint>; 2], tempfile::NamedTempFile) {
    let entry =
        |n: u64| format!(r#""{n:02}":{{"dtype":"U8","shape":[{LEN}],"data_offsets":[{},{}]}}"#, n * LEN, (n + 1) * LEN);
    let header = format!("{{{}}}", (0..TENSORS).map(entry).collect::<Vec<_>>().join(","));
    let data: Vec<u8> = (0..TENSORS * LEN).map(byte).collect();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    file.write_all(&bytes).unwrap();
    let opened =
        [Checkpoint::open(file.path(), OpenOptions::default()), Checkpoint::open_memory(bytes, OpenOptions::default())];
    (opened.map(|checkpoint| Arc::new(checkpoint.unwrap())), file)
}

fn check(bytes: &[u8], index: usize, offset: u64) {
    let start = index as u64 * LEN + offset;
    assert!(bytes.iter().zip(start..).all(|(found, at)| *found == byte(at)));
}

/// Takes until there is no more, as one of several threads. Gives the number of bytes.
fn take(load: &Load) -> usize {
    let mut taken = 0;
    loop {
        match load.next(Some(Duration::from_secs(600))).unwrap() {
            Next::Loaded(loaded) => {
                // SAFETY: delivered, and not recycled.
                let bytes = unsafe { loaded.bytes.as_ref().unwrap().as_slice() };
                check(bytes, loaded.index, loaded.offset);
                taken += bytes.len();
                load.recycle(loaded.buffer).unwrap();
            }
            Next::Done => return taken,
            Next::Timeout => panic!("nothing has come for ten minutes"),
        }
    }
}

/// Not a scoped one: of their ends ThreadSanitizer sees nothing.
fn in_thread<T: Send + 'static>(load: &Arc<Load>, run: fn(&Load) -> T) -> JoinHandle<T> {
    let load = Arc::clone(load);
    std::thread::spawn(move || run(&load))
}

#[test]
fn staged_bytes_are_there_when_they_are_delivered() {
    let (checkpoints, _file) = checkpoints();
    for checkpoint in &checkpoints {
        for round in 0..10 {
            let workers = WORKERS[round % 2];
            let all = (0..TENSORS as usize).map(|index| Request { index, ranges: vec![], destination: None, tag: 0 });
            let staging = Staging::Own(1 << 16);
            let options = LoadOptions { workers, staging, piece_bytes: 10_000, ..Default::default() };
            let load = Load::start(Arc::clone(checkpoint), all.collect(), options).unwrap();
            let load = Arc::new(load);
            let takers: Vec<_> = (0..3).map(|_| in_thread(&load, take)).collect();
            // Whoever watches sees no more than there is.
            let watcher = in_thread(&load, |load| {
                while load.progress().done.items_done < TENSORS {
                    assert!(load.progress().done.bytes_done <= TENSORS * LEN);
                    std::thread::yield_now();
                }
            });
            let taken: usize = takers.into_iter().map(|taker| taker.join().unwrap()).sum();
            watcher.join().unwrap();
            assert_eq!(taken as u64, TENSORS * LEN);
        }
    }
}

/// Each tensor to a place of its own, at which nobody may look before it was delivered, or the load is gone.
fn load_to(checkpoint: &Arc<Checkpoint>, rooms: &mut [Vec<u8>], workers: usize) -> Load {
    let request = |(index, room): (usize, &mut Vec<u8>)| {
        // SAFETY: as above, and the tests keep to it.
        let destination = unsafe { Destination::new(NonNull::from(&mut room[..]).cast(), room.len()) };
        Request { index, ranges: vec![], destination: Some(destination), tag: 0 }
    };
    let requests = rooms.iter_mut().enumerate().map(request).collect();
    Load::start(Arc::clone(checkpoint), requests, LoadOptions { workers, ..Default::default() }).unwrap()
}

#[test]
fn destinations_are_the_callers_when_they_are_delivered() {
    let (checkpoints, _file) = checkpoints();
    for checkpoint in &checkpoints {
        for round in 0..10 {
            let mut rooms = vec![vec![0u8; LEN as usize]; TENSORS as usize];
            let load = load_to(checkpoint, &mut rooms, WORKERS[round % 2]);
            assert_eq!(take(&load) as u64, TENSORS * LEN);
            for room in &mut rooms {
                // While the load is still there.
                room.fill(1);
            }
        }
    }
}

#[test]
fn what_is_given_up_is_nobody_elses() {
    let (checkpoints, _file) = checkpoints();
    for checkpoint in &checkpoints {
        for round in 0..40 {
            let mut rooms = vec![vec![0u8; LEN as usize]; TENSORS as usize];
            let load = load_to(checkpoint, &mut rooms, WORKERS[round % 2]);
            for _ in 0..round / 2 {
                let _ = load.next(Some(Duration::ZERO));
            }
            let load = Arc::new(load);
            let other = in_thread(&load, |load| load.cancel());
            let _ = load.next(None);
            other.join().unwrap();
            drop(load);
            for room in &mut rooms {
                room.fill(1);
            }
        }
    }
}
