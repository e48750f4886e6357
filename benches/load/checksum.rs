//! Tells whether somebody has loaded what was to be loaded. peers.py computes the same.

use super::slices::{self, Part};
use crc32fast::Hasher;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A CRC of each tensor, and one of these in the order of their names.
#[derive(Clone, Default)]
pub struct Checksum(BTreeMap<String, Hasher>);

impl Checksum {
    /// A tensor, or the next piece of one.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        match self.0.get_mut(name) {
            Some(so_far) => so_far.update(bytes),
            None => {
                let mut hasher = Hasher::new();
                hasher.update(bytes);
                self.0.insert(name.to_owned(), hasher);
            }
        }
    }

    pub fn value(self) -> u32 {
        let mut all = Hasher::new();
        for (name, of_tensor) in self.0 {
            all.update(name.as_bytes());
            all.update(&of_tensor.finalize().to_le_bytes());
        }
        all.finalize()
    }
}

/// What is right.
#[derive(Clone, Copy)]
pub struct Expected {
    pub whole: u32,
    pub slices: u32,
}

impl Expected {
    /// By reading whole files, and copying row by row.
    pub fn of(files: &[PathBuf]) -> Expected {
        let (mut whole, mut parts) = (Checksum::default(), Checksum::default());
        for file in files {
            let bytes = std::fs::read(file).expect("bytes");
            let tensors = SafeTensors::deserialize(&bytes).expect("a header");
            for (name, tensor) in tensors.iter() {
                let bytes = tensor.data();
                whole.add(name, bytes);
                let shape: Vec<u64> = tensor.shape().iter().map(|dim| *dim as u64).collect();
                let of_row = bytes.len() / shape[0] as usize;
                match slices::part(name, &shape) {
                    Some(Part::Rows(rows)) => {
                        parts.add(name, &bytes[rows.start as usize * of_row..rows.end as usize * of_row])
                    }
                    Some(Part::Columns(columns)) => bytes
                        .chunks_exact(of_row)
                        .for_each(|row| parts.add(name, &row[columns.start as usize * 2..columns.end as usize * 2])),
                    None => {}
                }
            }
        }
        Expected { whole: whole.value(), slices: parts.value() }
    }
}
