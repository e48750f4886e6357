//! Checkpoints of several files: found, opened, told apart, refused.

mod broken;
mod forms;
mod leaks;
mod mindspore;
mod order;
mod places;

use crate::c_api::{open_with, Failure};
use safetensors::tensor::TensorView;
use safetensors_lazy::Checkpoint;
use serde_json::{json, Value};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";

/// A checkpoint of three shards that a test damages. Shard k holds `k.bias` and `k.weight`.
struct Model {
    /// Goes with the model.
    _above: TempDir,
    folder: PathBuf,
}

impl Model {
    fn new() -> Model {
        let above = tempfile::tempdir().unwrap();
        let model = Model { folder: above.path().join("model"), _above: above };
        fs::create_dir(&model.folder).unwrap();
        for number in 1..=3 {
            model.write(number, &tensors_of(number));
        }
        model.write_index(&entries());
        model
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A place that is not in the model's folder.
    fn above(&self, name: &str) -> PathBuf {
        self.folder.with_file_name(name)
    }

    fn write(&self, number: usize, names: &[String]) {
        fs::write(self.path(&shard(number)), file_of(names)).unwrap();
    }

    fn write_index(&self, entries: &[(String, String)]) {
        self.write_index_text(index_text(entries));
    }

    fn write_index_text(&self, text: impl AsRef<[u8]>) {
        fs::write(self.path(INDEX), text).unwrap();
    }

    /// What becomes of opening the folder. Opening the index must come to the same.
    fn open(&self) -> Result<(), Failure> {
        self.open_with(0)
    }

    fn open_with(&self, flags: u32) -> Result<(), Failure> {
        let by_folder = open_with(&self.folder, flags).map(drop);
        let by_index = open_with(&self.path(INDEX), flags).map(drop);
        assert_eq!(by_folder.as_ref().err().map(|e| e.status), by_index.as_ref().err().map(|e| e.status));
        by_folder
    }

    /// Checks that opening fails with this status and names these things.
    fn refuses(&self, status: &str, named: &[&str]) {
        let Err(failure) = self.open() else { panic!("opened, not {status} {named:?}") };
        assert_eq!(failure.status, status, "{failure:?}");
        for name in named {
            assert!(failure.message.contains(name), "{name} is not in {failure:?}");
        }
        assert!(failure.message.len() < 503, "{failure:?}");
    }

    fn opens(&self) {
        self.open().unwrap_or_else(|failure| panic!("{failure:?}"));
    }
}

fn shard(number: usize) -> String {
    format!("model-{number:05}-of-00003.safetensors")
}

fn tensors_of(number: usize) -> Vec<String> {
    vec![format!("{number}.bias"), format!("{number}.weight")]
}

/// What the index of a sound model says.
fn entries() -> Vec<(String, String)> {
    (1..=3).flat_map(|number| tensors_of(number).into_iter().map(move |name| (name, shard(number)))).collect()
}

/// As a writer of JSON would not spell it: with names twice, if need be.
fn index_text(entries: &[(String, String)]) -> String {
    let entry = |(name, shard): &(String, String)| format!("{}:{}", Value::from(&**name), Value::from(&**shard));
    let entries: Vec<String> = entries.iter().map(entry).collect();
    format!(r#"{{"metadata":{},"weight_map":{{{}}}}}"#, json!({ "total_size": 24 }), entries.join(","))
}

/// A file of tensors of four bytes, which are the last of their names.
fn file_of(names: &[String]) -> Vec<u8> {
    let data = |name: &String| -> Vec<u8> { [0; 4].into_iter().chain(name.bytes()).rev().take(4).collect() };
    let tensors: Vec<(&String, Vec<u8>)> = names.iter().map(|name| (name, data(name))).collect();
    let view = |bytes| TensorView::new(safetensors::Dtype::U8, vec![4], bytes).unwrap();
    safetensors::serialize(tensors.iter().map(|(name, data)| (name, view(data))), None).unwrap()
}

/// The bytes of a tensor, by pointer.
fn pointed_to(checkpoint: &Checkpoint, index: usize) -> Vec<u8> {
    // SAFETY: nobody changes the file at this moment.
    unsafe { checkpoint.tensor_ptr(index).unwrap().as_slice() }.to_vec()
}

fn names(checkpoint: &Checkpoint) -> Vec<String> {
    checkpoint.tensors().map(|tensor| tensor.name().to_owned()).collect()
}

/// The paths of all shards.
fn shard_paths(checkpoint: &Checkpoint) -> Vec<PathBuf> {
    let path = |number| PathBuf::from(checkpoint.shard_path(number).unwrap().to_str().unwrap());
    assert!(checkpoint.shard_path(checkpoint.shard_len()).is_none());
    (0..checkpoint.shard_len()).map(path).collect()
}

fn metadata(checkpoint: &Checkpoint) -> HashMap<String, String> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let entry = |i| checkpoint.metadata(i).map(|(key, value)| (text(key), text(value))).unwrap();
    (0..checkpoint.metadata_len()).map(entry).collect()
}

fn write_at(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
