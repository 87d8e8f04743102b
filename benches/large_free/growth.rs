//! Blocks that grow to 1 GiB: by `push`, which doubles them, and in steps. Each growth that copies takes the time for
//! that and needs old and new side by side.

use std::hint::black_box;
use std::time::Instant;

use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::section::Section;
use super::support::table::{self, Column, MS, US, bar, column, ratio, worst};
use super::support::timing::nanos;
use super::support::{GIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "growth",
    about: "a vector grown by push, or in steps of 64 MiB, to 1 GiB",
    repetitions: 3,
    cases,
    tables: &[("growth", &COLUMNS)],
    bars,
    contenders: &[Contender::System, Contender::Mimalloc, Contender::Deferfree],
    peak_limit: 1.0,
    ..Section::BASE
};

const COLUMNS: [Column; 4] = [
    column("wall", "wall ms", MS, 0),
    column("slowest", "slowest growth us", US, 0),
    column("peak", "peak RSS MiB", table::MIB, 0),
    column("drop", "drop ms", MS, 3),
];
const SLOWEST_MS: f64 = 2.0;
const PEAK_LIMIT: f64 = 1.05;
const STEP: usize = 64 * MIB;

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(GIB, GIB, 4 * MIB);
    // The old block and the new one may live side by side while it is copied.
    let needs = bytes * 2;
    vec![
        Case::new("Vec<u8>", needs, move |report| push(bytes, 1_u8, report)),
        Case::new("Vec<u64>", needs, move |report| push(bytes, 1_u64, report)),
        Case::new("steps", needs, move |report| in_steps(bytes, STEP.min(bytes / 4), report)),
    ]
}

fn push<T: Copy>(bytes: usize, item: T, report: &mut Report) {
    let n_items = bytes / size_of::<T>();
    let mut slowest_ns = 0;
    let start = Instant::now();
    let mut items = Vec::new();
    for _ in 0..n_items {
        if items.len() == items.capacity() {
            let growing = Instant::now();
            items.push(black_box(item));
            slowest_ns = slowest_ns.max(nanos(growing.elapsed()));
        } else {
            items.push(black_box(item));
        }
    }
    end(start, slowest_ns, bytes, items, report);
}

fn in_steps(bytes: usize, step: usize, report: &mut Report) {
    let mut slowest_ns = 0;
    let start = Instant::now();
    let mut buffer: Vec<u8> = Vec::new();
    while buffer.len() < bytes {
        let growing = Instant::now();
        buffer.reserve_exact(step);
        slowest_ns = slowest_ns.max(nanos(growing.elapsed()));
        buffer.resize(buffer.len() + step, black_box(1));
    }
    end(start, slowest_ns, bytes, buffer, report);
}

fn end<T>(start: Instant, slowest_ns: u64, bytes: usize, items: Vec<T>, report: &mut Report) {
    report.put("wall", nanos(start.elapsed()) as f64);
    report.put("slowest", slowest_ns as f64);
    let start = Instant::now();
    drop(black_box(items));
    report.put("drop", nanos(start.elapsed()) as f64);
    report.put("bytes", bytes as f64);
}

fn bars(results: &Results) {
    let of = |case: &str, key| results.median(case, Contender::Deferfree, key);
    let wall = worst(&results.cases, |case| ratio(results, case, Contender::System, "wall"));
    bar("time against glibc's", " x", wall, 1.0);
    let slowest = worst(&results.cases, |case| Some(of(case, "slowest")? / MS));
    bar("slowest growth", " ms", slowest, SLOWEST_MS);
    let peak = worst(&results.cases, |case| Some(of(case, "peak")? / of(case, "bytes")?));
    bar("peak RSS, of the final size", " x", peak, PEAK_LIMIT);
}
