//! Every pair of crashes: one writer dies after each of its steps, the next one starts from there and dies after each of its own. After
//! every step path, index and folder are opened.

use super::*;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What a path opens as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    /// There is nothing.
    Absent,
    /// So many tensors of this generation, and of no other.
    Whole(usize, u8),
    /// It cannot be opened, or its bytes are of several generations.
    Broken,
}

/// The path, the index and the folder.
type Views = [View; 3];

fn view(path: &Path) -> View {
    let is_there = match path.is_dir() {
        true => names(path).iter().any(|name| !name.starts_with('.')),
        false => fs::symlink_metadata(path).is_ok(),
    };
    if !is_there {
        return View::Absent;
    }
    let Ok(checkpoint) = Checkpoint::open(path, OpenOptions::default()) else { return View::Broken };
    let bytes: Vec<u8> = (0..checkpoint.len())
        // SAFETY: nobody changes the bytes of a file.
        .flat_map(|index| unsafe { checkpoint.tensor_ptr(index).unwrap().as_slice() }.to_vec())
        .collect();
    match bytes.iter().all(|byte| *byte == bytes[0]) {
        true => View::Whole(checkpoint.len(), bytes[0]),
        false => View::Broken,
    }
}

fn file_in(folder: &Path) -> std::path::PathBuf {
    folder.join("model.safetensors")
}

fn index_in(folder: &Path) -> std::path::PathBuf {
    folder.join("model.safetensors.index.json")
}

fn views(folder: &Path) -> Views {
    [view(&file_in(folder)), view(&index_in(folder)), view(folder)]
}

/// A checkpoint that is there before the first writer comes.
#[derive(Clone, Copy, Debug)]
enum Start {
    Nothing,
    File,
    /// As some repositories have them.
    FileNamedByIndex,
    /// Of which the file is a part.
    FileAndOtherNamedByIndex,
    Shards(usize),
}

const STARTS: [Start; 6] = [
    Start::Nothing,
    Start::File,
    Start::FileNamedByIndex,
    Start::FileAndOtherNamedByIndex,
    Start::Shards(2),
    Start::Shards(3),
];

/// What a writer writes.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// A file, by a writer that could not write several.
    File,
    /// A file, because there is one shard.
    Shard,
    Shards(usize),
}

const KINDS: [Kind; 4] = [Kind::File, Kind::Shard, Kind::Shards(2), Kind::Shards(3)];

/// A writer right before it publishes. No two generations have a tensor in common: of a wrong index nothing would be found.
fn writer_of(folder: &Path, kind: Kind, generation: u8) -> Writer<'static> {
    let (len, max_shard_bytes) = match kind {
        Kind::File => (1, 0),
        Kind::Shard => (1, 8),
        Kind::Shards(len) => (len, 8),
    };
    let options = WriterOptions { max_shard_bytes, no_sync: true, ..WriterOptions::default() };
    let mut writer = Writer::create(file_in(folder), options).unwrap();
    for i in 0..len {
        writer.add(format!("{generation}.{i}"), Dtype::U8, &[8], bytes_of(generation)).unwrap();
    }
    writer.prepare().unwrap();
    writer.write_out().unwrap();
    writer
}

fn bytes_of(generation: u8) -> &'static [u8; 8] {
    const ALL: [[u8; 8]; 4] = [[0; 8], [1; 8], [2; 8], [3; 8]];
    &ALL[usize::from(generation) % 4]
}

fn start(folder: &Path, start: Start) {
    let publish = |kind| writer_of(folder, kind, 1).publish().unwrap();
    let index = |names: &str| fs::write(index_in(folder), format!("{{\"weight_map\": {{{names}}}}}")).unwrap();
    match start {
        Start::Nothing => {}
        Start::File => publish(Kind::File),
        Start::FileNamedByIndex => {
            publish(Kind::File);
            index(r#""1.0": "model.safetensors""#);
        }
        Start::FileAndOtherNamedByIndex => {
            let mut other = Writer::create(folder.join("other.safetensors"), WriterOptions::default()).unwrap();
            other.add("1.1", Dtype::U8, &[8], bytes_of(1)).unwrap();
            other.finish().unwrap();
            publish(Kind::File);
            index(r#""1.0": "model.safetensors", "1.1": "other.safetensors""#);
        }
        Start::Shards(len) => publish(Kind::Shards(len)),
    }
}

/// What a checkpoint opens as when all steps are done.
fn is_in_place(views: Views, kind: Kind, generation: u8) -> bool {
    match kind {
        Kind::File | Kind::Shard => {
            let whole = View::Whole(1, generation);
            views[0] == whole && views[2] == whole && matches!(views[1], View::Absent | View::Whole(1, _))
        }
        Kind::Shards(len) => {
            let whole = View::Whole(len, generation);
            views == [View::Absent, whole, whole]
        }
    }
}

/// Each of the three opens as it did, or as the new checkpoint.
fn is_old_or_new(old: Views, now: Views, kind: Kind, generation: u8) -> bool {
    let len = match kind {
        Kind::File | Kind::Shard => 1,
        Kind::Shards(len) => len,
    };
    let new = View::Whole(len, generation);
    let is_new = |at: usize| match (at, kind) {
        (0, Kind::Shards(_)) => now[at] == View::Absent,
        (1, Kind::File | Kind::Shard) => now[at] == View::Absent || now[at] == new,
        // An index may come that says what was found without it.
        (1, Kind::Shards(_)) => now[at] == new || now[at] == old[2],
        _ => now[at] == new,
    };
    (0..3).all(|at| now[at] == old[at] || is_new(at))
}

/// Whether there is a file beside an index that does not know of it.
fn has_a_pair_that_disagrees(folder: &Path) -> bool {
    let (Ok(index), true) = (fs::read(index_in(folder)), file_in(folder).exists()) else { return false };
    let knows = |name: &str| name == "model.safetensors";
    let names_it = crate::format::Index::parse(&index).unwrap().shards().any(knows);
    !names_it && !crate::format::unnamed(&index).unwrap().iter().any(|name| knows(name))
}

/// Does the steps one by one, and looks after each of them; gives how often.
fn step_through(
    folder: &Path,
    writer: &mut Writer<'_>,
    most: usize,
    (kind, generation): (Kind, u8),
    links: bool,
    context: &str,
) -> usize {
    let old = views(folder);
    let steps = writer.plan().unwrap().steps;
    writer.has_begun = true;
    assert_eq!(views(folder), old, "{context}: planning changes something");
    let was_a_pair = has_a_pair_that_disagrees(folder);
    let len = steps.len();
    for (number, step) in steps.into_iter().take(most).enumerate() {
        let context = format!("{context}; step {number}: {step:?}");
        Publication { steps: vec![step] }.run(&writer.target, false, &mut writer.found, &mut None).unwrap();
        let now = views(folder);
        match writer.found {
            // Without links, and where something is there that has a new one's name, which an index names: nobody may take it for a
            // checkpoint.
            Found::Neither => {
                assert!(!links, "{context}");
                assert!(is_old_or_new(old, [now[0], old[1], old[2]], kind, generation), "{context}: {old:?} {now:?}");
                let is_new = is_old_or_new([now[0], View::Broken, View::Broken], now, kind, generation);
                assert!(is_new && now[1] == now[2], "{context}: {old:?} {now:?}");
            }
            _ => assert!(is_old_or_new(old, now, kind, generation), "{context}: {old:?} {now:?}"),
        }
        // Without links one file takes the place of shards before the index can say so.
        let may_be_a_pair = !links && matches!(kind, Kind::File | Kind::Shard);
        assert!(was_a_pair || may_be_a_pair || !has_a_pair_that_disagrees(folder), "{context}");
    }
    if most >= len {
        let now = views(folder);
        assert!(is_in_place(now, kind, generation), "{context}: {now:?}");
        assert!(!has_a_pair_that_disagrees(folder), "{context}");
        assert_eq!(writer.found, Found::New);
    }
    len
}

/// Gives how many pairs there were.
fn each_pair(links: bool) -> usize {
    NO_LINKS.set(!links);
    let mut pairs = 0;
    for begun in STARTS {
        for first in KINDS {
            for stop in 0.. {
                let mut all = 0;
                for second in KINDS {
                    let folder = tempfile::tempdir().unwrap();
                    let folder = folder.path();
                    start(folder, begun);
                    let mut writer = writer_of(folder, first, 2);
                    let context = format!("links {links}, {begun:?}, {first:?}");
                    all = step_through(folder, &mut writer, stop, (first, 2), links, &context);
                    dies(writer);
                    let was = views(folder);
                    let mut writer = writer_of(folder, second, 3);
                    assert_eq!(views(folder), was, "{context}: what the dead have left was needed");
                    let context = format!("{context} dead after {stop} steps, {second:?}");
                    pairs += step_through(folder, &mut writer, usize::MAX, (second, 3), links, &context);
                    // What is left when it has ended well.
                    writer.publish().unwrap();
                    drop(writer);
                    assert!(is_in_place(views(folder), second, 3), "{context}: {:?}", views(folder));
                    let mut expected = match second {
                        Kind::File | Kind::Shard => names_of(1),
                        Kind::Shards(len) => names_of(len),
                    };
                    if matches!(begun, Start::FileAndOtherNamedByIndex) {
                        expected.push("other.safetensors".to_owned());
                        expected.push("model.safetensors.index.json".to_owned());
                        expected.sort();
                        expected.dedup();
                    }
                    let mut left = names(folder);
                    if !links {
                        // Shards that had their names when their writer died, and no index yet, are known to nobody.
                        left.retain(|name| expected.contains(name) || !name.contains("-of-"));
                        let index = "model.safetensors.index.json".to_owned();
                        left.retain(|name| expected.contains(name) || *name != index || names(folder).len() > 2);
                    }
                    if links {
                        assert_eq!(left, expected, "{context}");
                    } else {
                        assert!(expected.iter().all(|name| left.contains(name)), "{context}: {left:?}");
                        assert!(left.iter().all(|name| !name.starts_with('.')), "{context}: {left:?}");
                    }
                }
                if stop >= all {
                    break;
                }
            }
        }
    }
    NO_LINKS.set(false);
    pairs
}

#[test]
fn each_pair_of_crashes_leaves_the_old_or_the_new() {
    assert!(each_pair(true) > 4000);
}

#[test]
fn each_pair_of_crashes_without_links_leaves_the_old_or_the_new_or_says_so() {
    assert!(each_pair(false) > 4000);
}

/// Which file a path leads to. It is kept open, so that no other can have its number meanwhile.
fn held(path: &Path) -> (Option<fs::File>, Option<(u64, u64)>) {
    let file = fs::File::open(path).ok();
    let id = file.as_ref().map(|file| file.metadata().unwrap()).map(|about| (about.dev(), about.ino()));
    (file, id)
}

/// One thread writes, the other opens: whatever it opens while path and index stay as they are is whole.
#[test]
fn a_reader_that_opens_all_the_while_finds_whole_checkpoints() {
    for links in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        writer_of(folder, Kind::File, 1).publish().unwrap();
        let (ended, opened) = (AtomicBool::new(false), AtomicUsize::new(0));
        let state = || [file_in(folder), index_in(folder)].map(|path| held(&path));
        let read = || {
            while !ended.load(Ordering::Relaxed) {
                for path in [file_in(folder), index_in(folder), folder.to_owned()] {
                    let before = state();
                    let found = view(&path);
                    let after = state();
                    if before.iter().zip(&after).any(|(before, after)| before.1 != after.1) {
                        continue;
                    }
                    let is_fine = found != View::Broken && (path != folder || found != View::Absent);
                    // Without links there are moments in which an index names what is on its way.
                    assert!(is_fine || !links, "{path:?}: {found:?}");
                    opened.fetch_add(usize::from(is_fine), Ordering::Relaxed);
                }
            }
        };
        std::thread::scope(|scope| {
            let reader = scope.spawn(read);
            NO_LINKS.set(!links);
            for round in 0..40 {
                for kind in
                    [KINDS[round % 4], Kind::Shards(3), Kind::File, Kind::Shard, Kind::Shards(2), Kind::Shards(2)]
                {
                    let generation = 1 + (round % 3) as u8;
                    writer_of(folder, kind, generation).publish().unwrap();
                    if let Kind::File = kind {
                        // An index that names the file itself comes to its place, too.
                        let index = format!("{{\"weight_map\": {{\"{generation}.0\": \"model.safetensors\"}}}}");
                        fs::write(folder.join("index"), index).unwrap();
                        fs::rename(folder.join("index"), index_in(folder)).unwrap();
                    }
                    writer_of(folder, Kind::Shard, 1 + generation % 3).publish().unwrap();
                }
                if reader.is_finished() {
                    break;
                }
            }
            NO_LINKS.set(false);
            ended.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        assert!(opened.load(Ordering::Relaxed) > 100);
    }
}
