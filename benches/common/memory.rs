//! What this process holds in physical memory, as the kernel counts it.

use serde_json::{json, Value};
use std::fs;

/// Bytes.
#[derive(Clone, Copy)]
pub struct Resident {
    /// All pages.
    pub all: u64,
    /// Pages that are not those of a file: what no other process can share and no reclaim can drop.
    pub private: u64,
    /// The most that `all` has ever been.
    pub peak: u64,
}

impl Resident {
    pub fn now() -> Resident {
        // Not from `status`, whose sums lag behind by some pages per core.
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").expect("Linux 4.14 or later");
        let status = fs::read_to_string("/proc/self/status").expect("proc");
        Resident { all: field(&rollup, "Rss:"), private: field(&rollup, "Anonymous:"), peak: field(&status, "VmHWM:") }
    }

    /// What has been added since `before`.
    pub fn since(self, before: Resident) -> Value {
        json!({
            "all": self.all.saturating_sub(before.all),
            "private": self.private.saturating_sub(before.private),
            "peak": self.peak.saturating_sub(before.all),
        })
    }
}

/// The number of bytes after `name`, where it is given in kB.
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of each name");
    let kilobytes = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
    kilobytes * 1024
}
