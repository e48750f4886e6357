//! Contenders take turns, each in a process of its own, over files in a known state.

use super::ballast::Ballast;
use super::cache::{self, State};
use super::common::measure::Samples;
use super::contenders::{Contender, What};
use super::figures::Figures;
use super::model::Model;

/// One contender's runs.
pub struct Runs {
    pub contender: Contender,
    pub runs: Vec<Figures>,
}

impl Runs {
    pub fn seconds(&self) -> Samples {
        self.runs.iter().map(|run| run.seconds).collect()
    }

    pub fn cpu(&self) -> Samples {
        self.runs.iter().map(|run| run.cpu).collect()
    }

    pub fn memory(&self) -> Option<u64> {
        self.runs.iter().filter_map(|run| run.memory).max()
    }

    /// Of the run in the middle.
    pub fn read(&self) -> u64 {
        let mut read: Vec<u64> = self.runs.iter().map(|run| run.read).collect();
        read.sort();
        read[read.len() / 2]
    }

    /// With what has read, where the library had a choice.
    pub fn title(&self) -> String {
        match self.runs.first().map(|run| run.engines.join(" and ")) {
            Some(engines) if !engines.is_empty() => format!("{} [{engines}]", self.contender.title),
            _ => self.contender.title.clone(),
        }
    }
}

/// Lets contenders load.
#[derive(Default)]
pub struct Runner {
    ballast: Ballast,
}

impl Runner {
    /// Lets one load, or says why it cannot. Ends the program if it has loaded something else than it should.
    pub fn run(&mut self, contender: &Contender, what: What, model: &Model, state: State) -> Result<Figures, String> {
        let mut started = contender.start(what, &model.files);
        // The page cache and the process may have all of it, each.
        self.ballast.hold(2 * model.bytes + (256 << 20));
        started.wait()?;
        cache::prepare(&model.files, state);
        let before = model.metered();
        let mut figures = self.ballast.lend(|| started.go())?;
        if let (Some(before), Some(after)) = (before, model.metered()) {
            figures.read = after - before;
        }
        let expected = match what {
            What::Whole => model.expected.whole,
            What::Slices => model.expected.slices,
        };
        if figures.checksum.is_some_and(|checksum| checksum != expected) {
            panic!("{} has not loaded what the files hold", contender.title);
        }
        Ok(figures)
    }

    /// Lets each load once in each round.
    pub fn take_turns(
        &mut self,
        rounds: usize,
        contenders: Vec<Contender>,
        what: What,
        model: &Model,
        state: State,
    ) -> Vec<Runs> {
        eprintln!();
        for contender in &contenders {
            if let Some(how) = &contender.checked_as {
                let checked = Contender { how: how.clone(), ..contender.clone() };
                let figures = self.run(&checked, what, model, state).unwrap_or_else(|why| panic!("{how}: {why}"));
                assert!(figures.checksum.is_some(), "{how} has been checked");
            }
        }
        let empty = |contender| Runs { contender, runs: Vec::new() };
        let mut all: Vec<Runs> = contenders.into_iter().map(empty).collect();
        for round in 0..rounds {
            eprint!("round {} of {rounds}:", round + 1);
            for index in order(round, all.len()) {
                let runs = &mut all[index];
                // Who has failed once does not try again.
                if runs.runs.len() < round {
                    continue;
                }
                match self.run(&runs.contender, what, model, state) {
                    Ok(figures) => {
                        eprint!(" {:.2}", figures.seconds);
                        runs.runs.push(figures);
                    }
                    Err(why) => {
                        assert_ne!(runs.contender.who, "ours", "{}: {why}", runs.contender.how);
                        println!("\nleft out: {}: {why}", runs.contender.title);
                    }
                }
            }
            eprintln!();
        }
        all.retain(|runs| runs.runs.len() == rounds);
        all
    }
}

/// Forwards and backwards by turns, and each time somebody else begins.
fn order(round: usize, contenders: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..contenders).map(|turn| (turn + round / 2) % contenders).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}
