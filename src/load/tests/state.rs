use super::model::{Ask, How, Model, Tensor};
use crate::error::Error;
use crate::format::Dtype;

/// Tensors of these sizes, one after the other, each staged or with a destination.
fn model(sizes: &[u64], placed: &[usize], how: How) -> Model {
    let mut start = 512;
    let tensor = |size: &u64| {
        start += size;
        Tensor { shard: 0, start: start - size, dtype: Dtype::U8, shape: vec![*size] }
    };
    let tensors: Vec<_> = sizes.iter().map(tensor).collect();
    let ask = |tensor| Ask { tensor, ranges: vec![], shift: placed.contains(&tensor).then_some(0) };
    Model::new(&tensors, &(0..sizes.len()).map(ask).collect::<Vec<_>>(), how)
}

/// An open segment means that somebody will read: whoever waits for that would wait for ever.
#[test]
fn what_has_no_bytes_is_no_work() {
    let how = How { staging: 65536, ..How::default() };
    let mut model = model(&[60_000, 60_000, 0, 0], &[2, 3], how);
    let first = model.deal().unwrap();
    let empty = [model.deliver().unwrap(), model.deliver().unwrap()];
    assert_eq!(empty.map(|loaded| loaded.request), [2, 3]);
    assert!(!model.state.is_stalled(&model.work));
    model.read(&first);
    model.give(&first, true);
    let first = model.deliver().unwrap();
    assert!(model.state.is_stalled(&model.work) && model.deal().is_none());
    assert_eq!(model.recycle(first.buffer), Some(true));
    model.run();
}

#[test]
fn what_has_a_place_does_not_wait_for_staging_memory() {
    let how = How { staging: 65536, ..How::default() };
    let mut model = model(&[60_000, 60_000, 60_000], &[2], how);
    let first = model.deal().unwrap();
    // The second staged one has to wait, the third does not.
    let third = model.deal().unwrap();
    assert_eq!((first.pieces[0].offset, third.pieces[0].offset), (512, 120_512));
    assert!(model.deal().is_none() && !model.state.is_dealt_out(&model.work));
    model.read(&third);
    model.give(&third, true);
    assert_eq!(model.deliver().unwrap().request, 2);
    assert!(!model.state.is_stalled(&model.work));
    model.read(&first);
    model.give(&first, true);
    let first = model.deliver().unwrap();
    // Now it is for the caller to go on.
    assert!(model.state.is_stalled(&model.work));
    assert!(matches!(model.state.staging_full(), Error::StagingFull { held: 61440, size: 65536 }));
    assert_eq!((model.recycle(first.buffer), model.recycle(first.buffer)), (Some(true), None));
    assert!(!model.state.is_stalled(&model.work));
    model.run();
}

#[test]
fn what_has_failed_gives_its_memory_back() {
    let mut model = model(&[60_000, 60_000], &[], How { staging: 65536, ..How::default() });
    let first = model.deal().unwrap();
    model.give(&first, false);
    let failed = model.deliver().unwrap();
    assert!(failed.bytes.is_err() && failed.buffer == 0 && failed.is_last);
    model.run();
}

/// It gives its memory back as it fails, and its place as it is delivered: whoever waits for that place is to be told.
#[test]
fn a_piece_that_has_failed_leaves_its_place() {
    let mut model = model(&[1 << 20], &[], How { staging: 65536, piece_bytes: 8192, ..How::default() });
    let mut dealt = 0;
    while let Some(block) = model.deal() {
        model.give(&block, false);
        dealt += 1;
    }
    assert!((1..(1 << 20) / 8192).contains(&dealt) && !model.state.is_dealt_out(&model.work), "{dealt} pieces");
    assert!(!model.state.wants_more());
    let failed = model.deliver().unwrap();
    assert!(failed.bytes.is_err() && failed.buffer == 0);
    assert!(model.state.wants_more() && !model.state.wants_more());
    assert!(model.deal().is_some() && model.deal().is_none());
}

#[test]
fn pieces_do_not_overtake_one_another() {
    let mut model = model(&[100_000], &[], How { piece_bytes: 20_000, ..How::default() });
    let mut blocks: Vec<_> = std::iter::from_fn(|| model.deal()).collect();
    assert_eq!(blocks.len(), 6);
    while let Some(block) = blocks.pop() {
        assert!(model.deliver().is_none());
        model.read(&block);
        model.give(&block, true);
    }
    let mut at = 0;
    while let Some(piece) = model.deliver() {
        assert!(piece.offset == at && model.is_right(&piece));
        at += piece.bytes.unwrap().len() as u64;
    }
    assert_eq!(at, 100_000);
}

#[test]
fn requests_of_no_bytes_are_there_at_once() {
    for in_order in [false, true] {
        let mut model = model(&[0, 0, 0], &[1], How { in_order, ..How::default() });
        assert_eq!(model.work.blocks(), 0);
        assert!(model.deal().is_none() && model.state.is_read(&model.work));
        for _ in 0..3 {
            let loaded = model.deliver().unwrap();
            assert!(loaded.buffer == 0 && loaded.engine.is_none());
            assert_eq!(loaded.bytes.unwrap().start().addr().get() % if loaded.request == 1 { 1 } else { 64 }, 0);
        }
        assert_eq!(model.state.left(), 0);
    }
}

#[test]
fn pages_needed_hold_everything_at_once() {
    for piece_bytes in [u64::MAX, 5000, 4096] {
        let how = How { piece_bytes, staging: 1 << 30, ..How::default() };
        let mut model = model(&[100, 0, 70_000, 4096, 13, 300_000], &[3], how);
        let mut held = Vec::new();
        while let Some(block) = model.deal() {
            model.read(&block);
            model.give(&block, true);
            held.extend(std::iter::from_fn(|| model.deliver()));
        }
        assert!(model.state.left() == 0 && held.iter().all(|loaded| model.is_right(loaded)));
    }
}

/// While the caller does not take what is there, no more staging memory is used; what has a destination goes on.
#[test]
fn no_more_is_staged_than_is_enough() {
    const LEN: u64 = 65_536;
    let how = How { staging: 64 << 20, block: LEN, ..How::default() };
    let sizes = [LEN; 200];
    let mut model = model(&sizes, &[199], how);
    let mut blocks = 0;
    while let Some(block) = model.deal() {
        model.read(&block);
        model.give(&block, true);
        blocks += 1;
    }
    // An eighth of the memory that there is for 199 tensors, and a page for each, since they begin anywhere.
    let enough = 199 * (LEN + 4096) / 8;
    assert!((enough / LEN..=enough / LEN + 3).contains(&blocks), "{blocks} blocks");
    assert!(!model.state.wants_more() && !model.state.is_stalled(&model.work));
    // As long as more than half of it is there, nobody is woken.
    let mut taken = 0;
    while !model.state.wants_more() {
        let loaded = model.deliver().unwrap();
        assert!(model.is_right(&loaded) && (loaded.buffer == 0 || model.recycle(loaded.buffer).is_some()));
        taken += 1;
    }
    assert!((blocks / 2 - 2..=blocks / 2 + 3).contains(&taken), "{taken} of {blocks}");
    assert!(!model.state.wants_more());
    model.run();
}
