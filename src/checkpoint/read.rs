//! Reading a slice into memory.

use crate::format::{Run, Runs, Slice};
use crate::storage::{Storage, StorageError, StorageKind};
use std::iter::Peekable;
use std::mem::MaybeUninit;

/// A gap between two runs of up to this many bytes is read through rather than skipped. From a warm page cache a call costs as much as some
/// 4 KiB copied, and on a disk or a network many times that.
const MAX_GAP: u64 = 16 * 1024;

/// Nor more than so many times the run after the gap: single elements of a wide row are read one by one, not with all of the row.
const MAX_GAP_PER_BYTE: u64 = 64;

/// The most that is read at once when gaps are read through; bounds the memory of a read.
const MAX_WINDOW: u64 = 1024 * 1024;

/// Reads the bytes of `slice` of a tensor that starts at `tensor_offset`, in the order of its elements. `dst` has exactly its size.
///
/// Runs that are close are read together and picked apart in memory, so that a column costs a fraction of a system call per row.
pub(super) fn read_slice(
    storage: &Storage,
    tensor_offset: u64,
    slice: &Slice,
    dst: &mut [MaybeUninit<u8>],
) -> Result<(), StorageError> {
    let max_gap = match storage.kind() {
        // A copy out of memory costs no system call.
        StorageKind::Memory => 0,
        _ => MAX_GAP,
    };
    let mut scratch: Vec<MaybeUninit<u8>> = Vec::new();
    let mut dst = dst;
    // Two walks over the same runs: one goes ahead to see how far a window can reach, the other follows and delivers.
    let mut ahead = slice.runs().peekable();
    let mut behind = slice.runs();
    while let Some(window) = Window::next(&mut ahead, max_gap) {
        let offset = tensor_offset.saturating_add(window.start);
        if window.runs == 1 {
            behind.next();
            let (now, later) = split(dst, window.stop - window.start)?;
            storage.read_exact_at(now, offset)?;
            dst = later;
            continue;
        }
        let room = room(&mut scratch, window.stop - window.start)?;
        storage.read_exact_at(room, offset)?;
        for run in behind.by_ref().take(window.runs) {
            let (now, later) = split(dst, run.len)?;
            let start = (run.offset - window.start) as usize;
            let bytes = room.get(start..start.saturating_add(now.len()));
            now.copy_from_slice(bytes.ok_or(StorageError::Internal("a run leaves its window"))?);
            dst = later;
        }
    }
    match dst.is_empty() {
        true => Ok(()),
        false => Err(StorageError::Internal("the runs of a slice are less than the slice")),
    }
}

/// Neighbouring runs that are read at once.
struct Window {
    start: u64,
    stop: u64,
    runs: usize,
}

impl Window {
    fn next(runs: &mut Peekable<Runs<'_>>, max_gap: u64) -> Option<Window> {
        let first = runs.next()?;
        let mut window = Window { start: first.offset, stop: first.offset + first.len, runs: 1 };
        while let Some(run) = runs.next_if(|run| window.reaches(run, max_gap)) {
            window.stop = run.offset + run.len;
            window.runs += 1;
        }
        Some(window)
    }

    fn reaches(&self, run: &Run, max_gap: u64) -> bool {
        run.offset - self.stop <= max_gap.min(run.len.saturating_mul(MAX_GAP_PER_BYTE))
            && run.offset + run.len - self.start <= MAX_WINDOW
    }
}

type Split<'d> = (&'d mut [MaybeUninit<u8>], &'d mut [MaybeUninit<u8>]);

/// The first `len` bytes of `dst`, which has at least so many, and the rest.
fn split(dst: &mut [MaybeUninit<u8>], len: u64) -> Result<Split<'_>, StorageError> {
    dst.split_at_mut_checked(len as usize).ok_or(StorageError::Internal("the runs of a slice are more than the slice"))
}

fn room(scratch: &mut Vec<MaybeUninit<u8>>, len: u64) -> Result<&mut [MaybeUninit<u8>], StorageError> {
    let needed = len as usize;
    if scratch.len() < needed {
        scratch.try_reserve(needed - scratch.len()).map_err(|_| StorageError::NoMemory { nbytes: len })?;
        scratch.resize(needed, MaybeUninit::uninit());
    }
    scratch.get_mut(..needed).ok_or(StorageError::Internal("scratch is shorter than it was made"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Dtype, END};

    fn windows(shape: &[u64], column: std::ops::Range<u64>, max_gap: u64) -> Vec<(u64, u64, usize)> {
        let slice = Slice::new(Dtype::U8, shape, &[0..END, column]).unwrap();
        let mut runs = slice.runs().peekable();
        std::iter::from_fn(|| Window::next(&mut runs, max_gap)).map(|w| (w.start, w.stop, w.runs)).collect()
    }

    #[test]
    fn windows_join_runs_across_small_gaps() {
        assert_eq!(windows(&[3, 10], 2..5, 7), [(2, 25, 3)]);
        assert_eq!(windows(&[3, 10], 2..5, 6), [(2, 5, 1), (12, 15, 1), (22, 25, 1)]);
        assert_eq!(windows(&[3, 10], 0..10, 0), [(0, 30, 1)]);
        assert_eq!(windows(&[3, 10], 4..4, 9), []);
        assert_eq!(windows(&[3, 65], 0..1, MAX_GAP).len(), 1);
        assert_eq!(windows(&[3, 66], 0..1, MAX_GAP).len(), 3);
    }

    #[test]
    fn windows_are_bounded() {
        // 8 KiB per row, half of which is wanted: 128 rows fill a window but for the last gap.
        let windows = windows(&[1000, 8192], 0..4096, MAX_GAP);
        assert!(windows.iter().all(|(start, stop, _)| stop - start <= MAX_WINDOW));
        assert_eq!((windows[0].2, windows.len()), (128, 8));
        // A run that is itself larger than a window is read alone.
        assert_eq!(self::windows(&[2, 2 * MAX_WINDOW], 0..2 * MAX_WINDOW - 1, MAX_GAP).len(), 2);
    }
}
