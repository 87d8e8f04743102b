//! Where bursts done carelessly leak: threads that come and go, and threads that drop what others
//! have built.

use std::hint::black_box;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use crate::support::allocator::Contender;
use crate::support::children::{Case, Report, Results};
use crate::support::memory::rss_bytes;
use crate::support::section::{PEAK_LIMIT, Section};
use crate::support::structures::STRUCTURES;
use crate::support::table::{self, Column, MS, bar, bar_no_slower, column, worst};
use crate::support::timing::nanos;
use crate::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "threads",
    about: "30 rounds with two threads; RSS is that at the end of a round",
    repetitions: 3,
    cases,
    tables: &[("threads", &COLUMNS)],
    bars,
    peak_limit: PEAK_LIMIT,
};

const COLUMNS: [Column; 3] = [
    column("wall", "wall ms", MS, 0),
    column("early", "RSS, most in 3..8 MiB", table::MIB, 0),
    column("late", "in the last 5 MiB", table::MIB, 0),
];

const ROUNDS: usize = 30;
/// How much more there may be in the last rounds than in the first.
const GROWTH: f64 = 1.05;

type Pattern = fn(fn(usize) -> Box<dyn std::any::Any + Send>, usize);

const PATTERNS: [(&str, Pattern); 2] =
    [("build, drop and exit", build_drop_exit), ("one builds, another drops", hand_over)];

/// Of the structures, those with many blocks of one size and of many.
const USED: [usize; 3] = [0, 1, 4];

fn cases(scale: Scale) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, pattern) in PATTERNS {
        for structure in USED.map(|index| &STRUCTURES[index]) {
            let n = structure.n_elements / 4 / scale.pick(1, 1, 100);
            let name = format!("{name}, {}", structure.name);
            cases.push(Case::new(name, 500 * MIB, move |report| {
                measure(|| pattern(structure.build, n), report);
            }));
        }
    }
    cases
}

fn measure(mut round: impl FnMut(), report: &mut Report) {
    // Nothing to compare: it would take all memory.
    if Contender::of_this_process() == Contender::Floor {
        return;
    }
    let mut rss = [0; ROUNDS];
    let start = Instant::now();
    for slot in &mut rss {
        round();
        *slot = rss_bytes();
    }
    report.put("wall", nanos(start.elapsed()) as f64);
    let most = |rounds: &[u64]| rounds.iter().copied().max().unwrap_or(0) as f64;
    report.put("early", most(&rss[3..8]));
    report.put("late", most(&rss[ROUNDS - 5..]));
}

/// What a server does that starts a thread for each request.
fn build_drop_exit(build: fn(usize) -> Box<dyn std::any::Any + Send>, n: usize) {
    let threads = [(); 2].map(|()| thread::spawn(move || drop(black_box(build(n)))));
    for thread in threads {
        thread.join().expect("building does not panic");
    }
}

fn hand_over(build: fn(usize) -> Box<dyn std::any::Any + Send>, n: usize) {
    let (sender, receiver) = sync_channel(1);
    thread::scope(|scope| {
        scope.spawn(move || receiver.into_iter().for_each(drop));
        for _ in 0..2 {
            sender.send(black_box(build(n))).expect("the other thread receives until we are done");
        }
        drop(sender);
    });
}

fn bars(results: &Results) {
    bar_no_slower("total wall time", "wall", &results.cases, results);
    let growth = |case: &str| {
        let late = results.median(case, Contender::Deferfree, "late")?;
        Some(late / results.median(case, Contender::Deferfree, "early")?)
    };
    bar("RSS in the last rounds against the first", " x", worst(&results.cases, growth), GROWTH);
}
