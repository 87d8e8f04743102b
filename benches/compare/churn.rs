//! Two threads allocate and free blocks of all sizes for as long as half a minute.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use crate::contenders::discard;
use crate::figures::{
    CONTENDERS, CPU, IDLE, MAX, P50, P99, P999, PEAK, PEAK_LIMIT, SAMPLES, Section, no_bars,
    put_idle, put_waits,
};
use crate::support::block::{Block, Ledger};
use crate::support::children::{Case, Report};
use crate::support::memory::rss_bytes;
use crate::support::random::Random;
use crate::support::table::{Column, MIB as IN_MIB, US, column};
use crate::support::timing::{Latencies, nanos};
use crate::support::{KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "churn",
    about: "two threads for 30 s, 512 MiB live in all, blocks of 256 B to 16 MiB (log-uniform), \
            every page written; waits: each free",
    repetitions: 1,
    cases,
    tables: &[("", &COLUMNS)],
    bars: no_bars,
    contenders: &CONTENDERS,
    peak_limit: PEAK_LIMIT,
};

const COLUMNS: [Column; 10] = [
    P50,
    P99,
    P999,
    MAX,
    SAMPLES,
    column("per_block", "wall us a block", US, 0),
    CPU,
    column("late", "mean RSS, last quarter MiB", IN_MIB, 0),
    PEAK,
    IDLE,
];

const THREADS: usize = 2;
const SMALLEST: f64 = 256.0;
/// 256 B doubled sixteen times is 16 MiB.
const DOUBLINGS: f64 = 16.0;
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// Small blocks are many, and what is live is counted in bytes: more than this many are not kept.
const MOST_BLOCKS: usize = 64 * KIB;

fn cases(scale: Scale) -> Vec<Case> {
    let live_bytes = scale.pick(512 * MIB, 128 * MIB, 64 * MIB);
    vec![Case::new("2 threads", 2 * live_bytes, move |report| churn(live_bytes, scale, report))]
}

fn churn(live_bytes: usize, scale: Scale, report: &mut Report) {
    let duration = Duration::from_millis(scale.pick(30_000, 500, 100));
    let mut rss = Ledger::with_capacity((duration.as_millis() / SAMPLE_EVERY.as_millis()) as usize);
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let mut waits = Latencies::new();
    let mut n_blocks = 0;
    let mut wall_ns = 0;
    thread::scope(|scope| {
        let stop = &stop;
        let run = |seed| move || churn_thread(live_bytes / THREADS, seed, stop);
        let threads: [_; THREADS] = std::array::from_fn(|i| scope.spawn(run(i as u64 + 1)));
        while !rss.is_full() && start.elapsed() < duration {
            thread::sleep(SAMPLE_EVERY);
            rss.push(rss_bytes() as f64);
        }
        stop.store(true, Relaxed);
        wall_ns = nanos(start.elapsed());
        for thread in threads {
            let (n, of_thread) = thread.join().expect("a churning thread does not panic");
            n_blocks += n;
            waits.add(&of_thread);
        }
    });
    report.put("per_block", wall_ns as f64 / f64::from(n_blocks.max(1)));
    let last_quarter = &rss[rss.len() / 4 * 3..];
    report.put("late", last_quarter.iter().sum::<f64>() / last_quarter.len().max(1) as f64);
    put_waits(report, &waits);
    put_idle(report, scale);
}

fn churn_thread(live_bytes: usize, seed: u64, stop: &AtomicBool) -> (u32, Latencies) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut blocks: Ledger<Block> = Ledger::with_capacity(MOST_BLOCKS);
    let mut waits = Latencies::new();
    let (mut held_bytes, mut n_blocks) = (0, 0);
    while !stop.load(Relaxed) {
        let size = (SMALLEST * (random.unit() * DOUBLINGS).exp2()) as usize;
        while blocks.is_full() || held_bytes + size > live_bytes {
            let index = (random.unit() * blocks.len() as f64) as usize;
            let Some(block) = blocks.swap_remove(index) else { break };
            held_bytes -= block.len();
            waits.time(|| discard(block));
        }
        blocks.push(Block::touched(size));
        held_bytes += size;
        n_blocks += 1;
    }
    (n_blocks, waits)
}
