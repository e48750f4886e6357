//! A table for people, the same numbers as JSON for programs.

use super::measure::Samples;
use serde_json::{json, Value};
use std::fs;
use std::path::Path;

/// Prints rows as they come and keeps them.
#[derive(Default)]
pub struct Report {
    section: String,
    rows: Vec<Value>,
}

impl Report {
    /// A new table.
    pub fn section(&mut self, name: &str, about: &str, columns: [&str; 3]) {
        self.section = name.to_owned();
        println!("\n{name}: {about}");
        let [left, middle, right] = columns;
        println!("{}", format!("  {:<44}{left:>12}{middle:>12}  {right}", "").trim_end());
    }

    /// Ours beside the reference's.
    pub fn compare(&mut self, what: &str, ours: &Samples, reference: &Samples) {
        let ratios = ours.ratios(reference);
        let (ratio, (low, high)) = (ratios.median(), ratios.quartiles());
        let (ours, reference) = (ours.median(), reference.median());
        println!(
            "  {what:<44}{:>12}{:>12}  {} ({} to {})",
            time(ours),
            time(reference),
            times(ratio),
            times(low),
            times(high)
        );
        self.keep(
            what,
            json!({ "ours": ours, "reference": reference, "ratio": ratio, "quartiles": [low, high], "unit": "s" }),
        );
    }

    /// Ours beside another way, as most of them are and as one in a hundred is.
    pub fn tails(&mut self, what: &str, ours: &Samples, other: &Samples) {
        for (which, ours, other) in [("p50", ours.median(), other.median()), ("p99", ours.p99(), other.p99())] {
            let what = format!("{what}, {which}");
            println!("  {what:<44}{:>12}{:>12}  {}", time(ours), time(other), times(other / ours));
            self.keep(&what, json!({ "ours": ours, "reference": other, "ratio": other / ours, "unit": "s" }));
        }
    }

    /// Ours where the reference has nothing like it.
    pub fn ours(&mut self, what: &str, ours: f64) {
        println!("  {what:<44}{:>12}", time(ours));
        self.keep(what, json!({ "ours": ours, "unit": "s" }));
    }

    /// A part of a whole.
    pub fn share(&mut self, what: &str, part: f64, whole: f64) {
        println!("  {what:<44}{:>12}{:>11.0}%", time(part), part / whole * 100.0);
        self.keep(what, json!({ "time": part, "share": part / whole, "unit": "s" }));
    }

    /// How often something happens.
    pub fn counts(&mut self, what: &str, ours: u64, reference: u64) {
        println!("  {what:<44}{ours:>12}{reference:>12}");
        self.keep(what, json!({ "ours": ours, "reference": reference, "unit": "1" }));
    }

    /// Memory.
    pub fn sizes(&mut self, what: &str, ours: u64, reference: u64) {
        let ratio = reference as f64 / ours.max(1) as f64;
        println!("  {what:<44}{:>12}{:>12}  {}", size(ours), size(reference), times(ratio));
        self.keep(what, json!({ "ours": ours, "reference": reference, "ratio": ratio, "unit": "B" }));
    }

    fn keep(&mut self, what: &str, mut row: Value) {
        row["input"] = self.section.as_str().into();
        row["what"] = what.into();
        self.rows.push(row);
    }

    pub fn to_json(&self, machine: &str) -> Value {
        json!({ "machine": machine, "rows": self.rows })
    }
}

pub fn times(ratio: f64) -> String {
    if ratio < 100.0 {
        format!("{ratio:.2}x")
    } else {
        format!("{ratio:.0}x")
    }
}

pub fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{:.1} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.2} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

pub fn size(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1e6 => format!("{:.0} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}

/// Processor, kernel, and the file system of `folder`.
pub fn machine(folder: &Path) -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = ["model name", "CPU part"].iter().find_map(|key| cpuinfo.lines().find(|line| line.starts_with(key)));
    let model = model.and_then(|line| line.split_once(": ")).map_or("unknown processor", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = read("/proc/sys/kernel/osrelease");
    let mounts = read("/proc/mounts");
    // Device, mount point, type: the longest mount point above the folder is the folder's.
    let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.filter(|fields| folder.starts_with(fields[1])).max_by_key(|fields| fields[1].len());
    let file_system = mount.map_or_else(|| "unknown".to_owned(), |fields| fields[2].to_owned());
    format!("{model}, {cores} cores, Linux {}, {file_system}", kernel.trim())
}
