//! What the fuzz targets do with their input. The targets themselves only pass it on, so that the integration tests can run the
//! same code over the corpus without a fuzzer (`tests/rust/fuzz_corpus.rs`).

pub mod header;
pub mod index;
mod input;
pub mod layout;
pub mod load;
pub mod open;
#[path = "../../tests/rust/reference.rs"]
pub mod reference;
pub mod slice;
pub mod verify;
pub mod write;
