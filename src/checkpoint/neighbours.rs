//! Which tensors lie beside one another in a file, and so share pages.

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

/// `None` if there was no memory for it.
type Order = Option<Box<[u32]>>;

impl Neighbours {
    pub(super) fn new(shards: usize) -> Neighbours {
        Neighbours { shards: (0..shards).map(|_| OnceLock::new()).collect() }
    }

    /// The bytes of a tensor, and those around it within `limits` of its file, up to the next tensor for which `stays` is true. Only the
    /// tensor itself if there is no memory to tell what is around it.
    pub(super) fn around(
        &self,
        shards: &Shards,
        tensor: &Tensor<'_>,
        limits: Range<u64>,
        stays: &dyn Fn(usize) -> bool,
    ) -> Range<u64> {
        let Range { mut start, end: mut stop } = tensor.file_range();
        let order = match self.order(shards, tensor.shard()) {
            // What has no bytes has none around it.
            Some(order) if start < stop => order,
            _ => return start..stop,
        };
        let header = &tensor.shard.header;
        let data_start = tensor.shard.data_start();
        let first = shards.first(tensor.shard());
        let range_of = |within: &u32| {
            let info = header.tensor(*within as usize);
            info.map_or(0..0, |info| data_start + info.start..data_start + info.stop)
        };
        let goes = |within: &&u32| !stays(first + **within as usize);
        let at = order.partition_point(|other| range_of(other).start < start);

        let mut before = order.get(..at).unwrap_or_default().iter().rev().take(MOST_NEIGHBOURS);
        while start > limits.start {
            let Some(other) = before.next().filter(goes) else { break };
            start = range_of(other).start;
        }
        // What lies before the first tensor is the header, which is not read through the mapping.
        if start == data_start {
            start = 0;
        }
        let mut after = order.get(at + 1..).unwrap_or_default().iter().take(MOST_NEIGHBOURS);
        while stop < limits.end {
            let Some(other) = after.next().filter(goes) else { break };
            stop = range_of(other).end;
        }
        start.max(limits.start)..stop.min(limits.end)
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
