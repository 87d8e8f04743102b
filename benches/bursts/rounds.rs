//! Build a structure and drop it, again and again.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use super::support::children::Report;
use super::support::memory::{cpu_time, page_faults, rss_bytes};
use super::support::structures::Structure;
use super::support::timing::nanos;

pub(crate) const MOST: usize = 20;

/// How long each build and each drop took.
#[derive(Debug)]
pub(crate) struct Rounds {
    builds: [u64; MOST],
    drops: [u64; MOST],
    n: usize,
    /// In all rounds but the first.
    faults: u64,
}

impl Rounds {
    /// `n` rounds, at least two and at most [`MOST`], each followed by a rest.
    pub(crate) fn run(structure: &Structure, n_elements: usize, n: usize, rest: Duration) -> Self {
        let mut rounds = Self { builds: [0; MOST], drops: [0; MOST], n, faults: 0 };
        let mut faults_before = 0;
        for round in 0..n {
            let building = Instant::now();
            let built = black_box((structure.build)(n_elements));
            rounds.builds[round] = nanos(building.elapsed());
            let dropping = Instant::now();
            drop(built);
            rounds.drops[round] = nanos(dropping.elapsed());
            if !rest.is_zero() {
                thread::sleep(rest);
            }
            if round == 0 {
                faults_before = page_faults();
            }
        }
        rounds.faults = page_faults() - faults_before;
        rounds
    }

    /// The first round meets fresh memory and an allocator that has not started all of its parts: its
    /// drop is reported by itself, and the medians are those of the others.
    pub(crate) fn report(&self, report: &mut Report) {
        let (builds, drops) = (&self.builds[..self.n], &self.drops[..self.n]);
        // What is put off in a drop may come back to the thread in the build that follows.
        let mut both = [0; MOST];
        for (sum, (drop, build)) in both.iter_mut().zip(drops.iter().zip(&builds[1..])) {
            *sum = drop + build;
        }
        report.put("faults", self.faults as f64 / (self.n - 1) as f64);
        report.put("first_drop", drops[0] as f64);
        report.put("build", median(&builds[1..]));
        report.put("drop", median(&drops[1..]));
        report.put("best_drop", drops[1..].iter().copied().min().unwrap_or(0) as f64);
        report.put("worst_drop", drops[1..].iter().copied().max().unwrap_or(0) as f64);
        report.put("both", median(&both[..self.n - 1]));
    }
}

/// Of at most [`MOST`] figures: of so few, a histogram would tell no more.
fn median(figures: &[u64]) -> f64 {
    let mut sorted = [0; MOST];
    let sorted = &mut sorted[..figures.len()];
    sorted.copy_from_slice(figures);
    sorted.sort_unstable();
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) as f64 / 2.0
}

/// RSS in bytes when the process has done nothing for a second, in which what was put off is done.
pub(crate) fn idle_rss() -> f64 {
    thread::sleep(Duration::from_secs(1));
    rss_bytes() as f64
}

/// What work took, and the CPU time until its end.
#[derive(Debug)]
pub(crate) struct Taken {
    wall_ns: u64,
    cpu_ns: u64,
}

impl Taken {
    pub(crate) fn by<T>(work: impl FnOnce() -> T) -> (Self, T) {
        let cpu_before = cpu_time();
        let start = Instant::now();
        let result = work();
        let wall_ns = nanos(start.elapsed());
        (Self { wall_ns, cpu_ns: nanos(cpu_time() - cpu_before) }, result)
    }

    pub(crate) fn report(&self, report: &mut Report) {
        report.put("wall", self.wall_ns as f64);
        report.put("wall_cpu", self.cpu_ns as f64);
    }
}
