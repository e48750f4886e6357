//! What MindSpore made of eight ranks' files. Their origin is in `tests/data/mindspore/README.md`.

use super::{metadata, names, pointed_to, shard_paths};
use safetensors::SafeTensors;
use safetensors_lazy::{Checkpoint, OpenOptions};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

const FOLDERS: [(&str, usize); 2] = [("unified", 1), ("unified_3parts", 3)];

fn folder(name: &str) -> PathBuf {
    Path::new("tests/data/mindspore/distributed").join(name)
}

fn open(path: impl AsRef<Path>) -> Checkpoint {
    Checkpoint::open(path, OpenOptions::default()).unwrap()
}

/// Checks that a checkpoint is the model before it was cut, and what no strategy mentions, in so many parts.
fn is_whole(checkpoint: &Checkpoint, at: &Path, parts: usize) {
    let files = [fs::read(folder("full.safetensors")).unwrap(), fs::read(at.join("hyper_param.safetensors")).unwrap()];
    let references = files.each_ref().map(|file| SafeTensors::deserialize(file).unwrap());
    assert_eq!((references[0].len(), references[1].len()), (4, 2));
    assert_eq!(checkpoint.len(), 6);
    for (number, reference) in references.iter().enumerate() {
        for (name, expected) in reference.tensors() {
            let tensor = checkpoint.tensor(checkpoint.find(&name).unwrap()).unwrap();
            let shape: Vec<usize> = tensor.shape().iter().map(|dim| *dim as usize).collect();
            assert_eq!((tensor.dtype().name(), &shape[..]), (&*expected.dtype().to_string(), expected.shape()));
            assert_eq!(pointed_to(checkpoint, tensor.index()), expected.data(), "{name}");
            // Those of the map first, what MindSpore puts beside last.
            assert_eq!(tensor.shard() == parts, number == 1, "{name}");
        }
    }
    let mut expected: Vec<PathBuf> = (0..parts).map(|part| at.join(format!("part{part}.safetensors"))).collect();
    expected.push(at.join("hyper_param.safetensors"));
    assert_eq!(shard_paths(checkpoint), expected);
    // Written with a stale sum, which is none of ours to mend: all parts agree on it.
    let expected = [("format", "ms"), ("crc_num", "1209533350")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert_eq!(metadata(checkpoint), HashMap::from(expected));
    assert_eq!(checkpoint.info().metadata_conflicts, 0);
    let sizes = |path: &PathBuf| fs::metadata(path).unwrap().len();
    assert_eq!(checkpoint.info().file_bytes, shard_paths(checkpoint).iter().map(sizes).sum::<u64>());
}

#[test]
fn unified_folders_are_the_model_before_it_was_cut() {
    for (name, parts) in FOLDERS {
        let at = folder(name);
        is_whole(&open(&at), &at, parts);
        is_whole(&open(at.join("param_name_map.json")), &at, parts);
    }
}

#[test]
fn unified_folders_have_their_tensors_where_the_map_says() {
    for (name, _) in FOLDERS {
        let map: Value = serde_json::from_slice(&fs::read(folder(name).join("param_name_map.json")).unwrap()).unwrap();
        let checkpoint = open(folder(name));
        for (tensor, shard) in map["weight_map"].as_object().unwrap() {
            let number = checkpoint.tensor(checkpoint.find(tensor).unwrap()).unwrap().shard();
            assert_eq!(shard_paths(&checkpoint)[number], folder(name).join(shard.as_str().unwrap()), "{tensor}");
        }
    }
}

/// A folder with copies of a unified folder's files.
fn copy(name: &str) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.path().join(entry.file_name())).unwrap();
    }
    to
}

/// MindSpore also reads a map alone.
#[test]
fn unified_folders_with_the_bare_map() {
    for (name, parts) in FOLDERS {
        let copy = copy(name);
        let path = copy.path().join("param_name_map.json");
        let map: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for text in [map["weight_map"].to_string(), serde_json::to_string_pretty(&map["weight_map"]).unwrap()] {
            fs::write(&path, text).unwrap();
            is_whole(&open(copy.path()), copy.path(), parts);
            is_whole(&open(&path), copy.path(), parts);
        }
    }
}

/// MindSpore does without the map where there is one part.
#[test]
fn unified_folder_without_the_map() {
    let copy = copy("unified");
    fs::remove_file(copy.path().join("param_name_map.json")).unwrap();
    let checkpoint = open(copy.path());
    let mut found = names(&checkpoint);
    found.sort();
    assert_eq!(found.len(), 6);
    assert_eq!(checkpoint.shard_len(), 2);
    // Which part is which cannot be known of three.
    let copy = self::copy("unified_3parts");
    fs::remove_file(copy.path().join("param_name_map.json")).unwrap();
    let error = Checkpoint::open(copy.path(), OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("part0.safetensors") && error.contains("part1.safetensors"), "{error}");
}

#[test]
fn hyper_param_that_the_map_names_is_opened_once() {
    let copy = copy("unified");
    let path = copy.path().join("param_name_map.json");
    let mut map: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for spelled in ["hyper_param.safetensors", "./hyper_param.safetensors"] {
        for tensor in ["global_step", "learning_rate"] {
            map["weight_map"][tensor] = spelled.into();
        }
        fs::write(&path, map.to_string()).unwrap();
        let checkpoint = open(copy.path());
        assert_eq!((checkpoint.len(), checkpoint.shard_len()), (6, 2), "{spelled}");
    }
    // Named, it has to be named with all it holds.
    map["weight_map"].as_object_mut().unwrap().remove("global_step");
    fs::write(&path, map.to_string()).unwrap();
    let error = Checkpoint::open(copy.path(), OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("lacks tensor \"global_step\""), "{error}");
}

/// It goes with MindSpore's map, and with no other.
#[test]
fn hyper_param_beside_another_index_is_left_alone() {
    let copy = copy("unified");
    let other = copy.path().join("model.safetensors.index.json");
    fs::rename(copy.path().join("param_name_map.json"), &other).unwrap();
    assert_eq!(open(copy.path()).len(), 4);
    assert_eq!(open(&other).len(), 4);
}

#[test]
fn hyper_param_that_is_absent_or_broken() {
    let copy = copy("unified");
    let path = copy.path().join("hyper_param.safetensors");
    fs::write(&path, b"\x02\0\0\0\0\0\0\0{").unwrap();
    let error = Checkpoint::open(copy.path(), OpenOptions::default()).unwrap_err().to_string();
    assert!(error.contains("hyper_param.safetensors"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(open(copy.path()).len(), 4);
}
