//! One stretch of a file, read to several places.

use super::pread::Reader;
use super::StorageError;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// The most places that one call takes (`IOV_MAX`).
const MOST: usize = 1024;

/// What nobody wants is read to so much memory, again and again.
const SINK: usize = 32 * 1024;

/// Memory of whoever reads to several places, for one read after the other.
#[derive(Debug, Default)]
pub(crate) struct Scatter {
    places: Vec<libc::iovec>,
    /// Empty until there is something that nobody wants.
    sink: Vec<MaybeUninit<u8>>,
}

impl Scatter {
    /// Lists the places of parts: those that follow one another in memory are one. Gives the number of bytes.
    fn fill(&mut self, parts: impl Iterator<Item = Part>) -> Result<u64, StorageError> {
        self.places.clear();
        let mut len = 0u64;
        for part in parts {
            len = len.saturating_add(part.len as u64);
            match part.to {
                Some(to) => self.add(to.as_ptr(), part.len)?,
                None => {
                    let mut left = part.len;
                    while left > 0 {
                        let len = left.min(SINK);
                        let sink = self.sink()?;
                        self.add(sink, len)?;
                        left -= len;
                    }
                }
            }
        }
        Ok(len)
    }

    fn add(&mut self, to: *mut u8, len: usize) -> Result<(), StorageError> {
        let follows = |last: &&mut libc::iovec| last.iov_base.cast::<u8>().wrapping_add(last.iov_len) == to;
        if let Some(last) = self.places.last_mut().filter(follows) {
            last.iov_len += len;
            return Ok(());
        }
        let nbytes = (self.places.len() * size_of::<libc::iovec>()) as u64;
        self.places.try_reserve(1).map_err(|_| StorageError::NoMemory { nbytes })?;
        self.places.push(libc::iovec { iov_base: to.cast(), iov_len: len });
        Ok(())
    }

    fn sink(&mut self) -> Result<*mut u8, StorageError> {
        if self.sink.is_empty() {
            self.sink.try_reserve_exact(SINK).map_err(|_| StorageError::NoMemory { nbytes: SINK as u64 })?;
            self.sink.resize(SINK, MaybeUninit::uninit());
        }
        Ok(self.sink.as_mut_ptr().cast())
    }
}

/// What becomes of the next `len` bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// Where they go; `None`: nobody wants them.
    pub(crate) to: Option<NonNull<u8>>,
    pub(crate) len: usize,
}

impl Reader {
    /// Reads all parts, one after the other in the file, from `offset` on.
    ///
    /// # Safety
    ///
    /// Each part that is wanted can be written to for its length, and nobody else touches it.
    pub(super) unsafe fn read_parts(
        &self,
        parts: impl Iterator<Item = Part>,
        offset: u64,
        scatter: &mut Scatter,
    ) -> Result<(), StorageError> {
        let len = scatter.fill(parts)?;
        // SAFETY: the caller's promise for the parts; the sink is the scatter's, which is borrowed mutably, and has so many bytes.
        unsafe { self.fill_places(&mut scatter.places, offset) }.map_err(|error| match error {
            Some(error) => StorageError::io("read", error),
            None => StorageError::Truncated { offset, len, opened_len: self.len() },
        })
    }

    /// Fills places, however many calls that takes. The error is `None` at the end of the file.
    ///
    /// # Safety
    ///
    /// As for [`Reader::read_parts`], of each place.
    unsafe fn fill_places(&self, places: &mut [libc::iovec], offset: u64) -> Result<(), Option<io::Error>> {
        let (mut first, mut position) = (0, offset);
        while let Some(rest) = places.get(first..).filter(|rest| !rest.is_empty()) {
            // Beyond what a position can be, no file has bytes.
            let at = libc::off64_t::try_from(position).map_err(|_| None)?;
            let count = rest.len().min(MOST) as libc::c_int;
            // SAFETY: the caller's promise; the descriptor is open.
            let n = unsafe { libc::preadv64(self.file().as_raw_fd(), rest.as_ptr(), count, at) };
            match usize::try_from(n).map_err(|_| io::Error::last_os_error()) {
                Ok(0) => return Err(None),
                Ok(n) => {
                    position = position.saturating_add(n as u64);
                    advance(places, &mut first, n);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Some(error)),
            }
        }
        Ok(())
    }
}

/// Goes on by `n` bytes: `first` is the first place that is not full.
fn advance(places: &mut [libc::iovec], first: &mut usize, mut n: usize) {
    while let Some(place) = places.get_mut(*first) {
        if n < place.iov_len {
            place.iov_base = place.iov_base.cast::<u8>().wrapping_add(n).cast();
            place.iov_len -= n;
            return;
        }
        n -= place.iov_len;
        *first += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn reader(len: usize) -> (Reader, tempfile::NamedTempFile) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&(0..len).map(|n| (n % 251) as u8).collect::<Vec<_>>()).unwrap();
        (Reader::open(file.path()).unwrap(), file)
    }

    #[test]
    fn read_parts_fills_what_is_wanted_and_skips_the_rest() {
        let (reader, _file) = reader(200_000);
        let (mut wanted, mut scatter) = (vec![0u8; 3000], Scatter::default());
        let mut parts = Vec::new();
        // More parts than a call takes, with a gap larger than the sink among them.
        for (n, byte) in wanted.iter_mut().enumerate() {
            parts.push(Part { to: Some(NonNull::from(byte)), len: 1 });
            parts.push(Part { to: None, len: if n == 1500 { 100_000 } else { n % 3 } });
        }
        // SAFETY: each part is a byte of `wanted`.
        unsafe { reader.read_parts(parts.iter().copied(), 7, &mut scatter) }.unwrap();
        let mut at = 7;
        for (n, byte) in wanted.iter().enumerate() {
            assert_eq!(*byte as usize, at % 251, "{n}");
            at += 1 + parts[2 * n + 1].len;
        }
    }

    #[test]
    fn read_parts_tells_of_the_end() {
        let (reader, _file) = reader(100);
        let (mut wanted, mut scatter) = ([0u8; 60], Scatter::default());
        let part = Part { to: Some(NonNull::from(&mut wanted).cast()), len: 60 };
        // SAFETY: the part is `wanted`.
        let mut read =
            |parts: &[Part], offset| unsafe { reader.read_parts(parts.iter().copied(), offset, &mut scatter) };
        read(&[part], 40).unwrap();
        read(&[], 1000).unwrap();
        for (parts, offset) in [(&[part][..], 41), (&[part, Part { to: None, len: 1 }], 40), (&[part], u64::MAX)] {
            let error = read(parts, offset).unwrap_err();
            assert!(matches!(error, StorageError::Truncated { opened_len: 100, .. }), "{error}");
        }
    }

    #[test]
    fn fill_makes_one_place_of_what_follows_in_memory() {
        let (mut bytes, mut scatter) = ([0u8; 100], Scatter::default());
        let start = NonNull::from(&mut bytes).cast::<u8>();
        let part = |at: usize, len| Part { to: NonNull::new(start.as_ptr().wrapping_add(at)), len };
        let gap = Part { to: None, len: 5 };
        let parts = [part(0, 10), part(10, 20), part(40, 10), gap, part(50, 5), part(55, 5), part(55, 1)];
        assert_eq!(scatter.fill(parts.into_iter()).unwrap(), 56);
        assert_eq!(scatter.places.iter().map(|place| place.iov_len).collect::<Vec<_>>(), [30, 10, 5, 10, 1]);
        assert_eq!(scatter.fill([part(0, 1)].into_iter()).unwrap(), 1);
        assert_eq!(scatter.places.len(), 1);
    }

    #[test]
    fn advance_stops_within_a_place() {
        let start = std::ptr::null_mut::<u8>();
        let place = |len| libc::iovec { iov_base: start.cast(), iov_len: len };
        let (mut places, mut first) = ([place(3), place(5), place(2)], 0);
        for (n, expected) in [(0, (0, 3)), (2, (0, 1)), (4, (1, 2)), (2, (2, 2))] {
            advance(&mut places, &mut first, n);
            assert_eq!((first, places[first].iov_len), expected);
        }
        advance(&mut places, &mut first, 2);
        assert_eq!((first, places[1].iov_base.addr()), (3, 3));
    }
}
