//! What no reader can do better: bare loops that know nothing of tensors.
//!
//! `direct:THREADS:BLOCK` reads around the page cache into new huge pages; `fresh:THREADS:BLOCK` and `touched:THREADS:BLOCK` read what
//! the page cache has into new huge pages, or such as are there already; `memcpy:THREADS:BLOCK` copies from memory to memory.

use super::child::{Task, Work};
use super::crates::Images;
use super::memory::Block;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A file in memory.
struct Image {
    block: Block,
    len: usize,
}

impl AsRef<[u8]> for Image {
    fn as_ref(&self) -> &[u8] {
        &self.block.bytes()[..self.len]
    }
}

/// Where to read from, and where to.
struct Source<'s> {
    file: Option<&'s File>,
    copy_of: Option<&'s [u8]>,
    to: NonNull<u8>,
    len: usize,
}

// SAFETY: threads write to different parts of it.
unsafe impl Sync for Source<'_> {}

pub fn whole(task: &Task) -> Work {
    let mut how = task.how.split(':');
    let kind = how.next().expect("a kind").to_owned();
    let mut number = || how.next().and_then(|number| number.parse::<usize>().ok()).expect("a number");
    let (threads, block) = (number(), number());
    let files = task.files.clone();
    let len = |path: &Path| path.metadata().expect("a file").len() as usize;
    // What was there before the clock starts.
    let room: Vec<Image> = match &*kind {
        "touched" | "memcpy" => {
            files.iter().map(|file| Image { block: Block::touched(len(file)), len: len(file) }).collect()
        }
        _ => Vec::new(),
    };
    let copy_of: Vec<Vec<u8>> = match &*kind {
        "memcpy" => files.iter().map(|file| std::fs::read(file).expect("bytes")).collect(),
        _ => Vec::new(),
    };
    let flags = if kind == "direct" { libc::O_DIRECT } else { 0 };
    Box::new(move || {
        let open = |path| OpenOptions::new().read(true).custom_flags(flags).open(path).expect("a file");
        let opened: Vec<File> = files.iter().map(open).collect();
        let images: Vec<Image> = match room.is_empty() {
            true => files
                .iter()
                // Direct reads are of whole pages.
                .map(|file| Image { block: Block::fresh(len(file).next_multiple_of(4096)), len: len(file) })
                .collect(),
            false => room,
        };
        let source = |number: usize| Source {
            file: Some(&opened[number]).filter(|_| copy_of.is_empty()),
            copy_of: copy_of.get(number).map(|bytes| &**bytes),
            to: images[number].block.start(),
            len: images[number].len,
        };
        let sources: Vec<Source> = (0..images.len()).map(source).collect();
        read(&sources, threads, block);
        Box::new(Images(images))
    })
}

/// Each thread takes the next block when it is done with one.
fn read(sources: &[Source], threads: usize, block: usize) {
    let blocks = sources.iter().flat_map(|source| (0..source.len).step_by(block).map(move |at| (source, at)));
    let blocks: Vec<(&Source, usize)> = blocks.collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((source, at)) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    source.read_block(*at, block);
                }
            });
        }
    });
}

impl Source<'_> {
    fn read_block(&self, at: usize, block: usize) {
        let wanted = block.min(self.len - at);
        // SAFETY: within the memory, and no other thread's. Its end is rounded up to a page there as it is here.
        let to = unsafe { std::slice::from_raw_parts_mut(self.to.as_ptr().add(at), block.min(self.room(at))) };
        if let Some(bytes) = self.copy_of {
            to[..wanted].copy_from_slice(&bytes[at..at + wanted]);
        } else if let Some(file) = self.file {
            let mut done = 0;
            while done < wanted {
                match file.read_at(&mut to[done..], (at + done) as u64).expect("bytes") {
                    0 => panic!("the file has become shorter"),
                    n => done += n,
                }
            }
        }
    }

    fn room(&self, at: usize) -> usize {
        self.len.next_multiple_of(4096) - at
    }
}
