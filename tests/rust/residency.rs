//! Pinning, evicting and budgets over files of all forms and every storage: the bytes are right, and so are the numbers.

use crate::sample::{self, Sample};
use proptest::collection::vec;
use proptest::prelude::*;
use safetensors_lazy::storage::{StorageKind, StorageOptions};
use safetensors_lazy::{Checkpoint, Error, OpenOptions, Pinned, Residency};
use std::io::Write;

#[derive(Clone, Copy, Debug)]
enum Call {
    Pin(usize),
    Drop(usize),
    Point(usize),
    Evict(usize, bool),
    EvictAll(bool),
    SetBudget(u64),
    Prefetch(usize),
}

fn call() -> impl Strategy<Value = Call> {
    let any = || 0..1000usize;
    prop_oneof![
        4 => any().prop_map(Call::Pin),
        3 => any().prop_map(Call::Drop),
        1 => any().prop_map(Call::Point),
        1 => (any(), proptest::bool::ANY).prop_map(|(index, cache)| Call::Evict(index, cache)),
        1 => proptest::bool::ANY.prop_map(Call::EvictAll),
        1 => (0..300u64).prop_map(Call::SetBudget),
        1 => any().prop_map(Call::Prefetch),
    ]
}

/// Tensors that cannot go: their bytes. A copy that may have been written to is one of them, though nobody uses it.
fn stuck(checkpoint: &Checkpoint) -> u64 {
    let stays = |one: &Residency| one.in_use_bytes > 0 || (checkpoint.is_writable() && one.copied_bytes > 0);
    let all = (0..checkpoint.len()).map(|index| checkpoint.residency(index).unwrap());
    all.filter(stays).map(|one| one.charged_bytes).sum()
}

fn check(checkpoint: &Checkpoint, sample: &Sample, calls: &[Call]) {
    let data = sample::data(sample.tensors.iter().map(|tensor| tensor.nbytes()).sum());
    let start = checkpoint.tensors().map(|tensor| tensor.file_offset()).min().unwrap_or(0);
    let expected = |index: usize| {
        let tensor = checkpoint.tensor(index).unwrap();
        let from = (tensor.file_offset() - start) as usize;
        &data[from..from + tensor.nbytes() as usize]
    };
    let nbytes = |index: usize| checkpoint.tensor(index).unwrap().nbytes();
    let mut pinned: Vec<(usize, Pinned<'_>)> = Vec::new();
    let mut kept = vec![false; checkpoint.len()];
    let mut budget = 0;
    for call in calls {
        let index = |any: usize| any % checkpoint.len();
        let fits = |index: usize| {
            let held = checkpoint.residency(index).unwrap().charged_bytes > 0;
            held || nbytes(index) == 0 || budget == 0 || stuck(checkpoint) + nbytes(index) <= budget
        };
        match *call {
            Call::Pin(any) => {
                let (index, fits) = (index(any), fits(index(any)));
                match checkpoint.pin(index) {
                    Ok(pin) => pinned.push((index, pin)),
                    Err(Error::Budget { needed, budget: named, .. }) => {
                        assert!(!fits, "{index} fits");
                        assert_eq!((needed, named), (nbytes(index), budget));
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                }
                assert!(fits, "{index} does not fit");
            }
            Call::Drop(any) if !pinned.is_empty() => drop(pinned.swap_remove(any % pinned.len())),
            Call::Drop(_) => {}
            Call::Point(any) => {
                let (index, fits) = (index(any), fits(index(any)));
                match checkpoint.tensor_ptr(index) {
                    // SAFETY: nobody else knows the file.
                    Ok(bytes) => assert_eq!(unsafe { bytes.as_slice() }, expected(index)),
                    Err(error) => {
                        assert!(matches!(error, Error::Budget { .. }) && !fits);
                        continue;
                    }
                }
                // In a copy it is in use for ever; in place it is none of the budget's business.
                kept[index] |= checkpoint.residency(index).unwrap().copied_bytes > 0;
            }
            Call::Evict(any, cache) => {
                let index = index(any);
                let in_use = kept[index] || pinned.iter().any(|(other, _)| *other == index);
                assert_eq!(matches!(checkpoint.evict(index, cache), Err(Error::InUse { .. })), in_use);
            }
            Call::EvictAll(cache) => {
                checkpoint.evict_all(cache).unwrap();
                assert_eq!(checkpoint.total_residency().charged_bytes, stuck(checkpoint));
            }
            Call::SetBudget(bytes) => {
                budget = bytes;
                checkpoint.set_budget(bytes).unwrap();
            }
            Call::Prefetch(any) => checkpoint.prefetch(&[index(any), 0, index(any)]).unwrap(),
        }
        for (index, pin) in &pinned {
            // SAFETY: nobody else knows the file.
            assert_eq!(unsafe { pin.as_slice() }, expected(*index));
        }
        let in_use = |index: &usize| kept[*index] || pinned.iter().any(|(other, _)| other == index);
        let total = checkpoint.total_residency();
        assert_eq!(total.in_use_bytes, (0..checkpoint.len()).filter(in_use).map(nbytes).sum::<u64>());
        assert_eq!(total.budget, budget);
        assert!(budget == 0 || total.charged_bytes <= budget.max(stuck(checkpoint)), "{total:?}");
    }
}

proptest! {
    #[test]
    fn what_is_pinned_is_right_whatever_is_evicted(
        sample in sample::sample(),
        calls in vec(call(), 1..60),
        storage in 0..4usize,
        copy_on_write in any::<bool>(),
    ) {
        prop_assume!(!sample.tensors.is_empty());
        let kinds = [StorageKind::Auto, StorageKind::Mmap, StorageKind::Read, StorageKind::Memory];
        let storage = StorageOptions { kind: kinds[storage], copy_on_write, ..StorageOptions::default() };
        let options = OpenOptions { storage, ..OpenOptions::default() };
        let checkpoint = match storage.kind {
            StorageKind::Memory => Checkpoint::open_memory(sample.file(), options).unwrap(),
            _ => {
                let mut file = tempfile::NamedTempFile::new().unwrap();
                file.write_all(&sample.file()).unwrap();
                Checkpoint::open(file.path(), options).unwrap()
            }
        };
        check(&checkpoint, &sample, &calls);
    }
}
