//! Lazy, zero-copy, verified loading of safetensors checkpoints, for native engines.
//!
//! Opening a checkpoint reads its header, checks it, and maps the file. From then on everything about its tensors is answered from
//! memory, and their bytes are reached in place: a tensor's pages are read when they are first touched, and not before.
//!
//! Most users come through the C API, `include/safetensors_lazy.h`, which is made from [`ffi`]. What lies beneath is this Rust
//! API:
//!
//! ```no_run
//! use safetensors_lazy::{Checkpoint, OpenOptions};
//!
//! let checkpoint = Checkpoint::open("model.safetensors", OpenOptions::default())?;
//! for tensor in checkpoint.tensors() {
//!     println!("{} {} {:?}", tensor.name(), tensor.dtype(), tensor.shape());
//! }
//! let index = checkpoint.find("lm_head.weight").expect("a language model");
//! let bytes = checkpoint.tensor_ptr(index)?;
//! println!("{} bytes at {:p}", bytes.len(), bytes.as_ptr());
//! # Ok::<(), safetensors_lazy::Error>(())
//! ```
//!
//! # Layers
//!
//! Each knows only those above it in this list:
//!
//! - [`format`](mod@format): headers, dtypes, slice arithmetic. Knows bytes, no files.
//! - [`storage`]: mappings, positional reads, memory. Knows files, no tensors.
//! - `hashing`: checksums of many bytes, on several threads. Knows runs of bytes, not where they come from.
//! - `residency`: what is in use, what is held, what goes when a budget is reached. Knows pieces of memory, no tensors.
//! - `checkpoint`: [`Checkpoint`], one name space over all of them.
//! - `load`: [`Load`], many tensors at the speed of the storage. Knows checkpoints.
//! - `writer`: [`Writer`], from tensors to a checkpoint. Knows formats and files, no checkpoints.
//! - [`ffi`]: the C contract. No logic.
//!
//! # Threads
//!
//! What a [`Checkpoint`] says never changes once it is open, and all its methods take `&self`: share it by reference or in an `Arc`.

#![deny(unsafe_op_in_unsafe_fn, missing_docs)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::unreachable)
)]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!("safetensors_lazy supports 64-bit little-endian Linux (x86_64, aarch64)");

mod checkpoint;
mod effort;
mod error;
pub mod ffi;
pub mod format;
mod hashing;
mod load;
mod path;
mod process;
mod quote;
mod residency;
pub mod storage;
mod sync;
mod task;
mod thread;
mod workers;
mod writer;

pub use checkpoint::{
    Checkpoint, Checks, Info, OpenOptions, Pinned, Report, Residency, Tensor, TensorBytes, Verify, VerifyOptions, View,
};
pub use error::{Error, FolderError, Mismatch};
pub use format::Dtype;
pub use load::{Destination, Engine, Load, LoadOptions, LoadProgress, Loaded, LoadedBytes, Next, Request, Staging};
pub use task::{Progress, Task};
pub use writer::{Checksums, Found, Writer, WriterError, WriterOptions};
