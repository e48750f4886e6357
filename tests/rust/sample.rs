//! Valid files: what writers write, and what the format allows besides.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use safetensors_lazy::Dtype;
use std::fmt::Write;

/// A valid file, before it is spelled out.
#[derive(Clone, Debug)]
pub struct Sample {
    /// In the order of their data.
    pub tensors: Vec<Tensor>,
    /// The order in which the header lists them.
    pub order: Vec<usize>,
    pub metadata: Option<Vec<(String, String)>>,
    pub spelling: Spelling,
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
}

/// The many ways to write one header down.
#[derive(Clone, Copy, Debug)]
pub struct Spelling {
    pub form: Form,
    pub white_space: bool,
    pub escapes: bool,
    pub metadata_last: bool,
    /// Spaces after the header.
    pub padding: usize,
}

/// How a tensor is described.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    Canonical,
    OtherOrder,
    Array,
    DtypeObject,
    UnknownField,
}

impl Tensor {
    pub fn nbytes(&self) -> usize {
        self.shape.iter().product::<u64>() as usize * self.dtype.bits() as usize / 8
    }
}

impl Sample {
    pub fn header(&self) -> String {
        let mut entries = Vec::new();
        let mut offset = 0;
        for tensor in &self.tensors {
            let stop = offset + tensor.nbytes();
            entries.push(format!(
                "{}:{}{}",
                self.spelling.string(&tensor.name),
                self.spelling.space(),
                self.spelling.description(tensor, offset, stop)
            ));
            offset = stop;
        }
        let mut entries: Vec<String> = self.order.iter().map(|index| entries[*index].clone()).collect();
        if let Some(metadata) = &self.metadata {
            let at = if self.spelling.metadata_last { entries.len() } else { 0 };
            entries.insert(at, self.metadata_entry(metadata));
        }
        let space = self.spelling.space();
        let separator = format!(",{space}");
        format!("{space}{{{space}{}}}{}", entries.join(&separator), " ".repeat(self.spelling.padding))
    }

    pub fn file(&self) -> Vec<u8> {
        let nbytes: usize = self.tensors.iter().map(Tensor::nbytes).sum();
        file(self.header().as_bytes(), &data(nbytes))
    }

    fn metadata_entry(&self, metadata: &[(String, String)]) -> String {
        let pair = |(key, value): &(String, String)| {
            format!("{}:{}{}", self.spelling.string(key), self.spelling.space(), self.spelling.string(value))
        };
        let pairs: Vec<String> = metadata.iter().map(pair).collect();
        format!("{}:{{{}}}", self.spelling.string("__metadata__"), pairs.join(","))
    }
}

impl Spelling {
    fn space(&self) -> &'static str {
        match self.white_space {
            true => " \n\t\r",
            false => "",
        }
    }

    fn string(&self, text: &str) -> String {
        if !self.escapes {
            return serde_json::to_string(text).unwrap();
        }
        let mut escaped = String::from("\"");
        for unit in text.encode_utf16() {
            write!(escaped, "\\u{unit:04x}").unwrap();
        }
        escaped + "\""
    }

    fn description(&self, tensor: &Tensor, start: usize, stop: usize) -> String {
        let Tensor { dtype, shape, .. } = tensor;
        let space = self.space();
        match self.form {
            Form::Canonical => {
                format!(r#"{{"dtype":"{dtype}",{space}"shape":{shape:?},"data_offsets":[{start},{stop}]}}"#)
                    .replace(", ", ",")
            }
            Form::OtherOrder => {
                format!(r#"{{"data_offsets":[{start},{stop}],{space}"shape":{shape:?},"dtype":"{dtype}"}}"#)
            }
            Form::Array => format!(r#"["{dtype}",{space}{shape:?},[{start},{stop}]]"#),
            Form::DtypeObject => {
                format!(r#"{{"dtype":{{"{dtype}":null}},"shape":{shape:?},"data_offsets":[{start},{stop}]}}"#)
            }
            Form::UnknownField => format!(
                r#"{{"x":[null,-1.5e3,{{"dtype":0,"dtype":true}}],"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{stop}]}}"#
            ),
        }
    }
}

/// A file of that header and that data.
pub fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Bytes of which no two stretches are alike, so that a wrong offset shows.
pub fn data(nbytes: usize) -> Vec<u8> {
    (0..nbytes).map(|i| (i ^ (i >> 8).wrapping_mul(37)) as u8).collect()
}

/// Any valid file of up to 6 tensors.
pub fn sample() -> impl Strategy<Value = Sample> {
    let metadata = btree_map(key(), any::<String>(), 0..4).prop_map(|map| map.into_iter().collect());
    (tensors(), proptest::option::of(metadata), spelling()).prop_flat_map(|(tensors, metadata, spelling)| {
        let order: Vec<usize> = (0..tensors.len()).collect();
        Just(order).prop_shuffle().prop_map(move |order| Sample {
            tensors: tensors.clone(),
            order,
            metadata: metadata.clone(),
            spelling,
        })
    })
}

/// Up to 6 tensors with different names.
pub fn tensors() -> impl Strategy<Value = Vec<Tensor>> {
    let described = btree_map(name(), (dtype(), shape()), 0..7);
    (described, any::<bool>()).prop_map(|(described, reversed)| {
        let mut tensors: Vec<Tensor> = described
            .into_iter()
            .map(|(name, (dtype, mut shape))| {
                // A row of 4 fills whole bytes with elements of 4 and of 6 bits.
                let elements: u64 = shape.iter().product();
                if elements * u64::from(dtype.bits()) % 8 != 0 {
                    shape.push(4);
                }
                Tensor { name, dtype, shape }
            })
            .collect();
        if reversed {
            tensors.reverse();
        }
        tensors
    })
}

pub fn dtype() -> impl Strategy<Value = Dtype> {
    proptest::sample::select(Dtype::ALL.to_vec())
}

fn shape() -> impl Strategy<Value = Vec<u64>> {
    vec(prop_oneof![8 => 1..4u64, 1 => Just(0)], 0..4)
}

pub fn name() -> impl Strategy<Value = String> {
    let plain = "(model|layers|h)\\.[0-9]{1,2}(\\.(weight|bias))?";
    prop_oneof![4 => plain, 1 => key(), 1 => Just("__metadata_".to_owned())]
        .prop_filter("names the metadata", |name| name != "__metadata__")
}

/// A name of any Unicode without NUL.
fn key() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|text| text.chars().filter(|c| *c != '\0').take(12).collect())
}

fn spelling() -> impl Strategy<Value = Spelling> {
    let form = prop_oneof![
        4 => Just(Form::Canonical),
        1 => Just(Form::OtherOrder),
        1 => Just(Form::Array),
        1 => Just(Form::DtypeObject),
        1 => Just(Form::UnknownField),
    ];
    let seldom = || proptest::bool::weighted(0.2);
    (form, seldom(), seldom(), seldom(), 0..9usize).prop_map(|(form, white_space, escapes, metadata_last, padding)| {
        Spelling { form, white_space, escapes, metadata_last, padding }
    })
}
