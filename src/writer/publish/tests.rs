//! Publications that stop after each of their steps.

use super::*;
use crate::storage::output::Temporary;
use crate::{Checkpoint, Dtype, OpenOptions, Writer, WriterOptions};
use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

mod pairs;

thread_local! {
    /// Whether files of this thread's writers can have one name only.
    pub(super) static NO_LINKS: Cell<bool> = const { Cell::new(false) };
}

/// A writer of `len` shards whose bytes are all the same, right before it publishes them.
fn prepared<'d>(path: &Path, len: usize, bytes: &'d [u8; 8]) -> Writer<'d> {
    let options = WriterOptions { max_shard_bytes: 8, no_sync: true, ..WriterOptions::default() };
    let mut writer = Writer::create(path, options).unwrap();
    for i in 0..len {
        writer.add(format!("t{i}"), Dtype::U8, &[8], bytes).unwrap();
    }
    writer.prepare().unwrap();
    writer.write_out().unwrap();
    writer
}

fn publish(path: &Path, len: usize, bytes: &[u8; 8]) {
    prepared(path, len, bytes).publish().unwrap();
}

/// Goes through the first steps only, as if the next one had failed; gives how many there are in all.
fn begin(writer: &mut Writer<'_>, steps: usize) -> usize {
    let plan = writer.plan().unwrap();
    let all = plan.steps.len();
    run(writer, plan, steps);
    all
}

/// No step fails between a change and what it makes of it.
fn run(writer: &mut Writer<'_>, mut plan: Publication, steps: usize) {
    let says_what_is = matches!(plan.steps.get(steps), Some(Step::Now(_)));
    plan.steps.truncate(steps + usize::from(says_what_is));
    writer.has_begun = true;
    plan.run(&writer.target, false, &mut writer.found, &mut None).unwrap();
}

/// Its locks go, and its files stay.
fn dies(mut writer: Writer<'_>) {
    writer.has_begun = false;
    writer.shards.iter_mut().filter_map(|shard| shard.file.as_mut()).for_each(Temporary::keep);
    writer.indices.iter_mut().for_each(Temporary::keep);
}

/// The generation that a reader finds: the number of shards, and the byte that they all have.
fn found(path: &Path) -> (usize, u8) {
    let checkpoint = Checkpoint::open(path, OpenOptions::default()).unwrap();
    let bytes: Vec<u8> = (0..checkpoint.len())
        // SAFETY: nobody changes the files.
        .flat_map(|index| unsafe { checkpoint.tensor_ptr(index).unwrap().as_slice() }.to_vec())
        .collect();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a mix of generations: {bytes:?}");
    (checkpoint.len(), bytes[0])
}

/// What a reader finds: by the index, or, where there is none, the file.
fn found_by_either(folder: &Path) -> (usize, u8) {
    let index = folder.join("model.safetensors.index.json");
    found(&if index.exists() { index } else { folder.join("model.safetensors") })
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn names_of(len: usize) -> Vec<String> {
    match len {
        1 => vec!["model.safetensors".to_owned()],
        _ => (1..=len)
            .map(|number| format!("model-{number:05}-of-{len:05}.safetensors"))
            .chain(["model.safetensors.index.json".to_owned()])
            .collect(),
    }
}

/// How many shards there were, and how many there will be.
const CASES: [(usize, usize); 7] = [(3, 3), (3, 4), (4, 3), (3, 2), (0, 3), (3, 1), (1, 3)];

/// For each case and each step: a folder with the old generation, of ones, and a writer of the new one, of twos, that has stopped there.
fn at_each_step(test: impl Fn(&Path, Writer<'static>, usize, usize)) {
    for (old, new) in CASES {
        for stop in 0.. {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.safetensors");
            if old > 0 {
                publish(&path, old, &[1; 8]);
            }
            let mut writer = prepared(&path, new, &[2; 8]);
            let all = begin(&mut writer, stop);
            assert!(all > 4);
            if old > 0 || writer.found == Found::New {
                let expected = [(old, 1), (new, 2)][usize::from(writer.found == Found::New)];
                assert_eq!(found_by_either(folder.path()), expected, "{old} {new} {stop}");
            }
            test(folder.path(), writer, old, new);
            if stop >= all {
                break;
            }
        }
    }
}

/// Nothing else is left in the end.
fn assert_only(folder: &Path, new: usize) {
    assert_eq!(names(folder), names_of(new));
}

#[test]
fn who_goes_on_writes_all_and_leaves_nothing_else() {
    at_each_step(|folder, mut writer, _, new| {
        writer.publish().unwrap();
        drop(writer);
        assert_eq!(found_by_either(folder), (new, 2));
        assert_only(folder, new);
    });
}

/// The next writer leaves nothing of the dead, whatever it writes itself.
#[test]
fn the_next_writer_finishes_what_the_dead_have_begun() {
    for next in [1, 2, 3] {
        at_each_step(|folder, writer, old, _| {
            let was = (old > 0 || writer.found == Found::New).then(|| found_by_either(folder));
            dies(writer);
            let path = folder.join("model.safetensors");
            // Another one that only begins must not take away what the index names.
            drop(Writer::create(&path, WriterOptions::default()).unwrap());
            assert_eq!(was, was.map(|_| found_by_either(folder)));
            publish(&path, next, &[3; 8]);
            assert_eq!(found_by_either(folder), (next, 3));
            assert_only(folder, next);
        });
    }
}

#[test]
fn who_gives_up_leaves_what_is_found() {
    at_each_step(|folder, writer, old, _| {
        let was = (old > 0 || writer.found == Found::New).then(|| found_by_either(folder));
        drop(writer);
        assert_eq!(was, was.map(|_| found_by_either(folder)));
        if was.is_none() {
            assert!(names(folder).is_empty());
        }
        let path = folder.join("model.safetensors");
        publish(&path, 2, &[3; 8]);
        assert_eq!(found_by_either(folder), (2, 3));
        assert_only(folder, 2);
    });
}

/// Whatever the first one does then.
#[test]
fn another_writer_publishes_before_the_next_try() {
    for third in [1, 2, 3, 4] {
        for goes_on in [false, true] {
            at_each_step(|folder, mut writer, old, new| {
                let path = folder.join("model.safetensors");
                publish(&path, third, &[3; 8]);
                if goes_on {
                    writer.publish().unwrap();
                }
                drop(writer);
                let expected = if goes_on { (new, 2) } else { (third, 3) };
                assert_eq!(found_by_either(folder), expected, "{old} {new} {third} {goes_on}");
                assert_only(folder, expected.0);
            });
        }
    }
}

/// What has been done before the failure is known by the files themselves.
#[test]
fn planning_that_fails_does_not_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut writer = prepared(&path, 2, &[1; 8]);
    let in_the_way = folder.path().join(&names_of(2)[1]);
    std::fs::create_dir(&in_the_way).unwrap();
    // To be written again would show.
    let shard = folder.path().join(writer.shards[0].file.as_ref().unwrap().name().to_str().unwrap());
    let written = std::fs::metadata(&shard).unwrap().modified().unwrap();
    assert!(matches!(writer.finish(), Err(crate::Error::Storage { source: StorageError::NotAFile(_), .. })));
    assert!(matches!(writer.stage, crate::writer::Stage::Written));
    std::fs::remove_dir(&in_the_way).unwrap();
    writer.finish().unwrap();
    drop(writer);
    assert_eq!(std::fs::metadata(folder.path().join(&names_of(2)[0])).unwrap().modified().unwrap(), written);
    assert_eq!(found(folder.path()), (2, 1));
}

#[test]
fn failures_say_what_a_reader_finds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    publish(&path, 3, &[1; 8]);
    let mut writer = prepared(&path, 3, &[2; 8]);
    begin(&mut writer, 3);
    assert_eq!(writer.found, Found::New);
    let shard = folder.path().join(&names_of(3)[1]);
    std::fs::remove_file(&shard).unwrap();
    std::fs::create_dir(&shard).unwrap();
    let error = writer.finish().unwrap_err();
    assert!(error.to_string().contains("the new checkpoint is in place"), "{error}");
    assert_eq!(found(folder.path()), (3, 2));
    std::fs::remove_dir(&shard).unwrap();
    writer.finish().unwrap();
}

/// A file that somebody else has put where a writer was to put one is not the writer's to take away.
#[test]
fn old_shards_of_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    publish(&path, 3, &[1; 8]);
    let other = folder.path().join("other-00001-of-00003.safetensors");
    std::fs::write(&other, "of somebody else").unwrap();
    std::fs::write(folder.path().join("model-00009-of-00009.safetensors"), "named by nobody").unwrap();
    publish(&path, 2, &[2; 8]);
    assert!(other.exists() && folder.path().join("model-00009-of-00009.safetensors").exists());
    assert_eq!(names(folder.path()).len(), 5);
}

#[test]
fn one_file_takes_the_place_of_shards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    publish(&path, 3, &[1; 8]);
    publish(&path, 1, &[2; 8]);
    assert_eq!(found(&path), (1, 2));
    assert_eq!(names(folder.path()), ["model.safetensors"]);
}

/// After a failure where files have one name only.
#[test]
fn without_links_who_goes_on_writes_all_and_who_gives_up_leaves_nothing() {
    NO_LINKS.set(true);
    for old in [0, 1, 3] {
        for stop in 0..20 {
            for goes_on in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("model.safetensors");
                if old > 0 {
                    publish(&path, old, &[1; 8]);
                }
                let mut writer = prepared(&path, 3, &[2; 8]);
                begin(&mut writer, stop);
                if goes_on {
                    writer.publish().unwrap();
                    drop(writer);
                    assert_eq!(found(folder.path()), (3, 2));
                    assert_only(folder.path(), 3);
                } else if writer.found == Found::Old {
                    drop(writer);
                    match old {
                        0 => assert!(names(folder.path()).is_empty()),
                        _ => {
                            assert_eq!(found(folder.path()), (old, 1));
                            assert_only(folder.path(), old);
                        }
                    }
                }
            }
        }
    }
    NO_LINKS.set(false);
}

#[test]
fn what_is_no_file_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut writer = prepared(&path, 1, &[1; 8]);
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(writer.publish(), Err(crate::Error::Storage { source: StorageError::NotAFile(_), .. })));
    std::fs::remove_dir(&path).unwrap();
    writer.finish().unwrap();
    assert_eq!(found(&path), (1, 1));
}

/// Also when their names are new.
#[test]
fn shards_are_not_more_open_than_what_they_replace() {
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    for (old, new) in [(3, 4), (1, 3), (3, 1), (3, 3)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        publish(&path, old, &[1; 8]);
        for name in names_of(old) {
            std::fs::set_permissions(folder.path().join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        // Where the index is gone shards are known by their names.
        let without_index = new == 4;
        if without_index {
            std::fs::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
        }
        let mut writer = prepared(&path, new, &[2; 8]);
        writer.plan().unwrap();
        names(folder.path()).iter().for_each(|name| assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}"));
        writer.publish().unwrap();
        names_of(new).iter().for_each(|name| assert_eq!(mode(&folder.path().join(name)), 0o600, "{name}"));
    }
}
