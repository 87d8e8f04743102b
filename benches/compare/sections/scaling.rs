//! One, two, four and eight threads that free and reuse large blocks, or drop small ones in bursts, at
//! once: what an operation costs, and how much waits to be given back.

use std::hint::black_box;
use std::mem::take;
use std::sync::{Barrier, Mutex};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::figures::{BASE, CPU, MAX, P50, P99, P999, PEAK, SAMPLES, Section};
use super::support::block::Block;
use super::support::children::{Case, Report};
use super::support::discard::discard;
use super::support::memory::{cpu_time, rss_bytes};
use super::support::structures::STRUCTURES;
use super::support::table::{Column, MIB as IN_MIB, ONE, column};
use super::support::timing::{Latencies, nanos};
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "scaling",
    about: "reuse: each thread keeps eight blocks of 1 MiB, frees the oldest and takes a new one \
            (waits: each free); burst: each builds 100 000 boxes of 256 B, all drop them at once \
            (waits: a thread's drop); backlog: RSS when the last thread is done, over that at start",
    cases,
    tables: &[("", &COLUMNS)],
    ..BASE
};

const COLUMNS: [Column; 10] = [
    P50,
    P99,
    P999,
    MAX,
    SAMPLES,
    column("per_block", "wall ns a block", ONE, 0),
    column("cpu_per_block", "CPU ns a block", ONE, 0),
    column("backlog", "backlog MiB", IN_MIB, 0),
    CPU,
    PEAK,
];

const WINDOW: usize = 8;
const THREADS: [usize; 4] = [1, 2, 4, 8];
/// Boxes in random order.
const BURST: usize = 2;

fn cases(scale: Scale) -> Vec<Case> {
    let threads = || THREADS.into_iter().filter(move |n| *n <= scale.pick(8, 4, 2));
    let reuse = move |n_threads| {
        let needs = n_threads * 2 * WINDOW * MIB;
        Case::new(format!("reuse, threads: {n_threads}"), needs, move |report| {
            reuse(n_threads, Duration::from_millis(scale.pick(400, 60, 5)), report);
        })
    };
    let burst = move |n_threads| {
        let n_boxes = scale.pick(100_000, 50_000, 1_000);
        let needs = n_threads * n_boxes * 400;
        Case::new(format!("burst, threads: {n_threads}"), needs, move |report| {
            burst(n_threads, n_boxes, scale.pick(5, 2, 1), report);
        })
    };
    threads().map(reuse).chain(threads().map(burst)).collect()
}

fn reuse(n_threads: usize, duration: Duration, report: &mut Report) {
    let before = rss_bytes();
    let cpu_before = cpu_time();
    let start = Instant::now();
    let waits = thread::scope(|scope| {
        let run = || {
            let mut waits = Latencies::new();
            let mut window: [Option<Block>; WINDOW] = [const { None }; WINDOW];
            'rounds: loop {
                for slot in &mut window {
                    if start.elapsed() > duration {
                        break 'rounds;
                    }
                    if let Some(oldest) = slot.take() {
                        waits.time(|| discard(oldest));
                    }
                    *slot = Some(Block::touched(MIB));
                }
            }
            window.into_iter().flatten().for_each(discard);
            waits
        };
        waits_of((0..n_threads).map(|_| scope.spawn(run)).collect())
    });
    let per_block = |ns: u64| ns as f64 / waits.count().max(1) as f64;
    report.put("backlog", rss_bytes().saturating_sub(before) as f64);
    report.put("per_block", per_block(nanos(start.elapsed())));
    report.put("cpu_per_block", per_block(nanos(cpu_time() - cpu_before)));
    report.put_waits(&waits);
}

fn waits_of(threads: Vec<ScopedJoinHandle<Latencies>>) -> Latencies {
    let mut waits = Latencies::new();
    for thread in threads {
        waits.add(&thread.join().expect("freeing does not panic"));
    }
    waits
}

/// CPU time is that of the whole process: of drops that take a millisecond the system has not counted all when they are over.
fn burst(n_threads: usize, n_boxes: usize, n_rounds: usize, report: &mut Report) {
    let before = rss_bytes();
    let barrier = Barrier::new(n_threads + 1);
    let drops = Mutex::new(Drops::default());
    let (mut wall, mut backlog) = (Duration::ZERO, 0);
    let waits = thread::scope(|scope| {
        let run = || {
            let mut waits = Latencies::new();
            for _ in 0..n_rounds {
                let built = black_box((STRUCTURES[BURST].build)(n_boxes));
                barrier.wait();
                let start = Instant::now();
                waits.time(|| discard(built));
                drops.lock().expect("no thread panics").add(start, Instant::now());
                barrier.wait();
            }
            waits
        };
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(run)).collect();
        for _ in 0..n_rounds {
            barrier.wait();
            barrier.wait();
            backlog = rss_bytes().saturating_sub(before);
            wall += take(&mut *drops.lock().expect("no thread panics")).wall();
        }
        waits_of(threads)
    });
    let n_blocks = (n_threads * n_boxes * n_rounds) as f64;
    report.put("backlog", backlog as f64);
    report.put("per_block", nanos(wall) as f64 / n_blocks);
    report.put_waits(&waits);
}

/// From the beginning of the first drop of a round to the end of the last, by the clocks of those who drop: whoever waits for
/// them may itself have to wait for a processor.
#[derive(Default)]
struct Drops(Option<(Instant, Instant)>);

impl Drops {
    fn add(&mut self, start: Instant, end: Instant) {
        let (first, last) = self.0.unwrap_or((start, end));
        self.0 = Some((first.min(start), last.max(end)));
    }

    fn wall(&self) -> Duration {
        self.0.map_or(Duration::ZERO, |(first, last)| last - first)
    }
}
