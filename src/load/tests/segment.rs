use super::model::{Ask, How, Model, Tensor};
use crate::format::{Dtype, END};
use crate::load::segment::{delta, Block};
use std::ops::Range;
use std::ptr::NonNull;

/// The blocks of one request, by the ranges of the file that their pieces are, and whether they are joined.
fn blocks(shape: &[u64], ranges: &[Range<u64>], shift: u64, how: How) -> Vec<Vec<(u64, u64, bool)>> {
    let tensor = Tensor { shard: 0, start: 1000, dtype: Dtype::U8, shape: shape.to_vec() };
    let ask = Ask { tensor: 0, ranges: ranges.to_vec(), shift: Some(shift) };
    let mut model = Model::new(&[tensor], &[ask], how);
    let of = |block: Block| block.pieces.iter().map(|piece| (piece.offset, piece.end(), piece.joined)).collect();
    std::iter::from_fn(|| model.deal().map(of)).collect()
}

#[test]
fn cut_ends_blocks_between_pages() {
    let how = How { block: 65536, ..How::default() };
    let expected = [[(1000, 65536, false)], [(65536, 131_072, false)], [(131_072, 151_000, false)]];
    assert_eq!(blocks(&[150_000], &[], 0, how), expected);
}

#[test]
fn cut_bounds_what_has_to_be_copied() {
    // What lies as in the file needs no copy, and all of it is one block.
    assert_eq!(blocks(&[200_000], &[], 0, How::default()), [[(1000, 201_000, false)]]);
    // What does not is bounded by the memory for copies, two pages of which are for the ends.
    let expected = [[(1000, 122_880, false)], [(122_880, 201_000, false)]];
    assert_eq!(blocks(&[200_000], &[], 1, How::default()), expected);
}

#[test]
fn cut_joins_runs_that_share_pages_or_are_close() {
    // 100 of each 200 bytes: all on the same pages.
    let columns = blocks(&[3, 200], &[0..END, 0..100], 0, How::default());
    assert_eq!(columns, [[(1000, 1100, false), (1200, 1300, true), (1400, 1500, true)]]);
    let none = How { over_read: 0, ..How::default() };
    let columns = blocks(&[2, 200], &[0..END, 0..100], 0, none);
    assert_eq!(columns, [[(1000, 1100, false), (1200, 1300, false)]]);
    // A gap of a ninth, and one of nine times as much.
    let large = |over_read| How { over_read, block: 1 << 20, bounce: 1 << 20, ..How::default() };
    assert!(!blocks(&[2, 400_000], &[0..END, 0..360_000], 1, large(10))[0][1].2);
    assert!(blocks(&[2, 400_000], &[0..END, 0..360_000], 1, large(12))[0][1].2);
    assert!(!blocks(&[2, 400_000], &[0..END, 0..40_000], 1, large(100))[0][1].2);
}

#[test]
fn cut_bounds_the_number_of_pieces() {
    let blocks = blocks(&[9000, 8], &[0..END, 0..4], 0, How::default());
    assert_eq!(blocks.iter().map(Vec::len).collect::<Vec<_>>(), [4096, 4096, 808]);
}

#[test]
fn delta_is_the_same_for_what_lies_as_in_the_file() {
    let at = |address| NonNull::new(std::ptr::without_provenance_mut(address)).unwrap();
    assert_eq!(delta(100, at(5100)), delta(200, at(5200)));
    assert_ne!(delta(100, at(5100)), delta(200, at(5201)));
    assert_eq!(delta(8192, at(4096)) % 4096, 0);
}
