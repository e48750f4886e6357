//! Many reads at once by one thread (io_uring).

use super::Direct;
use io_uring::{opcode, types, IoUring};
use std::collections::VecDeque;
use std::io;
use std::ptr::NonNull;
use std::time::Duration;

/// From linux/io_uring.h: the call waits for completions.
const GETEVENTS: u32 = 1;

/// How often a system that has no memory for a read just now is asked again, each time after [`PAUSE`].
const TRIES: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);

/// Reads that the system does while this thread goes on. Used by one thread at a time.
///
/// Dropping it waits for those that are under way, so that nothing is written to memory any more.
pub(crate) struct Queue {
    ring: IoUring,
    /// Reads that were pushed and that the system has not taken yet, first to last.
    pushed: VecDeque<u64>,
    /// Reads that the system has taken and whose completion was not seen yet.
    under_way: usize,
    depth: usize,
    refused: bool,
}

/// A read that has ended.
#[derive(Debug)]
pub(crate) enum Completed {
    /// The system is done with it: the number of bytes, or its error.
    Done(u64, io::Result<usize>),
    /// The system has not taken it, and takes no more.
    Refused(u64),
}

impl Queue {
    /// For up to `depth` reads at once. `None` where the system refuses it, as containers often do, or is older than such reads, and
    /// where there is no memory.
    pub(crate) fn new(depth: usize) -> Option<Queue> {
        let entries = u32::try_from(depth.max(1)).ok()?.checked_next_power_of_two()?;
        // Reads without a vector came with Linux 5.6, and so did this feature, about which no call is needed.
        let ring = IoUring::new(entries).ok().filter(|ring| ring.params().is_feature_rw_cur_pos())?;
        let mut pushed = VecDeque::new();
        pushed.try_reserve_exact(depth).ok()?;
        Some(Queue { ring, pushed, under_way: 0, depth, refused: false })
    }

    /// Whether one more read may be pushed.
    pub(crate) fn has_room(&self) -> bool {
        !self.refused && self.len() < self.depth
    }

    /// Number of reads of which the end was not told yet.
    pub(crate) fn len(&self) -> usize {
        self.pushed.len() + self.under_way
    }

    /// Whether the system has refused to take reads, and will take no more.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused
    }

    /// Adds a read, which begins at the next [`Queue::wait`]. `token` comes back when it has ended. Without room, does nothing and
    /// gives `false`.
    ///
    /// # Safety
    ///
    /// `file` stays open, and the `len` bytes from `to` on can be written to and nobody else touches them, until the read has ended or
    /// the queue was dropped.
    #[must_use]
    pub(crate) unsafe fn push(&mut self, file: &Direct, to: NonNull<u8>, len: u32, offset: u64, token: u64) -> bool {
        if !self.has_room() {
            return false;
        }
        let read = opcode::Read::new(types::Fd(file.descriptor()), to.as_ptr(), len).offset(offset);
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.ring.submission().push(&read.build().user_data(token)) }.is_ok();
        if pushed {
            self.pushed.push_back(token);
        }
        pushed
    }

    /// Hands over what was pushed, and waits until [`Queue::completed`] has something to tell. Does not wait if there is nothing to wait
    /// for.
    pub(crate) fn wait(&mut self) {
        let mut tries = 0;
        while self.len() > 0 && !self.has_completed() {
            match self.enter() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Those that are under way end by themselves, and with them goes what the others lack.
                Err(_) if self.under_way > 0 => std::thread::sleep(PAUSE),
                Err(error) if is_for_now(&error) && tries < TRIES => {
                    tries += 1;
                    std::thread::sleep(PAUSE);
                }
                Err(_) => self.refused = true,
            }
        }
    }

    fn has_completed(&mut self) -> bool {
        (self.refused && !self.pushed.is_empty()) || !self.ring.completion().is_empty()
    }

    fn enter(&mut self) -> io::Result<()> {
        let to_submit = if self.refused { 0 } else { self.pushed.len() as u32 };
        // SAFETY: those who have pushed have promised what the reads need; there is no argument.
        let taken = unsafe { self.ring.submitter().enter::<()>(to_submit, 1, GETEVENTS, None) }?;
        self.pushed.drain(..taken.min(self.pushed.len()));
        self.under_way += taken;
        Ok(())
    }

    /// A read that has ended, if there is one.
    pub(crate) fn completed(&mut self) -> Option<Completed> {
        if let Some(entry) = self.ring.completion().next() {
            self.under_way = self.under_way.saturating_sub(1);
            let outcome = usize::try_from(entry.result());
            let outcome = outcome.map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
            return Some(Completed::Done(entry.user_data(), outcome));
        }
        match self.refused {
            true => self.pushed.pop_front().map(Completed::Refused),
            false => None,
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // What the system has not taken, it never will.
        self.refused = true;
        self.pushed.clear();
        while self.under_way > 0 {
            self.wait();
            while self.completed().is_some() {}
        }
    }
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::super::pread::Reader;
    use super::super::Buffer;
    use super::*;
    use std::io::Write;

    fn file_of_pages() -> Option<(Direct, tempfile::NamedTempFile)> {
        let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        for page in 0..64u8 {
            file.write_all(&[page; 4096]).unwrap();
        }
        Some((Direct::open(&Reader::open(file.path()).unwrap())?, file))
    }

    #[test]
    fn push_and_wait_read_many_pages_at_once() {
        let Some(((direct, _file), mut queue)) = file_of_pages().zip(Queue::new(8)) else { return };
        let mut room = Buffer::new(64 * 4096 + (1 << 20)).unwrap();
        let page = |n: u64| NonNull::new(room.start().as_ptr().wrapping_add(n as usize * 4096)).unwrap();
        let (mut next, mut ended) = (0u64, Vec::new());
        while ended.len() < 64 {
            // SAFETY: each read has a page of its own; the file and the buffer outlive the queue's reads.
            while next < 64 && unsafe { queue.push(&direct, page(next), 4096, (63 - next) * 4096, next) } {
                next += 1;
            }
            assert!(queue.len() <= 8);
            queue.wait();
            while let Some(Completed::Done(token, outcome)) = queue.completed() {
                assert_eq!(outcome.unwrap(), 4096);
                ended.push(token);
            }
        }
        queue.wait();
        assert!(queue.completed().is_none() && queue.len() == 0);
        ended.sort_unstable();
        assert!(ended.into_iter().eq(0..64));
        for (n, bytes) in room.as_mut_slice()[..64 * 4096].chunks(4096).enumerate() {
            assert_eq!(bytes, [63 - n as u8; 4096]);
        }
    }

    #[test]
    fn completed_gives_the_error_of_a_read() {
        let Some(((direct, _file), mut queue)) = file_of_pages().zip(Queue::new(1)) else { return };
        let room = Buffer::new(1 << 20).unwrap();
        // SAFETY: all of the buffer; both outlive the read.
        assert!(unsafe { queue.push(&direct, room.start(), 100, 1, 7) });
        // SAFETY: nothing is pushed.
        assert!(!unsafe { queue.push(&direct, room.start(), 4096, 0, 8) });
        queue.wait();
        let Some(Completed::Done(7, Err(error))) = queue.completed() else { panic!("no error") };
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn drop_waits_and_gives_up_what_was_not_taken() {
        let Some(((direct, _file), mut queue)) = file_of_pages().zip(Queue::new(4)) else { return };
        let room = Buffer::new(1 << 20).unwrap();
        for token in 0..2 {
            // SAFETY: all of the buffer, by reads that write the same; both outlive the queue.
            assert!(unsafe { queue.push(&direct, room.start(), 64 * 4096, 0, token) });
        }
        queue.enter().unwrap();
        // SAFETY: as above.
        assert!(unsafe { queue.push(&direct, room.start(), 4096, 0, 3) });
        drop(queue);
    }
}
