use crate::load::reads::{Copy, Reads, Target};
use crate::load::segment::{Block, Piece, Room};
use std::ptr::NonNull;

fn at(address: u64) -> NonNull<u8> {
    NonNull::new(std::ptr::without_provenance_mut(address as usize)).unwrap()
}

fn piece(offset: u64, len: u64, to: u64, joined: bool) -> Piece {
    Piece { delivery: 0, request: 0, offset, len, to: at(to), joined, rescued: false }
}

/// Reads as offset, length and target, with bounce memory from 0 on and addresses from 1 MiB on.
type Listed = Vec<(u64, u64, u64)>;
/// Copies as place, address and length.
type Copied = Vec<(usize, u64, usize)>;

fn reads(pieces: &[Piece], room: Option<Room>) -> (Listed, Copied) {
    let reads = Reads::of(&Block { shard: 0, pieces: pieces.to_vec(), room }, 512).unwrap();
    let target = |target| match target {
        Target::Straight(to) => to.addr().get() as u64,
        Target::Bounce(place) => place as u64,
    };
    let copies = reads.copies.iter().map(|Copy { from, to, len }| (*from, to.addr().get() as u64, *len)).collect();
    (reads.list.iter().map(|read| (read.offset, read.len, target(read.to))).collect(), copies)
}

const MIB: u64 = 1 << 20;

#[test]
fn what_lies_as_in_the_file_is_read_straight_but_for_its_ends() {
    let (list, copies) = reads(&[piece(1000, 100_000, MIB + 1000, false)], None);
    assert_eq!(list, [(512, 512, 0), (1024, 99_840, MIB + 1024), (100_864, 512, 512)]);
    assert_eq!(copies, [(488, MIB + 1000, 24), (512, MIB + 100_864, 136)]);
    // Without ends.
    let (list, copies) = reads(&[piece(1024, 65_536, MIB, false)], None);
    assert_eq!((list, copies), (vec![(1024, 65_536, MIB)], vec![]));
}

#[test]
fn neighbours_in_file_and_memory_are_one_read() {
    let (list, _) = reads(&[piece(0, 1000, MIB, false), piece(1000, 70_000, MIB + 1000, true)], None);
    assert_eq!(list, [(0, 70_656, MIB), (70_656, 512, 0)]);
}

#[test]
fn what_does_not_is_copied() {
    let (list, copies) = reads(&[piece(1000, 100_000, MIB + 1, false)], None);
    assert_eq!((list, copies), (vec![(512, 100_864, 0)], vec![(488, MIB + 1, 100_000)]));
    // Nor is it worth a read of its own.
    let (list, _) = reads(&[piece(1000, 60_000, MIB + 1000, false)], None);
    assert_eq!(list, [(512, 60_928, 0)]);
}

#[test]
fn pieces_that_touch_or_are_joined_are_one_read() {
    let apart = [piece(100, 100, MIB, false), piece(1000, 100, MIB + 100, false), piece(9000, 100, MIB + 200, false)];
    let (list, copies) = reads(&apart, None);
    assert_eq!(list, [(0, 1536, 0), (8704, 512, 1536)]);
    assert_eq!(copies, [(100, MIB, 100), (1000, MIB + 100, 100), (1536 + 296, MIB + 200, 100)]);
    let mut joined = apart;
    joined[2].joined = true;
    assert_eq!(reads(&joined, None).0, [(0, 9216, 0)]);
}

#[test]
fn a_joined_piece_is_not_read_from_the_front_of_a_straight_one() {
    // The end of the first needs no read of its own, so there is none to go on with.
    let pieces = [piece(100, 131_072 - 100, MIB + 100, false), piece(135_000, 100, 3 * MIB, true)];
    let (list, _) = reads(&pieces, None);
    assert_eq!(list, [(0, 512, 0), (512, 130_560, MIB + 512), (134_656, 512, 512)]);
}

#[test]
fn with_room_whole_pages_are_read_straight() {
    let room = Room { offset: 8192, to: at(MIB) };
    let pieces =
        [piece(8200, 100, MIB + 8, false), piece(8900, 8000, MIB + 708, true), piece(30_000, 1, MIB + 21_808, false)];
    let (list, copies) = reads(&pieces, Some(room));
    assert_eq!((list, copies), (vec![(8192, 9216, MIB), (29_696, 512, MIB + 21_504)], vec![]));
}
