use super::model::{wanted, Ask, Tensor};
use crate::format::{Dtype, END};
use crate::load::plan::{is_free, piece_of, Plan, Rules, MOST_REQUESTS};
use crate::load::request::Wanted;
use std::ptr::NonNull;

const RULES: Rules = Rules { in_order: false, over_read: 10, staged_group: 1 << 20, piece_bytes: u64::MAX };

/// Bytes of a file, staged or with a destination.
fn bytes(shard: usize, start: u64, len: u64, placed: bool) -> Wanted {
    let tensor = Tensor { shard, start, dtype: Dtype::U8, shape: vec![len] };
    let destination = placed.then_some(NonNull::dangling());
    wanted(&tensor, &Ask { tensor: 0, ranges: vec![], shift: None }, destination)
}

/// The numbers of the requests of each group.
fn groups(wanted: &[Wanted], rules: &Rules) -> (Vec<Vec<usize>>, Vec<Vec<usize>>) {
    let plan = Plan::new(wanted, rules).unwrap();
    let numbers = |groups: &[std::ops::Range<u32>]| {
        groups.iter().map(|group| plan.members(wanted, group).map(|(number, _)| number).collect()).collect()
    };
    (numbers(&plan.staged), numbers(&plan.placed))
}

#[test]
fn new_sorts_by_shard_and_place() {
    let wanted = [bytes(1, 0, 9, true), bytes(0, 100_000, 9, true), bytes(0, 0, 9, true), bytes(0, 500_000, 9, false)];
    assert_eq!(groups(&wanted, &RULES), (vec![vec![3]], vec![vec![2], vec![1], vec![0]]));
    let in_order = Rules { in_order: true, ..RULES };
    assert_eq!(groups(&wanted, &in_order), (vec![vec![0], vec![1], vec![2], vec![3]], vec![]));
}

#[test]
fn neighbours_are_joined_across_small_gaps() {
    const MIB: u64 = 1 << 20;
    let three =
        |gap: u64| [bytes(0, 0, MIB, true), bytes(0, MIB + gap, MIB, true), bytes(0, 2 * (MIB + gap), MIB, true)];
    assert_eq!(groups(&three(0), &RULES).1, [[0, 1, 2]]);
    // 10 % of what is wanted so far: of two, and of three.
    assert_eq!(groups(&three(MIB / 10), &RULES).1, [[0, 1, 2]]);
    assert_eq!(groups(&three(MIB / 5), &RULES).1, [vec![0, 1], vec![2]]);
    assert_eq!(groups(&three(MIB / 4), &RULES).1, [[0], [1], [2]]);
    let all = Rules { over_read: 1000, ..RULES };
    assert_eq!(groups(&three(MIB), &all).1, [[0, 1, 2]]);
    assert_eq!(groups(&three(MIB + 1), &all).1, [[0], [1], [2]]);
    let none = Rules { over_read: 0, ..RULES };
    assert_eq!(groups(&three(0), &none).1, [[0, 1, 2]]);
    assert_eq!(groups(&three(1), &none).1, [[0], [1], [2]]);
}

#[test]
fn what_differs_is_not_joined() {
    let overlap = [bytes(0, 0, 100, true), bytes(0, 50, 100, true), bytes(0, 150, 100, true)];
    assert_eq!(groups(&overlap, &RULES).1, [vec![0], vec![1, 2]]);
    let mixed = [bytes(0, 0, 100, true), bytes(0, 100, 100, false), bytes(0, 200, 100, true), bytes(1, 0, 9, true)];
    assert_eq!(groups(&mixed, &RULES), (vec![vec![1]], vec![vec![0, 2], vec![3]]));
    let tensor = Tensor { shard: 0, start: 100, dtype: Dtype::U8, shape: vec![10, 10] };
    let columns = wanted(&tensor, &Ask { tensor: 0, ranges: vec![0..END, 0..5], shift: None }, None);
    let scattered = [bytes(0, 0, 100, false), columns, bytes(0, 200, 100, false)];
    assert_eq!(groups(&scattered, &RULES).0, [[0], [1], [2]]);
}

#[test]
fn groups_are_bounded() {
    let many: Vec<_> = (0..3000).map(|n| bytes(0, n * 8, 8, true)).collect();
    assert_eq!(groups(&many, &RULES).1.iter().map(Vec::len).collect::<Vec<_>>(), [MOST_REQUESTS, MOST_REQUESTS, 952]);
    let staged: Vec<_> = (0..8).map(|n| bytes(0, 100 + n * 5000, 5000, false)).collect();
    let small = Rules { staged_group: 16384, ..RULES };
    assert_eq!(groups(&staged, &small).0, [vec![0, 1, 2], vec![3, 4], vec![5, 6, 7]]);
    let pieces = Rules { piece_bytes: 4999, ..RULES };
    assert_eq!(groups(&staged, &pieces).0.len(), 8);
}

#[test]
fn is_free_within_a_page_and_its_neighbour() {
    assert!(is_free(100, 100, 0) && !is_free(100, 101, 0));
    assert!(is_free(100, 101, 1) && is_free(100, 8191, 1) && !is_free(100, 8192, 1));
}

#[test]
fn piece_of_ends_between_pages_of_the_file() {
    let run = bytes(0, 4000, 100_000, false);
    let all = |most, piece| {
        let (mut at, mut ends) = (0, Vec::new());
        while at < run.nbytes {
            let part = piece_of(&run, at, most, piece);
            assert!(part.start == at && part.end > at && part.end - at <= piece);
            assert!((run.start + part.end).div_ceil(4096) - (run.start + at) / 4096 <= most / 4096);
            at = part.end;
            ends.push(run.start + at);
        }
        ends
    };
    assert_eq!(all(65536, u64::MAX), [65536, 104_000]);
    assert_eq!(all(65536, 50_000)[..2], [53248, 102_400]);
    assert_eq!(all(4096, 4096)[..2], [4096, 8192]);
    assert_eq!(all(65536, 4097)[..3], [4096, 8192, 12288]);
    let tensor = Tensor { shard: 0, start: 4000, dtype: Dtype::U8, shape: vec![100, 100] };
    let columns = wanted(&tensor, &Ask { tensor: 0, ranges: vec![0..END, 1..99], shift: None }, None);
    assert_eq!(piece_of(&columns, 0, 65536, 5000), 0..4096);
    assert_eq!(piece_of(&columns, 4096, 4096, u64::MAX), 4096..8192);
    assert_eq!(piece_of(&columns, 8192, 4096, u64::MAX), 8192..9800);
}
