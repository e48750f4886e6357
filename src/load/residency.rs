//! What the page cache had of a file before the load came.
//!
//! Not what it has by now: what is read through it makes the system read ahead, and then the next block is there, too, and is read through
//! it, and so on to the end of a file that lies on the disk. So it is looked at once, region by region, when the first byte of a region
//! is wanted.

use crate::storage::Storage;
use crate::sync::Mutex;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::PoisonError;

/// What is told apart.
const CHUNK: u64 = 1024 * 1024;
/// As many chunks as a number has bits: larger than what any system reads ahead by itself.
const REGION: u64 = CHUNK * u64::BITS as u64;

/// Of one file.
#[derive(Debug, Default)]
pub(super) struct Residency {
    /// By region, a bit for each chunk of which at least half was there.
    regions: Mutex<HashMap<u64, u64>>,
}

impl Residency {
    /// How many of these bytes, which are in the order of the file, were in the page cache, by chunks. All of them where the system does not
    /// tell.
    pub(super) fn cached_of(&self, storage: &Storage, pieces: impl Iterator<Item = Range<u64>>) -> u64 {
        self.count(pieces, |region| look(region, storage.len(), |bytes| storage.cached(bytes)))
    }

    fn count(&self, pieces: impl Iterator<Item = Range<u64>>, look: impl Fn(u64) -> u64) -> u64 {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        // Neighbours need not be looked up again.
        let (mut region, mut chunks, mut cached) = (u64::MAX, 0, 0);
        for Range { start, end } in pieces {
            let mut at = start;
            while at < end {
                if at / REGION != region {
                    region = at / REGION;
                    chunks = match regions.get(&region) {
                        Some(chunks) => *chunks,
                        None => {
                            let chunks = look(region);
                            // Without memory for it, it is looked at again.
                            if regions.try_reserve(1).is_ok() {
                                regions.insert(region, chunks);
                            }
                            chunks
                        }
                    };
                }
                let chunk = at / CHUNK;
                let stop = end.min((chunk + 1).saturating_mul(CHUNK));
                if chunks >> (chunk % u64::from(u64::BITS)) & 1 == 1 {
                    cached += stop - at;
                }
                at = stop;
            }
        }
        cached
    }
}

/// The bits of a region of a file of `len` bytes. `cached` tells how many bytes of a range are there, if the system does.
fn look(region: u64, len: u64, cached: impl Fn(Range<u64>) -> Option<u64>) -> u64 {
    let of = |start: u64, size: u64| {
        let bytes = start.min(len)..start.saturating_add(size).min(len);
        (cached(bytes.clone()), bytes.end - bytes.start)
    };
    let start = region.saturating_mul(REGION);
    match of(start, REGION) {
        (None, _) => return u64::MAX,
        (Some(0), _) => return 0,
        (Some(all), len) if all >= len => return u64::MAX,
        _ => {}
    }
    (0..u64::BITS)
        .filter(|chunk| {
            let (cached, len) = of(start + u64::from(*chunk) * CHUNK, CHUNK);
            cached.is_none_or(|cached| len > 0 && cached >= len.div_ceil(2))
        })
        .fold(0, |chunks, chunk| chunks | 1 << chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn count_looks_once_at_each_region_and_remembers() {
        let (residency, looks) = (Residency::default(), Cell::new(0));
        let look = |region| {
            looks.set(looks.get() + 1);
            // Later it is all there.
            if looks.get() > 2 {
                u64::MAX
            } else {
                0b10u64 << region
            }
        };
        let count = |pieces: &[Range<u64>]| residency.count(pieces.iter().cloned(), look);
        let second = CHUNK + 10..CHUNK + 30;
        assert_eq!(count(&[0..10, CHUNK - 5..CHUNK + 5, second.clone()]), 25);
        assert_eq!(count(&[second.clone(), REGION + 2 * CHUNK..REGION + 3 * CHUNK + 1]), 20 + CHUNK);
        assert_eq!((count(&[second, 0..CHUNK]), looks.get()), (20, 2));
        assert_eq!((count(&[]), count(&[5..5])), (0, 0));
    }

    #[test]
    fn look_tells_chunks_of_which_half_is_there() {
        let len = REGION + 5 * CHUNK / 2;
        let half = |bytes: Range<u64>| Some((bytes.end.min(3 * CHUNK / 2)).saturating_sub(bytes.start));
        assert_eq!(look(0, len, half), 0b11);
        assert_eq!(look(1, len, half), 0);
        assert_eq!(look(1, len, |bytes| Some(bytes.end - bytes.start)), u64::MAX);
        assert_eq!(look(0, len, |_| None), u64::MAX);
        // The last chunk of a file is smaller, and those behind it are none.
        let end = |bytes: Range<u64>| Some(bytes.end.saturating_sub(bytes.start.max(REGION + 2 * CHUNK)));
        assert_eq!(look(1, len, end), 0b100);
        assert_eq!(look(u64::MAX / REGION, len, half), 0);
    }
}
