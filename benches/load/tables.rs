//! What the rounds have given: for people, for programs, and for documents.

use super::common::report::size;
use super::rounds::Runs;
use serde_json::{json, Value};

/// What is told of each contender.
const COLUMNS: [&str; 6] = ["time (quartiles)", "GB/s", "times the first (quartiles)", "CPU per GiB", "memory", "read"];
/// How wide a column is; the last is there where not all pages are needed.
const WIDTHS: [usize; 7] = [26, 7, 29, 13, 10, 10, 28];

/// Contenders of the same rounds, beside the first.
pub struct Table {
    pub name: String,
    pub about: String,
    /// What each had to load.
    bytes: u64,
    /// What each that reads whole pages had to read, where that is not all.
    pages: Option<u64>,
    runs: Vec<Runs>,
}

/// A bar of the chart.
pub struct Bar {
    pub title: String,
    pub seconds: f64,
    pub quartiles: (f64, f64),
    pub speed: f64,
    pub who: &'static str,
}

impl Table {
    pub fn new(name: &str, about: &str, bytes: u64, pages: Option<u64>, runs: Vec<Runs>) -> Table {
        Table { name: name.to_owned(), about: about.to_owned(), bytes, pages, runs }
    }

    /// Whether `--only` has left nobody.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub fn print(&self) {
        if self.is_empty() {
            return;
        }
        println!("\n{}: {}", self.name, self.about);
        let width = self.runs.iter().map(|runs| runs.title().chars().count()).max().unwrap_or(0) + 2;
        let line = |title: &str, cells: Vec<String>| {
            let cells = cells.iter().zip(WIDTHS).map(|(cell, width)| format!("{cell:>width$}"));
            println!("  {title:<width$}{}", cells.collect::<String>());
        };
        line("", self.columns());
        for runs in &self.runs {
            line(&runs.title(), self.cells(runs));
        }
    }

    pub fn markdown(&self) -> String {
        let row = |title: &str, cells: Vec<String>| format!("| {title} | {} |\n", cells.join(" | "));
        let head = format!("{}: {}", self.name, self.about);
        let rules = format!("|---|{}\n", "---:|".repeat(self.columns().len()));
        let rows = self.runs.iter().map(|runs| row(&runs.title(), self.cells(runs)));
        row(&head, self.columns()) + &rules + &rows.collect::<String>()
    }

    fn columns(&self) -> Vec<String> {
        let last = self.pages.map(|pages| format!("read / {} of pages", size(pages)));
        COLUMNS.iter().map(|column| (*column).to_owned()).chain(last).collect()
    }

    fn cells(&self, runs: &Runs) -> Vec<String> {
        let ratios = self.runs[0].seconds().ratios(&runs.seconds());
        let of = |(low, high): (f64, f64), one: fn(f64) -> String| format!("({} to {})", one(low), one(high));
        let seconds = runs.seconds();
        let mut cells = vec![
            format!("{} s {}", digits(seconds.median()), of(seconds.quartiles(), digits)),
            format!("{:.2}", self.speed(runs)),
            format!("{:.2}x {}", ratios.median(), of(ratios.quartiles(), |it| format!("{it:.2}"))),
            format!("{} s", digits(self.cpu(runs))),
            runs.memory().map_or("-".to_owned(), size),
            size(runs.read()),
        ];
        cells.extend(self.pages.map(|pages| format!("{:.2}x", runs.read() as f64 / pages as f64)));
        cells
    }

    fn speed(&self, runs: &Runs) -> f64 {
        self.bytes as f64 / runs.seconds().median() / 1e9
    }

    fn cpu(&self, runs: &Runs) -> f64 {
        runs.cpu().median() / self.bytes as f64 * (1u64 << 30) as f64
    }

    pub fn bars(&self) -> Vec<Bar> {
        let bar = |runs: &Runs| Bar {
            title: runs.title(),
            seconds: runs.seconds().median(),
            quartiles: runs.seconds().quartiles(),
            speed: self.speed(runs),
            who: runs.contender.who,
        };
        self.runs.iter().map(bar).collect()
    }

    pub fn json(&self) -> Value {
        let row = |runs: &Runs| {
            let ratios = self.runs[0].seconds().ratios(&runs.seconds());
            json!({
                "what": runs.contender.title, "who": runs.contender.who, "how": runs.contender.how,
                "seconds": runs.seconds().median(), "quartiles": runs.seconds().quartiles(), "GB/s": self.speed(runs),
                "ratio": ratios.median(), "ratio_quartiles": ratios.quartiles(), "cpu_per_gib": self.cpu(runs),
                "memory": runs.memory(), "read": runs.read(),
                "runs": runs.runs.iter().map(|run| run.to_json()).collect::<Vec<_>>(),
            })
        };
        json!({
            "name": self.name, "about": self.about, "bytes": self.bytes, "pages": self.pages,
            "rows": self.runs.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

/// Three that count.
fn digits(seconds: f64) -> String {
    let decimals = if seconds < 1.0 { 3 } else { 2 };
    format!("{seconds:.decimals$}")
}
