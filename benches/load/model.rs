//! The model that is loaded: layers of a Llama in BF16, with as many layers as fit, of bytes that do not repeat.

use super::checksum::Expected;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

const VOCABULARY: usize = 32_000;

/// Files on the disk that are one checkpoint.
pub struct Model {
    pub files: Vec<PathBuf>,
    /// Bytes of the files.
    pub bytes: u64,
    pub expected: Expected,
    /// Counts what is read, where the system does not: see tests/fuse/slow_fs.c.
    meter: Option<PathBuf>,
}

type Planned = (String, Vec<usize>);

/// Makes a model of about `bytes` bytes in `shards` files of about the same size, unless it is there, and waits until the disk has it.
pub fn make(root: &Path, bytes: u64, shards: usize) -> io::Result<Model> {
    let folder = root.join(format!("{}-mib-{shards}", bytes >> 20));
    std::fs::create_dir_all(&folder)?;
    let tensors = plan(bytes);
    let total: usize = tensors.iter().map(size).sum();
    let mut shard_of = vec![Vec::new(); shards];
    let mut before = 0;
    for tensor in tensors {
        let size = size(&tensor);
        // Where its middle lies.
        shard_of[(before + size / 2) * shards / total].push(tensor);
        before += size;
    }
    let mut files = Vec::new();
    let mut bytes = 0;
    for (shard, tensors) in shard_of.into_iter().enumerate() {
        let name = match shards {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
        };
        let path = folder.join(name);
        bytes += write(&path, tensors, shard)?;
        files.push(path);
    }
    File::open(folder)?.sync_all()?;
    Ok(Model { expected: Expected::of(&files), files, bytes, meter: None })
}

impl Model {
    /// Its first file alone, for what is only tried.
    pub fn first(&self) -> Model {
        let files = self.files[..1].to_vec();
        Model {
            bytes: files[0].metadata().map_or(0, |it| it.len()),
            expected: Expected::of(&files),
            files,
            meter: None,
        }
    }

    /// The same files, seen through slow_fs.
    pub fn seen_in(&self, folder: &Path) -> Model {
        let seen = |file: &PathBuf| folder.join(file.file_name().expect("a name"));
        let meter = Some(folder.join(".reads"));
        Model { files: self.files.iter().map(seen).collect(), meter, ..*self }
    }

    /// Bytes that have been read by whomever, if that is known.
    pub fn metered(&self) -> Option<u64> {
        let text = std::fs::read_to_string(self.meter.as_ref()?).ok()?;
        text.split_once("bytes ")?.1.split(' ').next()?.parse().ok()
    }

    /// For people.
    pub fn about(&self) -> String {
        let files = match self.files.len() {
            1 => "1 file".to_owned(),
            files => format!("{files} files"),
        };
        format!("{:.2} GiB in {files}", self.bytes as f64 / (1u64 << 30) as f64)
    }
}

fn plan(bytes: u64) -> Vec<Planned> {
    // A small one has narrower layers, so that it has some.
    let hidden = if bytes < 2 << 30 { 2048 } else { 4096 };
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, hidden])];
    let last =
        [("model.norm.weight".to_owned(), vec![hidden]), ("lm_head.weight".to_owned(), vec![VOCABULARY, hidden])];
    let mut sum: usize = tensors.iter().chain(&last).map(size).sum();
    for number in 0.. {
        let layer = layer(number, hidden);
        let size: usize = layer.iter().map(size).sum();
        if number > 0 && (sum + size) as u64 > bytes {
            break;
        }
        sum += size;
        tensors.extend(layer);
    }
    tensors.extend(last);
    tensors
}

fn layer(number: usize, hidden: usize) -> Vec<Planned> {
    // 11,008 in a Llama of 7 billion.
    let middle = hidden / 16 * 43;
    [
        ("input_layernorm", vec![hidden]),
        ("mlp.down_proj", vec![hidden, middle]),
        ("mlp.gate_proj", vec![middle, hidden]),
        ("mlp.up_proj", vec![middle, hidden]),
        ("post_attention_layernorm", vec![hidden]),
        ("self_attn.k_proj", vec![hidden, hidden]),
        ("self_attn.o_proj", vec![hidden, hidden]),
        ("self_attn.q_proj", vec![hidden, hidden]),
        ("self_attn.v_proj", vec![hidden, hidden]),
    ]
    .map(|(part, shape)| (format!("model.layers.{number}.{part}.weight"), shape))
    .into()
}

fn size((_, shape): &Planned) -> usize {
    shape.iter().product::<usize>() * 2
}

/// Gives the length of the file.
fn write(path: &Path, mut tensors: Vec<Planned>, shard: usize) -> io::Result<u64> {
    // The order of the reference implementation's writer.
    tensors.sort();
    let mut len = 0;
    let placed = tensors.into_iter().map(|tensor| {
        let start = len;
        len += size(&tensor);
        (tensor.0, TensorInfo { dtype: Dtype::BF16, shape: tensor.1, data_offsets: (start, len) })
    });
    let placed: Vec<_> = placed.collect();
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), placed).map_err(io::Error::other)?;
    let mut header = serde_json::to_vec(&metadata)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let header = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
    let whole = (header.len() + len) as u64;
    if is_there(path, &header, whole) {
        return Ok(whole);
    }
    let unfinished = path.with_extension("part");
    let mut file = File::create(&unfinished)?;
    file.write_all(&header)?;
    let mut noise = Noise::new(shard);
    while len > 0 {
        let piece = noise.next(len);
        file.write_all(piece)?;
        len -= piece.len();
    }
    file.sync_all()?;
    std::fs::rename(unfinished, path)?;
    Ok(whole)
}

/// Whether an earlier run has made it. It may still have to reach the disk: pages that have not cannot be dropped.
fn is_there(path: &Path, header: &[u8], len: u64) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    let mut found = vec![0; header.len()];
    file.metadata().is_ok_and(|metadata| metadata.len() == len)
        && file.read_exact(&mut found).is_ok()
        && found == header
        && file.sync_all().is_ok()
}

/// Bytes that no disk can compress, and that are never twice the same.
struct Noise {
    state: u64,
    piece: Vec<u8>,
}

impl Noise {
    fn new(shard: usize) -> Noise {
        Noise { state: 0x9e37_79b9_7f4a_7c15 ^ shard as u64, piece: vec![0; 8 << 20] }
    }

    fn next(&mut self, most: usize) -> &[u8] {
        for word in self.piece.chunks_exact_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes());
        }
        &self.piece[..most.min(self.piece.len())]
    }
}
