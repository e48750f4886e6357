//! Which tensors lie beside one another in a file, and so share pages.

use super::shards::Shards;
use super::Tensor;
use std::ops::Range;
use std::sync::OnceLock;

/// A touch of one page maps those around it too, as far as they are in the page cache: by default in blocks of this size
/// (fault_around_bytes of Linux). So they leave with the page, or memory would fill with pages that nobody asked for.
const FAULT_AROUND: u64 = 64 * 1024;

/// Nobody looks further than so many tensors to either side. Pages shared by more stay: there are few of them, since the header of such a
/// file is larger than its data.
const MOST_NEIGHBOURS: usize = 64;

/// The tensors of each shard in the order of their bytes. Made when the first page is dropped.
#[derive(Debug)]
pub(super) struct Neighbours {
    shards: Box<[OnceLock<Option<Box<[u32]>>>]>,
}

impl Neighbours {
    pub(super) fn new(shards: usize) -> Neighbours {
        Neighbours { shards: (0..shards).map(|_| OnceLock::new()).collect() }
    }

    /// The bytes of the tensor's file, around it and of it, that may leave memory with it: up to the next tensor for which `in_use` is
    /// true, or some pages on. Only the tensor itself if there is no memory to tell what is around it.
    pub(super) fn around(&self, shards: &Shards, tensor: &Tensor<'_>, in_use: &dyn Fn(usize) -> bool) -> Range<u64> {
        let bytes = tensor.file_range();
        let Some(order) = self.order(shards, tensor.shard()) else { return bytes };
        let header = &tensor.shard.header;
        let data_start = tensor.shard.data_start();
        let first = shards.first(tensor.shard());
        let range_of = |within: &u32| {
            let info = header.tensor(*within as usize);
            info.map_or(0..0, |info| data_start + info.start..data_start + info.stop)
        };
        let at = order.partition_point(|other| range_of(other).start < bytes.start);
        let is_used = |within: &u32| in_use(first + *within as usize);

        let window_start = bytes.start - bytes.start % FAULT_AROUND;
        let mut start = bytes.start;
        let before = order.get(..at).unwrap_or_default();
        for other in before.iter().rev().take(MOST_NEIGHBOURS).take_while(|other| !is_used(other)) {
            start = range_of(other).start;
            if start <= window_start {
                break;
            }
        }
        // What lies before the first tensor is the header, which is not read through the mapping.
        if start == data_start {
            start = 0;
        }
        let window_stop = bytes.end.checked_next_multiple_of(FAULT_AROUND).unwrap_or(bytes.end);
        let mut stop = bytes.end;
        let after = order.get(at + 1..).unwrap_or_default();
        for other in after.iter().take(MOST_NEIGHBOURS).take_while(|other| !is_used(other)) {
            stop = range_of(other).end;
            if stop >= window_stop {
                break;
            }
        }
        start.max(window_start)..stop.min(window_stop)
    }

    /// The bytes of a shard's file that lie between tensors in use.
    pub(super) fn unused(&self, shards: &Shards, shard: usize, in_use: &dyn Fn(usize) -> bool) -> Vec<Range<u64>> {
        let (Some(order), Some(of)) = (self.order(shards, shard), shards.list().get(shard)) else { return Vec::new() };
        let first = shards.first(shard);
        let (mut unused, mut start) = (Vec::new(), 0);
        for within in order.iter().filter(|within| in_use(first + **within as usize)) {
            if let Some(info) = of.header.tensor(*within as usize) {
                unused.push(start..of.data_start() + info.start);
                start = of.data_start() + info.stop;
            }
        }
        unused.push(start..of.storage.size());
        unused
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
            Some(order.into_boxed_slice())
        });
        order.as_deref()
    }
}
