//! A file read around the page cache (`O_DIRECT`).

use super::pread::Reader;
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// What places in the file, lengths and addresses are multiples of. Many disks would take less, and are slower then: 36,864 reads of 6 KiB
/// at multiples of 512 took half as long again as the pages around them, on a disk that asks for 512.
pub(crate) const PAGE: u64 = 4096;

/// A file that is open a second time, for aligned reads from the device to memory without a copy.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    refused: AtomicBool,
}

impl Direct {
    /// `None` if the file system does not do this, or pages are not enough for it.
    pub(super) fn open(reader: &Reader) -> Option<Direct> {
        if !takes_pages(reader.file()) {
            return None;
        }
        // Through the descriptor, since the path may lead elsewhere by now.
        let path = format!("/proc/self/fd/{}", reader.file().as_raw_fd());
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT | libc::O_NOCTTY).open(path).ok()?;
        Some(Direct { file, refused: AtomicBool::new(false) })
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// One read. Gives the number of bytes that were read: fewer than `len` at the end of the file, or when the system likes.
    ///
    /// # Safety
    ///
    /// `len` bytes from `to` on can be written to, and nobody else touches them.
    pub(crate) unsafe fn read_at(&self, to: NonNull<u8>, len: usize, offset: u64) -> io::Result<usize> {
        loop {
            // Beyond what a position can be, no file has bytes.
            let Ok(offset) = libc::off64_t::try_from(offset) else { return Ok(0) };
            // SAFETY: the caller's promise; the descriptor is open.
            let n = unsafe { libc::pread64(self.file.as_raw_fd(), to.as_ptr().cast(), len, offset) };
            match usize::try_from(n).map_err(|_| io::Error::last_os_error()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome,
            }
        }
    }

    /// Notes that a read has failed, and whether that is since such reads are refused: some file systems say so only then.
    pub(crate) fn has_failed(&self, error: &io::Error) {
        if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) {
            self.refused.store(true, Relaxed);
        }
    }

    /// Whether such reads turned out to be refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Relaxed)
    }
}

/// Whether the file system lets pages be read (`STATX_DIOALIGN`, Linux 6.1; by `O_DIRECT` alone one cannot tell).
fn takes_pages(file: &File) -> bool {
    let mut stat = MaybeUninit::<libc::statx>::zeroed();
    let flags = libc::AT_EMPTY_PATH;
    // SAFETY: the path is a C string, the descriptor is open, and `stat` has room for what the call writes.
    let failed =
        unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_DIOALIGN, stat.as_mut_ptr()) } != 0;
    // SAFETY: integers, which were zeroed.
    let stat = unsafe { stat.assume_init() };
    if failed || stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        return true;
    }
    // 0 says that it does not do this at all.
    let divides_pages = |alignment: u32| PAGE.checked_rem(u64::from(alignment)) == Some(0);
    divides_pages(stat.stx_dio_offset_align) && divides_pages(stat.stx_dio_mem_align)
}

#[cfg(test)]
mod tests {
    use super::super::Buffer;
    use super::*;
    use std::io::Write;

    #[test]
    fn read_at_reads_what_the_file_has_where_it_is_allowed() {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let bytes: Vec<u8> = (0..2 * PAGE + 100).map(|n| (n / 7) as u8).collect();
        file.write_all(&bytes).unwrap();
        let Some(direct) = Direct::open(&Reader::open(file.path()).unwrap()) else { return };
        let mut room = Buffer::new(1 << 20).unwrap();
        let (start, len) = (room.start(), room.len());
        // SAFETY: all of the buffer.
        let read = |len, offset| unsafe { direct.read_at(start, len, offset) };
        // The end of the file is no error.
        assert_eq!(read(len, PAGE).unwrap() as u64, PAGE + 100);
        assert_eq!(read(len, 1 << 40).unwrap(), 0);
        assert_eq!(read(len, u64::MAX - PAGE + 1).unwrap(), 0);
        assert_eq!(room.as_mut_slice()[..PAGE as usize + 100], bytes[PAGE as usize..]);
        let refusal = read(100, 1).unwrap_err();
        direct.has_failed(&refusal);
        assert!(direct.is_refused());
    }

    #[test]
    fn has_failed_tells_a_refusal_from_a_bad_disk() {
        let direct = Direct { file: tempfile::tempfile().unwrap(), refused: AtomicBool::new(false) };
        direct.has_failed(&io::Error::from_raw_os_error(libc::EIO));
        assert!(!direct.is_refused());
        direct.has_failed(&io::Error::from_raw_os_error(libc::EINVAL));
        assert!(direct.is_refused());
    }
}
