//! Allocate, touch every page, free, again and again: the commonest pattern of large blocks.

use std::sync::Barrier;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::memory::rss_bytes;
use super::support::section::{PEAK_LIMIT, Section};
use super::support::table::{self, Column, EMPTY, ONE, bar_no_slower, column};
use super::support::timing::nanos;
use super::support::{GIB, KIB, MIB, Scale, size_name};

pub(crate) const SECTION: Section = Section {
    name: "recycle",
    about: "allocate, touch every page, free: time per block",
    repetitions: 3,
    cases,
    tables: &[("recycle", &COLUMNS)],
    bars,
    ..Section::BASE
};

const COLUMNS: [Column; 4] = [
    column("median", "median ns", ONE, 0),
    column("mean", "mean ns", ONE, 0),
    EMPTY,
    column("rss", "RSS at 1.5 s MiB", table::MIB, 0),
];

const SIZES: [usize; 6] = [256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB];
const WINDOW: usize = 8;
const CHANNEL: usize = 4;

type Pattern = fn(usize, Scale) -> Samples;

/// Each with its name and how many blocks of the size it holds at most.
const PATTERNS: [(&str, usize, Pattern); 6] = [
    ("alloc", 1, alloc),
    ("zeroed", 1, zeroed),
    ("alternating", 2, alternating),
    ("window", WINDOW, window),
    ("channel", CHANNEL + 2, channel),
    ("two threads", 2, two_threads),
];

fn cases(scale: Scale) -> Vec<Case> {
    let largest = scale.pick(256 * MIB, 256 * MIB, 4 * MIB);
    let burst_bytes = scale.pick(GIB, GIB, 32 * MIB);
    let mut cases = Vec::new();
    for (name, n_blocks, pattern) in PATTERNS {
        for size in SIZES.into_iter().filter(|size| *size <= largest) {
            let name = format!("{name}, {}", size_name(size));
            let run = move |report: &mut Report| pattern(size, scale).put(report);
            cases.push(Case::new(name, n_blocks * size, run));
        }
    }
    for size in SIZES.into_iter().filter(|size| *size <= largest) {
        let name = format!("after a burst, {}", size_name(size));
        let needs = burst_bytes.max(WINDOW * size);
        cases.push(Case::new(name, needs, move |report| {
            after_burst(size, burst_bytes, scale, report)
        }));
    }
    cases
}

/// Nanoseconds per block, one sample for each batch: a single round of a small size would be as
/// short as the reading of the clock. Kept exactly, since the bar is a ratio near 1.
struct Samples(Ledger<f64>);

/// Enough for two seconds of the shortest batches.
const MAX_SAMPLES: usize = 1 << 19;

impl Samples {
    fn new() -> Self {
        Self(Ledger::with_capacity(MAX_SAMPLES))
    }

    /// Calls `round`, which handles `n_blocks` blocks of `size`, until the time is up.
    fn fill(&mut self, size: usize, n_blocks: usize, duration: Duration, round: impl FnMut()) {
        let n_rounds = (16 * MIB / (size * n_blocks)).clamp(1, 64);
        self.fill_batches(n_rounds, n_blocks, duration, round);
    }

    fn fill_batches(
        &mut self,
        n_rounds: usize,
        n_blocks: usize,
        duration: Duration,
        mut round: impl FnMut(),
    ) {
        // The first rounds fault the memory in; a program that recycles pays that once.
        for _ in 0..3 {
            round();
        }
        let start = Instant::now();
        while self.0.len() < 5 || start.elapsed() < duration {
            let batch = Instant::now();
            for _ in 0..n_rounds {
                round();
            }
            let ns = nanos(batch.elapsed()) as f64;
            if !self.0.is_full() {
                self.0.push(ns / (n_rounds * n_blocks) as f64);
            }
        }
    }

    fn add(&mut self, other: &Self) {
        for sample in other.0.iter() {
            self.0.push(*sample);
        }
    }

    fn put(mut self, report: &mut Report) {
        let samples = &mut *self.0;
        samples.sort_unstable_by(f64::total_cmp);
        report.put("median", samples[samples.len() / 2]);
        report.put("mean", samples.iter().sum::<f64>() / samples.len() as f64);
    }
}

fn duration(scale: Scale) -> Duration {
    Duration::from_millis(scale.pick(250, 50, 0))
}

fn alloc(size: usize, scale: Scale) -> Samples {
    let mut samples = Samples::new();
    samples.fill(size, 1, duration(scale), || drop(Block::touched(size)));
    samples
}

/// What `vec![0; n]` does.
fn zeroed(size: usize, scale: Scale) -> Samples {
    let mut samples = Samples::new();
    samples.fill(size, 1, duration(scale), || Block::zeroed(size).touch());
    samples
}

/// Two size classes in turn.
fn alternating(size: usize, scale: Scale) -> Samples {
    let mut samples = Samples::new();
    samples.fill(size, 2, duration(scale), || {
        drop(Block::touched(size));
        drop(Block::touched(size / 2 * 3));
    });
    samples
}

/// The oldest of eight live buffers gives way to a new one.
fn window(size: usize, scale: Scale) -> Samples {
    let mut samples = Samples::new();
    let mut buffers: [Option<Block>; WINDOW] = [const { None }; WINDOW];
    let mut oldest = 0;
    let mut slide = || {
        buffers[oldest] = None;
        buffers[oldest] = Some(Block::touched(size));
        oldest = (oldest + 1) % WINDOW;
    };
    for _ in 0..WINDOW {
        slide();
    }
    samples.fill(size, 1, duration(scale), slide);
    samples
}

/// One thread allocates and fills buffers, another reads and frees them.
fn channel(size: usize, scale: Scale) -> Samples {
    let mut samples = Samples::new();
    thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<Block>(CHANNEL);
        scope.spawn(move || {
            for block in receiver {
                std::hint::black_box(block.sum());
            }
        });
        // Batches far longer than the channel: a shorter one would time only its filling or the
        // wait for a full one.
        samples.fill_batches(8 * CHANNEL, 1, duration(scale), || {
            sender
                .send(Block::touched(size))
                .expect("the consumer receives until the sender is gone");
        });
        drop(sender);
    });
    samples
}

/// Two threads recycle at once, each its own blocks.
fn two_threads(size: usize, scale: Scale) -> Samples {
    let start = Barrier::new(2);
    let recycle = || {
        let mut samples = Samples(Ledger::with_capacity(MAX_SAMPLES / 2));
        start.wait();
        samples.fill(size, 1, duration(scale), || drop(Block::touched(size)));
        samples
    };
    let mut samples = Samples::new();
    thread::scope(|scope| {
        let other = scope.spawn(recycle);
        samples.add(&recycle());
        samples.add(&other.join().expect("recycling does not panic"));
    });
    samples
}

/// A burst leaves far more free memory than the loop that follows can use: it must still go back,
/// while the loop takes blocks of the same size all the time.
fn after_burst(size: usize, burst_bytes: usize, scale: Scale, report: &mut Report) {
    let mut samples = Samples::new();
    let mut blocks = Ledger::with_capacity(burst_bytes / size);
    while !blocks.is_full() {
        blocks.push(Block::touched(size));
    }
    blocks.clear();
    let (until_rss, rest) = scale.pick((1500, 500), (1500, 0), (20, 0));
    let mut buffers = Ledger::with_capacity(WINDOW);
    let mut round = || {
        while !buffers.is_full() {
            buffers.push(Block::touched(size));
        }
        buffers.clear();
    };
    samples.fill(size, WINDOW, Duration::from_millis(until_rss), &mut round);
    let rss = rss_bytes();
    samples.fill(size, WINDOW, Duration::from_millis(rest), &mut round);
    samples.put(report);
    report.put("rss", rss as f64);
}

fn bars(results: &Results) {
    let named =
        |name: &'static str| results.cases.iter().filter(move |case| case.starts_with(name));
    for (name, _, _) in PATTERNS.iter() {
        bar_no_slower(&format!("{name}, median"), "median", named(name), results);
    }
    bar_no_slower("after a burst, median", "median", named("after a burst"), results);
    table::bar(
        "after a burst, RSS at 1.5 s against plain mimalloc's",
        " x",
        table::worst(&results.cases, |case| {
            table::ratio(results, case, Contender::Mimalloc, "rss")
        }),
        PEAK_LIMIT,
    );
}
