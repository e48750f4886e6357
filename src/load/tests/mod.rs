//! Plans are carried out here over files that are memory: whatever is asked for, in whichever order its blocks come back, what
//! arrives is what a naive copy gives. `threads` has real loads.

mod broken;
mod model;
mod plan;
mod random;
mod reads;
mod segment;
mod state;
mod threads;
