//! The time of last use.

use std::time::Instant;

/// Tells the order of uses. Time is the one counter that threads can read without sharing a cache line that any of them writes.
pub(crate) trait Clock {
    /// Never less than an earlier answer.
    fn now(&self) -> u64;
}

/// Nanoseconds since it was made.
#[derive(Debug)]
pub(crate) struct Monotonic(Instant);

impl Monotonic {
    pub(super) fn new() -> Monotonic {
        Monotonic(Instant::now())
    }
}

impl Clock for Monotonic {
    fn now(&self) -> u64 {
        // 64 bits last for 584 years.
        self.0.elapsed().as_nanos() as u64
    }
}
