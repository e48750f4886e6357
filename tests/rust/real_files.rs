//! Files that MindSpore wrote, against what a reader of another kind found in them. Their origin is in
//! `tests/data/mindspore/README.md`.

use crate::reference::{check, Verdict};
use safetensors::SafeTensors;
use safetensors_lazy::{Checkpoint, OpenOptions};
use serde_json::Value;
use std::fs;

const FILES: [&str; 5] = [
    "crc_mixed.safetensors",
    "crc_names.safetensors",
    "crc_scalar.safetensors",
    "dense_crc.safetensors",
    "mixed_bf16.safetensors",
];

fn path(name: &str) -> String {
    format!("tests/data/mindspore/{name}")
}

#[test]
fn files_of_mindspore_hold_what_is_written_down() {
    let expected: Value = serde_json::from_str(&fs::read_to_string(path("expected.json")).unwrap()).unwrap();
    for file in FILES {
        let expected = &expected[file];
        let checkpoint = Checkpoint::open(path(file), OpenOptions::default()).unwrap();
        assert_eq!(Some(checkpoint.info().file_bytes), expected["bytes"].as_u64(), "{file}");

        let tensors = expected["tensors"].as_array().unwrap();
        assert_eq!(checkpoint.len(), tensors.len(), "{file}");
        // Written down in byte order of the names, which is that of an empty prefix.
        for (index, expected) in checkpoint.find_prefix("").unwrap().iter().zip(tensors) {
            let tensor = checkpoint.tensor(*index).unwrap();
            let shape: Vec<u64> = expected["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).collect();
            assert_eq!(Some(tensor.name()), expected["name"].as_str(), "{file}");
            assert_eq!(Some(tensor.dtype().name()), expected["dtype"].as_str(), "{file} {}", tensor.name());
            assert_eq!(tensor.shape(), shape, "{file} {}", tensor.name());
        }

        let metadata = expected["metadata"].as_object().unwrap();
        assert_eq!(checkpoint.metadata_len(), metadata.len(), "{file}");
        for (key, value) in metadata {
            assert_eq!(checkpoint.metadata_get(key), value.as_str().map(str::as_bytes), "{file} {key}");
        }
    }
}

#[test]
fn files_of_mindspore_have_the_bytes_that_the_reference_reads() {
    for file in FILES {
        let bytes = fs::read(path(file)).unwrap();
        assert_eq!(check(&bytes), Ok(Verdict::Accepted), "{file}");
        let reference = SafeTensors::deserialize(&bytes).unwrap();
        let checkpoint = Checkpoint::open(path(file), OpenOptions::default()).unwrap();
        for tensor in checkpoint.tensors() {
            let ours = checkpoint.tensor_ptr(tensor.index()).unwrap();
            // SAFETY: nobody writes to the files of the tests.
            let ours = unsafe { ours.as_slice() };
            assert_eq!(ours, reference.tensor(tensor.name()).unwrap().data(), "{file} {}", tensor.name());
        }
    }
}
