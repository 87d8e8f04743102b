//! A program whose block sizes change from phase to phase: what one phase freed must serve the
//! next.

use std::time::Instant;

use crate::section::{CONTENDERS, Section};
use crate::support::block::{Block, Ledger};
use crate::support::children::{Case, Report, Results};
use crate::support::contender::Contender;
use crate::support::table::{Column, MS, bar, column, ratio, worst};
use crate::support::timing::nanos;
use crate::support::{GIB, KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "phases",
    about: "1 GiB live each time, touched and freed, six block sizes in turn, three rounds",
    repetitions: 5,
    cases,
    tables: &[("phases", &COLUMNS)],
    bars,
    contenders: &CONTENDERS,
    peak_limit: LIMIT,
};

const COLUMNS: [Column; 2] =
    [column("wall", "wall ms", MS, 0), column("free", "freeing ms", MS, 2)];
const LIMIT: f64 = 1.05;
const ROUNDS: usize = 3;
const SIZES: [usize; 6] = [300 * KIB, 700 * KIB, 3 * MIB / 2, 5 * MIB, 20 * MIB, 90 * MIB];

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(GIB, GIB, 100 * MIB);
    vec![Case::new("1 GiB live", bytes / 2 * 3, move |report| phases(bytes, report))]
}

fn phases(bytes: usize, report: &mut Report) {
    let mut blocks = Ledger::with_capacity(bytes / SIZES[0] + 1);
    let mut free_ns = 0;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        for size in SIZES {
            for _ in 0..bytes / size {
                blocks.push(Block::touched(size));
            }
            let freeing = Instant::now();
            blocks.clear();
            free_ns += nanos(freeing.elapsed());
        }
    }
    report.put("wall", nanos(start.elapsed()) as f64);
    report.put("free", free_ns as f64);
}

fn bars(results: &Results) {
    let wall = worst(&results.cases, |case| ratio(results, case, Contender::Mimalloc, "wall"));
    bar("total time against plain mimalloc's", " x", wall, LIMIT);
}
