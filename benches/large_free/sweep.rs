//! From which size on is it worth deferring a block? The same work under one threshold after the
//! other; plain mimalloc, which has none, runs beside each as a measure of the noise.

use std::time::Instant;

use super::churn::Live;
use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report};
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{Column, ONE, US, column};
use super::support::timing::nanos;
use super::support::{KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "sweep",
    about: "32 KiB to 2 MiB (log-uniform), by DEFERFREE_THRESHOLD",
    repetitions: 5,
    cases,
    tables: &[("sweep", &COLUMNS)],
    ..Section::BASE
};

const COLUMNS: [Column; 4] = [
    column("drop", "free in a row ns", ONE, 1),
    column("build", "allocate + touch us", US, 2),
    column("pair", "recycle 128 KiB ns", ONE, 0),
    column("churn", "churn us per block", US, 2),
];

const SMALLEST: usize = 32 * KIB;
const LARGEST: usize = 2 * MIB;
const ROUNDS: usize = 20;

fn cases(scale: Scale) -> Vec<Case> {
    let live_bytes = scale.pick(512 * MIB, 256 * MIB, 16 * MIB);
    ["64K", "128K", "256K", "512K", "1M"]
        .map(|threshold| {
            Case::new(threshold, 2 * live_bytes, move |report| sweep(live_bytes, report))
                .with_variable("DEFERFREE_THRESHOLD", threshold)
        })
        .into()
}

fn sweep(live_bytes: usize, report: &mut Report) {
    let mut random = Random(1);
    let most_blocks = live_bytes / SMALLEST + 1;
    let mut blocks = Ledger::with_capacity(most_blocks);
    let (mut n_blocks, mut build_ns, mut drop_ns) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut held_bytes = 0;
        while held_bytes < live_bytes {
            let size = random.size(SMALLEST, LARGEST);
            blocks.push(Block::touched(size));
            held_bytes += size;
        }
        build_ns += nanos(start.elapsed());
        n_blocks += blocks.len();
        let start = Instant::now();
        blocks.clear();
        drop_ns += nanos(start.elapsed());
    }
    report.put("build", build_ns as f64 / n_blocks as f64);
    report.put("drop", drop_ns as f64 / n_blocks as f64);

    let n_pairs = 100 * ROUNDS;
    let start = Instant::now();
    for _ in 0..n_pairs {
        drop(Block::touched(128 * KIB));
    }
    report.put("pair", nanos(start.elapsed()) as f64 / n_pairs as f64);

    let mut live = Live::new(live_bytes, most_blocks);
    let start = Instant::now();
    for _ in 0..n_blocks {
        live.add(random.size(SMALLEST, LARGEST), &mut random, drop);
    }
    report.put("churn", nanos(start.elapsed()) as f64 / n_blocks as f64);
}
