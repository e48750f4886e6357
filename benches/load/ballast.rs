//! Memory that is held, touched, between runs, and given back while one runs, as it takes memory.
//!
//! The host of a virtual machine takes free pages away, and the first touch of one that it took costs several times what reading the
//! bytes does. Pages that were held a moment ago are still there. Who takes little gets little: the rest need not be touched again.

use super::memory::Block;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PIECE: usize = 64 << 20;
/// How much is given in advance.
const AHEAD: usize = 1 << 30;

#[derive(Default)]
pub struct Ballast(Vec<Block>);

impl Ballast {
    /// As much as a run may need, unless the machine has not that much to spare.
    pub fn hold(&mut self, bytes: u64) {
        let spare = meminfo("MemAvailable:") + self.0.len() * PIECE;
        let pieces = (bytes as usize).min(spare / 10 * 7).div_ceil(PIECE);
        let missing = pieces.saturating_sub(self.0.len());
        let more = |pieces| (0..pieces).map(|_| Block::touched(PIECE)).collect::<Vec<_>>();
        self.0.truncate(pieces);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| more(missing / 2));
            self.0.extend(more(missing - missing / 2));
            self.0.extend(other.join().expect("memory"));
        });
    }

    /// Gives back what `run` takes.
    pub fn lend<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let least = meminfo("MemFree:") + AHEAD;
        let mut give = || {
            while meminfo("MemFree:") < least && self.0.pop().is_some() {}
        };
        give();
        let has_ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(2));
                    give();
                }
            });
            let value = run();
            has_ended.store(true, Ordering::Relaxed);
            value
        })
    }
}

/// Bytes.
fn meminfo(name: &str) -> usize {
    let meminfo = std::fs::read_to_string("/proc/meminfo").expect("proc");
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)).expect("Linux 3.14 or later");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}
