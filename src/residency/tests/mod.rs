//! Tests of the ledger as a whole: against a model, with threads, and with all orders of threads.

#[cfg(loom)]
mod loom;
pub(super) mod mock;
#[cfg(not(loom))]
mod model;
#[cfg(not(loom))]
mod threads;
#[cfg(not(loom))]
mod unit;
