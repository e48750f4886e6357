//! The usual tool for what a disk can do. It keeps nothing of what it reads: its buffers are a few, and always the same.

use super::figures::Figures;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Debug)]
pub struct Fio {
    pub engine: &'static str,
    pub block: &'static str,
    pub depth: usize,
    pub jobs: usize,
}

impl Fio {
    pub fn is_there() -> bool {
        Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success())
    }

    /// What there is to choose from: two jobs or more, for each file has one of its own.
    pub fn settings(quick: bool) -> Vec<Fio> {
        let fio = |engine, block, depth, jobs| Fio { engine, block, depth, jobs };
        if quick {
            return vec![fio("psync", "1M", 1, 4), fio("io_uring", "1M", 4, 2)];
        }
        let mut settings = vec![fio("libaio", "1M", 8, 2)];
        for block in ["1M", "4M"] {
            settings.extend([4, 8].map(|jobs| fio("psync", block, 1, jobs)));
            settings.extend([2, 8].map(|depth| fio("io_uring", block, depth, 2)));
        }
        settings
    }

    pub fn title(&self) -> String {
        let Fio { engine, block, depth, jobs } = self;
        format!("fio: {engine}, {block}, depth {depth}, jobs {jobs}")
    }

    /// Reads the files around the page cache. It reads a little less than all, and the time is that of all at the same speed.
    pub fn run(&self, files: &[PathBuf]) -> Result<Figures, String> {
        let Fio { engine, block, depth, .. } = self;
        let mut command = Command::new("fio");
        command.args(["--output-format=json", "--direct=1", "--rw=read", "--thread", "--group_reporting=0"]);
        command.args([format!("--ioengine={engine}"), format!("--bs={block}"), format!("--iodepth={depth}")]);
        let all: u64 = files.iter().map(|file| file.metadata().expect("a file").len()).sum();
        // It would make a file longer that has less than it is asked to read, and write all of it anew.
        command.args(["--readonly", "--allow_file_create=0"]);
        for (number, (path, from, len)) in self.parts(files).into_iter().enumerate() {
            command.args([format!("--name=part{number}"), format!("--filename={}", name(path))]);
            command.args([format!("--offset={from}"), format!("--size={}", len >> 20 << 20)]);
        }
        let output = command.output().expect("fio");
        let text = String::from_utf8_lossy(&output.stdout);
        let json: Value = text.find('{').and_then(|at| serde_json::from_str(&text[at..]).ok()).unwrap_or_default();
        let jobs = json["jobs"].as_array().filter(|_| output.status.success());
        let jobs = jobs.ok_or_else(|| String::from_utf8_lossy(&output.stderr).trim().to_owned())?;
        let read: u64 = jobs.iter().filter_map(|job| job["read"]["io_bytes"].as_u64()).sum();
        let runtime = jobs.iter().filter_map(|job| job["read"]["runtime"].as_f64()).fold(0.0, f64::max) / 1e3;
        let cpu = jobs.iter().map(|job| {
            let percent = job["usr_cpu"].as_f64().unwrap_or(0.0) + job["sys_cpu"].as_f64().unwrap_or(0.0);
            percent / 100.0 * job["read"]["runtime"].as_f64().unwrap_or(0.0) / 1e3
        });
        if read == 0 {
            return Err("has read nothing".to_owned());
        }
        let scale = all as f64 / read as f64;
        let (seconds, cpu) = (runtime * scale, cpu.sum::<f64>() * scale);
        Ok(Figures { seconds, cpu, memory: None, read, checksum: None, engines: Vec::new() })
    }

    /// What each of several jobs reads: file, offset, bytes. At least one for each file.
    fn parts<'f>(&self, files: &'f [PathBuf]) -> Vec<(&'f Path, u64, u64)> {
        let of_each = self.jobs.div_ceil(files.len()) as u64;
        let parts = files.iter().flat_map(|file| {
            let len = file.metadata().expect("a file").len();
            let part = (len / of_each) >> 20 << 20;
            (0..of_each).map(move |number| {
                let end = if number + 1 == of_each { len } else { (number + 1) * part };
                (&**file, number * part, end - number * part)
            })
        });
        parts.collect()
    }
}

/// As fio wants it, for which a colon is between files.
fn name(path: &Path) -> String {
    path.display().to_string().replace(':', "\\:")
}
