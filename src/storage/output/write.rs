//! Positional writes.

use super::refused::is_refused;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// What offsets and lengths of writes around the page cache are multiples of: the largest page there is, so that no page has
/// bytes that come the other way.
pub(crate) const DIRECT_ALIGNMENT: u64 = 64 * 1024;

/// What addresses of such writes are multiples of: the largest sector there is.
pub(crate) const DIRECT_ADDRESS: usize = 4096;

/// From this size on a piece is asked to leave the page cache soon.
const DONT_CACHE_FROM: usize = 1 << 20;

/// `RWF_DONTCACHE` (Linux 6.14).
const RWF_DONTCACHE: libc::c_int = 0x80;

/// Whether the system has refused `RWF_DONTCACHE` for a file.
#[derive(Debug, Default)]
pub(super) struct DontCache(AtomicBool);

/// Writes all of `bytes`, however many calls that takes.
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64, dont_cache: Option<&DontCache>) -> io::Result<()> {
    let (mut rest, mut position) = (bytes, offset);
    while !rest.is_empty() {
        let written = match dont_cache {
            Some(refused) if rest.len() >= DONT_CACHE_FROM && !refused.0.load(Ordering::Relaxed) => {
                match write_at_uncached(file, rest, position) {
                    Err(error) if is_refused(&error) => {
                        refused.0.store(true, Ordering::Relaxed);
                        continue;
                    }
                    written => written,
                }
            }
            _ => write_at(file, rest, position),
        };
        match written {
            // No system writes nothing without an error; to try for ever would be worse than to say so.
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                rest = rest.get(n..).unwrap_or_default();
                position = position.saturating_add(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes all of `bytes` where the file's own position is, and tells how many at a time.
pub(super) fn append(mut file: &File, bytes: &[u8], written: impl Fn(u64)) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match io::Write::write(&mut file, rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                written(n as u64);
                rest = rest.get(n..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let offset = position(offset)?;
    // SAFETY: `bytes` can be read for its whole length; the descriptor is open.
    let n = unsafe { libc::pwrite64(file.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), offset) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

fn write_at_uncached(file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
    let offset = position(offset)?;
    let piece = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: one piece, which can be read for its whole length and is not written to; the descriptor is open.
    let n = unsafe { libc::pwritev2(file.as_raw_fd(), &piece, 1, offset, RWF_DONTCACHE) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

fn position(offset: u64) -> io::Result<libc::off64_t> {
    libc::off64_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}
