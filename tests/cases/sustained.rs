//! Loads that never pause: what waits stays below its bound, and the process does not grow.
//!
//! `SUSTAINED_SECS` says for how long; 60 in `.ci/run`. Below 20 the resident set is not judged: it takes
//! some seconds to settle. Both loads run at the same time.
//!
//! Seen to fail: without the bound in `Backlog::reserve`, both.

use crate::common;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{KIB, MIB, flush_to_the_last, rss, run_child, shuffle, sleep_ms};
use deferfree::DeferFree;

const BOUND: usize = 64 * MIB;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new().max_pending(BOUND);

fn secs() -> u64 {
    std::env::var("SUSTAINED_SECS").map_or(4, |secs| secs.parse().unwrap())
}

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("producer") => judged(producer_faster_than_the_drainer),
        Some("consumer") => judged(freed_by_another_thread),
        Some(case) => panic!("{case}"),
        None => return common::run(&[("both", both)]),
    }
    ExitCode::SUCCESS
}

fn both() {
    thread::scope(|scope| {
        for case in ["producer", "consumer"] {
            scope.spawn(move || {
                let output = run_child(case, &[("DEFERFREE_BURST", "0")], secs() + 60);
                print!("{}", output.stdout);
                output.expect_clean();
            });
        }
    });
}

/// Runs `load` for as long as is set, and looks at this process meanwhile.
fn judged(load: fn(&AtomicBool)) {
    let done = AtomicBool::new(false);
    let total = Duration::from_secs(secs());
    let mut most_rss = [0; 4];
    thread::scope(|scope| {
        scope.spawn(|| load(&done));
        let start = Instant::now();
        while start.elapsed() < total {
            let quarter = (start.elapsed().as_millis() * 4 / total.as_millis()).min(3) as usize;
            most_rss[quarter] = most_rss[quarter].max(rss());
            // Off by what is under way, see `Stats`, which is much where the thread is interrupted meanwhile: 300 MiB were seen.
            let pending = (0..5).map(|_| GLOBAL.stats().pending.bytes).min().unwrap();
            assert!(pending <= BOUND as u64 + 64 * MIB as u64, "{pending}");
            sleep_ms(20);
        }
        done.store(true, Ordering::Relaxed);
    });
    let stats = GLOBAL.stats();
    assert!(stats.peak_pending_bytes <= BOUND as u64, "{stats:?}");
    assert!(stats.handed_over.blocks > 100, "{stats:?}");
    let mib = most_rss.map(|bytes| bytes / MIB);
    println!("    RSS by quarter, MiB: {mib:?}");
    if secs() >= 20 {
        // A tenth, and one of the chunks that mimalloc fills: the peaks of fifteen seconds differ by as much.
        let limit = most_rss[1] / 10 * 11 + 32 * MIB;
        assert!(most_rss[3] <= limit, "MiB by quarter: {mib:?}");
    }
    flush_to_the_last(&GLOBAL);
    let stats = GLOBAL.stats();
    assert_eq!((stats.pending.blocks, stats.bursts.pending.blocks), (0, 0), "{stats:?}");
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize
    }
}

/// Two threads free as fast as they can allocate, large blocks and small ones.
fn producer_faster_than_the_drainer(done: &AtomicBool) {
    thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || {
                let mut random = Random(seed);
                while !done.load(Ordering::Relaxed) {
                    let size = 256 * KIB + random.next() % (4 * MIB);
                    let blocks: Vec<Vec<u8>> = (0..16).map(|_| vec![1; size]).collect();
                    drop(blocks);
                    let mut small: Vec<_> = (0..4000).map(|n| Box::new([n; 12])).collect();
                    shuffle(&mut small);
                    drop(small);
                }
            });
        }
    });
    assert!(GLOBAL.stats().over_bound.blocks > 0, "it never came to the bound");
}

/// Sixteen threads allocate, one frees.
fn freed_by_another_thread(done: &AtomicBool) {
    let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(32);
    let n_sent = AtomicUsize::new(0);
    thread::scope(|scope| {
        for seed in 0..16 {
            let (sender, n_sent) = (sender.clone(), &n_sent);
            scope.spawn(move || {
                let mut random = Random(seed);
                while !done.load(Ordering::Relaxed) {
                    // From 500 bytes to 16 MiB, each doubling as often.
                    let size = (500 << (random.next() % 15)) + random.next() % 500;
                    let mut block = Vec::with_capacity(size.min(16 * MIB));
                    block.push(seed as u8);
                    if sender.send(block).is_err() {
                        break;
                    }
                    n_sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        drop(sender);
        let n_received = receiver.iter().filter(|block| block[0] < 16).count();
        assert!(n_received > 1000, "{n_received}");
    });
    assert!(n_sent.load(Ordering::Relaxed) > 1000);
}
