//! Which settings of this library are the fastest here: `scripts/bench load tune` prints all of a grid, beside the defaults and a bare
//! loop. The defaults should not be far from the best.

use super::contenders::Contender;
use super::rounds::Runs;

/// The first, and then the others by what they take.
pub fn sorted(mut runs: Vec<Runs>) -> Vec<Runs> {
    if let Some(grid) = runs.get_mut(1..) {
        grid.sort_by(|a, b| a.seconds().median().total_cmp(&b.seconds().median()));
    }
    runs
}

pub fn cold() -> Vec<Contender> {
    let mut grid = vec![Contender::own("ours", "separate", "memory for each tensor")];
    for block in [1024, 4096, 16_384] {
        for (workers, depth) in [(1, 4), (1, 16), (1, 64), (2, 16), (4, 64)] {
            grid.push(ours(&format!("block:engine=uring+workers={workers}+depth={depth}+block={block}")));
        }
        for workers in [1, 2, 4, 8, 16] {
            grid.push(ours(&format!("block:engine=direct+workers={workers}+block={block}")));
        }
    }
    grid.extend([2, 4, 8].map(|workers| ours(&format!("block:engine=buffered+workers={workers}"))));
    grid
}

pub fn warm() -> Vec<Contender> {
    let settings = [1, 2, 4, 8].into_iter().flat_map(|workers| [256, 1024, 4096, 16_384].map(|block| (workers, block)));
    settings.map(|(workers, block)| ours(&format!("block:engine=buffered+workers={workers}+block={block}"))).collect()
}

/// Storage that makes each request wait.
pub fn slow() -> Vec<Contender> {
    let engines = ["buffered", "direct", "uring"].into_iter();
    let settings = engines.flat_map(|engine| [8, 16, 32, 64].map(|workers| (engine, workers)));
    let grid = settings.flat_map(|(engine, workers)| [256, 1024, 4096].map(|block| (engine, workers, block)));
    grid.map(|(engine, workers, block)| ours(&format!("block:engine={engine}+workers={workers}+block={block}")))
        .collect()
}

fn ours(how: &str) -> Contender {
    let title = how.split_once(':').map_or("ours", |(_, options)| options);
    Contender::own("ours", how, title)
}
