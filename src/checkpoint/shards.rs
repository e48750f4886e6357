//! The shards of a checkpoint, and how its tensors are numbered through them.

use super::shard::Shard;
use crate::format::Header;

/// Shards in their order. Tensors are numbered through them: those of the first in the order of its header, then those of the second.
#[derive(Debug)]
pub(super) struct Shards {
    list: Vec<Shard>,
    /// The number of the first tensor of each shard.
    first: Box<[usize]>,
    len: usize,
}

impl Shards {
    /// `None` if there is no memory.
    pub(super) fn new(list: Vec<Shard>) -> Option<Shards> {
        let mut len = 0usize;
        let mut first = Vec::new();
        first.try_reserve_exact(list.len()).ok()?;
        for shard in &list {
            first.push(len);
            len += shard.header.len();
        }
        Some(Shards { list, first: first.into_boxed_slice(), len })
    }

    /// Number of tensors in all shards.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn list(&self) -> &[Shard] {
        &self.list
    }

    pub(super) fn headers(&self) -> impl Iterator<Item = &Header> {
        self.list.iter().map(|shard| &shard.header)
    }

    /// The shard of tensor `index`, its number, and the tensor's index in the shard's header.
    #[inline]
    pub(super) fn locate(&self, index: usize) -> Option<(&Shard, usize, usize)> {
        let number = match self.list.len() {
            1 => 0,
            _ => self.first.partition_point(|first| *first <= index).checked_sub(1)?,
        };
        let within = index.checked_sub(*self.first.get(number)?)?;
        Some((self.list.get(number)?, number, within))
    }

    /// The number of the first tensor of a shard.
    pub(super) fn first(&self, shard: usize) -> usize {
        self.first.get(shard).copied().unwrap_or(self.len)
    }

    /// The name of tensor `index`; empty for an index that is none.
    #[inline]
    pub(super) fn name(&self, index: usize) -> &[u8] {
        self.locate(index).map_or(&[], |(shard, _, within)| shard.header.name(within))
    }

    /// The name of tensor `index`, if that is one of this shard's.
    #[inline]
    pub(super) fn name_in(&self, shard: usize, index: usize) -> Option<&[u8]> {
        let header = &self.list.get(shard)?.header;
        let within = index.checked_sub(*self.first.get(shard)?)?;
        (within < header.len()).then(|| header.name(within))
    }

    /// The text in which the name of tensor `index` lies.
    #[inline]
    pub(super) fn text(&self, index: usize) -> &[u8] {
        self.locate(index).map_or(&[], |(shard, ..)| shard.header.text())
    }
}
