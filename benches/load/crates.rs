//! What users of the `safetensors` crate do: a mapping, and a copy of each tensor; or only the mapping, touched.

use super::checksum::Checksum;
use super::child::{Loaded, Task};
use memmap2::Mmap;
use safetensors::SafeTensors;
use std::fs::File;
use std::hint::black_box;
use std::path::Path;

pub fn map(path: &Path) -> Mmap {
    // SAFETY: nobody changes the file.
    unsafe { Mmap::map(&File::open(path).expect("a file")) }.expect("a mapping")
}

/// Reads a byte of each page.
pub fn touch(bytes: &[u8]) {
    black_box(bytes.iter().step_by(4096).fold(0, |sum: u8, byte| sum ^ byte));
}

/// Tensors copied out.
pub struct Copied(pub Vec<(String, Vec<u8>)>);

impl Loaded for Copied {
    fn add_to(&self, checksum: &mut Checksum) -> bool {
        self.0.iter().for_each(|(name, bytes)| checksum.add(name, bytes));
        true
    }
}

/// Tensors where they lie in files, or images of them.
pub struct Images<T>(pub Vec<T>);

impl<T: AsRef<[u8]>> Loaded for Images<T> {
    fn add_to(&self, checksum: &mut Checksum) -> bool {
        for image in &self.0 {
            for (name, tensor) in SafeTensors::deserialize(image.as_ref()).expect("a header").tensors() {
                checksum.add(&name, tensor.data());
            }
        }
        true
    }
}

pub fn whole(task: &Task) -> Box<dyn Loaded> {
    match &*task.how {
        "copy" => {
            let mut copied = Vec::new();
            for file in &task.files {
                let map = map(file);
                let tensors = SafeTensors::deserialize(&map).expect("a header");
                copied.extend(tensors.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())));
            }
            Box::new(Copied(copied))
        }
        "touch" => {
            let maps: Vec<Mmap> = task.files.iter().map(|file| map(file)).collect();
            maps.iter().for_each(|map| touch(map));
            Box::new(Images(maps))
        }
        how => panic!("nothing is known of {how}"),
    }
}
