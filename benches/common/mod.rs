//! What the benchmarks share: inputs, measuring, memory, and the report.

// Each benchmark is a program of its own and uses a part.
#![allow(dead_code)]

pub mod allocations;
pub mod arguments;
pub mod input;
pub mod measure;
pub mod memory;
pub mod report;
