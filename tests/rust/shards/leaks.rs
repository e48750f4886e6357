//! Opening leaves nothing behind: no descriptors, no threads, whatever it ended with.

use super::{entries, shard, Model, INDEX};
use crate::c_api::open;
use crate::child::run_test;
use std::fs;
use std::time::Duration;

/// Set in the process that counts.
const COUNTING: &str = "ST_COUNT_LEAKS";

fn count(what: &str) -> usize {
    fs::read_dir(format!("/proc/self/{what}")).unwrap().count()
}

/// The system lists a thread that has ended for a moment longer.
fn threads_are_soon(expected: usize) -> bool {
    let is_now = || {
        std::thread::sleep(Duration::from_millis(10));
        count("task") == expected
    };
    (0..12_000).any(|_| is_now())
}

/// A process of its own, because the other tests' descriptors and threads come and go.
#[test]
fn opening_leaves_no_descriptors_and_no_threads() {
    if std::env::var_os(COUNTING).is_some() {
        return open_and_count();
    }
    run_test("shards::leaks::opening_leaves_no_descriptors_and_no_threads", (COUNTING, "1"));
}

/// A status, and the damage that leads to it.
type Break = (&'static str, fn(&Model));

fn open_and_count() {
    // Each breaks a later step.
    let breaks: [Break; 6] = [
        ("ST_ERR_INDEX_JSON", |model| model.write_index_text("{")),
        ("ST_ERR_SHARD_MISSING", |model| fs::remove_file(model.path(&shard(3))).unwrap()),
        ("ST_ERR_HEADER_TOO_SMALL", |model| fs::write(model.path(&shard(2)), "").unwrap()),
        ("ST_ERR_DUPLICATE_NAME", |model| fs::copy(model.path(&shard(1)), model.path(&shard(3))).map(drop).unwrap()),
        ("ST_ERR_INDEX_MISMATCH", |model| model.write_index(&entries()[1..])),
        ("ST_ERR_FOLDER_AMBIGUOUS", |model| fs::write(model.path("other.index.json"), "{}").unwrap()),
    ];
    let models: Vec<_> = breaks.map(|(status, damage)| (status, Model::new(), damage)).into_iter().collect();
    models.iter().for_each(|(_, model, damage)| damage(model));
    let sound = Model::new();
    open(&sound.folder).unwrap();
    let before = (count("fd"), count("task"));
    for _ in 0..50 {
        let held = [open(&sound.folder).unwrap(), open(&sound.path(INDEX)).unwrap()];
        // One descriptor per shard and no more.
        assert_eq!(count("fd"), before.0 + 6);
        drop(held);
        for (status, model, _) in &models {
            assert_eq!(open(&model.folder).unwrap_err().status, *status);
            assert_eq!(count("fd"), before.0, "{status}");
        }
    }
    assert!(threads_are_soon(before.1), "{} threads, not {}", count("task"), before.1);
}
