//! Where everything lies: fixed before the first byte is written.

use super::checksums;
use super::entries::{Entries, Entry, Metadata};
use super::error::WriterError;
use super::options::Checksums;
use crate::format::encode::{encode_header, padded_len, text_len};
use crate::format::{MAX_HEADER_LEN, PREFIX_LEN};
use std::io::{self, Write};

/// Where the tensors lie.
#[derive(Debug)]
pub(super) struct Layout {
    /// Of each tensor: its first byte in the data section of its shard.
    pub(super) starts: Vec<u64>,
    /// Of each shard, in the order in which they were begun: its number.
    pub(super) numbers: Vec<usize>,
}

/// What lies in one file.
#[derive(Debug)]
pub(super) struct ShardLayout {
    /// Its tensors, in the order of their bytes.
    pub(super) order: Vec<usize>,
    /// Bytes of the header, padding included.
    header_len: u64,
    /// Bytes of the data section.
    data_len: u64,
}

/// What is asked of the layout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) insertion_order: bool,
    pub(super) alignment: u64,
    pub(super) checksums: Checksums,
}

const NO_SUCH_TENSOR: &str = "a tensor of a shard that was never added";
const NO_SUCH_SHARD: &str = "a tensor of a shard that was never begun";

/// Finds a place for everything. `numbers` has the number of each shard, in the order in which they were begun.
pub(super) fn lay_out(
    entries: &Entries<'_>,
    metadata: &Metadata,
    numbers: Vec<usize>,
    rules: Rules,
) -> Result<(Layout, Vec<ShardLayout>), WriterError> {
    let mut orders = orders(entries, &numbers)?;
    let mut starts = filled(0, entries.len())?;
    let mut shards = Vec::new();
    shards.try_reserve_exact(orders.len()).map_err(|_| WriterError::NoMemory)?;
    for mut order in orders.drain(..) {
        if !rules.insertion_order {
            order.sort_unstable_by(|a, b| match (entries.get(*a), entries.get(*b)) {
                (Some(a), Some(b)) => b.dtype.cmp(&a.dtype).then_with(|| entries.by_name(a, b)),
                _ => a.cmp(b),
            });
        }
        let mut data_len: u64 = 0;
        for tensor in &order {
            let known = starts.get_mut(*tensor).zip(entries.get(*tensor));
            let (start, entry) = known.ok_or(WriterError::Internal(NO_SUCH_TENSOR))?;
            *start = data_len;
            // The dealer has seen to it that files are not too large.
            data_len = data_len.saturating_add(entry.nbytes);
        }
        let mut shard = ShardLayout { order, header_len: 0, data_len };
        let reserved = checksums::reserved(rules.checksums, shard.order.len());
        let keys = || reserved.iter().map(|(key, _)| (*key, ""));
        let without = text_len(|to| shard.encode(to, entries, &starts, metadata.iter().chain(keys())));
        let text_len = reserved.iter().fold(without, |sum, (_, value_len)| sum.saturating_add(*value_len));
        let padded = padded_len(text_len, rules.alignment).filter(|len| *len <= MAX_HEADER_LEN as u64);
        shard.header_len = padded.ok_or(WriterError::HeaderTooLarge { header_len: text_len })?;
        shards.push(shard);
    }
    Ok((Layout { starts, numbers }, shards))
}

/// The tensors of each shard, in the order in which they were added.
fn orders(entries: &Entries<'_>, numbers: &[usize]) -> Result<Vec<Vec<usize>>, WriterError> {
    let mut lens: Vec<usize> = filled(0, numbers.len())?;
    let number_of = |entry: &Entry<'_>| numbers.get(entry.shard).copied().unwrap_or(usize::MAX);
    for entry in entries.iter() {
        *lens.get_mut(number_of(entry)).ok_or(WriterError::Internal(NO_SUCH_SHARD))? += 1;
    }
    let mut orders: Vec<Vec<usize>> = Vec::new();
    orders.try_reserve_exact(lens.len()).map_err(|_| WriterError::NoMemory)?;
    for len in lens {
        let mut order = Vec::new();
        order.try_reserve_exact(len).map_err(|_| WriterError::NoMemory)?;
        orders.push(order);
    }
    for (tensor, entry) in entries.iter().enumerate() {
        orders.get_mut(number_of(entry)).ok_or(WriterError::Internal(NO_SUCH_SHARD))?.push(tensor);
    }
    Ok(orders)
}

fn filled<T: Clone>(value: T, len: usize) -> Result<Vec<T>, WriterError> {
    let mut list = Vec::new();
    list.try_reserve_exact(len).map_err(|_| WriterError::NoMemory)?;
    list.resize(len, value);
    Ok(list)
}

impl ShardLayout {
    /// Where the data section begins in the file.
    pub(super) fn data_start(&self) -> u64 {
        PREFIX_LEN as u64 + self.header_len
    }

    /// Bytes of the data section.
    pub(super) fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Bytes of the file.
    pub(super) fn file_len(&self) -> u64 {
        self.data_start().saturating_add(self.data_len)
    }

    /// Writes everything before the data: the length, the header, the padding.
    pub(super) fn write_header<'a>(
        &self,
        to: &mut impl Write,
        entries: &Entries<'_>,
        starts: &[u64],
        metadata: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> io::Result<()> {
        to.write_all(&self.header_len.to_le_bytes())?;
        let mut room = Room { to, left: self.header_len };
        self.encode(&mut room, entries, starts, metadata)?;
        let Room { to, left } = room;
        io::copy(&mut io::Read::take(io::repeat(b' '), left), to)?;
        Ok(())
    }

    fn encode<'a>(
        &self,
        to: &mut impl Write,
        entries: &Entries<'_>,
        starts: &[u64],
        metadata: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> io::Result<()> {
        let described = |tensor: &usize| Some(entries.described(entries.get(*tensor)?, *starts.get(*tensor)?));
        encode_header(to, metadata, self.order.iter().filter_map(described))
    }
}

/// Counts down what is left of a header, and takes no more.
struct Room<'t, W> {
    to: &'t mut W,
    left: u64,
}

impl<W: Write> Write for Room<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes.get(..bytes.len().min(self.left as usize)).unwrap_or_default())?;
        self.left = self.left.saturating_sub(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
