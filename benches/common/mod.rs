//! What the benchmarks share: inputs, measuring, memory, and the report.

pub mod allocations;
pub mod input;
pub mod measure;
pub mod memory;
pub mod report;
