//! Times on a noisy machine: contenders take turns, and medians are kept.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// How long `f` takes. Dropping what it gives is not counted.
pub fn timed<T>(f: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    let value = black_box(f());
    let elapsed = start.elapsed();
    drop(value);
    elapsed
}

/// One contender's times in seconds, by round.
pub struct Samples(Vec<f64>);

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(rounds: I) -> Samples {
        Samples(rounds.into_iter().collect())
    }
}

impl Samples {
    pub fn median(&self) -> f64 {
        quantile(&self.0, 0.5)
    }

    /// What one in a hundred exceeds.
    pub fn p99(&self) -> f64 {
        quantile(&self.0, 0.99)
    }

    /// How many times slower `other` is than this: a ratio for each round, because what slows a machine down slows neighbours alike.
    pub fn ratios(&self, other: &Samples) -> Samples {
        Samples(other.0.iter().zip(&self.0).map(|(theirs, ours)| theirs / ours).collect())
    }

    /// Half of all rounds lie between these.
    pub fn quartiles(&self) -> (f64, f64) {
        (quantile(&self.0, 0.25), quantile(&self.0, 0.75))
    }

    /// The same for each of `n` things that were measured together.
    pub fn per(&self, n: usize) -> Samples {
        Samples(self.0.iter().map(|seconds| seconds / n as f64).collect())
    }
}

fn quantile(samples: &[f64], at: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() - 1) as f64 * at).round() as usize]
}

/// Lets every contender run once per round, forwards and backwards by turns. Each times itself.
pub fn take_turns<const N: usize>(rounds: usize, contenders: [&mut dyn FnMut() -> Duration; N]) -> [Samples; N] {
    let mut samples = [const { Samples(Vec::new()) }; N];
    for round in 0..rounds {
        for turn in 0..N {
            let index = if round % 2 == 0 { turn } else { N - 1 - turn };
            samples[index].0.push(contenders[index]().as_secs_f64());
        }
    }
    samples
}
