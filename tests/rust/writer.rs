//! What is written, against the reference implementation; and what becomes of the files around it.

use crate::random::Random;
use crate::sample::{data, tensors, Tensor};
use proptest::prelude::*;
use safetensors_lazy::{Checkpoint, Dtype, Error, OpenOptions, Task, Writer, WriterError, WriterOptions};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn quick() -> WriterOptions {
    WriterOptions { no_sync: true, ..WriterOptions::default() }
}

/// What the reference implementation writes.
fn reference(tensors: &[(Tensor, Vec<u8>)], metadata: &Option<(String, String)>) -> Vec<u8> {
    let views = tensors.iter().map(|(tensor, data)| {
        let dtype: safetensors::Dtype = serde_json::from_value(tensor.dtype.name().into()).unwrap();
        let shape = tensor.shape.iter().map(|dim| *dim as usize).collect();
        (tensor.name.clone(), safetensors::tensor::TensorView::new(dtype, shape, data).unwrap())
    });
    let metadata: Option<HashMap<String, String>> = metadata.clone().map(|entry| HashMap::from([entry]));
    let folder = folder();
    let path = folder.path().join("reference");
    safetensors::serialize_to_file(views, metadata, &path).unwrap();
    fs::read(&path).unwrap()
}

/// Writes tensors, those that are streamed in random pieces and turns.
fn write(
    path: &Path,
    tensors: &[(Tensor, Vec<u8>)],
    metadata: &Option<(String, String)>,
    streamed: impl Fn(usize) -> bool,
    options: WriterOptions,
    random: &mut Random,
) {
    let mut writer = Writer::create(path, options).unwrap();
    if let Some((key, value)) = metadata {
        writer.metadata(key, value).unwrap();
    }
    let mut left: Vec<(&str, &[u8])> = Vec::new();
    for (i, (tensor, data)) in tensors.iter().enumerate() {
        if streamed(i) {
            writer.declare(&tensor.name, tensor.dtype, &tensor.shape).unwrap();
            left.push((&tensor.name, data));
        } else {
            writer.add(&tensor.name, tensor.dtype, &tensor.shape, data).unwrap();
        }
    }
    while !left.is_empty() {
        let at = random.below(left.len());
        let (name, rest) = left[at];
        let piece = random.below(rest.len() + 1);
        writer.write(name, &rest[..piece]).unwrap();
        left[at].1 = &rest[piece..];
        if left[at].1.is_empty() {
            left.swap_remove(at);
        }
    }
    writer.finish().unwrap();
}

/// Tensors with bytes of their own each.
fn filled(tensors: Vec<Tensor>) -> Vec<(Tensor, Vec<u8>)> {
    let mut at = 0;
    let bytes = data(tensors.iter().map(Tensor::nbytes).sum());
    tensors
        .into_iter()
        .map(|tensor| {
            let own = bytes[at..at + tensor.nbytes()].to_vec();
            at += tensor.nbytes();
            (tensor, own)
        })
        .collect()
}

/// A checkpoint has exactly these tensors.
fn assert_holds(path: &Path, tensors: &[(Tensor, Vec<u8>)]) {
    let checkpoint = Checkpoint::open(path, OpenOptions::default()).unwrap();
    assert_eq!(checkpoint.len(), tensors.len());
    for (tensor, data) in tensors {
        let index = checkpoint.find(&tensor.name).unwrap();
        let found = checkpoint.tensor(index).unwrap();
        assert_eq!((found.dtype(), found.shape()), (tensor.dtype, tensor.shape.as_slice()));
        // SAFETY: nobody changes the file.
        assert!(unsafe { checkpoint.tensor_ptr(index).unwrap().as_slice() } == data, "{}", tensor.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn files_are_those_of_the_reference(
        tensors in tensors(),
        metadata in proptest::option::of(any::<(String, String)>()),
        streamed in any::<u8>(),
        seed in any::<u64>(),
    ) {
        let metadata = metadata.map(|(key, value)| (key.replace('\0', ""), value));
        let tensors = filled(tensors);
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        write(&path, &tensors, &metadata, |i| streamed >> i & 1 == 1, quick(), &mut Random::new(seed));
        prop_assert_eq!(fs::read(&path).unwrap(), reference(&tensors, &metadata));
        prop_assert_eq!(names(folder.path()), ["model.safetensors"]);
        assert_holds(&path, &tensors);
    }

    #[test]
    fn alignment_and_order_are_as_asked_for(
        tensors in tensors(),
        alignment in 3..=16u32,
        insertion_order in any::<bool>(),
    ) {
        let tensors = filled(tensors);
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        let options = WriterOptions { alignment: 1 << alignment, insertion_order, ..quick() };
        write(&path, &tensors, &None, |_| false, options, &mut Random::new(1));
        assert_holds(&path, &tensors);
        let file = fs::read(&path).unwrap();
        safetensors::SafeTensors::deserialize(&file).unwrap();
        let nbytes: usize = tensors.iter().map(|(_, data)| data.len()).sum();
        prop_assert_eq!((file.len() - nbytes) % (1 << alignment), 0);
        if insertion_order {
            let in_order: Vec<u8> = tensors.iter().flat_map(|(_, data)| data.clone()).collect();
            prop_assert_eq!(&file[file.len() - nbytes..], in_order);
        }
    }

    #[test]
    fn shards_are_those_of_hugging_face(tensors in tensors(), max in 1..40u64, streamed in any::<u8>()) {
        let tensors = filled(tensors);
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        let options = WriterOptions { max_shard_bytes: max, ..quick() };
        let metadata = Some(("format".to_owned(), "pt".to_owned()));
        write(&path, &tensors, &metadata, |i| streamed >> i & 1 == 1, options, &mut Random::new(2));
        let shards = split(max, &tensors);
        if shards.len() <= 1 {
            prop_assert_eq!(fs::read(&path).unwrap(), reference(&tensors, &metadata));
            prop_assert_eq!(names(folder.path()), ["model.safetensors"]);
        } else {
            let mut expected = vec!["model.safetensors.index.json".to_owned()];
            for (number, shard) in shards.iter().enumerate() {
                let name = shard_name(number, shards.len());
                let of_shard: Vec<(Tensor, Vec<u8>)> = shard.iter().map(|i| tensors[*i].clone()).collect();
                prop_assert_eq!(fs::read(folder.path().join(&name)).unwrap(), reference(&of_shard, &metadata));
                expected.push(name);
            }
            expected.sort();
            prop_assert_eq!(names(folder.path()), expected);
            assert_holds(&folder.path().join("model.safetensors.index.json"), &tensors);
            assert_holds(folder.path(), &tensors);
        }
    }
}

fn shard_name(number: usize, len: usize) -> String {
    format!("model-{:05}-of-{len:05}.safetensors", number + 1)
}

/// huggingface_hub's `split_state_dict_into_shards_factory`.
fn split(max: u64, tensors: &[(Tensor, Vec<u8>)]) -> Vec<Vec<usize>> {
    let (mut shards, mut current, mut size) = (Vec::new(), Vec::new(), 0);
    for (i, (_, data)) in tensors.iter().enumerate() {
        let nbytes = data.len() as u64;
        if nbytes > max {
            shards.push(vec![i]);
            continue;
        }
        if size + nbytes > max {
            shards.push(std::mem::take(&mut current));
            size = 0;
        }
        current.push(i);
        size += nbytes;
    }
    if !current.is_empty() {
        shards.push(current);
    }
    shards
}

/// Names that JSON and Python must escape, over several shards.
#[test]
fn index_is_that_of_python() {
    let names = ["a\"\\/\u{7f}", "é权😀", "\u{1}\u{8}\u{c}\n\r\t", "\u{2028}", "z", "\u{ffff}", "\u{10000}"];
    let tensors: Vec<Tensor> =
        names.iter().map(|name| Tensor { name: (*name).to_owned(), dtype: Dtype::U8, shape: vec![3] }).collect();
    let tensors = filled(tensors);
    let folder = folder();
    let options = WriterOptions { max_shard_bytes: 6, ..quick() };
    let path = folder.path().join("model.safetensors");
    write(&path, &tensors, &None, |_| false, options, &mut Random::new(3));
    let map: BTreeMap<&str, String> = split(6, &tensors)
        .into_iter()
        .enumerate()
        .flat_map(|(number, shard)| shard.into_iter().map(move |i| (names[i], shard_name(number, 4))))
        .collect();
    let index = serde_json::json!({"weight_map": map, "metadata": {"total_size": 21}});
    let code = "import json, sys; sys.stdout.write(json.dumps(json.load(sys.stdin), indent=2, sort_keys=True) + '\\n')";
    let python = std::process::Command::new("python3")
        .args(["-c", code])
        .env("PYTHONIOENCODING", "utf-8")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let Ok(mut python) = python else { return };
    std::io::Write::write_all(&mut python.stdin.take().unwrap(), index.to_string().as_bytes()).unwrap();
    let expected = python.wait_with_output().unwrap().stdout;
    let written = fs::read(folder.path().join("model.safetensors.index.json")).unwrap();
    assert_eq!(String::from_utf8(written).unwrap(), String::from_utf8(expected).unwrap());
}

/// More than is written through the page cache: aligned and misaligned memory, tensors of many sizes, some streamed.
fn large(folder: &Path) {
    const MIB: usize = 1 << 20;
    let memory = data(40 * MIB);
    let sizes = [9 * MIB + 1, 4 * MIB, 1, 0, 70_000, 13 * MIB + 4095, 3, 65_536, 5 * MIB];
    let mut at = 1;
    let mut tensors: Vec<(Tensor, &[u8])> = Vec::new();
    for (i, size) in sizes.into_iter().enumerate() {
        let tensor = Tensor { name: format!("t{i}"), dtype: Dtype::U8, shape: vec![size as u64] };
        tensors.push((tensor, &memory[at..at + size]));
        at += size;
    }
    for i in 0..5000 {
        let tensor = Tensor { name: format!("small{i:04}"), dtype: Dtype::BF16, shape: vec![17] };
        tensors.push((tensor, &memory[at..at + 34]));
        at += 34;
    }
    let owned: Vec<(Tensor, Vec<u8>)> = tensors.iter().map(|(tensor, data)| (tensor.clone(), data.to_vec())).collect();
    let expected = reference(&owned, &None);
    let path = folder.join("model.safetensors");
    type Streamed = fn(usize) -> bool;
    let cases: [(Streamed, usize); 4] =
        [(|_| false, 1), (|i| i == 4 || i == 7, MIB), (|i| i % 2 == 1, 3 * MIB + 7), (|_| true, 9 * MIB - 5)];
    for (streamed, piece) in cases {
        let task = Arc::<Task>::default();
        let options = WriterOptions { task: Arc::clone(&task), ..WriterOptions::default() };
        let mut writer = Writer::create(&path, options).unwrap();
        for (i, (tensor, data)) in tensors.iter().enumerate() {
            match streamed(i) {
                true => writer.declare(&tensor.name, tensor.dtype, &tensor.shape).unwrap(),
                false => writer.add(&tensor.name, tensor.dtype, &tensor.shape, data).unwrap(),
            }
        }
        for (i, (tensor, data)) in tensors.iter().enumerate().rev() {
            if streamed(i) {
                data.chunks(piece).for_each(|piece| writer.write(&tensor.name, piece).unwrap());
            }
        }
        writer.finish().unwrap();
        assert!(fs::read(&path).unwrap() == expected);
        let progress = task.progress();
        assert_eq!((progress.bytes_done, progress.items_done), (progress.bytes_total, progress.items_total));
        assert_eq!(progress.items_total, tensors.len() as u64);
        assert_eq!(names(folder), ["model.safetensors"]);
    }
}

#[test]
fn large_files_are_those_of_the_reference() {
    // Not in /tmp, which may be a tmpfs.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    large(folder.path());
}

#[test]
fn large_files_without_a_way_around_the_page_cache() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    large(folder.path());
}

#[test]
fn a_million_tensors() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let byte = [7];
    let mut writer = Writer::create(&path, quick()).unwrap();
    for i in 0..1_000_000u32 {
        writer.add(format!("t{i}"), Dtype::U8, &[1], &byte).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(Checkpoint::open(&path, OpenOptions::default()).unwrap().len(), 1_000_000);
}

fn refused(done: Result<(), Error>) -> WriterError {
    match done {
        Err(Error::Writer { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_written_is_refused() {
    use WriterError as E;
    let folder = folder();
    let mut writer = Writer::create(folder.path().join("a"), quick()).unwrap();
    writer.declare("there", Dtype::U8, &[4]).unwrap();
    writer.add("added", Dtype::U8, &[4], b"abcd").unwrap();
    writer.metadata("key", "value").unwrap();
    let mut declare = |name: &[u8], dtype, shape: &[u64]| refused(writer.declare(name, dtype, shape));
    assert!(matches!(declare(b"there", Dtype::U8, &[]), E::DuplicateName { .. }));
    assert!(matches!(declare(b"added", Dtype::U8, &[]), E::DuplicateName { .. }));
    assert!(matches!(declare(b"__metadata__", Dtype::U8, &[]), E::ReservedName { .. }));
    assert!(matches!(declare(b"a\0b", Dtype::U8, &[]), E::NulInName { .. }));
    assert!(matches!(declare(b"ab\xff", Dtype::U8, &[]), E::Utf8 { what: "name", position: 2 }));
    assert!(matches!(declare(b"x", Dtype::U8, &[1 << 63, 2, 0]), E::Overflow { .. }));
    assert!(matches!(declare(b"x", Dtype::F4, &[3]), E::PartialByte { bits: 12, .. }));
    for name in ["1", "2", "3", "4", "5", "6", "7"] {
        writer.declare(name, Dtype::U8, &[1 << 60]).unwrap();
    }
    assert!(matches!(refused(writer.declare("8", Dtype::U8, &[1 << 60])), E::FileTooLarge { .. }));
    let mut metadata = |key: &[u8], value: &[u8]| refused(writer.metadata(key, value));
    assert!(matches!(metadata(b"key", b""), E::DuplicateMetadata { .. }));
    assert!(matches!(metadata(b"a\0b", b""), E::NulInName { .. }));
    assert!(matches!(metadata(b"a\xff", b""), E::Utf8 { what: "key", position: 1 }));
    assert!(matches!(metadata(b"a", b"\xff"), E::Utf8 { what: "value", position: 0 }));
    assert!(matches!(refused(writer.add("x", Dtype::U16, &[2], b"123")), E::Size { needed: 4, given: 3, .. }));
    // No disk has room for this, which is found before anything is written.
    assert!(matches!(writer.write("there", b"1"), Err(Error::Storage { .. })));
    assert!(matches!(refused(writer.finish()), E::Incomplete { tensors: 8, .. }));
}

#[test]
fn what_is_too_large_is_refused_at_once() {
    use WriterError as E;
    let folder = folder();
    let mut writer = Writer::create(folder.path().join("a"), quick()).unwrap();
    let value = "v".repeat(60_000_000);
    writer.metadata("one", &value).unwrap();
    assert!(matches!(refused(writer.metadata("two", &value)), E::HeaderTooLarge { .. }));
    assert!(matches!(refused(writer.declare(&value, Dtype::U8, &[])), E::HeaderTooLarge { .. }));
    writer.declare("small", Dtype::U8, &[1]).unwrap();
    // What was refused is not there.
    writer.metadata("two", "").unwrap();
    writer.write("small", b"1").unwrap();
    writer.finish().unwrap();
    let mut writer = Writer::create(folder.path().join("a"), WriterOptions { max_shard_bytes: 1, ..quick() }).unwrap();
    let names: Vec<String> = (0..=65_536).map(|i| i.to_string()).collect();
    let (last, others) = names.split_last().unwrap();
    others.iter().for_each(|name| writer.add(name, Dtype::U8, &[], b"1").unwrap());
    assert!(matches!(refused(writer.add(last, Dtype::U8, &[], b"1")), E::TooManyShards));
}

#[test]
fn the_first_piece_and_finish_fix_the_layout() {
    use WriterError as E;
    let folder = folder();
    let path = folder.path().join("a");
    let mut writer = Writer::create(&path, quick()).unwrap();
    writer.declare("a", Dtype::U8, &[4]).unwrap();
    writer.declare("b", Dtype::U8, &[2]).unwrap();
    writer.add("c", Dtype::U8, &[2], b"56").unwrap();
    assert!(matches!(refused(writer.write("c", b"")), E::NotDeclared { .. }));
    assert!(matches!(refused(writer.write("d", b"")), E::NotFound { .. }));
    assert!(matches!(refused(writer.write("a", b"12345")), E::TooMuch { written: 0, piece: 5, .. }));
    writer.metadata("not", "too late").unwrap();
    writer.write("a", b"123").unwrap();
    assert!(matches!(refused(writer.write("a", b"45")), E::TooMuch { written: 3, piece: 2, nbytes: 4, .. }));
    assert!(matches!(refused(writer.metadata("too", "late")), E::Sealed { what: "metadata" }));
    assert!(matches!(refused(writer.declare("x", Dtype::U8, &[])), E::Sealed { what: "tensor" }));
    assert!(matches!(refused(writer.add("x", Dtype::U8, &[], b"1")), E::Sealed { .. }));
    match refused(writer.finish()) {
        E::Incomplete { tensor, missing: 1, tensors: 2 } => assert_eq!(tensor, "a"),
        other => panic!("{other:?}"),
    }
    assert!(!path.exists());
    writer.write("b", b"xy").unwrap();
    writer.write("a", b"4").unwrap();
    writer.finish().unwrap();
    assert!(fs::read(&path).unwrap().ends_with(b"1234xy56"));
    assert!(matches!(refused(writer.finish()), E::Finished));
    assert!(matches!(refused(writer.write("a", b"")), E::Finished));
    assert!(matches!(refused(writer.metadata("too", "late")), E::Finished));
}

/// Writes a file of one tensor of these bytes.
fn write_small(path: &Path, bytes: &[u8]) {
    let mut writer = Writer::create(path, WriterOptions::default()).unwrap();
    writer.add("a", Dtype::U8, &[bytes.len() as u64], bytes).unwrap();
    writer.finish().unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn permissions_are_those_of_the_umask_or_of_the_file_that_is_replaced() {
    let folder = folder();
    let path = folder.path().join("a");
    fs::write(folder.path().join("other"), "").unwrap();
    write_small(&path, b"1");
    assert_eq!(mode(&path), mode(&folder.path().join("other")));
    for kept in [0o640, 0o600, 0o444, 0o777] {
        fs::set_permissions(&path, fs::Permissions::from_mode(kept)).unwrap();
        let mut writer = Writer::create(&path, quick()).unwrap();
        for name in names(folder.path()).iter().filter(|name| name.ends_with(".st-tmp")) {
            assert_eq!(mode(&folder.path().join(name)), 0o600);
        }
        writer.add("a", Dtype::U8, &[1], b"2").unwrap();
        writer.finish().unwrap();
        assert_eq!(mode(&path), kept);
    }
}

#[test]
fn links_are_replaced_themselves() {
    let folder = folder();
    let (path, other) = (folder.path().join("a"), folder.path().join("other"));
    fs::write(&other, "untouched").unwrap();
    for leads_to in ["other", "nowhere"] {
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(leads_to, &path).unwrap();
        write_small(&path, b"1");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
    }
    assert_eq!(fs::read(&other).unwrap(), b"untouched");
    assert_eq!(names(folder.path()), ["a", "other"]);
}

#[test]
fn nothing_is_left_of_a_writer_that_gives_up() {
    let folder = folder();
    let path = folder.path().join("a");
    fs::write(&path, "old").unwrap();
    for max_shard_bytes in [0, 1] {
        let mut writer = Writer::create(&path, WriterOptions { max_shard_bytes, ..quick() }).unwrap();
        drop(Writer::create(&path, quick()).unwrap());
        writer.declare("a", Dtype::U8, &[1]).unwrap();
        writer.declare("b", Dtype::U8, &[1]).unwrap();
        writer.write("a", b"1").unwrap();
        assert_eq!(names(folder.path()).len(), 2 + max_shard_bytes as usize);
        refused(writer.finish());
        drop(writer);
        assert_eq!(names(folder.path()), ["a"]);
    }
    assert_eq!(fs::read(&path).unwrap(), b"old");
}

#[test]
fn leftovers_of_the_dead_are_removed_and_others_stay() {
    let folder = folder();
    let path = folder.path().join("a.safetensors");
    let mut alive = Writer::create(&path, quick()).unwrap();
    alive.add("a", Dtype::U8, &[1], b"1").unwrap();
    let of_alive = names(folder.path());
    for name in [".a.safetensors.0123456789abcdef.st-tmp", ".b.safetensors.0123456789abcdef.st-tmp", ".a.safetensors.x"]
    {
        fs::write(folder.path().join(name), "left").unwrap();
    }
    std::os::unix::fs::symlink("nowhere", folder.path().join(".a.safetensors.1123456789abcdef.st-tmp")).unwrap();
    drop(Writer::create(&path, quick()).unwrap());
    let mut expected = [
        ".a.safetensors.1123456789abcdef.st-tmp",
        ".a.safetensors.x",
        ".b.safetensors.0123456789abcdef.st-tmp",
        of_alive[0].as_str(),
    ];
    expected.sort();
    assert_eq!(names(folder.path()), expected);
    alive.finish().unwrap();
    assert_holds(&path, &[(Tensor { name: "a".into(), dtype: Dtype::U8, shape: vec![1] }, b"1".to_vec())]);
}

#[test]
fn who_has_the_old_file_open_keeps_it() {
    let folder = folder();
    let path = folder.path().join("a");
    let old = vec![1; 100_000];
    write_small(&path, &old);
    let checkpoint = Checkpoint::open(&path, OpenOptions::default()).unwrap();
    write_small(&path, &vec![2; 50_000]);
    // SAFETY: the file is replaced, not changed.
    assert!(unsafe { checkpoint.tensor_ptr(0).unwrap().as_slice() } == old);
    assert_eq!(Checkpoint::open(&path, OpenOptions::default()).unwrap().tensor(0).unwrap().nbytes(), 50_000);
}

#[test]
fn names_up_to_the_longest_are_written() {
    let folder = folder();
    for name in ["x".repeat(255), "权".repeat(85)] {
        let path = folder.path().join(&name);
        write_small(&path, b"1");
        assert!(path.exists());
    }
    assert!(Writer::create(folder.path().join("x".repeat(256)), quick()).is_err());
}

/// A sharded checkpoint of `len` tensors, each a shard of its own, whose bytes are all `byte`.
fn write_sharded(path: &Path, len: usize, byte: u8) {
    let bytes = [byte; 8];
    let mut writer = Writer::create(path, WriterOptions { max_shard_bytes: 8, ..quick() }).unwrap();
    let names: Vec<String> = (0..len).map(|i| format!("t{i}")).collect();
    names.iter().for_each(|name| writer.add(name, Dtype::U8, &[8], &bytes).unwrap());
    writer.finish().unwrap();
}

fn assert_sharded(path: &Path, len: usize, byte: u8) {
    let tensor = |i| (Tensor { name: format!("t{i}"), dtype: Dtype::U8, shape: vec![8] }, vec![byte; 8]);
    assert_holds(path, &(0..len).map(tensor).collect::<Vec<_>>());
}

#[test]
fn sharded_checkpoints_replace_one_another() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let index: PathBuf = folder.path().join("model.safetensors.index.json");
    for (generation, len) in [3, 3, 5, 2, 2, 1, 4].into_iter().enumerate() {
        fs::write(folder.path().join("model-00001-of-00009.safetensors"), "of somebody else").unwrap();
        write_sharded(&path, len, generation as u8);
        fs::remove_file(folder.path().join("model-00001-of-00009.safetensors")).unwrap();
        if len == 1 {
            // The index stays, and names the file: beside the file of somebody else a reader of the directory needs it.
            assert_sharded(&path, 1, generation as u8);
            assert_sharded(&index, 1, generation as u8);
            assert_sharded(folder.path(), 1, generation as u8);
            assert_eq!(names(folder.path()), ["model.safetensors", "model.safetensors.index.json"]);
        } else {
            assert_sharded(&index, len, generation as u8);
            assert_eq!(names(folder.path()).len(), len + 1, "{:?}", names(folder.path()));
        }
    }
}

#[test]
fn writers_of_the_same_path_do_not_disturb_each_other() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let path = &path;
            scope.spawn(move || (0..8).for_each(|round| write_sharded(path, 3, thread * 8 + round)));
        }
    });
    let index = folder.path().join("model.safetensors.index.json");
    let shard = fs::read(folder.path().join(shard_name(0, 3))).unwrap();
    assert_sharded(&index, 3, *shard.last().unwrap());
    assert_eq!(names(folder.path()).len(), 4, "{:?}", names(folder.path()));
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let path = &path;
            scope.spawn(move || (0..8).for_each(|_| write_small(path, &[thread; 1000])));
        }
    });
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.ends_with(&[*bytes.last().unwrap(); 1000]));
    // The index of the shards would say something else than the file: both are gone.
    assert_eq!(names(folder.path()), ["model.safetensors"]);
    // A file and shards of one path: in the end there is one of both, and nothing of the other.
    std::thread::scope(|scope| {
        for thread in 0..4u8 {
            let path = &path;
            scope.spawn(move || {
                (0..16).for_each(|round| match (thread + round) % 2 {
                    0 => write_small(path, &[thread; 1000]),
                    _ => write_sharded(path, 3, thread),
                })
            });
        }
    });
    let left = names(folder.path());
    assert!(left == ["model.safetensors"] || left.len() == 4 && !path.exists(), "{left:?}");
}

#[test]
fn a_task_ends_finish_in_the_middle() {
    let folder = folder();
    let path = folder.path().join("a");
    let memory = data(64 << 20);
    let task = Arc::<Task>::default();
    let mut writer = Writer::create(&path, WriterOptions { task: Arc::clone(&task), ..quick() }).unwrap();
    for i in 0..16 {
        writer.add(format!("t{i}"), Dtype::U8, &[memory.len() as u64], &memory).unwrap();
    }
    let canceller = std::thread::spawn(move || {
        while task.progress().bytes_done == 0 {
            std::thread::yield_now();
        }
        task.cancel();
        task
    });
    let done = writer.finish();
    assert!(matches!(done, Err(Error::Cancelled)));
    let progress = canceller.join().unwrap().progress();
    assert!(progress.bytes_done < progress.bytes_total && progress.bytes_total == 16 * memory.len() as u64);
    drop(writer);
    assert!(names(folder.path()).is_empty());
}

/// As a program does that locks the folder for reasons of its own; and a writer of one file need not care.
#[test]
fn folders_that_are_locked_are_not_waited_for_after_cancelling() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let locked = fs::File::open(folder.path()).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::flock(std::os::fd::AsRawFd::as_raw_fd(&locked), libc::LOCK_EX) }, 0);
    // Of one file as of several: without the lock a writer of shards could leave its index beside the file.
    for tensors in [&["a"][..], &["a", "b"]] {
        let task = Arc::<Task>::default();
        let options = WriterOptions { max_shard_bytes: 1, task: Arc::clone(&task), ..quick() };
        let mut writer = Writer::create(&path, options).unwrap();
        tensors.iter().for_each(|name| writer.add(name, Dtype::U8, &[1], b"1").unwrap());
        let canceller = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(50));
            task.cancel();
        });
        assert!(matches!(writer.finish(), Err(Error::Cancelled)));
        canceller.join().unwrap();
        drop(writer);
        assert!(names(folder.path()).is_empty());
    }
    drop(locked);
    write_small(&path, b"1");
    write_sharded(&path, 2, 1);
}

/// What they were given to is not what has come in its place.
#[test]
fn special_permissions_are_not_passed_on() {
    let folder = folder();
    let path = folder.path().join("a");
    write_small(&path, b"1");
    for (special, plain) in [(0o4755, 0o755), (0o2750, 0o750), (0o1644, 0o644), (0o7600, 0o600)] {
        fs::set_permissions(&path, fs::Permissions::from_mode(special)).unwrap();
        write_small(&path, b"2");
        assert_eq!(mode(&path), plain);
    }
}

/// Files of new names get what those before them have in common, others what is theirs.
#[test]
fn shards_of_a_private_checkpoint_stay_private() {
    for (old, new) in [(3, 4), (3, 3), (3, 1), (1, 3)] {
        let folder = folder();
        let path = folder.path().join("model.safetensors");
        write_sharded(&path, old, 1);
        let before = names(folder.path());
        for (i, name) in before.iter().enumerate() {
            let mode = if i == 1 { 0o644 } else { 0o640 };
            fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        write_sharded(&path, new, 2);
        for name in names(folder.path()) {
            let kept = before.get(1) == Some(&name);
            assert_eq!(mode(&folder.path().join(&name)), if kept { 0o644 } else { 0o640 }, "{old} {new} {name}");
        }
    }
}

/// An index that a writer has left in the middle says what is to be removed, and nothing else is.
#[test]
fn what_an_index_in_between_lists_is_removed() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    write_sharded(&path, 3, 1);
    let index = folder.path().join("model.safetensors.index.json");
    let mut text: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    let others = ["other.safetensors", "model-00007-of-00009.safetensors", "sub/model-00001-of-00009.safetensors"];
    let listed =
        ["model-00008-of-00009.safetensors", "other.safetensors", "../x", "sub/model-00001-of-00009.safetensors"];
    text["metadata"]["safetensors_lazy.unnamed"] = listed.into();
    fs::write(&index, text.to_string()).unwrap();
    fs::create_dir(folder.path().join("sub")).unwrap();
    for name in others.iter().chain(&listed[..1]) {
        fs::write(folder.path().join(name), "of somebody").unwrap();
    }
    assert_sharded(&index, 3, 1);
    write_sharded(&path, 2, 2);
    assert!(others.iter().all(|name| folder.path().join(name).exists()));
    assert_eq!(names(folder.path()).len(), 3 + 3);
    assert_sharded(&index, 2, 2);
}
