//! Integration tests in Rust. Those of the C API itself are in `tests/c` and `tests/cpp`, run by ctest.

mod c_api;
mod child;
mod conformance;
mod differential;
mod fuzz_corpus;
mod header;
mod index;
mod load;
mod mutation;
mod properties;
mod random;
mod ranks;
mod real_files;
mod reference;
mod registration;
mod residency;
mod resident;
mod sample;
mod shards;
mod storage;
mod verify;
mod writer;
