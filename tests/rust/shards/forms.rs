//! Sharded checkpoints of every form against a model of one file that is too simple to be wrong.

use super::{metadata, pointed_to, shard_paths, write_at};
use crate::sample::{self, name, tensors, Tensor};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use safetensors::tensor::TensorView;
use safetensors_lazy::{Checkpoint, OpenOptions};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;

/// How a checkpoint says what belongs to it.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// An index of Hugging Face's.
    Index { pretty: bool, sorted: bool },
    /// MindSpore's map without anything around it.
    BareMap,
    /// Nothing but the names of the shards.
    Numbers,
}

fn form() -> impl Strategy<Value = Form> {
    let index = (any::<bool>(), any::<bool>()).prop_map(|(pretty, sorted)| Form::Index { pretty, sorted });
    prop_oneof![2 => index, 1 => Just(Form::BareMap), 1 => Just(Form::Numbers)]
}

/// Tensors, the shard of each, each shard's metadata, and the form.
#[derive(Clone, Debug)]
struct Dealt {
    tensors: Vec<Tensor>,
    shard_of: Vec<usize>,
    metadata: Vec<Option<BTreeMap<String, String>>>,
    form: Form,
}

fn dealt() -> impl Strategy<Value = Dealt> {
    // Not empty: the reference writes that in a way that nobody can read, where there is no tensor either.
    let metadata = || proptest::option::of(btree_map("[abc]|format", "[xy]", 1..4));
    (1..5usize, form()).prop_flat_map(move |(shards, form)| {
        (tensors(), vec(0..shards, 7), vec(metadata(), shards)).prop_map(move |(tensors, shard_of, metadata)| Dealt {
            tensors,
            shard_of,
            metadata,
            form,
        })
    })
}

impl Dealt {
    /// In byte order, whatever the form.
    fn shard_name(&self, shard: usize) -> String {
        let count = self.metadata.len();
        match self.form {
            Form::Numbers => format!("m-1-{:05}-of-{count:05}.safetensors", shard + 1),
            _ => ["a b.safetensors", "b/1.safetensors", "c/2.safetensors", "权.safetensors"][shard].to_owned(),
        }
    }

    fn data(&self, tensor: usize) -> Vec<u8> {
        let nbytes = self.tensors[tensor].nbytes();
        // Other bytes for each tensor.
        sample::data(nbytes + 256).split_off(tensor * 31)[..nbytes].to_vec()
    }

    fn write(&self, folder: &Path) {
        for (shard, metadata) in self.metadata.iter().enumerate() {
            let held: Vec<usize> = (0..self.tensors.len()).filter(|tensor| self.shard_of[*tensor] == shard).collect();
            let data: Vec<Vec<u8>> = held.iter().map(|tensor| self.data(*tensor)).collect();
            let view = |(tensor, data)| {
                let Tensor { name, dtype, shape }: &Tensor = &self.tensors[tensor];
                let dtype = serde_json::from_value(dtype.name().into()).unwrap();
                let shape = shape.iter().map(|dim| *dim as usize).collect();
                (name, TensorView::new(dtype, shape, data).unwrap())
            };
            let views = held.into_iter().zip(data.iter().map(Vec::as_slice)).map(view);
            let metadata: Option<HashMap<_, _>> = metadata.clone().map(|map| map.into_iter().collect());
            write_at(&folder.join(self.shard_name(shard)), safetensors::serialize(views, metadata).unwrap());
        }
        let mut map: Vec<(&String, String)> = self
            .tensors
            .iter()
            .zip(&self.shard_of)
            .map(|(tensor, shard)| (&tensor.name, self.shard_name(*shard)))
            .collect();
        let text = match self.form {
            Form::Numbers => return,
            Form::BareMap => object(&map),
            Form::Index { pretty, sorted } => {
                if sorted {
                    map.sort();
                }
                let text = format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{}}}"#, object(&map));
                match pretty {
                    true => {
                        serde_json::to_string_pretty(&serde_json::from_str::<Map<_, Value>>(&text).unwrap()).unwrap()
                    }
                    false => text,
                }
            }
        };
        fs::write(folder.join(self.index_name().unwrap()), text).unwrap();
    }

    fn index_name(&self) -> Option<&'static str> {
        match self.form {
            Form::Numbers => None,
            Form::BareMap => Some("param_name_map.json"),
            Form::Index { .. } => Some("model.safetensors.index.json"),
        }
    }

    /// The shards that belong to the checkpoint: an index names those that hold something.
    fn shards(&self) -> Vec<usize> {
        let is_named = |shard: &usize| match self.form {
            Form::Numbers => true,
            _ => self.shard_of[..self.tensors.len()].contains(shard),
        };
        (0..self.metadata.len()).filter(is_named).collect()
    }
}

/// In the order that is given, which a map of serde_json's would not keep.
fn object(map: &[(&String, String)]) -> String {
    let entry = |(name, shard): &(&String, String)| format!("{}:{}", Value::from(&***name), Value::from(&**shard));
    format!("{{{}}}", map.iter().map(entry).collect::<Vec<_>>().join(","))
}

/// Holds a checkpoint against what was dealt.
fn is_what_was_dealt(checkpoint: &Checkpoint, dealt: &Dealt, folder: &Path) -> Result<(), TestCaseError> {
    let shards = dealt.shards();
    prop_assert_eq!(checkpoint.len(), dealt.tensors.len());
    let paths: Vec<_> = shards.iter().map(|shard| folder.join(dealt.shard_name(*shard))).collect();
    prop_assert_eq!(shard_paths(checkpoint), paths);
    for (number, expected) in dealt.tensors.iter().enumerate() {
        let index = checkpoint.find(&expected.name).unwrap();
        let tensor = checkpoint.tensor(index).unwrap();
        prop_assert_eq!((tensor.index(), tensor.name()), (index, &*expected.name));
        prop_assert_eq!((tensor.dtype(), tensor.shape()), (expected.dtype, &expected.shape[..]));
        prop_assert_eq!(shards[tensor.shard()], dealt.shard_of[number]);
        let data = dealt.data(number);
        prop_assert_eq!(&pointed_to(checkpoint, index), &data);
        let mut read = vec![MaybeUninit::new(0xaa); data.len()];
        checkpoint.tensor_read(index, &[], &mut read).unwrap();
        // SAFETY: initialised from the start.
        let read: Vec<u8> = read.into_iter().map(|byte| unsafe { byte.assume_init() }).collect();
        prop_assert_eq!(&read, &data);
        // Where it says, in the shard that it says.
        let file = fs::read(folder.join(dealt.shard_name(dealt.shard_of[number]))).unwrap();
        prop_assert_eq!(&file[tensor.file_offset() as usize..][..data.len()], data);
    }
    // Numbered through the shards, and in each as the data lies.
    let places: Vec<_> = checkpoint.tensors().map(|tensor| (tensor.shard(), tensor.file_offset())).collect();
    prop_assert!(places.is_sorted());
    Ok(())
}

fn look_ups_agree(checkpoint: &Checkpoint, dealt: &Dealt, wanted: &str) -> Result<(), TestCaseError> {
    let mut expected: Vec<&str> = dealt.tensors.iter().map(|tensor| &*tensor.name).collect();
    expected.retain(|name| name.starts_with(wanted));
    expected.sort();
    let name_of = |index: &usize| checkpoint.tensor(*index).unwrap().name();
    let found: Vec<&str> = checkpoint.find_prefix(wanted).unwrap().iter().map(name_of).collect();
    prop_assert_eq!(&found, &expected);
    prop_assert_eq!(checkpoint.find(wanted).is_some(), expected.contains(&wanted));
    let keys = checkpoint.c_names().unwrap();
    prop_assert_eq!(keys.len(), dealt.tensors.len());
    for (tensor, key) in checkpoint.tensors().zip(keys) {
        prop_assert_eq!(tensor.name_bytes().as_ptr().cast(), *key);
    }
    Ok(())
}

fn metadata_agrees(checkpoint: &Checkpoint, dealt: &Dealt) -> Result<(), TestCaseError> {
    let (mut merged, mut conflicts) = (HashMap::new(), 0);
    for shard in dealt.shards() {
        for (key, value) in dealt.metadata[shard].iter().flatten() {
            let first = merged.entry(key.clone()).or_insert(value.clone());
            conflicts += u64::from(first != value);
        }
    }
    for (key, value) in &merged {
        prop_assert_eq!(checkpoint.metadata_get(key), Some(value.as_bytes()));
    }
    prop_assert_eq!(checkpoint.metadata_get("none"), None);
    prop_assert_eq!(metadata(checkpoint), merged);
    prop_assert_eq!(checkpoint.info().metadata_conflicts, conflicts);
    Ok(())
}

fn sums_agree(checkpoint: &Checkpoint, dealt: &Dealt, folder: &Path) -> Result<(), TestCaseError> {
    let info = checkpoint.info();
    let size = |shard: &usize| fs::metadata(folder.join(dealt.shard_name(*shard))).unwrap().len();
    prop_assert_eq!(info.file_bytes, dealt.shards().iter().map(size).sum::<u64>());
    prop_assert_eq!(info.tensor_bytes, dealt.tensors.iter().map(|tensor| tensor.nbytes() as u64).sum::<u64>());
    prop_assert_eq!(info.header_bytes + 8 * dealt.shards().len() as u64 + info.tensor_bytes, info.file_bytes);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn shards_are_as_one_file(dealt in dealt(), wanted in prop_oneof![name(), "model|m|l|layers.[0-9]|"]) {
        // An index that names nothing is none.
        if dealt.tensors.is_empty() && dealt.index_name().is_some() {
            return Ok(());
        }
        let folder = tempfile::tempdir().unwrap();
        dealt.write(folder.path());
        for path in [Some(""), dealt.index_name()].into_iter().flatten() {
            let checkpoint = Checkpoint::open(folder.path().join(path), OpenOptions::default()).unwrap();
            is_what_was_dealt(&checkpoint, &dealt, folder.path())?;
            look_ups_agree(&checkpoint, &dealt, &wanted)?;
            metadata_agrees(&checkpoint, &dealt)?;
            sums_agree(&checkpoint, &dealt, folder.path())?;
        }
    }
}

/// What else may lie in a folder of Hugging Face's without being part of the checkpoint.
#[test]
fn other_files_in_the_folder_do_not_matter() {
    let model = super::Model::new();
    let beside = [
        "config.json",
        "tokenizer.json",
        "README.md",
        ".cache/x",
        ".hidden.safetensors",
        ".x.index.json",
        "model.safetensors.bak",
        "pytorch_model.bin.index.json",
        "tf_model.h5.index.json",
        "flax_model.msgpack.index.json",
        "model.safetensors.index.json.lock",
        "consolidated.safetensors",
        "onnx/model.safetensors",
    ];
    for name in beside {
        write_at(&model.path(name), "not a checkpoint");
        model.opens();
    }
}

#[test]
fn folder_with_several_checkpoints_names_two() {
    let model = super::Model::new();
    write_at(&model.path("model.fp16.safetensors.index.json"), "{}");
    let failure = crate::c_api::open(&model.folder).unwrap_err();
    assert_eq!(failure.status, "ST_ERR_FOLDER_AMBIGUOUS");
    for name in [super::INDEX, "model.fp16.safetensors.index.json", "/model\""] {
        assert!(failure.message.contains(name), "{failure:?}");
    }
    assert!(crate::c_api::open(&model.path(super::INDEX)).is_ok());
}
