//! Which settings of the bare loops, and of fio, are the fastest here: a limit is the best of what was tried. It then takes turns
//! with the others, for the machine may be another one a minute later.

use super::cache::State;
use super::contenders::{Contender, Program, What};
use super::fio::Fio;
use super::model::Model;
use super::rounds::Runner;

/// The fastest of several, of which each is tried once; prints all.
fn best(contenders: Vec<Contender>, runner: &mut Runner, model: &Model, state: State) -> Option<Contender> {
    let mut best: Option<(f64, Contender)> = None;
    for contender in contenders {
        let seconds = match runner.run(&contender, What::Whole, model, state) {
            Ok(figures) => figures.seconds,
            Err(why) => {
                println!("  {:<44}{why}", contender.title);
                continue;
            }
        };
        println!("  {:<44}{:>7.2} GB/s", contender.title, model.bytes as f64 / seconds / 1e9);
        if best.as_ref().is_none_or(|(fastest, _)| seconds < *fastest) {
            best = Some((seconds, contender));
        }
    }
    best.map(|(_, it)| Contender { title: format!("limit: {}", it.title), ..it })
}

/// What a bare loop of this program is tried with.
pub struct Bare {
    pub kind: &'static str,
    pub about: &'static str,
    pub threads: &'static [usize],
    /// MiB
    pub blocks: &'static [usize],
    pub state: State,
}

impl Bare {
    pub fn best(&self, runner: &mut Runner, model: &Model) -> Option<Contender> {
        println!("\n{}", self.about);
        let settings = self.threads.iter().flat_map(|threads| self.blocks.iter().map(move |block| (*threads, *block)));
        let contenders = settings.map(|(threads, block)| bare(self.kind, threads, block));
        best(contenders.collect(), runner, model, self.state)
    }
}

/// A bare loop of so many threads, with blocks of so many MiB.
pub fn bare(kind: &str, threads: usize, block: usize) -> Contender {
    let plural = if threads == 1 { "" } else { "s" };
    let title = format!("{kind}, {threads} thread{plural}, {block} MiB");
    Contender::own("limit", &format!("{kind}:{threads}:{}", block << 20), &title)
}

pub fn fio(runner: &mut Runner, model: &Model, quick: bool) -> Option<Contender> {
    if !Fio::is_there() {
        println!("left out: fio: not installed (Debian: fio)");
        return None;
    }
    println!("\nfio, direct");
    let contender =
        |fio: Fio| Contender { program: Program::Fio(fio.clone()), ..Contender::own("limit", "fio", &fio.title()) };
    best(Fio::settings(quick).into_iter().map(contender).collect(), runner, model, State::Cold)
}
