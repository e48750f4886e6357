//! Files that change while they are open, things that are no files, and one handle under many threads.

use crate::sample;
use safetensors_lazy::storage::{StorageError, StorageKind, StorageOptions};
use safetensors_lazy::{Checkpoint, Error, FolderError, OpenOptions};
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc;
use std::sync::Barrier;
use std::time::Duration;

const ON_DISK: [StorageKind; 2] = [StorageKind::Mmap, StorageKind::Read];

/// Several pages, so that a truncation can take some of them away.
const NBYTES: usize = 20_000;

/// A file with the one tensor `w`, whose bytes are all `fill`.
fn file_filled_with(fill: u8) -> Vec<u8> {
    let header = format!(r#"{{"w":{{"dtype":"U8","shape":[{NBYTES}],"data_offsets":[0,{NBYTES}]}}}}"#);
    sample::file(header.as_bytes(), &[fill; NBYTES])
}

fn open(path: &Path, kind: StorageKind) -> Result<Checkpoint, Error> {
    Checkpoint::open(
        path,
        OpenOptions { storage: StorageOptions { kind, ..StorageOptions::default() }, ..OpenOptions::default() },
    )
}

fn read(checkpoint: &Checkpoint, index: usize) -> Result<Vec<u8>, Error> {
    let mut dst = vec![MaybeUninit::uninit(); checkpoint.tensor(index).unwrap().nbytes() as usize];
    checkpoint.tensor_read(index, &[], &mut dst)?;
    // SAFETY: the destination has just the tensor's size, so all of it has been read.
    Ok(dst.into_iter().map(|byte| unsafe { byte.assume_init() }).collect())
}

/// Runs `test` with an open file of tensor bytes 1, for each storage, and with the path of the file.
fn each_open_file(test: impl Fn(Checkpoint, &Path)) {
    for kind in ON_DISK {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, file_filled_with(1)).unwrap();
        test(open(&path, kind).unwrap(), &path);
    }
}

/// What was asked for can no longer be had, and the message says of which tensor.
fn is_truncated(error: &Error) -> bool {
    matches!(error, Error::Storage { tensor: Some(tensor), source: StorageError::Truncated { .. }, .. } if tensor == "w")
}

#[test]
fn a_file_that_shrinks_gives_errors() {
    each_open_file(|checkpoint, path| {
        let len = fs::metadata(path).unwrap().len();
        for len in [len - 1, len / 2, 20, 0] {
            File::options().write(true).open(path).unwrap().set_len(len).unwrap();
            assert!(is_truncated(&read(&checkpoint, 0).unwrap_err()));
            let one_row = checkpoint.tensor_read(0, &[NBYTES as u64 - 1..NBYTES as u64], &mut [MaybeUninit::uninit()]);
            assert!(is_truncated(&one_row.unwrap_err()));
            if checkpoint.info().storage == StorageKind::Read {
                // There is no mapping, so a pointer needs a copy, which cannot be made.
                assert!(is_truncated(&checkpoint.tensor_ptr(0).unwrap_err()));
            }
        }
        // Names and shapes are in memory.
        assert_eq!((checkpoint.find("w"), checkpoint.tensor(0).unwrap().shape()), (Some(0), &[NBYTES as u64][..]));
        // What comes back is read again: a failure leaves nothing behind.
        fs::write(path, file_filled_with(2)).unwrap();
        assert_eq!(read(&checkpoint, 0).unwrap(), [2; NBYTES]);
        assert_eq!(pointed_to(&checkpoint, 0), [2; NBYTES]);
    });
}

/// The caller knows that the file is all there.
fn pointed_to(checkpoint: &Checkpoint, index: usize) -> Vec<u8> {
    // SAFETY: nobody changes the file at this moment.
    unsafe { checkpoint.tensor_ptr(index).unwrap().as_slice() }.to_vec()
}

#[test]
fn a_file_that_grows_gives_its_old_bytes() {
    each_open_file(|checkpoint, path| {
        File::options().append(true).open(path).unwrap().write_all(&[9; 10_000]).unwrap();
        assert_eq!(read(&checkpoint, 0).unwrap(), [1; NBYTES]);
        assert_eq!(pointed_to(&checkpoint, 0), [1; NBYTES]);
        let error = open(path, StorageKind::Auto).unwrap_err();
        assert!(error.to_string().contains("belongs to no tensor"), "{error}");
    });
}

#[test]
fn a_file_that_is_unlinked_gives_its_old_bytes() {
    each_open_file(|checkpoint, path| {
        fs::remove_file(path).unwrap();
        assert_eq!(read(&checkpoint, 0).unwrap(), [1; NBYTES]);
        assert_eq!(pointed_to(&checkpoint, 0), [1; NBYTES]);
    });
}

#[test]
fn a_file_that_is_renamed_over_gives_its_old_bytes() {
    each_open_file(|checkpoint, path| {
        let new = path.with_extension("new");
        fs::write(&new, file_filled_with(2)).unwrap();
        fs::rename(&new, path).unwrap();
        assert_eq!(read(&checkpoint, 0).unwrap(), [1; NBYTES]);
        assert_eq!(pointed_to(&checkpoint, 0), [1; NBYTES]);
        assert_eq!(pointed_to(&open(path, StorageKind::Auto).unwrap(), 0), [2; NBYTES]);
    });
}

/// A header that changes after it was checked is not looked at again.
#[test]
fn a_header_that_is_overwritten_changes_nothing() {
    each_open_file(|checkpoint, path| {
        let mut file = file_filled_with(1);
        let header_end = file.len() - NBYTES;
        file[8..header_end].fill(b'x');
        fs::write(path, file).unwrap();
        assert_eq!((checkpoint.find("w"), checkpoint.tensor(0).unwrap().name()), (Some(0), "w"));
        assert_eq!(read(&checkpoint, 0).unwrap(), [1; NBYTES]);
    });
}

#[test]
fn what_is_no_file_is_refused_by_its_kind() {
    let folder = tempfile::tempdir().unwrap();
    let (fifo, socket) = (folder.path().join("fifo"), folder.path().join("socket"));
    let c_fifo = CString::new(fifo.as_os_str().as_bytes()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::mkfifo(c_fifo.as_ptr(), 0o600) }, 0);
    let _listener = UnixListener::bind(&socket).unwrap();
    let link = folder.path().join("link");
    symlink(&fifo, &link).unwrap();
    let cases = [
        (fifo.as_path(), "a FIFO"),
        (&link, "a FIFO"),
        (&socket, "a socket"),
        (Path::new("/dev/null"), "a device"),
        (Path::new("/dev/zero"), "a device"),
    ];
    for (path, expected) in cases {
        for kind in [StorageKind::Auto, StorageKind::Mmap, StorageKind::Read] {
            match without_waiting(path, kind).unwrap_err() {
                Error::Storage { source: StorageError::NotAFile(kind), tensor: None, .. } => {
                    assert_eq!(kind.to_string(), expected)
                }
                other => panic!("{}: {other}", path.display()),
            }
        }
    }
}

#[test]
fn a_folder_without_a_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [StorageKind::Auto, StorageKind::Mmap, StorageKind::Read] {
        let error = open(folder.path(), kind).unwrap_err();
        assert!(matches!(error, Error::Folder { source: FolderError::Empty, .. }), "{error}");
    }
}

/// Opens in another thread: opening a FIFO the plain way waits for a writer, for ever.
fn without_waiting(path: &Path, kind: StorageKind) -> Result<Checkpoint, Error> {
    let (sender, receiver) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || sender.send(open(&path, kind)).is_ok());
    receiver.recv_timeout(Duration::from_secs(600)).expect("opening does not wait for a writer")
}

#[test]
fn what_the_system_refuses_is_reported_with_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let os_error = |path: &Path| match open(path, StorageKind::Auto).unwrap_err() {
        Error::Storage { source: StorageError::Io { source, .. }, path: named, .. } => {
            assert_eq!(Path::new(&named), path);
            source.raw_os_error().unwrap()
        }
        other => panic!("{}: {other}", path.display()),
    };
    assert_eq!(os_error(&folder.path().join("absent")), libc::ENOENT);
    assert_eq!(os_error(Path::new("")), libc::ENOENT);
    assert_eq!(os_error(&folder.path().join("x".repeat(300))), libc::ENAMETOOLONG);
    let circle = folder.path().join("circle");
    symlink(&circle, &circle).unwrap();
    assert_eq!(os_error(&circle), libc::ELOOP);
    let file = folder.path().join("model.safetensors");
    fs::write(&file, file_filled_with(1)).unwrap();
    assert_eq!(os_error(&file.join("below")), libc::ENOTDIR);
    assert!(matches!(open(Path::new("a\0b"), StorageKind::Auto), Err(Error::InvalidArgument { .. })));

    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    // SAFETY: a call without arguments.
    match unsafe { libc::geteuid() } {
        0 => eprintln!("skipped: root may read what nobody may"),
        _ => assert_eq!(os_error(&file), libc::EACCES),
    }
}

/// 300 tensors, most of them unaligned. Tensor i is F32 and holds the number i eight times.
fn file_of_many() -> Vec<u8> {
    let mut entries = vec![r#""pad":["U8",[1],[0,1]]"#.to_owned()];
    let mut data = vec![0];
    for i in 0..300u16 {
        let at = data.len();
        entries.push(format!(r#""layer.{}.{i}":["F32",[8],[{at},{}]]"#, i % 10, at + 32));
        data.extend(f32::from(i).to_le_bytes().repeat(8));
    }
    sample::file(format!("{{{}}}", entries.join(",")).as_bytes(), &data)
}

#[test]
fn many_threads_share_a_checkpoint() {
    const THREADS: usize = 16;
    let file = file_of_many();
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(&file).unwrap();
    for kind in ON_DISK {
        let checkpoint = open(on_disk.path(), kind).unwrap();
        let start = Barrier::new(THREADS);
        let pointers: Vec<Vec<usize>> = std::thread::scope(|scope| {
            let work = |thread: usize| {
                let (checkpoint, start) = (&checkpoint, &start);
                move || {
                    start.wait();
                    // All at once: the order of the names and the array of C strings are made by whoever comes first.
                    let group = checkpoint.find_prefix(format!("layer.{}.", thread % 10)).unwrap();
                    assert_eq!(group.len(), 30);
                    assert_eq!(checkpoint.c_names().unwrap().len(), 301);
                    (0..300).map(|i| use_tensor(checkpoint, (i + thread * 7) % 300)).collect::<Vec<_>>()
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(work(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // Every thread was given the same copy of each tensor.
        for (thread, of_thread) in pointers.iter().enumerate() {
            for (i, pointer) in of_thread.iter().enumerate() {
                let tensor = (i + thread * 7) % 300;
                assert_eq!(*pointer, pointers[0][tensor], "tensor {tensor} in thread {thread}");
            }
        }
    }
}

/// Finds, reads and points to tensor `i`; gives the pointer.
fn use_tensor(checkpoint: &Checkpoint, i: usize) -> usize {
    let expected = (i as f32).to_le_bytes().repeat(8);
    let index = checkpoint.find(format!("layer.{}.{i}", i % 10)).unwrap();
    assert_eq!(index, i + 1);
    assert_eq!(read(checkpoint, index).unwrap(), expected);
    assert_eq!(pointed_to(checkpoint, index), expected);
    let pointer = checkpoint.tensor_ptr(index).unwrap().as_ptr() as usize;
    assert_eq!(pointer % 4, 0);
    pointer
}
