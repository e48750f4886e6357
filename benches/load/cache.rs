//! What the page cache has of a file: nothing, for a cold run, or all of it, for a warm one. Neither is believed before it is seen.

use memmap2::Mmap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

const PAGE: usize = 4096;

/// In what state files are before a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    Cold,
    Warm,
}

/// Brings the files into that state.
pub fn prepare(files: &[PathBuf], state: State) {
    let each = |act: fn(&File)| files.iter().for_each(|path| act(&File::open(path).expect("a file")));
    for _ in 0..20 {
        if state == State::Cold {
            each(drop_pages);
        }
        if is(files, state) {
            return;
        }
        match state {
            State::Warm => each(|file| read_all(file).expect("bytes")),
            // Somebody may still hold pages for a moment: a process that is about to end, or writing back.
            State::Cold => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
    panic!("the page cache does not do as it is told");
}

/// Whether the files are in that state.
pub fn is(files: &[PathBuf], state: State) -> bool {
    files.iter().all(|path| {
        let file = File::open(path).expect("a file");
        let pages = file.metadata().expect("a file").len().div_ceil(PAGE as u64) as usize;
        let resident = resident(&file).expect("mincore");
        match state {
            State::Cold => resident == 0,
            State::Warm => resident == pages,
        }
    })
}

fn drop_pages(file: &File) {
    // SAFETY: the descriptor is open.
    let error = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    assert_eq!(error, 0, "posix_fadvise");
}

fn read_all(file: &File) -> io::Result<()> {
    let mut buffer = vec![0; 4 << 20];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at)? {
            0 => return Ok(()),
            n => at += n as u64,
        }
    }
}

/// How many pages of it are there.
fn resident(file: &File) -> io::Result<usize> {
    // SAFETY: never read; and nobody changes the file.
    let map = unsafe { Mmap::map(file) }?;
    let mut pages = vec![0u8; map.len().div_ceil(PAGE)];
    // SAFETY: the mapping is that long, and there is a byte for each of its pages.
    if unsafe { libc::mincore(map.as_ptr() as *mut _, map.len(), pages.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(pages.iter().filter(|page| **page & 1 != 0).count())
}
