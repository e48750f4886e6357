//! Storage with latency: the model's folder seen through tests/fuse/slow_fs.c.

use super::model::Model;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Builds the file system, or says why not.
pub fn build(folder: &Path) -> Result<PathBuf, String> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuse/slow_fs.c");
    if !Path::new("/dev/fuse").exists() {
        return Err("there is no /dev/fuse".to_owned());
    }
    output(Command::new("fusermount3").arg("--version")).map_err(|_| "there is no fusermount3 (Debian: fuse3)")?;
    let flags = output(Command::new("pkg-config").args(["--cflags", "--libs", "fuse3"]))
        .map_err(|_| "pkg-config knows of no fuse3 (Debian: libfuse3-dev)")?;
    let program = folder.join("slow_fs");
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-pthread", "-o"]).arg(&program).arg(source).args(flags.split_whitespace());
    output(&mut compiler)?;
    Ok(program)
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Mounted until it is dropped.
pub struct Mount {
    folder: PathBuf,
    process: Child,
}

impl Mount {
    /// Shows the model at `at`, which is made, and gives it as it is seen there.
    pub fn new(program: &Path, model: &Model, at: &Path, options: &str) -> Result<(Mount, Model), String> {
        let source = model.files[0].parent().expect("a folder");
        std::fs::create_dir_all(at).expect("a folder");
        let mut command = Command::new(program);
        command.args([source, at]).args(["-f", "-o", options]).stdin(Stdio::null());
        let process = command.spawn().map_err(|error| error.to_string())?;
        let mut mount = Mount { folder: at.to_owned(), process };
        let start = Instant::now();
        while !at.join(".reads").exists() {
            let ended = mount.process.try_wait().is_ok_and(|status| status.is_some());
            if ended || start.elapsed() > Duration::from_secs(10) {
                return Err("it cannot be mounted".to_owned());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok((mount, model.seen_in(at)))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").arg("-u").arg(&self.folder).status();
        if !matches!(self.process.try_wait(), Ok(Some(_))) {
            std::thread::sleep(Duration::from_millis(200));
            let _ = self.process.kill();
        }
        let _ = self.process.wait();
    }
}
