//! After how many frees in a row is it worth deferring them? The same work under one `DEFERFREE_BURST`
//! after the other; plain mimalloc, which has none, runs beside each as a measure of the noise.
//!
//! A structure that is dropped for good gains the more, the earlier its burst begins. A request that
//! allocates its working set, answers and frees it, to do the same again at once, loses: its blocks come
//! back cold, and through a detour.

use std::hint::black_box;
use std::time::Instant;

use crate::support::allocator::Contender;
use crate::support::children::{Case, Report, Results};
use crate::support::random::Random;
use crate::support::section::{PEAK_LIMIT, Section};
use crate::support::structures::STRUCTURES;
use crate::support::table::{Column, MS, ONE, US, column};
use crate::support::timing::nanos;
use crate::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "sweep",
    about: "by DEFERFREE_BURST: drop a structure; requests that free their working set in a row",
    repetitions: 3,
    cases,
    tables: &[("sweep", &COLUMNS)],
    bars: |_: &Results| {},
    peak_limit: PEAK_LIMIT,
};

const COLUMNS: [Column; 6] = [
    column("drop", "drop ms", MS, 2),
    column("small", "10k strings us", US, 1),
    column("set200", "set of 200, ns a block", ONE, 1),
    column("set500", "of 500", ONE, 1),
    column("set2000", "of 2000", ONE, 1),
    column("set8000", "of 8000", ONE, 1),
];

const SETS: [(&str, usize); 4] =
    [("set200", 200), ("set500", 500), ("set2000", 2000), ("set8000", 8000)];

/// Sizes of a request's blocks: 16 to 512 bytes, small ones more often.
const SMALLEST: f64 = 16.0;
const DOUBLINGS: f64 = 5.0;

fn cases(scale: Scale) -> Vec<Case> {
    ["default", "64", "256", "1024", "4096", "8192", "off"]
        .map(|burst| {
            let case = Case::new(burst, 500 * MIB, move |report| sweep(scale, report));
            if burst == "default" { case } else { case.with_variable("DEFERFREE_BURST", burst) }
        })
        .into()
}

fn sweep(scale: Scale, report: &mut Report) {
    // Nothing to compare: it would take all memory.
    if Contender::of_this_process() == Contender::Floor {
        return;
    }
    drops(scale.pick(10, 10, 2), STRUCTURES[1].n_elements / scale.pick(4, 4, 100), "drop", report);
    drops(scale.pick(200, 200, 2), 10_000, "small", report);
    let n_blocks = scale.pick(4_000_000, 4_000_000, 20_000);
    for (key, n_set) in SETS {
        let start = Instant::now();
        requests(n_blocks / n_set, n_set);
        report.put(key, nanos(start.elapsed()) as f64 / n_blocks as f64);
    }
}

/// Vectors of strings, shuffled; the median.
fn drops(n_rounds: usize, n_elements: usize, key: &'static str, report: &mut Report) {
    let mut took = Vec::with_capacity(n_rounds);
    for _ in 0..n_rounds {
        let built = black_box((STRUCTURES[1].build)(n_elements));
        let start = Instant::now();
        drop(built);
        took.push(nanos(start.elapsed()));
    }
    took.sort_unstable();
    report.put(key, took[n_rounds / 2] as f64);
}

fn requests(n_requests: usize, n_set: usize) {
    let mut random = Random(1);
    let mut set: Vec<Vec<u8>> = Vec::with_capacity(n_set);
    for _ in 0..n_requests {
        for i in 0..n_set {
            let size = (SMALLEST * (random.unit() * DOUBLINGS).exp2()) as usize;
            let mut block = Vec::with_capacity(size);
            block.resize(size.min(64), i as u8);
            set.push(block);
        }
        // Not in the order in which they were made: blocks that lie next to each other are not deferred.
        random.shuffle(&mut set);
        black_box(&set);
        set.clear();
    }
}
