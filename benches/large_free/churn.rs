//! Two threads allocate and free blocks of all sizes for seconds on end.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report, Results};
use super::support::discard::discard;
use super::support::memory::rss_bytes;
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{self, Column, EMPTY, ONE, US, bar_no_slower, column};
use super::support::timing::{Latencies, nanos};
use super::support::{KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "churn",
    about: "two threads for 6 s, 512 MiB live in all, sizes log-uniform, every page written; waits: each free",
    repetitions: 3,
    cases,
    tables: &[("churn", &COLUMNS)],
    bars,
    ..Section::BASE
};

const COLUMNS: [Column; 9] = [
    column("per_block", "wall us a block", US, 2),
    column("p50", "free p50 ns", ONE, 0),
    column("p999", "p99.9 us", US, 1),
    column("max", "max us", US, 0),
    EMPTY,
    column("rss1", "RSS 1st quarter MiB", table::MIB, 0),
    column("rss2", "2nd", table::MIB, 0),
    column("rss3", "3rd", table::MIB, 0),
    column("rss4", "4th", table::MIB, 0),
];

const THREADS: usize = 2;
const LARGEST: usize = 16 * MIB;
/// Small blocks are many, and what is live is counted in bytes: more than this many are not kept.
const MOST_BLOCKS: usize = 64 * KIB;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);

fn cases(scale: Scale) -> Vec<Case> {
    let live_bytes = scale.pick(512 * MIB, 256 * MIB, 64 * MIB);
    // Rounding and what waits to be freed come on top of what lives.
    let case = |name, smallest| {
        Case::new(name, 2 * live_bytes, move |report| churn(live_bytes, smallest, scale, report))
    };
    vec![case("64 KiB to 16 MiB", 64 * KIB), case("256 B to 16 MiB", 256)]
}

fn churn(live_bytes: usize, smallest: usize, scale: Scale, report: &mut Report) {
    let duration = Duration::from_millis(scale.pick(6000, 500, 100));
    let n_samples = (duration.as_millis() / SAMPLE_EVERY.as_millis()) as usize;
    let mut rss = Ledger::with_capacity(n_samples);
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let (mut n_blocks, mut frees) = (0, Latencies::new());
    let mut wall_ns = 0;
    thread::scope(|scope| {
        let stop = &stop;
        let run = |seed| move || churn_thread(live_bytes / THREADS, smallest, seed, stop);
        let threads: [_; THREADS] = std::array::from_fn(|i| scope.spawn(run(i as u64 + 1)));
        while !rss.is_full() && start.elapsed() < duration {
            thread::sleep(SAMPLE_EVERY);
            rss.push(rss_bytes() as f64);
        }
        stop.store(true, Relaxed);
        wall_ns = nanos(start.elapsed());
        for thread in threads {
            let (n, latencies) = thread.join().expect("a churning thread does not panic");
            n_blocks += n;
            frees.add(&latencies);
        }
    });
    report.put("per_block", wall_ns as f64 / n_blocks.max(1) as f64);
    report.put_waits(&frees);
    for (quarter, samples) in rss.chunks(rss.len().div_ceil(4).max(1)).enumerate() {
        let mean = samples.iter().sum::<f64>() / samples.len() as f64;
        report.put(&format!("rss{}", quarter + 1), mean);
    }
}

fn churn_thread(
    live_bytes: usize,
    smallest: usize,
    seed: u64,
    stop: &AtomicBool,
) -> (u64, Latencies) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut live = Live::new(live_bytes, MOST_BLOCKS);
    let mut frees = Latencies::new();
    let mut n_blocks = 0;
    while !stop.load(Relaxed) {
        let size = random.size(smallest, LARGEST);
        live.add(size, &mut random, |block| frees.time(|| discard(block)));
        n_blocks += 1;
    }
    (n_blocks, frees)
}

/// Blocks of so many bytes in all: a new one makes others go, whichever.
pub(crate) struct Live {
    blocks: Ledger<Block>,
    bytes: usize,
    most_bytes: usize,
}

impl Live {
    pub(crate) fn new(most_bytes: usize, most_blocks: usize) -> Self {
        Self { blocks: Ledger::with_capacity(most_blocks), bytes: 0, most_bytes }
    }

    #[inline]
    pub(crate) fn add(&mut self, size: usize, random: &mut Random, mut free: impl FnMut(Block)) {
        while self.blocks.is_full() || self.bytes + size > self.most_bytes {
            let index = (random.unit() * self.blocks.len() as f64) as usize;
            let Some(block) = self.blocks.swap_remove(index) else { break };
            self.bytes -= block.len();
            free(block);
        }
        self.blocks.push(Block::touched(size));
        self.bytes += size;
    }
}

fn bars(results: &Results) {
    bar_no_slower("time per block", "per_block", &results.cases, results);
}
