//! The latency of one free.

use std::time::{Duration, Instant};

use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::section::Section;
use super::support::table::{Column, EMPTY, ONE, US, bar, column, count, worst};
use super::support::timing::{Latencies, nanos};
use super::support::{GIB, KIB, MIB, Scale, size_name};

pub(crate) const SECTION: Section = Section {
    name: "free",
    about: "what one free costs its caller; every page of the block was touched before",
    repetitions: 3,
    cases,
    tables: &[("free", &COLUMNS)],
    bars,
    ..Section::BASE
};

const COLUMNS: [Column; 7] = [
    column("p50", "p50 ns", ONE, 0),
    EMPTY,
    column("p99", "p99 ns", ONE, 0),
    column("p999", "p99.9 us", US, 2),
    column("max", "max us", US, 1),
    column("first", "first ever us", US, 1),
    count("n", "frees"),
];

const SIZES: [usize; 9] =
    [64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB, GIB, 3 * GIB];

fn cases(scale: Scale) -> Vec<Case> {
    let largest = scale.pick(3 * GIB, 3 * GIB, 64 * MIB);
    let row_bytes = scale.pick(2 * GIB, GIB, 64 * MIB);
    let mut cases = Vec::new();
    for size in SIZES.into_iter().filter(|size| *size <= largest) {
        let name = format!("{}, in pairs", size_name(size));
        cases.push(Case::new(name, size, move |report| pairs(size, scale, report)));
    }
    for size in SIZES.into_iter().filter(|size| *size <= row_bytes) {
        let name = format!("{}, in a row", size_name(size));
        cases.push(Case::new(name, row_bytes, move |report| row(size, row_bytes, report)));
    }
    cases
}

/// Allocate, touch, free: the block's memory is taken again by the next round.
fn pairs(size: usize, scale: Scale, report: &mut Report) {
    let mut frees = Latencies::new();
    let budget = scale.pick(Duration::from_secs(1), Duration::from_millis(200), Duration::ZERO);
    let at_least = scale.pick(6, 3, 2);
    let first_ns = time_drop(Block::touched(size));
    let start = Instant::now();
    while frees.count() < at_least || start.elapsed() < budget {
        let block = Block::touched(size);
        frees.time(|| drop(block));
    }
    put(report, first_ns, &frees);
}

/// Many live blocks freed one after the other, with no allocation between them.
fn row(size: usize, row_bytes: usize, report: &mut Report) {
    let mut frees = Latencies::new();
    let mut blocks = Ledger::with_capacity(row_bytes / size);
    while !blocks.is_full() {
        blocks.push(Block::touched(size));
    }
    let mut first_ns = None;
    blocks.empty_into(|block| match first_ns {
        None => first_ns = Some(time_drop(block)),
        Some(_) => frees.time(|| drop(block)),
    });
    let first_ns = first_ns.unwrap_or(0);
    put(report, first_ns, &frees);
}

fn time_drop(block: Block) -> u64 {
    let start = Instant::now();
    drop(block);
    nanos(start.elapsed())
}

fn put(report: &mut Report, first_ns: u64, frees: &Latencies) {
    report.put("first", first_ns as f64);
    if frees.count() > 0 {
        report.put_waits(frees);
    }
}

fn bars(results: &Results) {
    use Contender::{Deferfree, Mimalloc};
    // The clock's own cost, an empty pair of readings, is in both figures: what is held against the bars is what lies
    // above it, one nanosecond at least.
    let above_empty = |case: &str, contender, key| {
        let empty = results.median(case, contender, "empty")?;
        Some((results.median(case, contender, key)? - empty).max(1.0))
    };
    let p50 = worst(&results.cases, |case| above_empty(case, Deferfree, "p50"));
    bar("p50 of a free above the clock", " ns", p50, 30.0);
    let p999 = worst(&results.cases, |case| above_empty(case, Deferfree, "p999"));
    bar("p99.9 above it, where the samples suffice", " us", in_us(p999), 5.0);
    let few = results.cases.iter().filter(|case| results.median(case, Deferfree, "p999").is_none());
    let max = worst(few, |case| above_empty(case, Deferfree, "max"));
    bar("elsewhere the maximum above it", " us", in_us(max), 5.0);
    let first = worst(&results.cases, |case| above_empty(case, Deferfree, "first"));
    bar("first free of the process above it", " us", in_us(first), 200.0);
    let is_large = |case: &&String| !case.contains("KiB");
    let share = worst(results.cases.iter().filter(is_large), |case| {
        Some(above_empty(case, Deferfree, "p50")? / above_empty(case, Mimalloc, "p50")?)
    });
    bar("p50 above it as a share of plain mimalloc's, 1 MiB and up", " x", share, 0.2);
}

fn in_us(worst: Option<(f64, &str)>) -> Option<(f64, &str)> {
    worst.map(|(ns, case)| (ns / US, case))
}
