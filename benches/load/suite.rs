//! What is run, in which order.

use super::best::{self, Bare};
use super::cache::{self, State};
use super::common::arguments::Arguments;
use super::contenders::{Contender, What};
use super::model::{self, Model};
use super::python::{self, Peers};
use super::rounds::{Runner, Runs};
use super::slow::{self, Mount};
use super::tables::Table;
use super::{slices, tune};
use std::path::{Path, PathBuf};

/// What a file system with latency is tried with, at most: some take a quarter of a minute for a GiB there.
const LATENCY_BYTES: u64 = 1 << 30;

pub struct Suite<'a> {
    arguments: &'a Arguments,
    /// For what need not stay.
    scratch: &'a Path,
    /// For models.
    folder: PathBuf,
    rounds: usize,
    bytes: u64,
    quick: bool,
    pub peers: Peers,
}

impl<'a> Suite<'a> {
    pub fn new(arguments: &'a Arguments, folder: PathBuf, scratch: &'a Path) -> Suite<'a> {
        let quick = arguments.has("--quick");
        let gigabytes = arguments.number("--gigabytes", if quick { 1 } else { 4 });
        Suite {
            arguments,
            scratch,
            folder,
            rounds: arguments.rounds(if quick { 2 } else { 5 }),
            bytes: (gigabytes as u64) << 30,
            quick,
            peers: python::peers(),
        }
    }

    pub fn run(&self) -> Vec<Table> {
        let mut runner = Runner::default();
        let model = self.model(self.bytes, 2);
        let tunes = self.arguments.has("tune");
        let all = if tunes { "cold,warm,latency" } else { "cold,warm,slices,latency" };
        let wanted = self.arguments.value_of("--groups").map_or(all, String::as_str);
        let mut tables = Vec::new();
        for group in wanted.split(',') {
            tables.extend(match group {
                "cold" if tunes => self.tune(&mut runner, &model, State::Cold, tune::cold()),
                "warm" if tunes => self.tune(&mut runner, &model, State::Warm, tune::warm()),
                "cold" => self.cold(&mut runner, &model),
                "warm" => self.warm(&mut runner, &model),
                "slices" => self.slices(&mut runner, &model),
                "latency" => self.latency(&mut runner),
                _ => panic!("nothing is known of {group}"),
            });
        }
        tables.retain(|table| !table.is_empty());
        tables
    }

    /// Each setting of a grid, sorted by what it takes.
    fn tune(&self, runner: &mut Runner, model: &Model, state: State, grid: Vec<Contender>) -> Vec<Table> {
        let limit = match state {
            State::Cold => best::bare("direct", 4, 4),
            State::Warm => best::bare("fresh", 2, 4),
        };
        let everybody = [vec![default()], grid, vec![limit]].concat();
        let runs = tune::sorted(self.turns(self.rounds, runner, everybody, What::Whole, model, state));
        vec![self.table("tune", model, runs)]
    }

    fn cold(&self, runner: &mut Runner, model: &Model) -> Vec<Table> {
        let first = model.first();
        let fio = best::fio(runner, model, self.quick);
        let direct = Bare {
            kind: "direct",
            about: "around the page cache, into new huge pages",
            threads: if self.quick { &[4] } else { &[2, 4, 8] },
            blocks: if self.quick { &[4] } else { &[1, 4] },
            state: State::Cold,
        };
        let direct: Vec<Contender> = direct.best(runner, &first).into_iter().collect();
        let limits = fio.into_iter().chain(direct.clone()).collect();
        let ours = vec![default(), staged(), populated(), prefetched()];
        let everybody = [ours, crates(), self.peers.contenders.clone(), limits].concat();
        let runs = self.turns(self.rounds, runner, everybody, What::Whole, model, State::Cold);
        let two = self.table("cold", model, runs);

        let one = self.model(self.bytes, 1);
        let some = [vec![default()], self.peers.some(&["runai"]), direct].concat();
        let runs = self.turns(self.rounds, runner, some, What::Whole, &one, State::Cold);
        vec![two, self.table("cold", &one, runs)]
    }

    fn warm(&self, runner: &mut Runner, model: &Model) -> Vec<Table> {
        let first = model.first();
        let mut limit = |kind, about| {
            let bare = Bare {
                kind,
                about,
                threads: if self.quick { &[2] } else { &[2, 4] },
                blocks: if self.quick { &[4] } else { &[1, 4] },
                state: State::Warm,
            };
            bare.best(runner, &first)
        };
        let limits = [
            limit("fresh", "from the page cache, into new huge pages"),
            limit("touched", "from the page cache, into huge pages that are there"),
            limit("memcpy", "from memory, into huge pages that are there"),
        ];
        let limits = limits.into_iter().flatten().collect();
        let ours = vec![default(), staged(), populated()];
        let everybody = [ours, crates(), self.peers.contenders.clone(), limits].concat();
        let runs = self.turns(self.rounds, runner, everybody, What::Whole, model, State::Warm);
        vec![self.table("warm", model, runs)]
    }

    fn slices(&self, runner: &mut Runner, model: &Model) -> Vec<Table> {
        let (wanted, pages) = slices::needed(&model.files);
        let view = Contender::own("crate", "view", "safetensors: slices of a mapping");
        let everybody = [vec![default(), view], self.peers.contenders.clone()].concat();
        let runs = self.turns(self.rounds, runner, everybody, What::Slices, model, State::Cold);
        let about = format!("rank 1 of 4, {} MB of {}", wanted / 1_000_000, model.about());
        let table = Table::new("slices", &about, wanted, Some(pages), runs);
        table.print();
        vec![table]
    }

    fn latency(&self, runner: &mut Runner) -> Vec<Table> {
        let (mut tables, mut limits) = (Vec::new(), Vec::new());
        let model = self.model(LATENCY_BYTES.min(self.bytes), 2);
        for (name, options) in
            [("2 ms per request", "latency_us=2000"), ("2 ms, 400 MB/s", "latency_us=2000,bandwidth=400")]
        {
            let mounted = slow::build(self.scratch)
                .and_then(|program| Mount::new(&program, &model, &self.scratch.join("mounted"), options));
            let (_mount, seen) = match mounted {
                Ok(mounted) => mounted,
                Err(why) => {
                    println!("left out: storage with latency: {why}");
                    break;
                }
            };
            // The latency is that of the mounted one: the disk beneath must add none.
            cache::prepare(&model.files, State::Warm);
            let mut best = |kind, about| {
                let bare = Bare { kind, about, threads: &[8, 32, 96], blocks: &[1, 4], state: State::Cold };
                bare.best(runner, &seen)
            };
            if limits.is_empty() {
                let about = [("direct", "around the page cache"), ("fresh", "through the page cache")];
                limits.extend(about.map(|(kind, about)| best(kind, about)).into_iter().flatten());
            }
            if self.arguments.has("tune") {
                let everybody = [vec![default()], tune::slow(), limits.clone()].concat();
                let runs = self.turns(self.rounds, runner, everybody, What::Whole, &seen, State::Cold);
                tables.push(self.table(name, &seen, tune::sorted(runs)));
                continue;
            }
            let everybody = [vec![default(), touched()], self.peers.some(&["runai"]), limits.clone()].concat();
            let runs = self.turns(self.rounds, runner, everybody, What::Whole, &seen, State::Cold);
            tables.push(self.table(name, &seen, runs));
        }
        tables
    }

    fn model(&self, bytes: u64, shards: usize) -> Model {
        model::make(&self.folder, bytes, shards).expect("a model")
    }

    fn table(&self, name: &str, model: &Model, runs: Vec<Runs>) -> Table {
        let table = Table::new(name, &model.about(), model.bytes, None, runs);
        table.print();
        table
    }

    fn turns(
        &self,
        rounds: usize,
        runner: &mut Runner,
        everybody: Vec<Contender>,
        what: What,
        model: &Model,
        state: State,
    ) -> Vec<Runs> {
        runner.take_turns(rounds, self.chosen(everybody), what, model, state)
    }

    /// Those of `--only`, in its order.
    fn chosen(&self, everybody: Vec<Contender>) -> Vec<Contender> {
        let Some(list) = self.arguments.value_of("--only") else { return everybody };
        let is = |it: &Contender, part: &str| part == it.who || part == format!("{}:{}", it.who, it.how);
        list.split(',').flat_map(|part| everybody.iter().filter(move |it| is(it, part))).cloned().collect()
    }
}

fn default() -> Contender {
    Contender::own("ours", "block", "ours")
}

fn staged() -> Contender {
    let checked_as = Some("staged-checked".to_owned());
    Contender { checked_as, ..Contender::own("ours", "staged", "ours, staged in 256 MiB") }
}

fn populated() -> Contender {
    Contender::own("ours", "populated", "ours, mapped and populated, no copy")
}

fn prefetched() -> Contender {
    Contender::own("ours", "prefetched", "ours, prefetched and touched, no copy")
}

fn crates() -> Vec<Contender> {
    vec![Contender::own("crate", "copy", "safetensors: mapped, copied to Vecs"), touched()]
}

fn touched() -> Contender {
    Contender::own("crate", "touch", "mapped, every page touched, no copy")
}
