//! A vector grows by `push` to 1 GiB: each growth copies it into a larger block and frees the old
//! one.

use std::hint::black_box;
use std::time::Instant;

use crate::section::{CONTENDERS, PEAK_LIMIT, Section};
use crate::support::children::{Case, Report, Results};
use crate::support::table::{Column, MS, bar_no_slower, column};
use crate::support::timing::nanos;
use crate::support::{GIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "growth",
    about: "a vector grown by push to 1 GiB",
    repetitions: 3,
    cases,
    tables: &[("growth", &COLUMNS)],
    bars,
    contenders: &CONTENDERS,
    peak_limit: PEAK_LIMIT,
};

const COLUMNS: [Column; 2] = [column("wall", "wall ms", MS, 0), column("drop", "drop ms", MS, 3)];

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(GIB, GIB, 4 * MIB);
    // The old block and the new one live side by side while it is copied.
    let needs = bytes * 2;
    vec![
        Case::new("Vec<u8>", needs, move |report| grow(bytes, 1_u8, report)),
        Case::new("Vec<u64>", needs, move |report| grow(bytes, 1_u64, report)),
    ]
}

fn grow<T: Copy>(bytes: usize, item: T, report: &mut Report) {
    let n_items = bytes / size_of::<T>();
    let start = Instant::now();
    let mut items = Vec::new();
    for _ in 0..n_items {
        items.push(black_box(item));
    }
    let wall_ns = nanos(start.elapsed());
    let start = Instant::now();
    drop(black_box(items));
    report.put("drop", nanos(start.elapsed()) as f64);
    report.put("wall", wall_ns as f64);
}

fn bars(results: &Results) {
    bar_no_slower("wall", "wall", &results.cases, results);
}
