//! Where bursts done carelessly leak: threads that come and go, threads that drop what others have
//! built, and many threads that drop at once.

use std::any::Any;
use std::hint::black_box;
use std::sync::mpsc::sync_channel;
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Instant;

use super::rounds::Taken;
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender::{Deferfree, Mimalloc};
use super::support::memory::rss_bytes;
use super::support::section::Section;
use super::support::structures::STRUCTURES;
use super::support::table::{self, Column, MS, bar, bar_each, column, count, worst};
use super::support::timing::{Latencies, nanos};
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "threads",
    about: "30 rounds of two threads, or of 64 that drop at once; RSS is that at the end of a round",
    repetitions: 3,
    cases,
    tables: &[("threads", &COLUMNS)],
    bars,
    peak_limit: 1.15,
    ..super::SECTION
};

const COLUMNS: [Column; 8] = [
    column("wall", "wall ms", MS, 0),
    column("p50", "drop p50 ms", MS, 2),
    column("p90", "p90", MS, 2),
    column("p99", "p99", MS, 2),
    column("max", "max", MS, 2),
    count("n", "drops"),
    column("early", "RSS, most in 3..8 MiB", table::MIB, 0),
    column("late", "in the last 5 MiB", table::MIB, 0),
];

const ROUNDS: usize = 30;
const MANY: usize = 64;
const WALL_LIMIT: f64 = 1.05;
/// How much more there may be in the last rounds than in the first.
const GROWTH: f64 = 1.05;

type Pattern = fn(&Work);

const PATTERNS: [(&str, Pattern); 3] = [
    ("build, drop and exit", build_drop_exit),
    ("one builds, another drops", hand_over),
    ("64 drop at once", all_at_once),
];

/// Of the structures, those with many blocks of one size and of many.
const USED: [usize; 3] = [0, 1, 4];

fn cases(scale: Scale) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, pattern) in PATTERNS {
        for structure in USED.map(|index| &STRUCTURES[index]) {
            let n_elements = structure.n_elements / 4 / scale.pick(1, 2, 50);
            let name = format!("{name}, {}", structure.name);
            cases.push(Case::new(name, 300 * MIB / scale.pick(1, 1, 20), move |report| {
                measure(pattern, Work::new(structure.build, n_elements), report);
            }));
        }
    }
    cases
}

/// What a pattern does over and over, and what comes of it.
struct Work {
    build: fn(usize) -> Box<dyn Any + Send>,
    n_elements: usize,
    drops: Mutex<Latencies>,
    rss: Mutex<([u64; ROUNDS], usize)>,
}

impl Work {
    fn new(build: fn(usize) -> Box<dyn Any + Send>, n_elements: usize) -> Self {
        let (drops, rss) = (Mutex::new(Latencies::new()), Mutex::new(([0; ROUNDS], 0)));
        Self { build, n_elements, drops, rss }
    }

    fn build(&self, n_elements: usize) -> Box<dyn Any + Send> {
        black_box((self.build)(n_elements))
    }

    fn drop(&self, built: Box<dyn Any + Send>) {
        let start = Instant::now();
        drop(built);
        let took = start.elapsed();
        self.drops.lock().expect("no thread panics").record(nanos(took));
    }

    fn end_of_round(&self) {
        let (rss, n_rounds) = &mut *self.rss.lock().expect("no thread panics");
        rss[*n_rounds] = rss_bytes();
        *n_rounds += 1;
    }
}

fn measure(pattern: Pattern, work: Work, report: &mut Report) {
    let (taken, ()) = Taken::by(|| pattern(&work));
    taken.report(report);
    let drops = work.drops.lock().expect("no thread panics");
    report.put_waits(&drops);
    let (rss, _) = *work.rss.lock().expect("no thread panics");
    let most = |rounds: &[u64]| rounds.iter().copied().max().unwrap_or(0) as f64;
    report.put("early", most(&rss[3..8]));
    report.put("late", most(&rss[ROUNDS - 5..]));
}

/// What a server does that starts a thread for each request.
fn build_drop_exit(work: &Work) {
    for _ in 0..ROUNDS {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| work.drop(work.build(work.n_elements)));
            }
        });
        work.end_of_round();
    }
}

fn hand_over(work: &Work) {
    for _ in 0..ROUNDS {
        let (sender, receiver) = sync_channel(1);
        thread::scope(|scope| {
            scope.spawn(move || receiver.into_iter().for_each(|built| work.drop(built)));
            for _ in 0..2 {
                let built = work.build(work.n_elements);
                sender.send(built).expect("the other thread receives until we are done");
            }
            drop(sender);
        });
        work.end_of_round();
    }
}

/// Threads that stay, each with its part of two structures.
fn all_at_once(work: &Work) {
    let barrier = Barrier::new(MANY + 1);
    thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let built = work.build(2 * work.n_elements / MANY);
                    barrier.wait();
                    work.drop(built);
                    barrier.wait();
                    // The RSS is read.
                    barrier.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            barrier.wait();
            barrier.wait();
            work.end_of_round();
            barrier.wait();
        }
    });
}

fn bars(results: &Results) {
    bar_each("wall", Deferfree, "wall", &results.cases, WALL_LIMIT, results);
    let growth = |case: &str| {
        let late = results.median(case, Deferfree, "late")?;
        Some(late / results.median(case, Deferfree, "early")?)
    };
    bar("RSS in the last rounds against the first", " x", worst(&results.cases, growth), GROWTH);
}
