//! Which shard a tensor goes to.

use super::error::WriterError;
use crate::format::{MAX_HEADER_LEN, MAX_SHARDS};

/// Deals tensors to shards, in the order in which they come, as huggingface_hub's `split_torch_state_dict_into_shards` does: one that
/// is larger than the maximum has a shard of its own, which comes before the one that is being filled; and a new shard is begun when
/// a tensor would not fit.
#[derive(Debug)]
pub(super) struct Dealer {
    /// The most bytes in a shard; `u64::MAX` where there is only one.
    max: u64,
    /// In the order in which they were begun.
    shards: Vec<Dealt>,
    /// The numbers of those that are full, in the order of the checkpoint.
    closed: Vec<usize>,
    /// The one that is being filled.
    current: Option<usize>,
}

/// What a shard has so far.
#[derive(Clone, Copy, Debug, Default)]
struct Dealt {
    nbytes: u64,
    /// Of its header, without the metadata: at least.
    text_len: u64,
}

/// Where a tensor would go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    /// The number of the shard, in the order in which they were begun.
    pub(super) shard: usize,
    is_alone: bool,
    after: Dealt,
}

/// Why a tensor goes nowhere.
#[derive(Debug)]
pub(super) enum Refused {
    /// The shard would be larger than a file can be.
    FileTooLarge,
    /// Anything else.
    Other(WriterError),
}

impl Dealer {
    pub(super) fn new(max_shard_bytes: u64) -> Dealer {
        let max = if max_shard_bytes == 0 { u64::MAX } else { max_shard_bytes };
        Dealer { max, shards: Vec::new(), closed: Vec::new(), current: None }
    }

    /// Where a tensor of `nbytes` goes that takes `text_len` bytes of the header. Nothing is changed but the room for it.
    pub(super) fn choose(&mut self, nbytes: u64, text_len: u64, metadata_len: u64) -> Result<Choice, Refused> {
        let no_memory = |_| Refused::Other(WriterError::NoMemory);
        self.shards.try_reserve(1).map_err(no_memory)?;
        self.closed.try_reserve(2).map_err(no_memory)?;
        let is_alone = nbytes > self.max;
        let current = self.current.and_then(|shard| self.shards.get(shard).map(|dealt| (shard, *dealt)));
        let fits = |(_, dealt): &(usize, Dealt)| dealt.nbytes.checked_add(nbytes).is_some_and(|sum| sum <= self.max);
        let (shard, before) = match current {
            // A single file takes everything, up to what a file can be.
            Some(current) if !is_alone && (self.max == u64::MAX || fits(&current)) => current,
            _ => (self.shards.len(), Dealt::default()),
        };
        if shard >= MAX_SHARDS {
            return Err(Refused::Other(WriterError::TooManyShards));
        }
        let after = Dealt {
            nbytes: before.nbytes.checked_add(nbytes).ok_or(Refused::FileTooLarge)?,
            text_len: before.text_len.saturating_add(text_len),
        };
        let header_len = after.text_len.saturating_add(metadata_len);
        if header_len > MAX_HEADER_LEN as u64 {
            return Err(Refused::Other(WriterError::HeaderTooLarge { header_len }));
        }
        // A header and its padding come before it.
        if after.nbytes > i64::MAX as u64 - 2 * MAX_HEADER_LEN as u64 {
            return Err(Refused::FileTooLarge);
        }
        Ok(Choice { shard, is_alone, after })
    }

    /// Does what was chosen.
    pub(super) fn deal(&mut self, choice: Choice) {
        let Choice { shard, is_alone, after } = choice;
        match self.shards.get_mut(shard) {
            Some(dealt) => *dealt = after,
            None => {
                self.shards.push(after);
                if is_alone {
                    self.closed.push(shard);
                } else {
                    self.closed.extend(self.current.replace(shard));
                }
            }
        }
    }

    /// The length that the longest header has at least, without metadata.
    pub(super) fn longest_text(&self) -> u64 {
        self.shards.iter().map(|dealt| dealt.text_len).max().unwrap_or(0)
    }

    /// Of each shard, in the order in which they were begun: its number in the checkpoint. One at least.
    pub(super) fn numbers(&self) -> Result<Vec<usize>, WriterError> {
        let len = self.shards.len().max(1);
        let mut numbers = Vec::new();
        numbers.try_reserve_exact(len).map_err(|_| WriterError::NoMemory)?;
        numbers.resize(len, 0);
        for (number, shard) in self.closed.iter().chain(&self.current).enumerate() {
            *numbers.get_mut(*shard).ok_or(WriterError::Internal("a shard that was never begun is closed"))? = number;
        }
        Ok(numbers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shards of tensors of these sizes, as positions in the list.
    fn dealt(max: u64, sizes: &[u64]) -> Vec<Vec<usize>> {
        let mut dealer = Dealer::new(max);
        let chosen: Vec<usize> = sizes
            .iter()
            .map(|nbytes| {
                let choice = dealer.choose(*nbytes, 10, 0).unwrap();
                dealer.deal(choice);
                choice.shard
            })
            .collect();
        let numbers = dealer.numbers().unwrap();
        let mut shards = vec![Vec::new(); numbers.len()];
        for (tensor, shard) in chosen.into_iter().enumerate() {
            shards[numbers[shard]].push(tensor);
        }
        shards
    }

    /// The rule as huggingface_hub has it.
    fn model(max: u64, sizes: &[u64]) -> Vec<Vec<usize>> {
        let (mut shards, mut current, mut current_size) = (Vec::new(), Vec::new(), 0);
        for (tensor, size) in sizes.iter().enumerate() {
            if *size > max {
                shards.push(vec![tensor]);
                continue;
            }
            if current_size + size > max {
                shards.push(std::mem::take(&mut current));
                current_size = 0;
            }
            current.push(tensor);
            current_size += size;
        }
        if !current.is_empty() {
            shards.push(current);
        }
        shards
    }

    #[test]
    fn tensors_are_dealt_as_by_hugging_face() {
        assert_eq!(dealt(10, &[4, 30, 4, 4, 2, 10]), [vec![1], vec![0, 2], vec![3, 4], vec![5]]);
        assert_eq!(dealt(0, &[4, 1 << 60, 4]), [vec![0, 1, 2]]);
        assert_eq!(dealt(5, &[]).len(), 1);
        for seed in 0..2000u64 {
            let sizes: Vec<u64> = (0..seed % 13).map(|i| (seed * 31 + i * i * 17) % 23).collect();
            let max = seed % 19 + 1;
            let expected = model(max, &sizes);
            assert!(dealt(max, &sizes) == expected || sizes.is_empty(), "{max} {sizes:?}");
        }
    }

    #[test]
    fn limits_are_found_at_once() {
        let mut dealer = Dealer::new(0);
        assert!(matches!(dealer.choose(i64::MAX as u64, 1, 0), Err(Refused::FileTooLarge)));
        let too_long = dealer.choose(1, MAX_HEADER_LEN as u64, 1);
        assert!(matches!(too_long, Err(Refused::Other(WriterError::HeaderTooLarge { header_len: 100_000_001 }))));
        let mut dealer = Dealer::new(1);
        for _ in 0..MAX_SHARDS {
            let choice = dealer.choose(1, 1, 0).unwrap();
            dealer.deal(choice);
        }
        assert!(matches!(dealer.choose(1, 1, 0), Err(Refused::Other(WriterError::TooManyShards))));
        assert!(dealer.choose(0, 1, 0).is_ok());
    }
}
