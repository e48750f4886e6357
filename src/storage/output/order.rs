//! Files that are written from front to back, because they can be written in no other way.
//!
//! On mounts of object stores and of HDFS a file is only ever appended to. Nothing says so beforehand. But such a mount cannot give a
//! file its length either, so where that is refused it is suspected; and a first write that is refused at its position makes it certain.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicU8, Ordering};

/// In which order a file takes its bytes, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Anywhere, at any time.
    Any,
    /// Perhaps only from front to back: better not tried otherwise.
    Suspected,
    /// Only from front to back.
    Front,
}

/// How a file is written, and how far it is.
#[derive(Debug)]
pub(super) struct Progress {
    order: AtomicU8,
    /// Whether anything was written at a position of the writer's choice.
    is_touched: AtomicBool,
    /// How many bytes have been appended.
    end: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress { order: AtomicU8::new(0), is_touched: AtomicBool::new(false), end: AtomicU64::new(0) }
    }

    pub(super) fn order(&self) -> Order {
        match self.order.load(Ordering::Relaxed) {
            0 => Order::Any,
            1 => Order::Suspected,
            _ => Order::Front,
        }
    }

    pub(super) fn set_order(&self, order: Order) {
        let number = match order {
            Order::Any => 0,
            Order::Suspected => 1,
            Order::Front => 2,
        };
        self.order.store(number, Ordering::Relaxed);
    }

    /// Something was written at a position of its own.
    pub(super) fn touch(&self) {
        self.is_touched.store(true, Ordering::Relaxed);
    }

    /// Whether the file has not a byte yet.
    pub(super) fn is_empty(&self) -> bool {
        !self.is_touched.load(Ordering::Relaxed) && self.end() == 0
    }

    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    pub(super) fn appended(&self, len: u64) {
        self.end.fetch_add(len, Ordering::Relaxed);
    }
}
