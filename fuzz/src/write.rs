//! Bytes as the calls of somebody who writes a checkpoint, in any order and with any arguments: what is published holds what was taken,
//! for us and for the reference, and nothing else is left.

use super::input::Input;
use safetensors::SafeTensors;
use safetensors_lazy::{Checkpoint, Checksums, Dtype, Error, OpenOptions, Verify, Writer, WriterError, WriterOptions};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Names that somebody may think of: those that are none are at the end.
const NAMES: [&[u8]; 10] =
    [b"a", b"b", b"weight", b"", b"\"\\\n\x1f", "权重".as_bytes(), b"crc_num", b"__metadata__", b"nul\0", b"\xff"];

/// Bytes to write: the period is prime.
static DATA: [u8; 4096] = {
    let mut data = [0; 4096];
    let mut i = 0;
    while i < data.len() {
        data[i] = (i % 251) as u8;
        i += 1;
    }
    data
};

/// A tensor that was taken.
#[derive(Debug)]
struct Taken {
    dtype: Dtype,
    shape: Vec<u64>,
    nbytes: usize,
    bytes: Vec<u8>,
}

pub fn run(input: &[u8]) {
    // In memory where there is a place for that: a disk would be worn out.
    let place = if Path::new("/dev/shm").is_dir() { Path::new("/dev/shm").to_owned() } else { std::env::temp_dir() };
    let folder = tempfile::tempdir_in(place).expect("a temporary folder");
    let mut input = Input(input);
    let options = options(&mut input);
    let path = folder.path().join("model.safetensors");
    let Ok(mut writer) = Writer::create(&path, options.clone()) else {
        assert!(
            options.alignment != 0 && !(8..=65536).contains(&options.alignment) || !options.alignment.is_power_of_two()
        );
        return;
    };
    let (mut tensors, mut metadata) = (BTreeMap::new(), BTreeMap::new());
    while !input.0.is_empty() {
        call(&mut writer, &mut input, &mut tensors, &mut metadata);
    }
    let is_complete = tensors.values().all(|tensor: &Taken| tensor.bytes.len() == tensor.nbytes);
    match writer.finish() {
        Ok(()) => {
            assert!(is_complete);
            assert!(matches!(writer.finish(), Err(Error::Writer { source: WriterError::Finished, .. })));
            drop(writer);
            holds(folder.path(), &options, &tensors, &metadata);
        }
        Err(Error::Writer { source: WriterError::Incomplete { .. }, .. }) => {
            assert!(!is_complete);
            drop(writer);
            assert_eq!(names(folder.path()), [""; 0]);
        }
        Err(other) => panic!("{other}"),
    }
}

fn options(input: &mut Input) -> WriterOptions {
    let bits = input.byte();
    let is_set = |bit: u8| bits >> bit & 1 == 1;
    WriterOptions {
        insertion_order: is_set(0),
        no_sync: true,
        checksums: Checksums { crc: is_set(1), sha256: is_set(2), blake3: is_set(3) },
        alignment: if is_set(4) { input.number() as u32 } else { 0 },
        max_shard_bytes: if is_set(5) { input.number() } else { 0 },
        ..WriterOptions::default()
    }
}

fn call(
    writer: &mut Writer<'static>,
    input: &mut Input,
    tensors: &mut BTreeMap<String, Taken>,
    metadata: &mut BTreeMap<String, String>,
) {
    let what = input.byte();
    let name = NAMES[usize::from(input.byte()) % NAMES.len()];
    let text = || String::from_utf8(name.to_vec()).expect("what was taken is text");
    match what % 4 {
        0 => {
            if writer.metadata(name, "value \"\n").is_ok() {
                assert!(metadata.insert(text(), "value \"\n".to_owned()).is_none());
            }
        }
        1 => {
            let (dtype, shape, nbytes) = described(input);
            // Now and then a byte is missing.
            let given = nbytes.unwrap_or(7).saturating_sub(usize::from(what > 240));
            let bytes = &DATA[..given.min(DATA.len())];
            if writer.add(name, dtype, &shape, bytes).is_ok() {
                let nbytes = nbytes.expect("a size of whole bytes");
                assert_eq!(bytes.len(), nbytes);
                assert!(tensors.insert(text(), Taken { dtype, shape, nbytes, bytes: bytes.to_vec() }).is_none());
            }
        }
        2 => {
            let (dtype, shape, nbytes) = described(input);
            // What would take all of the disk only to find that it is not written.
            if nbytes.is_some_and(|nbytes| nbytes > 1 << 20) {
                return;
            }
            if writer.declare(name, dtype, &shape).is_ok() {
                let nbytes = nbytes.expect("a size of whole bytes");
                assert!(tensors.insert(text(), Taken { dtype, shape, nbytes, bytes: Vec::new() }).is_none());
            }
        }
        _ => {
            let piece = &DATA[..(input.number() as usize).min(DATA.len())];
            if writer.write(name, piece).is_ok() {
                let tensor = tensors.get_mut(&text()).expect("what was written to was declared");
                tensor.bytes.extend_from_slice(piece);
                assert!(tensor.bytes.len() <= tensor.nbytes);
            }
        }
    }
}

/// A type, a shape, and the size in bytes if it is whole.
fn described(input: &mut Input) -> (Dtype, Vec<u64>, Option<usize>) {
    let dtype = Dtype::ALL[usize::from(input.byte()) % Dtype::ALL.len()];
    let shape: Vec<u64> = (0..input.byte() % 4).map(|_| input.number()).collect();
    let elements = shape.iter().try_fold(1u64, |elements, dim| elements.checked_mul(*dim));
    let bits = elements.and_then(|elements| elements.checked_mul(dtype.bits().into()));
    (dtype, shape, bits.filter(|bits| bits % 8 == 0).map(|bits| (bits / 8) as usize))
}

fn holds(
    folder: &Path,
    options: &WriterOptions,
    tensors: &BTreeMap<String, Taken>,
    metadata: &BTreeMap<String, String>,
) {
    let names = names(folder);
    let is_single = names == ["model.safetensors"];
    assert!(is_single || names.last().is_some_and(|name| name == "model.safetensors.index.json"), "{names:?}");
    assert!(is_single || options.max_shard_bytes > 0);

    // A sum of the user's own is nonsense.
    let has_checksums = options.checksums != Checksums::default() && !metadata.contains_key("crc_num");
    let verify = if has_checksums { Verify::Full } else { Verify::None };
    let checkpoint =
        Checkpoint::open(folder, OpenOptions { verify, ..OpenOptions::default() }).expect("what was published");
    assert_eq!(checkpoint.len(), tensors.len());
    for (name, taken) in tensors {
        let index = checkpoint.find(name).expect("what was taken");
        let tensor = checkpoint.tensor(index).expect("an index");
        assert_eq!((tensor.dtype(), tensor.shape()), (taken.dtype, &taken.shape[..]));
        let bytes = checkpoint.tensor_ptr(index).expect("bytes");
        // SAFETY: nobody writes to the file.
        assert_eq!(unsafe { bytes.as_slice() }, taken.bytes);
    }
    for (key, value) in metadata {
        assert_eq!(checkpoint.metadata_get(key), Some(value.as_bytes()));
    }
    for shard in names.iter().filter(|name| name.ends_with(".safetensors")) {
        let bytes = fs::read(folder.join(shard)).expect("a shard");
        let (header_len, _) = SafeTensors::read_metadata(&bytes).expect("a file for the reference");
        assert_eq!((8 + header_len) as u64 % u64::from(options.alignment.max(8)), 0);
    }
}

/// The names in a folder, in their order.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}
