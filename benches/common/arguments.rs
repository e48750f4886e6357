//! What a benchmark is told: `--rounds N`, `--json FILE`; or, when it runs itself again, a mode and its arguments.

use super::report::{self, Report};
use std::path::Path;

pub struct Arguments(Vec<String>);

impl Arguments {
    pub fn of_process() -> Arguments {
        // cargo adds one.
        Arguments(std::env::args().skip(1).filter(|argument| argument != "--bench").collect())
    }

    /// What follows `mode`, if that is the first.
    pub fn of_child(&self, mode: &str) -> Option<&[String]> {
        self.0.split_first().filter(|(first, _)| *first == mode).map(|(_, rest)| rest)
    }

    pub fn rounds(&self, otherwise: usize) -> usize {
        self.number("--rounds", otherwise)
    }

    pub fn number(&self, option: &str, otherwise: usize) -> usize {
        self.value_of(option)
            .map_or(otherwise, |value| value.parse().unwrap_or_else(|_| panic!("{option} takes a number")))
    }

    /// Writes the report where it should go.
    pub fn finish(&self, report: &Report, machine: &str) {
        if let Some(file) = self.value_of("--json") {
            std::fs::write(file, format!("{:#}\n", report.to_json(machine))).expect("the JSON file");
        }
    }

    pub fn has(&self, flag: &str) -> bool {
        self.0.iter().any(|argument| argument == flag)
    }

    pub fn value_of(&self, option: &str) -> Option<&String> {
        self.0.iter().position(|argument| argument == option).and_then(|at| self.0.get(at + 1))
    }
}

/// Prints what machine this is, and gives it.
pub fn introduce(folder: &Path) -> String {
    let machine = report::machine(folder);
    println!("{machine}");
    machine
}
