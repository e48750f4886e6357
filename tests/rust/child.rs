//! Tests that need a process of their own.

use std::ffi::OsStr;
use std::process::Command;

/// Runs one test of this program, in a process of its own with `setting` in its environment, and gives what it says. It must pass.
///
/// `ST_TEST_RUNNER` is the emulator that programs of this architecture are started with, and its arguments, where the system does not know.
pub fn run_test(name: &str, setting: (&str, impl AsRef<OsStr>)) -> String {
    let this = std::env::current_exe().unwrap();
    let runner = std::env::var("ST_TEST_RUNNER").unwrap_or_default();
    let mut words = runner.split_whitespace();
    let mut command = match words.next() {
        Some(emulator) => Command::new(emulator),
        None => Command::new(&this),
    };
    if !runner.is_empty() {
        command.args(words).arg(&this);
    }
    let arguments = ["--exact", name, "--nocapture", "--test-threads=1"];
    let child = command.args(arguments).env(setting.0, setting.1).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{said}");
    said
}
