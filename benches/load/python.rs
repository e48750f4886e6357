//! Which peers there are in Python. scripts/setup bench installs them.

use super::contenders::Contender;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is installed, and why the rest is not.
pub struct Peers {
    pub contenders: Vec<Contender>,
    /// Versions.
    pub versions: Vec<String>,
}

pub fn peers() -> Peers {
    let mut peers = Peers { contenders: Vec::new(), versions: Vec::new() };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("build");
    let (python, mindspore) = (root.join("bench-venv/bin/python"), root.join("bench-mindspore/bin/python"));
    let torch = peers.has(&python, "torch", "3 GB from PyPI: scripts/setup bench torch");
    if peers.has(&python, "safetensors", "scripts/setup bench") {
        let library = if torch { "torch" } else { "numpy" };
        for (how, title) in [("mmap", "mmap, cloned"), ("pread", "pread")] {
            let title = format!("Python safetensors, {library}: {title}");
            peers.contenders.push(Contender::python(&python, "safetensors", &format!("{how}:{library}"), &title));
        }
    }
    if torch && peers.has(&python, "fastsafetensors", "scripts/setup bench torch") {
        peers.contenders.push(Contender::python(&python, "fastsafetensors", "nogds", "fastsafetensors, nogds"));
    }
    if torch && peers.has(&python, "runai_model_streamer", "scripts/setup bench torch") {
        peers.contenders.push(Contender {
            environment: vec![("RUNAI_STREAMER_LOG_LEVEL", "ERROR")],
            ..Contender::python(&python, "runai", "default", "runai-model-streamer")
        });
    }
    if peers.has(&mindspore, "mindspore", "800 MB from PyPI: scripts/bench load --mindspore") {
        peers.contenders.push(Contender::python(&mindspore, "mindspore", "load", "MindSpore load_checkpoint, copied"));
    }
    println!("left out: hmll: not on PyPI, and its crate has no source of the C library that it wants to build");
    peers
}

impl Peers {
    pub fn some(&self, who: &[&str]) -> Vec<Contender> {
        self.contenders.iter().filter(|it| who.contains(&it.who)).cloned().collect()
    }

    fn has(&mut self, python: &PathBuf, module: &str, hint: &str) -> bool {
        let program = "import importlib.metadata as m, importlib.util as u, sys; n = sys.argv[1]; \
                       assert u.find_spec(n); print(m.version(n.replace('_', '-')))";
        let output = Command::new(python).args(["-c", program, module]).output();
        match output {
            Ok(output) if output.status.success() => {
                self.versions.push(format!("{module} {}", String::from_utf8_lossy(&output.stdout).trim()));
                true
            }
            _ => {
                println!("left out: {module}: not installed ({hint})");
                false
            }
        }
    }
}
