//! Integration tests in Rust. Those of the C API itself are in `tests/c` and `tests/cpp`, run by ctest.

mod header;
