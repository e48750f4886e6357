//! The files that are opened. Headers are as the reference crate writes them; data sections are holes and take no disk.

use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file, and what the report calls it.
pub struct Input {
    pub name: &'static str,
    pub path: PathBuf,
}

/// A tensor before it has a place.
struct Planned {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

fn planned(name: String, dtype: Dtype, shape: &[usize]) -> Planned {
    Planned { name, dtype, shape: shape.to_vec() }
}

/// 232,670 tensors: hundreds of experts per layer, each with quantized weights and their scales.
pub fn experts(folder: &Path) -> io::Result<Input> {
    const TENSORS: usize = 232_670;
    let mut tensors = vec![
        planned("model.embed_tokens.weight".to_owned(), Dtype::BF16, &[151_936, 2048]),
        planned("model.norm.weight".to_owned(), Dtype::BF16, &[2048]),
        planned("lm_head.weight".to_owned(), Dtype::BF16, &[151_936, 2048]),
    ];
    for layer in 0.. {
        let layer = format!("model.layers.{layer}");
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push(planned(format!("{layer}.{norm}.weight"), Dtype::BF16, &[2048]));
        }
        for projection in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            tensors.push(planned(format!("{layer}.self_attn.{projection}.weight"), Dtype::BF16, &[2048, 2048]));
        }
        for expert in 0..384 {
            let expert = format!("{layer}.mlp.experts.{expert}");
            for projection in ["gate_proj", "up_proj", "down_proj"] {
                tensors.push(planned(format!("{expert}.{projection}.weight"), Dtype::F8_E4M3, &[768, 2048]));
                tensors.push(planned(format!("{expert}.{projection}.weight_scale_inv"), Dtype::F32, &[6, 16]));
            }
        }
        if tensors.len() >= TENSORS {
            break;
        }
    }
    tensors.truncate(TENSORS);
    write(folder, "experts", tensors)
}

/// 291 tensors in 100 GB: the layers of a Llama, made wider.
pub fn llama(folder: &Path) -> io::Result<Input> {
    const HIDDEN: usize = 12_288;
    const KEYS: usize = 4096;
    const MIDDLE: usize = 28_800;
    const VOCABULARY: usize = 128_256;
    let mut tensors = vec![
        planned("model.embed_tokens.weight".to_owned(), Dtype::BF16, &[VOCABULARY, HIDDEN]),
        planned("model.norm.weight".to_owned(), Dtype::BF16, &[HIDDEN]),
        planned("lm_head.weight".to_owned(), Dtype::BF16, &[VOCABULARY, HIDDEN]),
    ];
    for layer in 0..32 {
        for (part, shape) in [
            ("input_layernorm", &[HIDDEN][..]),
            ("post_attention_layernorm", &[HIDDEN]),
            ("self_attn.q_proj", &[HIDDEN, HIDDEN]),
            ("self_attn.k_proj", &[KEYS, HIDDEN]),
            ("self_attn.v_proj", &[KEYS, HIDDEN]),
            ("self_attn.o_proj", &[HIDDEN, HIDDEN]),
            ("mlp.gate_proj", &[MIDDLE, HIDDEN]),
            ("mlp.up_proj", &[MIDDLE, HIDDEN]),
            ("mlp.down_proj", &[HIDDEN, MIDDLE]),
        ] {
            tensors.push(planned(format!("model.layers.{layer}.{part}.weight"), Dtype::BF16, shape));
        }
    }
    write(folder, "llama", tensors)
}

/// The model that the tests of real files use, where somebody has put it.
pub fn model() -> Option<Input> {
    let path = PathBuf::from("build/model/model.safetensors");
    path.exists().then_some(Input { name: "model", path })
}

fn write(folder: &Path, name: &'static str, mut tensors: Vec<Planned>) -> io::Result<Input> {
    // The order of the reference implementation's writer.
    tensors.sort_by(|a, b| (Reverse(a.dtype), &a.name).cmp(&(Reverse(b.dtype), &b.name)));
    let mut data_len = 0;
    let placed = tensors.into_iter().map(|Planned { name, dtype, shape }| {
        let start = data_len;
        data_len += shape.iter().product::<usize>() * dtype.bitsize() / 8;
        (name, TensorInfo { dtype, shape, data_offsets: (start, data_len) })
    });
    let placed: Vec<_> = placed.collect();
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), placed).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');

    let path = folder.join(format!("{name}.safetensors"));
    let mut file = File::create(&path)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let data_start = 8 + header.len() as u64;
    file.set_len(data_start + data_len as u64)?;
    // Not all of it is a hole, so that the bytes which are compared could differ.
    file.write_all_at(b"the last bytes", data_start + data_len as u64 - 14)?;
    // Writing back must not go on while others are measured.
    file.sync_all()?;
    Ok(Input { name, path })
}
