//! Which tensors lie beside one another in a file, and so share pages.

use super::shard::Shard;
use super::shards::Shards;
use super::Tensor;
use std::ops::Range;
use std::sync::OnceLock;

/// Nobody looks further than so many tensors to either side: enough for tensors of a page each where the system maps 2 MiB at once. Pages
/// shared by more stay: there are few of them, since the header of such a file is larger than its data.
const MOST_NEIGHBOURS: usize = 512;

/// The tensors of each shard in the order of their bytes. Made when the first page is dropped.
#[derive(Debug)]
pub(super) struct Neighbours {
    shards: Box<[OnceLock<Order>]>,
}

/// `None` if there was no memory for it: pages stay then.
type Order = Option<Vec<u32>>;

impl Neighbours {
    /// `None` if there is no memory.
    pub(super) fn new(shards: usize) -> Option<Neighbours> {
        let mut orders = Vec::new();
        orders.try_reserve_exact(shards).ok()?;
        orders.resize_with(shards, OnceLock::new);
        Some(Neighbours { shards: orders.into_boxed_slice() })
    }

    /// `limits`, but no further from a tensor than one should look.
    pub(super) fn near(&self, shards: &Shards, tensor: &Tensor<'_>, limits: Range<u64>) -> Range<u64> {
        let Some(order) = self.order(shards, tensor.shard()) else { return limits };
        let Range { mut start, mut end } = limits;
        let range_of = |within: &u32| range_of(tensor.shard, *within);
        let at = order.partition_point(|other| range_of(other).start < tensor.file_offset());
        if let Some(furthest) = at.checked_sub(MOST_NEIGHBOURS).and_then(|furthest| order.get(furthest)) {
            start = start.max(range_of(furthest).start);
        }
        if let Some(furthest) = order.get(at + MOST_NEIGHBOURS) {
            end = end.min(range_of(furthest).end);
        }
        start..end
    }

    /// Calls `each` for all stretches `within` a shard's file that lie between tensors for which `stays` is true. For none if there is
    /// no memory to tell what lies where.
    pub(super) fn unused(
        &self,
        shards: &Shards,
        shard: usize,
        within: Range<u64>,
        stays: &dyn Fn(usize) -> bool,
        mut each: impl FnMut(Range<u64>),
    ) {
        let (Some(order), Some(of)) = (self.order(shards, shard), shards.list().get(shard)) else { return };
        let first = shards.first(shard);
        let mut start = within.start;
        let from = order.partition_point(|other| range_of(of, *other).end <= start);
        for other in order.get(from..).unwrap_or_default() {
            let bytes = range_of(of, *other);
            if bytes.start >= within.end {
                break;
            }
            if stays(first + *other as usize) {
                if start < bytes.start {
                    each(start..bytes.start);
                }
                start = bytes.end;
            }
        }
        if start < within.end {
            each(start..within.end);
        }
    }

    /// The tensors of a shard that have bytes, in the order of these.
    fn order(&self, shards: &Shards, shard: usize) -> Option<&[u32]> {
        let order = self.shards.get(shard)?.get_or_init(|| {
            let header = &shards.list().get(shard)?.header;
            let start_of = |within: &u32| header.tensor(*within as usize).map_or(0, |info| info.start);
            let has_bytes = |within: &u32| header.tensor(*within as usize).is_some_and(|info| info.start < info.stop);
            let mut order: Vec<u32> = Vec::new();
            order.try_reserve_exact(header.len()).ok()?;
            // A header of 100 MB has no room for 2^32 tensors.
            order.extend((0..header.len() as u32).filter(has_bytes));
            order.sort_unstable_by_key(start_of);
            Some(order)
        });
        order.as_deref()
    }
}

/// Where a tensor lies in its file.
fn range_of(shard: &Shard, within: u32) -> Range<u64> {
    let data_start = shard.data_start();
    shard.header.tensor(within as usize).map_or(0..0, |info| data_start + info.start..data_start + info.stop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Checkpoint, OpenOptions};

    const PAGE: u64 = 4096;

    /// A file of U8 tensors at these places of its data, in this order of its header.
    fn checkpoint(places: &[Range<u64>]) -> Checkpoint {
        let entries: Vec<String> = places
            .iter()
            .enumerate()
            .map(|(i, at)| {
                let len = at.end - at.start;
                format!(r#""t{i}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{},{}]}}"#, at.start, at.end)
            })
            .collect();
        let mut header = format!("{{{}}}", entries.join(","));
        // The data starts with a page.
        while (8 + header.len() as u64) % PAGE != 0 {
            header.push(' ');
        }
        let end = places.iter().map(|at| at.end).max().unwrap_or(0);
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.bytes());
        file.resize(file.len() + end as usize, 7);
        Checkpoint::open_memory(file, OpenOptions::default()).unwrap()
    }

    /// Bytes of the file, as bytes of the data; what is before that is negative.
    fn in_data(checkpoint: &Checkpoint, bytes: Range<u64>) -> (i64, i64) {
        let start = checkpoint.shards.list()[0].data_start() as i64;
        (bytes.start as i64 - start, bytes.end as i64 - start)
    }

    fn limits(checkpoint: &Checkpoint, data: Range<u64>) -> Range<u64> {
        let start = checkpoint.shards.list()[0].data_start();
        start + data.start..start + data.end
    }

    fn unused(checkpoint: &Checkpoint, within: Range<u64>, stays: &[usize]) -> Vec<(i64, i64)> {
        let mut found = Vec::new();
        let stays = |other: usize| stays.contains(&other);
        checkpoint.neighbours.unused(&checkpoint.shards, 0, within, &stays, |bytes| {
            found.push(in_data(checkpoint, bytes));
        });
        found
    }

    /// Three tensors that share pages, in an order of the header that is not that of their bytes, and two without bytes between them.
    fn three() -> Checkpoint {
        checkpoint(&[100..5000, 5000..9000, 100..100, 0..100, 9000..9000])
    }

    #[test]
    fn unused_is_what_lies_between_those_that_stay() {
        let three = three();
        let all = limits(&three, 0..9000);
        assert_eq!(unused(&three, all.clone(), &[]), [(0, 9000)]);
        assert_eq!(unused(&three, all.clone(), &[0]), [(0, 100), (5000, 9000)]);
        assert_eq!(unused(&three, all.clone(), &[1]), [(0, 5000)]);
        assert_eq!(unused(&three, all.clone(), &[3]), [(100, 9000)]);
        assert_eq!(unused(&three, all.clone(), &[0, 1, 3]), []);
        assert_eq!(unused(&three, all, &[2, 4]), [(0, 9000)]);
        // Where the limits cut through tensors.
        assert_eq!(unused(&three, limits(&three, 50..6000), &[3]), [(100, 6000)]);
        assert_eq!(unused(&three, limits(&three, 50..6000), &[0]), [(50, 100), (5000, 6000)]);
        assert_eq!(unused(&three, limits(&three, 200..300), &[0]), []);
        assert_eq!(unused(&three, limits(&three, 300..300), &[]), []);
        assert!(unused(&three, 0..100, &[0])[0].0 < 0);
    }

    #[test]
    fn nobody_looks_further_than_some_neighbours() {
        let many: Vec<_> = (0..2000u64).map(|i| i * 10..i * 10 + 10).collect();
        let many = checkpoint(&many);
        let reach = 10 * MOST_NEIGHBOURS as i64;
        let near = |index: usize| {
            let tensor = many.tensor(index).unwrap();
            in_data(&many, many.neighbours.near(&many.shards, &tensor, limits(&many, 0..20000)))
        };
        assert_eq!(near(1000), (10000 - reach, 10010 + reach));
        assert_eq!(near(0), (0, 10 + reach));
        assert_eq!(near(1999), (19990 - reach, 20000));
    }

    #[test]
    fn checkpoint_without_tensors_has_only_a_header() {
        let none = checkpoint(&[]);
        let size = none.shards.list()[0].storage.size();
        assert_eq!(unused(&none, 0..size, &[]), [in_data(&none, 0..size)]);
    }
}
