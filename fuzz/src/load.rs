//! Bytes as requests and options of a load, over tensors that stay the same: what is refused is wrong, and all else arrives, as
//! `tensor_read` gives it, once and in its place, however it is read.

use super::input::Input;
use safetensors_lazy::storage::{StorageKind, StorageOptions};
use safetensors_lazy::{
    Checkpoint, Destination, Engine, Error, Load, LoadOptions, Loaded, Next, OpenOptions, Request, Staging,
};
use std::io::Write;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const MOST_REQUESTS: u8 = 24;
const PAGE: usize = 4096;

/// What nobody may write to: before and behind each destination.
const UNTOUCHED: u8 = 0xa5;

/// Tensors of all sorts, one after the other from an odd place on: empty, tiny, of less than a byte per element, of many rows, of
/// several blocks.
const TENSORS: [(&str, &[u64], u64); 12] = [
    ("U8", &[0], 0),
    ("F32", &[], 4),
    ("U8", &[3], 3),
    ("BF16", &[300, 500], 300_000),
    ("U8", &[70_001], 70_001),
    ("F4", &[64, 62], 1984),
    ("I16", &[0, 9, 7], 0),
    ("F64", &[20, 40, 7], 44_800),
    ("U8", &[1], 1),
    ("BF16", &[129, 1025], 264_450),
    ("U8", &[9000, 17], 153_000),
    ("U8", &[400_000], 400_000),
];

/// The same tensors in a file and in memory.
fn checkpoints() -> &'static [Arc<Checkpoint>; 2] {
    static OPEN: OnceLock<[Arc<Checkpoint>; 2]> = OnceLock::new();
    OPEN.get_or_init(|| {
        let bytes = bytes();
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&bytes).expect("room for it");
        let storage = StorageOptions { kind: StorageKind::Read, ..StorageOptions::default() };
        let read = Checkpoint::open(file.path(), OpenOptions { storage, ..OpenOptions::default() });
        let memory = Checkpoint::open_memory(bytes, OpenOptions::default());
        [read, memory].map(|opened| Arc::new(opened.expect("a checkpoint")))
    })
}

fn bytes() -> Vec<u8> {
    let (mut entries, mut end) = (Vec::new(), 0);
    for (number, (dtype, shape, nbytes)) in TENSORS.iter().enumerate() {
        let start = end;
        end += nbytes;
        entries.push(format!(r#""{number}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#));
    }
    let header = format!("{{{}}}", entries.join(","));
    // No two pages are alike.
    let data = (0..end).map(|at| (at ^ (at >> 8).wrapping_mul(167) ^ (at >> 16).wrapping_mul(59)) as u8);
    (header.len() as u64).to_le_bytes().into_iter().chain(header.into_bytes()).chain(data).collect()
}

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let of_memory = input.byte() % 4 == 0;
    let checkpoint = &checkpoints()[usize::from(of_memory)];
    let mut given_staging = vec![0; usize::from(input.byte()) << 10];
    let (options, how) = options(&mut input, &mut given_staging);
    let (most_held, ends_after) = (input.byte() % 8, input.byte());
    let mut asked: Vec<Asked> =
        (0..input.byte() % (MOST_REQUESTS + 1)).map(|_| Asked::new(&mut input, checkpoint)).collect();

    let requests = asked.iter_mut().enumerate().map(|(tag, asked)| asked.request(tag as u64)).collect();
    let load = match Load::start(Arc::clone(checkpoint), requests, options) {
        Ok(load) => load,
        Err(refusal) => return is_true(&refusal, &how, of_memory, &asked),
    };
    assert!(!how.is_wrong && asked.iter().all(|asked| asked.expected.is_some() && asked.missing == 0));
    let mut taker = Taker { load: &load, asked: &mut asked, how, held: Vec::new(), last: 0, done: 0 };
    let is_cancelled = taker.take_all(usize::from(most_held), usize::from(ends_after));
    let progress = load.progress();
    assert!(progress.done.bytes_done <= progress.done.bytes_total && progress.bytes_read >= progress.done.bytes_done);
    assert_eq!(progress.done.items_done, taker.done as u64);
    if !is_cancelled {
        assert_eq!(
            (progress.done.items_done, progress.done.bytes_done),
            (asked.len() as u64, progress.done.bytes_total)
        );
        assert!(asked.iter().all(|asked| asked.arrived == Some(asked.len())));
    }
    drop(load);
    assert!(asked.iter().all(Asked::surroundings_are_untouched));
}

/// What is to be seen of the options.
struct How {
    in_order: bool,
    engine: Option<Engine>,
    piece_bytes: usize,
    /// Whether a number is out of range.
    is_wrong: bool,
}

fn options(input: &mut Input, staging: &mut [u8]) -> (LoadOptions, How) {
    let bits = input.byte();
    let is_set = |bit: u8| bits >> bit & 1 == 1;
    let mut one_of = |choices: &[usize]| choices[usize::from(input.byte()) % choices.len()];
    let engines = [None, Some(Engine::Buffered), Some(Engine::Direct), Some(Engine::Uring), Some(Engine::Memory)];
    let in_order = is_set(0);
    let engine = engines[one_of(&[0, 0, 0, 0, 1, 2, 3, 4])];
    let workers = one_of(&[0, 1, 2, 3, 100]);
    let queue_depth = one_of(&[0, 1, 2, 7, 1024, 1025]);
    let block_bytes = one_of(&[0, 65_536, 131_072, 1 << 20, 65_537, 4096]);
    let (staging, staging_is_wrong) = match is_set(1) {
        true => {
            // SAFETY: nobody else knows it as long as the load lives.
            let memory = unsafe { Destination::new(NonNull::from(&mut *staging).cast(), staging.len()) };
            (Staging::Given(memory), staging.len() < 65_536)
        }
        false => {
            let bytes = one_of(&[0, 65_536, 100_000, 1 << 20, 65_535]);
            (Staging::Own(bytes), bytes == 65_535)
        }
    };
    let piece_bytes = one_of(&[0, 0, 4096, 10_000, 4095]);
    let over_read = [None, Some(0), Some(1), Some(u32::MAX)][one_of(&[0, 1, 2, 3])];
    let is_wrong =
        queue_depth == 1025 || [65_537, 4096].contains(&block_bytes) || staging_is_wrong || piece_bytes == 4095;
    let how = How { in_order, engine, piece_bytes, is_wrong };
    let options = LoadOptions { in_order, engine, workers, queue_depth, block_bytes, staging, piece_bytes, over_read };
    (options, how)
}

/// A request, and what becomes of it.
struct Asked {
    index: usize,
    ranges: Vec<Range<u64>>,
    /// What `tensor_read` gives; `None` if it refuses.
    expected: Option<Vec<u8>>,
    /// The destination, if there is one, and where in this memory it begins.
    room: Option<(Vec<u8>, usize)>,
    /// How many bytes its size lacks.
    missing: usize,
    /// How many bytes have arrived, of what has no bytes as well.
    arrived: Option<usize>,
    is_complete: bool,
}

impl Asked {
    fn new(input: &mut Input, checkpoint: &Checkpoint) -> Asked {
        let index = usize::from(input.byte()) % (TENSORS.len() + usize::from(input.byte() == 255));
        let shape: &[u64] = TENSORS.get(index).map_or(&[], |(_, shape, _)| shape);
        let count = usize::from(input.byte()) % (shape.len() + 1 + usize::from(input.byte() == 255));
        let bound = |input: &mut Input, len: u64| match input.byte() {
            255 => input.number(),
            part => len * u64::from(part % 17) / 16,
        };
        let range = |dimension: usize| {
            let len = shape.get(dimension).copied().unwrap_or(1);
            let (one, other) = (bound(input, len), bound(input, len));
            // Rarely the wrong way round.
            if input.byte() == 255 {
                one..other
            } else {
                one.min(other)..one.max(other)
            }
        };
        let ranges: Vec<Range<u64>> = (0..count).map(range).collect();
        let expected = read(checkpoint, index, &ranges);
        let (kind, shift) = (input.byte(), input.number() as usize);
        let file_offset = checkpoint.tensor(index).map_or(0, |tensor| tensor.file_offset()) as usize;
        let len = expected.as_ref().map_or(0, Vec::len);
        let room = (kind % 3 > 0).then(|| {
            let room = vec![UNTOUCHED; len + 3 * PAGE];
            let wanted = if kind % 3 == 1 { file_offset } else { shift } % PAGE;
            let start = room.as_ptr() as usize + 1;
            (room, 1 + (wanted + PAGE - start % PAGE) % PAGE)
        });
        let missing = usize::from(kind > 250 && len > 0 && room.is_some());
        Asked { index, ranges, expected, room, missing, arrived: None, is_complete: false }
    }

    fn len(&self) -> usize {
        self.expected.as_ref().map_or(0, Vec::len)
    }

    fn request(&mut self, tag: u64) -> Request {
        let len = self.len() - self.missing;
        let destination = self.room.as_mut().map(|(room, start)| {
            let start = NonNull::from(&mut room[*start..]).cast();
            // SAFETY: the room stays, and nobody looks at it before the load is gone.
            unsafe { Destination::new(start, len) }
        });
        Request { index: self.index, ranges: self.ranges.clone(), destination, tag }
    }

    fn surroundings_are_untouched(&self) -> bool {
        let Some((room, start)) = &self.room else { return true };
        room[..*start].iter().chain(&room[start + self.len()..]).all(|byte| *byte == UNTOUCHED)
    }
}

fn read(checkpoint: &Checkpoint, index: usize, ranges: &[Range<u64>]) -> Option<Vec<u8>> {
    let mut bytes = vec![MaybeUninit::new(0); TENSORS.get(index).map_or(0, |tensor| tensor.2 as usize)];
    let n = checkpoint.tensor_read(index, ranges, &mut bytes).ok()?;
    // SAFETY: initialised from the start.
    Some(bytes.iter().take(n).map(|byte| unsafe { byte.assume_init() }).collect())
}

/// Whether something is wrong, and this is what.
fn is_true(refusal: &Error, how: &How, of_memory: bool, asked: &[Asked]) {
    let is_wrong = match refusal {
        Error::NoSuchTensor { .. } => asked.iter().any(|asked| asked.index >= TENSORS.len()),
        Error::Slice { .. } => asked.iter().any(|asked| asked.expected.is_none() && asked.index < TENSORS.len()),
        Error::BufferTooSmall { .. } => asked.iter().any(|asked| asked.missing > 0),
        Error::Storage { .. } => how.engine.is_some_and(|engine| (engine == Engine::Memory) != of_memory),
        Error::InvalidArgument { .. } => how.is_wrong,
        _ => false,
    };
    assert!(is_wrong, "{refusal}");
}

struct Taker<'l> {
    load: &'l Load,
    asked: &'l mut [Asked],
    how: How,
    /// What has not been recycled.
    held: Vec<Loaded>,
    /// The request that came last.
    last: usize,
    done: usize,
}

impl Taker<'_> {
    /// Takes until there is no more, or cancels. Holds so many deliveries, as far as that goes.
    fn take_all(&mut self, most_held: usize, ends_after: usize) -> bool {
        for n in 0.. {
            if ends_after < 32 && n == ends_after {
                self.load.cancel();
                assert!(matches!(self.load.next(None), Err(Error::Cancelled)));
                return true;
            }
            let timeout = Duration::from_millis(if self.held.is_empty() { 60_000 } else { 1 });
            match self.load.next((n % 3 == 2).then_some(timeout)) {
                Ok(Next::Loaded(loaded)) => self.take(loaded),
                Ok(Next::Done) => break,
                Ok(Next::Timeout) => assert!(self.recycle_all(), "nothing has come for a minute"),
                Err(Error::StagingFull { held, size }) => {
                    assert!(held > 0 && held <= size);
                    assert!(self.recycle_all());
                }
                Err(other) => panic!("{other}"),
            }
            if self.held.len() > most_held {
                self.recycle_all();
            }
        }
        false
    }

    fn take(&mut self, loaded: Loaded) {
        assert_eq!(loaded.request as u64, loaded.tag);
        assert!(!self.how.in_order || loaded.request >= self.last, "out of order");
        self.last = loaded.request;
        let asked = &mut self.asked[loaded.request];
        let bytes = loaded.bytes.as_ref().expect("bytes");
        assert!(!asked.is_complete && loaded.index == asked.index);
        assert_eq!(asked.arrived.unwrap_or(0) as u64, loaded.offset, "pieces come in order");
        let most = if loaded.buffer == 0 || self.how.piece_bytes == 0 { usize::MAX } else { self.how.piece_bytes };
        assert!(bytes.len() <= most);
        let end = loaded.offset as usize + bytes.len();
        // SAFETY: delivered, and not recycled; nobody writes to it.
        let arrived = unsafe { bytes.as_slice() };
        assert_eq!(Some(arrived), asked.expected.as_ref().and_then(|all| all.get(loaded.offset as usize..end)));
        if let Some((room, start)) = &asked.room {
            assert_eq!(bytes.start().as_ptr().cast_const(), room[*start..].as_ptr());
        }
        assert_eq!(loaded.is_last, end == asked.len());
        (asked.arrived, asked.is_complete) = (Some(end), loaded.is_last);
        self.done += usize::from(loaded.is_last);
        if loaded.buffer != 0 {
            self.held.push(loaded);
        }
    }

    /// Whether there was something to recycle. What is recycled has its bytes until then.
    fn recycle_all(&mut self) -> bool {
        let held = std::mem::take(&mut self.held);
        for loaded in &held {
            let (Ok(bytes), Some(expected)) = (&loaded.bytes, &self.asked[loaded.request].expected) else { continue };
            // SAFETY: as above.
            let arrived = unsafe { bytes.as_slice() };
            assert_eq!(arrived, &expected[loaded.offset as usize..][..bytes.len()], "somebody has written to it");
            self.load.recycle(loaded.buffer).expect("once");
            assert!(matches!(self.load.recycle(loaded.buffer), Err(Error::InvalidArgument { .. })));
        }
        !held.is_empty()
    }
}
