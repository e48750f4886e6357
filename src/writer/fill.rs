//! Writing large amounts, several blocks at once.
//!
//! Through the page cache a large file is held back to the speed at which the kernel lets pages be dirtied, which is a fraction of what the
//! disk could do. So large amounts go around it, in aligned blocks, and only the ends of what lies together go through it.

use super::data::{Bounce, Bytes, Data, Piece};
use super::entries::Source;
use crate::error::Error;
use crate::storage::output::{Direct, Order, Temporary, DIRECT_ALIGNMENT};
use crate::storage::StorageError;
use crate::task::Task;
use crate::workers::for_each;
use std::ops::Range;

/// What one thread writes at a time. A multiple of [`DIRECT_ALIGNMENT`].
const BLOCK: u64 = 4 << 20;

/// As many threads as keep a disk busy; each has a block of memory.
const WORKERS: usize = 4;

/// From this size on threads and writes around the page cache pay.
pub(super) const LARGE: u64 = 32 << 20;

/// The same for a piece that was streamed: after it there are likely to be more.
const LARGE_PIECE: usize = 2 * BLOCK as usize;

/// The ranges of a file that are filled from memory: tensors that were added and lie side by side are one.
pub(super) fn runs(data: &Data<'_, '_>) -> Result<Vec<Range<u64>>, StorageError> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for tensor in &data.layout.order {
        let (at, source) = data.place(*tensor).ok_or(StorageError::Internal("a tensor has no place in its file"))?;
        let Source::Added(_) = source else { continue };
        match runs.last_mut() {
            _ if at.is_empty() => {}
            Some(last) if last.end == at.start => last.end = at.end,
            _ => push(&mut runs, at)?,
        }
    }
    Ok(runs)
}

/// Writes these ranges. `is_large`: with threads, and around the page cache where that is possible.
pub(super) fn fill(data: &Data<'_, '_>, runs: &[Range<u64>], is_large: bool, task: &Task) -> Result<(), Failed> {
    write_ranges(data.file, data, runs, is_large, |piece| {
        task.done(piece.end - piece.start, data.ends_in(piece)).map_err(Failed::Cancelled)
    })
}

/// Writes what was streamed: a piece of a tensor, which goes to `start`.
pub(super) fn stream(file: &Temporary, bytes: &[u8], start: u64) -> Result<(), StorageError> {
    if bytes.len() < LARGE_PIECE || file.order() != Order::Any {
        return file.write_all_at(bytes, start);
    }
    let range = start..start.saturating_add(bytes.len() as u64);
    write_ranges(file, &Piece { bytes, start }, std::slice::from_ref(&range), true, |_| Ok(()))
}

fn write_ranges<E: From<StorageError> + Send>(
    file: &Temporary,
    from: &(impl Bytes + Sync),
    ranges: &[Range<u64>],
    is_large: bool,
    done: impl Fn(&Range<u64>) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let direct = if is_large { file.direct() } else { None };
    let pieces = pieces(ranges, direct.is_some())?;
    let workers = if is_large { WORKERS } else { 1 };
    for_each(pieces.len() as u64, workers, |bounce: &mut Bounce, number| match pieces.get(number as usize) {
        Some(piece) => {
            write(file, from, piece, direct.as_ref(), bounce)?;
            done(piece)
        }
        None => Err(StorageError::Internal("a thread was given a piece that there is not").into()),
    })
}

/// Why a file was not filled.
#[derive(Debug)]
pub(super) enum Failed {
    /// The file.
    Storage(StorageError),
    /// The task was cancelled.
    Cancelled(Error),
}

impl From<StorageError> for Failed {
    fn from(error: StorageError) -> Failed {
        Failed::Storage(error)
    }
}

fn write(
    file: &Temporary,
    from: &impl Bytes,
    piece: &Range<u64>,
    direct: Option<&Direct>,
    bounce: &mut Bounce,
) -> Result<(), StorageError> {
    let direct = direct.filter(|_| is_aligned(piece.start) && is_aligned(piece.end));
    let bytes = from.read(piece.clone(), direct.is_some(), bounce)?;
    if bytes.len() as u64 != piece.end - piece.start {
        return Err(StorageError::Internal("a piece of a file is not written whole"));
    }
    if let Some(direct) = direct {
        if direct.write_all_at(bytes, piece.start)? {
            file.touch();
            return Ok(());
        }
    }
    file.write_all_at(bytes, piece.start)
}

/// Cuts ranges where blocks end, and for writes around the page cache also where alignment begins and ends.
fn pieces(runs: &[Range<u64>], direct: bool) -> Result<Vec<Range<u64>>, StorageError> {
    let mut pieces = Vec::new();
    for run in runs {
        let mut start = run.start;
        while start < run.end {
            let block_end = (start / BLOCK + 1) * BLOCK;
            let stop = block_end.min(run.end);
            let first = start.next_multiple_of(DIRECT_ALIGNMENT);
            let last = stop / DIRECT_ALIGNMENT * DIRECT_ALIGNMENT;
            if direct && first < last {
                for piece in [start..first, first..last, last..stop] {
                    if !piece.is_empty() {
                        push(&mut pieces, piece)?;
                    }
                }
            } else {
                push(&mut pieces, start..stop)?;
            }
            start = stop;
        }
    }
    Ok(pieces)
}

fn is_aligned(position: u64) -> bool {
    position % DIRECT_ALIGNMENT == 0
}

fn push(list: &mut Vec<Range<u64>>, range: Range<u64>) -> Result<(), StorageError> {
    list.try_reserve(1).map_err(|_| StorageError::NoMemory { nbytes: size_of::<Range<u64>>() as u64 })?;
    list.push(range);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_runs_in_order() {
        const A: u64 = DIRECT_ALIGNMENT;
        for direct in [false, true] {
            for run in
                [0..1, 1..A, 1..A + 1, 7..2 * A + 3, 100..3 * BLOCK + 5, A..BLOCK, 0..2 * BLOCK, BLOCK - 1..BLOCK + 1]
            {
                let pieces = pieces(std::slice::from_ref(&run), direct).unwrap();
                assert_eq!(pieces.first().unwrap().start, run.start);
                assert_eq!(pieces.last().unwrap().end, run.end);
                assert!(pieces.windows(2).all(|two| two[0].end == two[1].start));
                assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.end - piece.start <= BLOCK));
            }
        }
        assert_eq!(pieces(&[7..2 * A + 3], true).unwrap(), [7..A, A..2 * A, 2 * A..2 * A + 3]);
        assert_eq!(pieces(&[7..2 * A + 3], false).unwrap(), [7..2 * A + 3]);
        assert!(pieces(&[], true).unwrap().is_empty());
    }
}
