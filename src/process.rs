//! Which process this is: threads do not come along when it forks.

use memmap2::{MmapMut, MmapRaw};
use std::process;

/// Tells the process in which threads run from its children, which have a copy of all but the threads. Its number alone does not: in
/// a namespace of its own a child may have the same.
#[derive(Debug)]
pub(crate) struct Process {
    id: u32,
    /// A page that children find empty, where the system knows how (Linux 4.14). Then to look at it is enough, and costs no system call.
    page: Option<MmapRaw>,
}

impl Process {
    /// `None` if there is no memory.
    pub(crate) fn this() -> Option<Process> {
        let mut page = MmapMut::map_anon(1).ok()?;
        *page.first_mut()? = 1;
        let page = MmapRaw::from(page);
        // SAFETY: the page is ours, and what it holds is there to be lost.
        let is_refused = unsafe { libc::madvise(page.as_mut_ptr().cast(), page.len(), libc::MADV_WIPEONFORK) } != 0;
        Some(Process { id: process::id(), page: Some(page).filter(|_| !is_refused) })
    }

    /// By its number alone, which costs less to make: for what may go on in a child with the same number.
    pub(crate) fn by_number() -> Process {
        Process { id: process::id(), page: None }
    }

    /// Whether it is the one that runs.
    pub(crate) fn is_this(&self) -> bool {
        match &self.page {
            // SAFETY: a byte of the page, which nobody writes to.
            Some(page) => unsafe { page.as_ptr().read_volatile() == 1 },
            None => self.id == process::id(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_this_is_false_in_a_child() {
        is_false_in_a_child(&Process::by_number());
        // MADV_WIPEONFORK is taken by qemu, and does nothing there.
        match std::env::var_os("ST_TEST_RUNNER") {
            Some(emulator) => eprintln!("skipped: {emulator:?} leaves pages as they are in a child"),
            None => is_false_in_a_child(&Process::this().unwrap()),
        }
    }

    fn is_false_in_a_child(process: &Process) {
        assert!(process.is_this());
        // SAFETY: the child calls nothing that another thread's lock could hold up, and exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(process.is_this());
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(code) };
        }
        let mut status = -1;
        // SAFETY: `child` is a child of this process, `status` a local.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!(status, 0);
    }
}
