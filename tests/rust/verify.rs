//! Checksums: those of files that MindSpore wrote, and digests that are made here as the documentation says, not by the library.

use safetensors_lazy::format::ChecksumError;
use safetensors_lazy::storage::{StorageError, StorageKind, StorageOptions};
use safetensors_lazy::{
    Checkpoint, Checks, Checksums, Error, OpenOptions, Progress, Report, Task, Verify, VerifyOptions, Writer,
    WriterOptions,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Barrier;

const MINDSPORE: &str = "tests/data/mindspore";

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn open(path: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::open(path, OpenOptions::default()).unwrap()
}

fn open_verified(path: impl AsRef<Path>, verify: Verify) -> Result<Checkpoint, Error> {
    Checkpoint::open(path, OpenOptions { verify, ..OpenOptions::default() })
}

fn verify(checkpoint: &Checkpoint) -> Result<Report, Error> {
    checkpoint.verify(VerifyOptions::default())
}

/// The error of what must be a mismatch.
fn mismatch(outcome: Result<Report, Error>) -> ChecksumError {
    match outcome.unwrap().into_result() {
        Err(Error::Checksum { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

/// A file of U8 tensors with sums of every kind, as other programs would make it.
fn with_sums(tensors: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut by_name: Vec<_> = tensors.iter().collect();
    by_name.sort();
    let mut crc = crc32fast::Hasher::new();
    let mut digests = "0".repeat(64);
    for (name, bytes) in by_name {
        crc.update(name.as_bytes());
        crc.update(bytes);
        digests += &format!(" {}", blake3::hash(bytes));
    }
    let data: Vec<u8> = tensors.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
    let mut at = 0;
    let entries = tensors.iter().map(|(name, bytes)| {
        at += bytes.len();
        format!(r#","{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{},{at}]}}"#, bytes.len(), at - bytes.len())
    });
    let header = format!(
        r#"{{"__metadata__":{{"crc_num":"{}","modelspec.hash_sha256":"0x{}","safetensors_lazy.blake3":"{digests}"}}{}}}"#,
        crc.finalize(),
        hex(&Sha256::digest(&data)),
        entries.collect::<String>(),
    );
    let padded = header.len().next_multiple_of(8);
    let head = [&(padded as u64).to_le_bytes()[..], format!("{header:padded$}").as_bytes()].concat();
    let sealed =
        String::from_utf8(head[8..].to_vec()).unwrap().replacen(&"0".repeat(64), &blake3::hash(&head).to_string(), 1);
    [&head[..8], sealed.as_bytes(), &data].concat()
}

fn sample() -> Vec<u8> {
    let bytes = |len: usize| (0..len).map(|i| (i % 251) as u8).collect();
    with_sums(&[("b", bytes(40)), ("empty", vec![]), ("a", bytes(7)), ("c", bytes(1))])
}

fn write(folder: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join("sums.safetensors");
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn crc_of_mindspore_is_right() {
    let expected: Value =
        serde_json::from_str(&fs::read_to_string(format!("{MINDSPORE}/expected.json")).unwrap()).unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(MINDSPORE).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let expected = &expected[path.file_name().unwrap().to_str().unwrap()];
        let checkpoint = open(&path);
        if checkpoint.metadata_get("crc_num").is_none() {
            let missing = verify(&checkpoint).unwrap_err();
            assert!(matches!(missing, Error::Checksum { source: ChecksumError::Missing { .. }, .. }), "{path:?}");
            continue;
        }
        let report = verify(&checkpoint).unwrap();
        assert_eq!(report.checks, Checks { crc: true, ..Checks::default() }, "{path:?}");
        assert_eq!((report.tensors, report.bad_shards), (checkpoint.len() as u64, 0), "{path:?}");
        report.into_result().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(expected["metadata"]["crc_num"].as_str().map(str::as_bytes), checkpoint.metadata_get("crc_num"));
        seen += 1;
    }
    assert_eq!(seen, 7);
}

#[test]
fn crc_of_mindspore_catches_a_flipped_bit() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(format!("{MINDSPORE}/crc_mixed.safetensors")).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x10;
    let checkpoint = open(write(&folder, &bytes));
    let report = verify(&checkpoint).unwrap();
    assert_eq!((report.bad_shards, report.first_bad_shard, report.first_bad_tensor), (1, Some(0), None));
    match mismatch(Ok(report)) {
        ChecksumError::Whole { stated, found, .. } => assert!(stated == "1671681900" && found != stated),
        other => panic!("{other:?}"),
    }
}

#[test]
fn stale_crc_of_merged_files_does_not_match() {
    let checkpoint = open(format!("{MINDSPORE}/distributed/unified_3parts"));
    let outcome = verify(&checkpoint);
    // hyper_param.safetensors has no sum at all.
    assert!(matches!(outcome, Err(Error::Checksum { source: ChecksumError::Missing { .. }, .. })), "{outcome:?}");
    for part in ["part0", "part1", "part2"] {
        let checkpoint = open(format!("{MINDSPORE}/distributed/unified_3parts/{part}.safetensors"));
        assert!(matches!(mismatch(verify(&checkpoint)), ChecksumError::Whole { .. }), "{part}");
    }
    for rank in 0..8 {
        let checkpoint = open(format!("{MINDSPORE}/distributed/src/rank_{rank}/net-1_1.safetensors"));
        verify(&checkpoint).unwrap().into_result().unwrap_or_else(|error| panic!("{rank}: {error}"));
    }
}

#[test]
fn verify_takes_all_that_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sample();
    let checkpoint = open(write(&folder, &bytes));
    let report = verify(&checkpoint).unwrap();
    assert_eq!(report.checks, Checks { crc: true, sha256: true, blake3: true, file_sha256: false });
    assert_eq!((report.tensors, report.bad_tensors, report.bytes), (4, 0, 48));
    report.into_result().unwrap();

    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    let file_sha256 = &[Some(digest)];
    let only = Checks { file_sha256: true, ..Checks::default() };
    let report = checkpoint.verify(VerifyOptions { checks: only, file_sha256, ..VerifyOptions::default() }).unwrap();
    assert_eq!((report.checks, report.bytes), (only, bytes.len() as u64));
    report.into_result().unwrap();

    let file_sha256 = &[Some([7; 32])];
    let report = checkpoint.verify(VerifyOptions { file_sha256, ..VerifyOptions::default() }).unwrap();
    assert_eq!(report.bad_checks, only);
    let expected = ChecksumError::Whole { what: "SHA-256 of the file", stated: hex(&[7; 32]), found: hex(&digest) };
    assert_eq!(mismatch(Ok(report)), expected);

    let file_sha256 = &[None, None];
    let refused = checkpoint.verify(VerifyOptions { file_sha256, ..VerifyOptions::default() });
    assert!(matches!(refused, Err(Error::InvalidArgument { .. })));
    let refused = checkpoint.verify(VerifyOptions { checks: only, ..VerifyOptions::default() });
    assert!(matches!(refused, Err(Error::Checksum { source: ChecksumError::Missing { .. }, .. })));
}

#[test]
fn verify_reads_memory_and_around_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sample();
    let path = write(&folder, &bytes);
    Checkpoint::open_memory(bytes, OpenOptions::default())
        .unwrap()
        .verify(VerifyOptions::default())
        .unwrap()
        .into_result()
        .unwrap();
    for kind in [StorageKind::Mmap, StorageKind::Read] {
        let storage = StorageOptions { kind, ..StorageOptions::default() };
        let checkpoint = Checkpoint::open(&path, OpenOptions { storage, ..OpenOptions::default() }).unwrap();
        for workers in [0, 1, 2, 1000] {
            let options = VerifyOptions { around_cache: true, workers, ..VerifyOptions::default() };
            checkpoint.verify(options).unwrap().into_result().unwrap();
        }
    }
}

/// Every single bit of the file: refused when it is opened, or found by the digests; and named where it is in a tensor.
#[test]
fn every_flipped_bit_is_found() {
    let bytes = sample();
    let data = 8 + usize::from_le_bytes(bytes[..8].try_into().unwrap());
    let places = [("b", 0..40), ("a", 40..47), ("c", 47..48)];
    let key = bytes.windows(23).position(|window| window == b"safetensors_lazy.blake3").unwrap();
    let only_blake3 = Checks { blake3: true, ..Checks::default() };
    for bit in 0..8 * bytes.len() {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let Ok(checkpoint) = Checkpoint::open_memory(flipped.clone(), OpenOptions::default()) else {
            assert!(bit / 8 < data, "{bit}");
            continue;
        };
        let outcome = checkpoint.verify(VerifyOptions { checks: only_blake3, ..VerifyOptions::default() });
        match outcome.map(Report::into_result) {
            Ok(Ok(())) => panic!("bit {bit} of {} was not noticed", bytes.len()),
            Ok(Err(error)) if bit / 8 >= data => {
                let (name, _) = places.iter().find(|(_, place)| place.contains(&(bit / 8 - data))).unwrap();
                assert!(error.to_string().contains(&format!("tensor \"{name}\"")), "{error}");
            }
            Ok(Err(_)) | Err(Error::Checksum { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        for verify in [Verify::Full, Verify::FirstUse, Verify::Structure] {
            let opened = Checkpoint::open_memory(flipped.clone(), OpenOptions { verify, ..OpenOptions::default() });
            match (opened, verify, bit / 8 < data) {
                // What is left are the other sums, or none.
                (Ok(_), Verify::Full | Verify::Structure, true) if (key..key + 23).contains(&(bit / 8)) => {}
                (Ok(_), Verify::Full, _) | (Ok(_), _, true) => panic!("bit {bit}, {verify:?}"),
                (Err(error), Verify::FirstUse | Verify::Structure, false) => panic!("{error}"),
                _ => {}
            }
        }
    }
}

#[test]
fn open_with_verify_wants_sums() {
    let without = format!("{MINDSPORE}/mixed_bf16.safetensors");
    for verify in [Verify::None, Verify::Structure] {
        open_verified(&without, verify).unwrap();
    }
    for verify in [Verify::FirstUse, Verify::Full] {
        let refused = open_verified(&without, verify);
        assert!(matches!(refused, Err(Error::Checksum { source: ChecksumError::Missing { .. }, .. })), "{refused:?}");
    }
    // A CRC covers everything, but no tensor by itself.
    let with_crc = format!("{MINDSPORE}/crc_mixed.safetensors");
    open_verified(&with_crc, Verify::Full).unwrap();
    assert!(open_verified(&with_crc, Verify::FirstUse).is_err());
    for verify in [Verify::Structure, Verify::FirstUse, Verify::Full] {
        let options = OpenOptions { verify, ..OpenOptions::default() };
        Checkpoint::open_memory(b"\x02\0\0\0\0\0\0\0{}".to_vec(), options).unwrap();
    }
}

/// All ways in which a tensor is handed out.
fn uses(checkpoint: &Checkpoint, index: usize) -> [Result<(), Error>; 4] {
    let mut room = vec![MaybeUninit::uninit(); 64];
    [
        checkpoint.tensor_ptr(index).map(|_| ()),
        checkpoint.tensor_view(index, &[]).map(|_| ()),
        checkpoint.pin(index).map(|_| ()),
        checkpoint.tensor_read(index, &[], &mut room).map(|_| ()),
    ]
}

#[test]
fn first_use_finds_a_damaged_tensor_and_keeps_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = sample();
    let last_of_b = bytes.len() - 9;
    bytes[last_of_b] ^= 1;
    let path = write(&folder, &bytes);
    for kind in [StorageKind::Mmap, StorageKind::Read] {
        for first in 0..4 {
            let storage = StorageOptions { kind, ..StorageOptions::default() };
            let options = OpenOptions { storage, verify: Verify::FirstUse, ..OpenOptions::default() };
            let checkpoint = Checkpoint::open(&path, options).unwrap();
            let bad = checkpoint.find("b").unwrap();
            let mut way = 0;
            for outcome in uses(&checkpoint, bad).into_iter().cycle_from(first) {
                let error = outcome.unwrap_err();
                assert!(
                    matches!(&error, Error::Checksum { source: ChecksumError::Tensor { tensor }, .. } if tensor == "b")
                );
                way += 1;
            }
            assert_eq!(way, 4);
            // A part of it is not verified, but what it is known to be.
            let mut room = [MaybeUninit::uninit(); 1];
            checkpoint.tensor_read(bad, &[0..1], &mut room).unwrap();
            for good in ["a", "c", "empty"] {
                uses(&checkpoint, checkpoint.find(good).unwrap()).into_iter().for_each(Result::unwrap);
            }
        }
    }
}

trait CycleFrom: Iterator + Sized {
    /// The items in another order: from number `first` on, and then those before it.
    fn cycle_from(self, first: usize) -> impl Iterator<Item = Self::Item> {
        let mut items: Vec<_> = self.collect();
        items.rotate_left(first);
        items.into_iter()
    }
}

impl<I: Iterator> CycleFrom for I {}

#[test]
fn first_use_by_many_threads() {
    let folder = tempfile::tempdir().unwrap();
    let large: Vec<u8> = (0..9 * 1024 * 1024 + 5).map(|i| (i % 251) as u8).collect();
    let mut bytes = with_sums(&[("good", large.clone()), ("bad", large)]);
    *bytes.last_mut().unwrap() ^= 0x80;
    let path = write(&folder, &bytes);
    let checkpoint = open_verified(&path, Verify::FirstUse).unwrap();
    let (good, bad) = (checkpoint.find("good").unwrap(), checkpoint.find("bad").unwrap());
    let barrier = Barrier::new(16);
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let (checkpoint, barrier) = (&checkpoint, &barrier);
            scope.spawn(move || {
                barrier.wait();
                let order = if thread % 2 == 0 { [good, bad] } else { [bad, good] };
                for index in order {
                    assert_eq!(checkpoint.tensor_ptr(index).is_ok(), index == good);
                }
            });
        }
    });
}

#[test]
fn a_file_that_changes_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sample();
    let path = write(&folder, &bytes);
    let unwatched = open(&path);
    let watched = open_verified(&path, Verify::Structure).unwrap();
    let copied = Checkpoint::open(
        &path,
        OpenOptions {
            storage: StorageOptions { kind: StorageKind::Read, ..StorageOptions::default() },
            verify: Verify::FirstUse,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    let mut room = vec![MaybeUninit::uninit(); 64];
    watched.tensor_read(0, &[], &mut room).unwrap();
    // The same bytes, but written again.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_modified(std::time::SystemTime::now() + std::time::Duration::from_secs(5)).unwrap();
    drop(file);
    unwatched.tensor_read(0, &[], &mut room).unwrap();
    let changed =
        |outcome: Result<(), Error>| matches!(outcome, Err(Error::Storage { source: StorageError::Changed, .. }));
    assert!(changed(watched.tensor_read(0, &[], &mut room).map(|_| ())));
    assert!(changed(copied.tensor_ptr(0).map(|_| ())));
    assert!(changed(verify(&unwatched).map(|_| ())));
    // Opened anew it is what it is.
    verify(&open(&path)).unwrap().into_result().unwrap();

    // A file that takes the name of another does not change that.
    let watched = open_verified(&path, Verify::FirstUse).unwrap();
    let other = folder.path().join("other");
    fs::write(&other, b"something else").unwrap();
    fs::rename(&other, &path).unwrap();
    uses(&watched, 0).into_iter().for_each(Result::unwrap);
    verify(&watched).unwrap().into_result().unwrap();
}

#[test]
fn verify_goes_through_all_shards() {
    let folder = tempfile::tempdir().unwrap();
    let shard = |i| format!("model-{i:05}-of-00003.safetensors");
    for i in 1..=3 {
        let mut bytes = with_sums(&[(&format!("{i}.x"), vec![i as u8; 100]), (&format!("{i}.y"), vec![9; 50])]);
        let at = bytes.len() - 60;
        bytes[at] ^= u8::from(i > 1);
        fs::write(folder.path().join(shard(i)), bytes).unwrap();
    }
    let checkpoint = open(folder.path());
    let task = Task::default();
    let report = checkpoint.verify(VerifyOptions { task: Some(&task), ..VerifyOptions::default() }).unwrap();
    assert_eq!((report.tensors, report.bad_tensors, report.first_bad_tensor), (6, 2, checkpoint.find("2.x")));
    assert_eq!((report.bad_shards, report.first_bad_shard), (2, Some(1)));
    assert_eq!(report.bad_checks, report.checks);
    let error = report.into_result().unwrap_err().to_string();
    assert!(error.contains(&shard(2)) && error.contains("\"2.x\""), "{error}");
    let Progress { bytes_done, bytes_total, items_done, items_total, .. } = task.progress();
    assert_eq!((bytes_done, bytes_total, items_done, items_total), (450, 450, 6, 6));
    // What each shard says of itself is no contradiction.
    assert_eq!(checkpoint.info().metadata_conflicts, 0);
}

#[test]
fn verify_can_be_cancelled() {
    let checkpoint = Checkpoint::open_memory(sample(), OpenOptions::default()).unwrap();
    let task = Task::default();
    task.cancel();
    let outcome = checkpoint.verify(VerifyOptions { task: Some(&task), ..VerifyOptions::default() });
    assert!(matches!(outcome, Err(Error::Cancelled)));
    verify(&checkpoint).unwrap().into_result().unwrap();
}

/// Writes what a file holds anew: every second tensor in pieces.
fn rewrite(from: &Checkpoint, to: &Path, options: WriterOptions) {
    let bytes: Vec<Vec<u8>> = from
        .tensors()
        .map(|tensor| {
            let mut bytes = vec![MaybeUninit::uninit(); tensor.nbytes() as usize];
            from.tensor_read(tensor.index(), &[], &mut bytes).unwrap();
            // SAFETY: all of it was read.
            bytes.into_iter().map(|byte| unsafe { byte.assume_init() }).collect()
        })
        .collect();
    let mut writer = Writer::create(to, options).unwrap();
    for tensor in from.tensors() {
        match tensor.index() % 2 {
            0 => writer.add(tensor.name(), tensor.dtype(), tensor.shape(), &bytes[tensor.index()]).unwrap(),
            _ => writer.declare(tensor.name(), tensor.dtype(), tensor.shape()).unwrap(),
        }
    }
    for tensor in from.tensors().filter(|tensor| tensor.index() % 2 == 1) {
        for piece in bytes[tensor.index()].chunks(1 << 20) {
            writer.write(tensor.name(), piece).unwrap();
        }
    }
    writer.finish().unwrap();
}

const ALL_CHECKSUMS: Checksums = Checksums { crc: true, sha256: true, blake3: true };

#[test]
fn what_is_written_with_checksums_verifies() {
    let folder = tempfile::tempdir().unwrap();
    let large = with_sums(&[("large", vec![3; (5 << 20) + 1]), ("larger", vec![4; 9 << 20]), ("none", vec![])]);
    let [from, to] = ["from.safetensors", "to.safetensors"].map(|name| folder.path().join(name));
    fs::write(&from, large).unwrap();
    let sources = [
        format!("{MINDSPORE}/crc_mixed.safetensors").into(),
        format!("{MINDSPORE}/mixed_bf16.safetensors").into(),
        from,
    ];
    for source in sources {
        for (alignment, insertion_order) in [(8, false), (4096, true)] {
            let options =
                WriterOptions { checksums: ALL_CHECKSUMS, alignment, insertion_order, ..WriterOptions::default() };
            rewrite(&open(&source), &to, options);
            let checkpoint = open_verified(&to, Verify::FirstUse).unwrap();
            for index in 0..checkpoint.len() {
                checkpoint.tensor_ptr(index).unwrap();
            }
            let report = verify(&checkpoint).unwrap();
            assert_eq!(report.checks, Checks { crc: true, sha256: true, blake3: true, file_sha256: false });
            report.into_result().unwrap();
            assert_eq!(
                checkpoint.tensors().map(|tensor| tensor.file_offset()).min().unwrap() % u64::from(alignment),
                0
            );
        }
    }
}

#[test]
fn digests_are_those_of_the_documentation() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = sample();
    let from = write(&folder, &bytes);
    let to = folder.path().join("to.safetensors");
    let checksums = ALL_CHECKSUMS;
    rewrite(&open(&from), &to, WriterOptions { checksums, insertion_order: true, ..WriterOptions::default() });
    // The sum of a CRC may be shorter than the room that is kept for it, so only the metadata must be the same.
    let (from, to) = (open(from), open(to));
    for key in ["crc_num", "modelspec.hash_sha256"] {
        assert_eq!(from.metadata_get(key), to.metadata_get(key), "{key}");
    }
    let tensors = |checkpoint: &Checkpoint| checkpoint.metadata_get("safetensors_lazy.blake3").unwrap()[64..].to_vec();
    assert_eq!(tensors(&from), tensors(&to));
}

#[test]
fn crc_is_written_as_mindspore_does() {
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to.safetensors");
    for file in ["crc_mixed", "crc_names", "crc_scalar", "crc_int_scalar", "dense_crc", "qint4x2_crc"] {
        let from = open(format!("{MINDSPORE}/{file}.safetensors"));
        let checksums = Checksums { crc: true, ..Checksums::default() };
        rewrite(&from, &to, WriterOptions { checksums, ..WriterOptions::default() });
        assert_eq!(open(&to).metadata_get("crc_num"), from.metadata_get("crc_num"), "{file}");
    }
}
