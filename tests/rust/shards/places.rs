//! Where shards may lie, and what they may be.

use super::{entries, file_of, shard, tensors_of, write_at, Model, INDEX};
use crate::c_api::{open, open_with, Failure};
use safetensors_lazy::ffi::open::ST_OPEN_FOLLOW_LINKS;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// A model whose index has another name for its second shard.
fn model_with_second_shard_at(place: &str) -> Model {
    let model = Model::new();
    let renamed = |(name, file)| (name, if file == shard(2) { place.to_owned() } else { file });
    model.write_index(&entries().into_iter().map(renamed).collect::<Vec<_>>());
    model
}

#[test]
fn shard_below_the_folder() {
    for place in
        ["sub/two.safetensors", "./sub//./two.safetensors", "sub/deeper/权 .safetensors", "two", "..two", "a..b/.x"]
    {
        let model = model_with_second_shard_at(place);
        write_at(&model.path(place), file_of(&tensors_of(2)));
        model.opens();
    }
}

#[test]
fn shard_outside_by_its_path() {
    let model = Model::new();
    let absolute = model.path(&shard(2)).to_str().unwrap().to_owned();
    let beside = format!("../model/{}", shard(2));
    let up_and_down = format!("sub/../{}", shard(2));
    let upwards = "leads upwards";
    for (place, how) in [
        (&*absolute, "absolute"),
        ("/etc/passwd", "absolute"),
        ("//x", "absolute"),
        ("/", "absolute"),
        (&beside, upwards),
        (&up_and_down, upwards),
        ("..", upwards),
        ("../secret", upwards),
        ("sub/..", upwards),
        ("./../secret", upwards),
    ] {
        let model = model_with_second_shard_at(place);
        fs::create_dir(model.path("sub")).unwrap();
        fs::write(model.above("secret"), file_of(&tensors_of(2))).unwrap();
        let end = &place[place.len().saturating_sub(20)..];
        model.refuses("ST_ERR_SHARD_OUTSIDE", &[INDEX, end, how]);
        // That flag is about links.
        assert_eq!(model.open_with(ST_OPEN_FOLLOW_LINKS).unwrap_err().status, "ST_ERR_SHARD_OUTSIDE", "{place}");
    }
}

fn moved_to(place: &Path, model: &Model) {
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    fs::rename(model.path(&shard(2)), place).unwrap();
}

#[test]
fn shard_that_links_out_of_the_folder() {
    // Step by step, to itself, and by way of a folder.
    let relative = |model: &Model| {
        moved_to(&model.above("two"), model);
        symlink("../two", model.path(&shard(2))).unwrap();
    };
    let absolute = |model: &Model| {
        moved_to(&model.above("two"), model);
        symlink(model.above("two"), model.path(&shard(2))).unwrap();
    };
    let by_steps = |model: &Model| {
        moved_to(&model.above("two"), model);
        symlink("step", model.path(&shard(2))).unwrap();
        symlink("../two", model.path("step")).unwrap();
    };
    let to_a_namesake = |model: &Model| {
        // A folder whose name starts as this one's does is another one.
        moved_to(&model.above("model2/two"), model);
        symlink("../model2/two", model.path(&shard(2))).unwrap();
    };
    for link in [&relative as &dyn Fn(&Model), &absolute, &by_steps, &to_a_namesake] {
        let model = Model::new();
        link(&model);
        model.refuses("ST_ERR_SHARD_OUTSIDE", &[INDEX, &shard(2), "symbolic link"]);
        model.open_with(ST_OPEN_FOLLOW_LINKS).unwrap();
        // Numbered shards without an index, likewise.
        fs::remove_file(model.path(INDEX)).unwrap();
        let failure = open(&model.folder).unwrap_err();
        assert_eq!(failure.status, "ST_ERR_SHARD_OUTSIDE", "{failure:?}");
        assert!(failure.message.contains(&shard(2)), "{failure:?}");
        assert!(open_with(&model.folder, ST_OPEN_FOLLOW_LINKS).is_ok());
    }
    let model = model_with_second_shard_at("sub/two");
    moved_to(&model.above("elsewhere/two"), &model);
    symlink("../elsewhere", model.path("sub")).unwrap();
    model.refuses("ST_ERR_SHARD_OUTSIDE", &[INDEX, "sub/two", "symbolic link"]);
    model.open_with(ST_OPEN_FOLLOW_LINKS).unwrap();
}

#[test]
fn shard_that_links_within_the_folder() {
    let model = Model::new();
    moved_to(&model.path("store/two"), &model);
    symlink("store/two", model.path(&shard(2))).unwrap();
    model.opens();
    fs::remove_file(model.path(&shard(2))).unwrap();
    symlink(model.path("store/two"), model.path(&shard(2))).unwrap();
    model.opens();
    // Out and in again ends within.
    fs::remove_file(model.path(&shard(2))).unwrap();
    symlink("../model/store/two", model.path(&shard(2))).unwrap();
    model.opens();
    fs::remove_file(model.path(INDEX)).unwrap();
    assert!(open(&model.folder).is_ok());
}

/// The folder is the one that was named: how it was reached is the caller's affair.
#[test]
fn folder_that_is_a_link() {
    let model = Model::new();
    let link = model.above("latest");
    symlink("model", &link).unwrap();
    assert!(open(&link).is_ok() && open(&link.join(INDEX)).is_ok());
    fs::remove_file(model.path(&shard(2))).unwrap();
    symlink("../two", model.path(&shard(2))).unwrap();
    fs::write(model.above("two"), file_of(&tensors_of(2))).unwrap();
    assert_eq!(open(&link).unwrap_err().status, "ST_ERR_SHARD_OUTSIDE");
}

/// Found in a folder it is a stranger's, named by the caller it is not.
#[test]
fn index_that_links_out_of_the_folder() {
    let model = Model::new();
    fs::rename(model.path(INDEX), model.above(INDEX)).unwrap();
    symlink(format!("../{INDEX}"), model.path(INDEX)).unwrap();
    let failure = open(&model.folder).unwrap_err();
    assert_eq!(failure.status, "ST_ERR_SHARD_OUTSIDE");
    assert!(failure.message.contains(INDEX), "{failure:?}");
    assert!(open_with(&model.folder, ST_OPEN_FOLLOW_LINKS).is_ok());
    assert!(open(&model.path(INDEX)).is_ok());
    // Without the index that it leads to, the folder is not taken for one of numbered shards.
    fs::remove_file(model.above(INDEX)).unwrap();
    let failure = open(&model.folder).unwrap_err();
    assert_eq!(failure.status, "ST_ERR_SHARD_MISSING");
    assert!(failure.message.contains(INDEX), "{failure:?}");
}

/// As `huggingface_hub` lays its cache out: `snapshots/<revision>/<file>` links to `blobs/<hash>`.
#[test]
fn cache_of_hugging_face() {
    let model = Model::new();
    let cache = model.above("models--org--name");
    let snapshot = cache.join("snapshots/0123abcd");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(cache.join("blobs")).unwrap();
    for (number, name) in [INDEX.to_owned(), shard(1), shard(2), shard(3)].iter().enumerate() {
        fs::rename(model.path(name), cache.join(format!("blobs/{number}"))).unwrap();
        symlink(format!("../../blobs/{number}"), snapshot.join(name)).unwrap();
    }
    let opens = || open(&snapshot).is_ok() && open(&snapshot.join(INDEX)).is_ok();
    assert!(opens());
    // The cache may itself be reached by a link.
    symlink(&cache, model.above("link")).unwrap();
    assert!(open(&model.above("link/snapshots/0123abcd")).is_ok());

    let second = snapshot.join(shard(2));
    for target in ["../../../secret", "../../refs", "../../blobs/deeper/2", "../1111/two"] {
        write_at(&snapshot.join(target), file_of(&tensors_of(2)));
        fs::remove_file(&second).unwrap();
        symlink(target, &second).unwrap();
        assert_eq!(open(&snapshot).unwrap_err().status, "ST_ERR_SHARD_OUTSIDE", "{target}");
    }
    // Nor does the store help a folder that is no snapshot.
    fs::remove_file(&second).unwrap();
    symlink("../../blobs/2", &second).unwrap();
    assert!(opens());
    fs::rename(cache.join("snapshots"), cache.join("other")).unwrap();
    assert_eq!(open(&cache.join("other/0123abcd")).unwrap_err().status, "ST_ERR_SHARD_OUTSIDE");
}

#[test]
fn shard_that_does_not_exist() {
    for place in ["absent.safetensors", "sub/absent", "dangling", "a\0b", "two.safetensors\0", "\0"] {
        let model = model_with_second_shard_at(place);
        fs::create_dir(model.path("sub")).unwrap();
        symlink("nowhere", model.path("dangling")).unwrap();
        fs::write(model.path("two.safetensors"), file_of(&tensors_of(2))).unwrap();
        model.refuses("ST_ERR_SHARD_MISSING", &[INDEX, &place.replace('\0', "\\0")]);
    }
}

#[test]
fn shard_that_is_no_file() {
    let model = Model::new();
    fs::remove_file(model.path(&shard(2))).unwrap();
    fs::create_dir(model.path(&shard(2))).unwrap();
    model.refuses("ST_ERR_NOT_A_FILE", &[&shard(2), "a directory"]);

    fs::remove_dir(model.path(&shard(2))).unwrap();
    let fifo = CString::new(model.path(&shard(2)).as_os_str().as_bytes()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    model.refuses("ST_ERR_NOT_A_FILE", &[&shard(2), "a FIFO"]);

    fs::remove_file(model.path(&shard(2))).unwrap();
    let _listener = UnixListener::bind(model.path(&shard(2))).unwrap();
    model.refuses("ST_ERR_NOT_A_FILE", &[&shard(2), "a socket"]);

    fs::remove_file(model.path(&shard(2))).unwrap();
    symlink("/dev/zero", model.path(&shard(2))).unwrap();
    model.refuses("ST_ERR_SHARD_OUTSIDE", &[INDEX, &shard(2)]);
    let failure = model.open_with(ST_OPEN_FOLLOW_LINKS).unwrap_err();
    assert_eq!(failure.status, "ST_ERR_NOT_A_FILE");
    assert!(failure.message.contains("a device") && failure.message.contains(&shard(2)), "{failure:?}");
}

/// These lead to the folder itself.
#[test]
fn shard_without_a_name() {
    for place in ["", ".", "./", "./."] {
        let model = model_with_second_shard_at(place);
        let folder = model.folder.to_str().unwrap();
        model.refuses("ST_ERR_NOT_A_FILE", &[folder, "a directory"]);
    }
}

#[test]
fn shard_that_the_system_refuses() {
    let model = model_with_second_shard_at("circle");
    symlink("circle", model.path("circle")).unwrap();
    let Failure { status, os_error, message } = model.open().unwrap_err();
    assert_eq!((status, os_error), ("ST_ERR_IO", libc::ELOOP), "{message}");
    // By the path that the caller would use, to be looked for there.
    assert!(message.contains(model.folder.to_str().unwrap()), "{message}");
}

#[test]
fn shard_of_a_name_that_no_file_can_have() {
    for place in ["x".repeat(300), format!("{}/below", shard(1))] {
        model_with_second_shard_at(&place).refuses("ST_ERR_SHARD_MISSING", &[INDEX, "is missing"]);
    }
}

/// Each spelling would have the header read once more, and be kept.
#[test]
fn shard_of_two_names() {
    for place in [format!("./{}", shard(1)), format!("{}/", shard(1)), "link".to_owned(), "hard".to_owned()] {
        let model = model_with_second_shard_at(&place);
        symlink(shard(1), model.path("link")).unwrap();
        fs::hard_link(model.path(&shard(1)), model.path("hard")).unwrap();
        model.refuses("ST_ERR_SHARD_TWICE", &[INDEX, &shard(1), &place, "are the same file"]);
    }
    // Nor without an index.
    let model = Model::new();
    fs::remove_file(model.path(INDEX)).unwrap();
    fs::remove_file(model.path(&shard(2))).unwrap();
    fs::hard_link(model.path(&shard(1)), model.path(&shard(2))).unwrap();
    let options = safetensors_lazy::OpenOptions::default();
    let error = safetensors_lazy::Checkpoint::open(&model.folder, options).unwrap_err();
    assert!(matches!(error, safetensors_lazy::Error::SameFile { .. }), "{error}");
}

#[test]
fn index_that_is_no_file() {
    let model = Model::new();
    fs::remove_file(model.path(INDEX)).unwrap();
    let fifo = CString::new(model.path(INDEX).as_os_str().as_bytes()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
    model.refuses("ST_ERR_NOT_A_FILE", &[INDEX, "a FIFO"]);
}

/// Runs `test` with the rights of nobody, where we are root: the system's own call changes them for this thread, and for those that
/// it starts.
fn as_nobody<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: calls without pointers.
            unsafe {
                if libc::geteuid() == 0 {
                    assert_eq!(libc::syscall(libc::SYS_setresuid, -1, 65534, -1), 0);
                }
            }
            test()
        });
        thread.join().unwrap()
    })
}

#[test]
fn what_may_not_be_read() {
    let model = model_with_second_shard_at("sub/two");
    moved_to(&model.path("sub/two"), &model);
    let allow = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    allow(model.folder.parent().unwrap(), 0o755);
    as_nobody(|| model.opens());

    let is_refused = |path: &Path, named: &str, mode, back| {
        allow(path, mode);
        let failure = as_nobody(|| open(&model.path(INDEX)).unwrap_err());
        assert_eq!((failure.status, failure.os_error), ("ST_ERR_IO", libc::EACCES), "{failure:?}");
        assert!(failure.message.contains(named), "{failure:?}");
        allow(path, back);
    };
    let whole = model.path("sub/two");
    is_refused(&model.path("sub/two"), whole.to_str().unwrap(), 0o000, 0o644);
    is_refused(&model.path("sub"), whole.to_str().unwrap(), 0o600, 0o755);
    is_refused(&model.path(INDEX), INDEX, 0o000, 0o644);

    // A folder that may be searched but not listed: what is named can be opened, the folder cannot.
    allow(&model.folder, 0o711);
    as_nobody(|| assert!(open(&model.path(INDEX)).is_ok()));
    let failure = as_nobody(|| open(&model.folder).unwrap_err());
    assert_eq!((failure.status, failure.os_error), ("ST_ERR_IO", libc::EACCES));
    assert!(failure.message.contains("cannot list"), "{failure:?}");
}
