//! The other end: a process that loads once, when it is told to, and tells what that cost.
//!
//! Arguments: what (`whole`, `slices`), who, how, the files. It says `ready`, waits for a line, and says `result` and JSON. peers.py does
//! the same.

use super::checksum::Checksum;
use super::figures::measured;
use super::{crates, limits, ours, slices};
use std::path::PathBuf;

pub struct Task {
    /// A variant of whoever loads.
    pub how: String,
    pub files: Vec<PathBuf>,
}

/// What has been loaded: it stays until its checksum has been taken.
pub trait Loaded {
    /// Whether there was anything to add: a limit may keep nothing, and what was staged is gone.
    fn add_to(&self, checksum: &mut Checksum) -> bool;

    /// What has read, where that could be several.
    fn engines(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Loads, when the clock has been started.
pub type Work = Box<dyn FnOnce() -> Box<dyn Loaded>>;

pub fn run(arguments: &[String]) {
    let [what, who, how, files @ ..] = arguments else { panic!("too few arguments") };
    let task = Task { how: how.clone(), files: files.iter().map(PathBuf::from).collect() };
    let work: Work = match (&**what, &**who) {
        ("whole", "ours") => Box::new(move || ours::whole(&task)),
        ("whole", "crate") => Box::new(move || crates::whole(&task)),
        ("whole", "limit") => limits::whole(&task),
        ("slices", "ours") => Box::new(move || slices::ours(&task)),
        ("slices", "crate") => Box::new(move || slices::crates(&task)),
        _ => panic!("nothing is known of {what} by {who}"),
    };
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("a line");
    let (loaded, mut figures) = measured(work);
    let mut checksum = Checksum::default();
    figures.checksum = loaded.add_to(&mut checksum).then(|| checksum.value());
    figures.engines = loaded.engines();
    println!("result {}", figures.to_json());
    // Nothing of it has to be taken apart.
    std::process::exit(0);
}
