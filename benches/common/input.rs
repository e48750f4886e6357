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
    Ok(Input { name: "experts", path: write(folder, "experts", tensors)? })
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
    Ok(Input { name: "llama", path: write(folder, "llama", tensors)? })
}

/// A folder of `shards` numbered shards with `tensors` tensors each, and with `index` one that has their index besides.
pub fn sharded(folder: &Path, shards: usize, tensors: usize, index: bool) -> io::Result<Input> {
    let folder = folder.join(format!("sharded-{index}"));
    std::fs::create_dir_all(&folder)?;
    let mut weight_map = serde_json::Map::new();
    for shard in 0..shards {
        let file = format!("model-{:05}-of-{shards:05}", shard + 1);
        let name = |tensor| format!("model.layers.{shard}.mlp.experts.{tensor}.gate_proj.weight");
        weight_map.extend((0..tensors).map(|tensor| (name(tensor), format!("{file}.safetensors").into())));
        write(&folder, &file, (0..tensors).map(|tensor| planned(name(tensor), Dtype::BF16, &[768, 2048])).collect())?;
    }
    if index {
        let total_size = shards * tensors * 768 * 2048 * 2;
        let index = serde_json::json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
        std::fs::write(folder.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)?;
    }
    Ok(Input { name: if index { "shards and an index" } else { "shards" }, path: folder })
}

/// A folder of `shards` shards, holes of `shard_bytes` bytes each but for their headers, in tensors of `tensor_bytes` bytes that start
/// at an odd offset if `odd` is set: then they have to be copied to be used.
pub fn holes(folder: &Path, shards: usize, shard_bytes: usize, tensor_bytes: usize, odd: bool) -> io::Result<Input> {
    let folder = folder.join(format!("holes-{odd}"));
    std::fs::create_dir_all(&folder)?;
    for shard in 0..shards {
        let mut tensors: Vec<Planned> = (0..shard_bytes / tensor_bytes)
            .map(|tensor| planned(format!("layers.{shard}.{tensor:06}"), Dtype::F32, &[tensor_bytes / 4]))
            .collect();
        if odd {
            // Written as F32 after all: the reference's writer would put the byte last.
            tensors.insert(0, planned(format!("layers.{shard}"), Dtype::U8, &[1]));
        }
        let file = format!("model-{:05}-of-{shards:05}", shard + 1);
        place(&folder, &file, tensors)?;
    }
    Ok(Input { name: "holes", path: folder })
}

/// One BF16 matrix of 4096 x 4096, all of it there.
pub fn matrix(folder: &Path) -> io::Result<Input> {
    let path = write(folder, "matrix", vec![planned("weight".to_owned(), Dtype::BF16, &[4096, 4096])])?;
    let file = File::options().write(true).open(&path)?;
    let data: Vec<u8> = (0..32u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    file.write_all_at(&data, file.metadata()?.len() - data.len() as u64)?;
    file.sync_all()?;
    Ok(Input { name: "matrix", path })
}

/// Bytes that do not repeat soon, aligned as writes around the page cache want them. Their number is a multiple of `tensors` times 8192.
pub fn noise(len: usize, tensors: usize) -> memmap2::MmapMut {
    assert!(len % (tensors * 8192) == 0, "{len}");
    let mut bytes = memmap2::MmapMut::map_anon(len).expect("memory");
    // Only advice.
    let _ = bytes.advise(memmap2::Advice::HugePage);
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    bytes
}

/// Bytes cut into as many BF16 matrices: name, shape, and part of each.
pub fn matrices(bytes: &[u8], tensors: usize) -> impl Iterator<Item = (String, [u64; 2], &[u8])> {
    let each = bytes.len() / tensors;
    let named = move |(i, bytes)| (format!("layers.{i:02}.weight"), [each as u64 / 8192, 4096], bytes);
    bytes.chunks(each).enumerate().map(named)
}

/// The model that the tests of real files use, where somebody has put it.
pub fn model() -> Option<Input> {
    let path = PathBuf::from("build/model/model.safetensors");
    path.exists().then_some(Input { name: "model", path })
}

fn write(folder: &Path, name: &str, mut tensors: Vec<Planned>) -> io::Result<PathBuf> {
    // The order of the reference implementation's writer.
    tensors.sort_by(|a, b| (Reverse(a.dtype), &a.name).cmp(&(Reverse(b.dtype), &b.name)));
    place(folder, name, tensors)
}

fn place(folder: &Path, name: &str, tensors: Vec<Planned>) -> io::Result<PathBuf> {
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
    Ok(path)
}
