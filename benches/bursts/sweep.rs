//! After how many frees in a row is it worth deferring them? The same work under one `DEFERFREE_BURST`
//! after the other; plain mimalloc, which has none, runs beside each as a measure of the noise.
//!
//! A structure that is dropped for good gains the more, the earlier its burst begins. A request that
//! allocates its working set, answers and frees it, to do the same again at once, loses: its blocks come
//! back cold, and through a detour.

use std::thread;
use std::time::{Duration, Instant};

use super::requests::{SETS, requests};
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::section::Section;
use super::support::structures::STRUCTURES;
use super::support::table::{Column, MS, ONE, US, column};
use super::support::timing::{Latencies, nanos};
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "sweep",
    about: "by DEFERFREE_BURST: strings dropped, with a rest of 40 ms after each drop, and 10 000 of \
            them with one of 1 ms; requests that free their working set in a row, ns a block",
    repetitions: 3,
    cases,
    tables: &[("sweep", &COLUMNS)],
    ..super::SECTION
};

const COLUMNS: [Column; 7] = [
    column("drop", "500k strings ms", MS, 2),
    column("small", "10k strings us", US, 1),
    column(SETS[0].key, "sets of 100", ONE, 1),
    column(SETS[1].key, "of 200", ONE, 1),
    column(SETS[2].key, "of 500", ONE, 1),
    column(SETS[3].key, "of 2000", ONE, 1),
    column(SETS[4].key, "of 8000", ONE, 1),
];

/// Strings in random order.
const STRINGS: usize = 1;

fn cases(scale: Scale) -> Vec<Case> {
    ["default", "64", "256", "1024", "4096", "8192", "off"]
        .map(|burst| {
            let case = Case::new(burst, 200 * MIB, move |report| sweep(scale, report));
            if burst == "default" { case } else { case.with_variable("DEFERFREE_BURST", burst) }
        })
        .into()
}

fn sweep(scale: Scale, report: &mut Report) {
    let n_strings = scale.pick(500_000, 500_000, 20_000);
    report.put("drop", drops(scale.pick(10, 5, 2), n_strings, Duration::from_millis(40)));
    report.put("small", drops(scale.pick(200, 100, 2), 10_000, Duration::from_millis(1)));
    let n_blocks = scale.pick(4_000_000, 1_000_000, 20_000);
    for set in SETS {
        let start = Instant::now();
        requests(n_blocks / set.n_blocks, set.n_blocks);
        report.put(set.key, nanos(start.elapsed()) as f64 / n_blocks as f64);
    }
}

/// The median.
fn drops(n_rounds: usize, n_elements: usize, rest: Duration) -> f64 {
    let mut drops = Latencies::new();
    for _ in 0..n_rounds {
        let built = (STRUCTURES[STRINGS].build)(n_elements);
        drops.time(|| drop(built));
        thread::sleep(rest);
    }
    drops.median()
}
