//! What one run has cost, as the process that did it sees it.

use serde_json::{json, Value};
use std::time::Instant;

#[derive(Clone)]
pub struct Figures {
    pub seconds: f64,
    /// Of all threads, in user and kernel mode.
    pub cpu: f64,
    /// The most by which the process has grown: pages of files that it has mapped count too. Nothing is known of fio.
    pub memory: Option<u64>,
    /// What the disk was asked for on behalf of this process.
    pub read: u64,
    /// Nothing to compare if the bytes are not kept.
    pub checksum: Option<u32>,
    /// Ours: what has read.
    pub engines: Vec<String>,
}

impl Figures {
    pub fn to_json(&self) -> Value {
        json!({
            "seconds": self.seconds, "cpu": self.cpu, "memory": self.memory, "read": self.read, "checksum": self.checksum,
            "engines": self.engines,
        })
    }

    pub fn from_json(value: &Value) -> Option<Figures> {
        Some(Figures {
            seconds: value["seconds"].as_f64()?,
            cpu: value["cpu"].as_f64()?,
            memory: value["memory"].as_u64(),
            read: value["read"].as_u64()?,
            checksum: value["checksum"].as_u64().and_then(|value| value.try_into().ok()),
            engines: value["engines"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|it| it.as_str().map(str::to_owned))
                .collect::<Option<_>>()?,
        })
    }
}

/// Does it, and tells what it cost.
pub fn measured<T>(work: impl FnOnce() -> T) -> (T, Figures) {
    // Lets VmHWM start anew. Where it is refused the peak is that since the start, which for a new process is nearly the same.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    let memory = field("/proc/self/status", "VmRSS:");
    let (read, cpu) = (read_bytes(), cpu());
    let start = Instant::now();
    let value = work();
    let seconds = start.elapsed().as_secs_f64();
    let figures = Figures {
        seconds,
        cpu: self::cpu() - cpu,
        memory: Some(field("/proc/self/status", "VmHWM:").saturating_sub(memory) * 1024),
        read: read_bytes() - read,
        checksum: None,
        engines: Vec::new(),
    };
    (value, figures)
}

fn cpu() -> f64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: it has room for what is written.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

fn read_bytes() -> u64 {
    field("/proc/self/io", "read_bytes:")
}

fn field(path: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(path).expect("proc");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line of each name");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
