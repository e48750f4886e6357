//! Files that appear all at once: written under another name, and renamed when they are complete.
//!
//! ```text
//! folder     the folder, by descriptor: everything is done relative to it, wherever it is moved
//! lock       locks by which writers know of one another
//! names      names of temporary files, by which those of dead writers are found again
//! temporary  a temporary file, locked by its writer
//! order      where files can only be written from front to back
//! refused    calls that are not to be had everywhere
//! leftovers  temporary files whose writers have died
//! write      positional writes: around the page cache, through it, or passing it soon
//! ```

mod folder;
mod leftovers;
mod lock;
mod names;
mod order;
mod refused;
mod temporary;
mod write;

pub(crate) use folder::{Existing, OutputFolder};
pub(crate) use leftovers::remove_leftovers;
pub(crate) use lock::Lock;
pub(crate) use names::TemporaryNames;
pub(crate) use order::Order;
pub(crate) use refused::cannot_link;
pub(crate) use temporary::{Direct, Temporary};
pub(crate) use write::{DIRECT_ADDRESS, DIRECT_ALIGNMENT};
