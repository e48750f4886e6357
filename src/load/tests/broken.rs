//! States that cannot happen: they end the load, and whoever waits is told.

use super::model::{Ask, How, Model, Tensor};
use crate::error::Error;
use crate::format::Dtype;
use crate::load::ending::Ending;
use crate::load::options::Engine;
use crate::load::segment::Piece;
use crate::load::shared::Failures;
use crate::load::{Load, LoadOptions, Request};
use crate::{Checkpoint, OpenOptions};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

fn checkpoint() -> Arc<Checkpoint> {
    let header = br#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}   "#;
    let file = [&(header.len() as u64).to_le_bytes()[..], header, b"xy"].concat();
    Arc::new(Checkpoint::open_memory(file, OpenOptions::default()).unwrap())
}

/// A load that nobody reads until it is asked to.
fn load() -> Load {
    let request = Request { index: 0, ranges: vec![], destination: None, tag: 0 };
    Load::start(checkpoint(), vec![request], LoadOptions::default()).unwrap()
}

fn is_internal(load: &Load) -> bool {
    // Neither waits for what will never come.
    [None, Some(Duration::ZERO), Some(Duration::MAX)]
        .map(|timeout| load.next(timeout))
        .iter()
        .all(|outcome| matches!(outcome, Err(Error::Internal { what }) if *what == "a block of a load was dropped"))
}

#[test]
fn a_block_that_is_dropped_ends_the_load() {
    let load = load();
    drop(load.shared.take(false, &mut Vec::new()).unwrap().unwrap());
    assert!(is_internal(&load) && load.shared.has_ended());
    // It does not become another error.
    load.cancel();
    assert!(is_internal(&load));
}

#[test]
fn a_block_that_goes_in_a_panic_ends_the_load() {
    let load = load();
    let panics = || {
        let _taken = load.shared.take(false, &mut Vec::new()).unwrap().unwrap();
        panic!("on purpose");
    };
    assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
    assert!(is_internal(&load));
}

#[test]
fn a_block_that_nobody_reads_is_not_waited_for() {
    let load = load();
    let taken = load.shared.take(false, &mut Vec::new()).unwrap().unwrap();
    assert!(matches!(load.next(None), Err(Error::Internal { .. })));
    drop(taken);
}

#[test]
fn a_block_that_is_dropped_after_cancelling_changes_nothing() {
    let load = load();
    let taken = load.shared.take(false, &mut Vec::new()).unwrap();
    load.cancel();
    drop(taken);
    assert!(matches!(load.next(None), Err(Error::Cancelled)));
    assert!(load.shared.take(true, &mut Vec::new()).unwrap().is_none());
}

fn model() -> Model {
    let tensor = Tensor { shard: 0, start: 512, dtype: Dtype::U8, shape: vec![100] };
    Model::new(&[tensor], &[Ask { tensor: 0, ranges: vec![], shift: None }], How::default())
}

fn is_bug<T>(outcome: &Result<T, Ending>) -> bool {
    matches!(outcome, Err(Ending::Internal(_)))
}

#[test]
fn what_arrives_must_have_been_asked_for() {
    let mut model = model();
    assert!(is_bug(&model.state.arrive(0, 1, Engine::Direct, None)) && is_bug(&model.state.come_back()));
    let block = model.deal().unwrap();
    let delivery = block.pieces[0].delivery;
    assert!(is_bug(&model.state.arrive(delivery + 1, 1, Engine::Direct, None)));
    assert!(is_bug(&model.state.arrive(delivery, 101, Engine::Direct, None)));
    assert!(model.state.arrive(delivery, 100, Engine::Direct, None).unwrap().is_some());
    model.state.conclude(delivery, Ok(())).unwrap();
    // Once only.
    assert!(is_bug(&model.state.conclude(delivery, Ok(()))));
    assert!(is_bug(&model.state.arrive(delivery, 0, Engine::Direct, None)));
    model.state.come_back().unwrap();
    assert!(is_bug(&model.state.come_back()));
}

#[test]
fn what_is_dealt_out_must_be_of_a_request() {
    let mut model = model();
    model.work.wanted.clear();
    // Nor is it for the caller to go on.
    assert!(is_bug(&model.state.deal(&model.work, &mut Vec::new())) && !model.state.is_stalled(&model.work));
    let mut model = self::model();
    model.work.limits.block = 0;
    assert!(is_bug(&model.state.deal(&model.work, &mut Vec::new())));
}

#[test]
fn failures_without_memory_are_those_of_all_that_follow() {
    let piece =
        |len| Piece { delivery: 0, request: 0, offset: 0, len, to: NonNull::dangling(), joined: false, rescued: false };
    let pieces = [piece(1), piece(10), piece(100), piece(1000)];
    let cancelled = || vec![(0, Error::Cancelled), (2, Error::Cancelled)].into_iter().peekable();
    let (error, bytes) = Failures::of(&mut cancelled(), usize::MAX, 0, &pieces);
    assert!(matches!(error, Some(Error::Cancelled)) && bytes == 101);
    let mut list = cancelled();
    assert_eq!(Failures::of(&mut list, usize::MAX, 0, &pieces[..2]).1, 1);
    assert_eq!(Failures::of(&mut list, usize::MAX, 2, &pieces[2..]).1, 100);
    let (error, bytes) = Failures::of(&mut Vec::new().into_iter().peekable(), 1, 0, &pieces);
    assert!(matches!(error, Some(Error::NoMemory)) && bytes == 1110);
    assert_eq!(Failures::of(&mut Vec::new().into_iter().peekable(), 9, 0, &pieces).1, 0);
}
