//! The C contract: what `include/safetensors_lazy.h` is made from. The only place with `extern "C"`, and no logic.
//!
//! Each section of the header is a file here, in the order of [`SECTIONS`]; its comments are the header's comments, written for
//! readers of C. Every function checks its pointers, calls one function of the core, and writes its outputs, inside
//! `guard`, which turns errors and panics into an `st_status` and holds cancellation of the thread back.
//!
//! # Safety
//!
//! What the `unsafe` functions ask of their callers is said once, in the header's introduction: pointers are NULL, where that is
//! allowed, or valid for what is read and written through them; handles come from this library and have not been closed.

#![allow(non_camel_case_types)]
// The header's introduction and the functions' comments, which are the header's, say what is safe.
#![allow(clippy::missing_safety_doc)]
// Brackets in those comments are C's.
#![allow(rustdoc::broken_intra_doc_links)]

mod cancellation;
mod dlpack;
mod guard;
mod handle;
mod options;

pub mod about;
pub mod bytes;
pub mod directory;
pub mod error;
pub mod load;
pub mod open;
pub mod ranks;
pub mod residency;
pub mod task;
pub mod verify;
pub mod writer;

/// The sections of the header: a file of this folder, and the section's title.
pub const SECTIONS: [(&str, &str); 11] = [
    ("error", "Errors"),
    ("about", "About the library"),
    ("open", "Open and close"),
    ("directory", "The directory: names, shapes, places"),
    ("bytes", "Bytes: pointers, views, copies, DLPack"),
    ("residency", "Residency: what stays in memory"),
    ("ranks", "Ranks: splitting tensors over processes"),
    ("task", "Tasks: watching and cancelling long calls"),
    ("load", "Loading: many tensors at the speed of the storage"),
    ("verify", "Checking: whether the bytes are right"),
    ("writer", "Writing"),
];
