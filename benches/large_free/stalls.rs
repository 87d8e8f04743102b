//! A program frees 2 GiB and goes on: does giving the memory back stall its other operations?

use std::time::{Duration, Instant};

use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report, Results};
use super::support::section::Section;
use super::support::table::{Column, EMPTY, ONE, US, bar_control, column, count};
use super::support::timing::Latencies;
use super::support::{GIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "stalls",
    about: "2 GiB in blocks of 1 MiB freed, then timed operations; control: nothing freed",
    repetitions: 5,
    cases,
    tables: &[
        ("small: allocate and free 64 B to 4 KiB", &SMALL),
        ("large: allocate 1 MiB, touch its first page, free", &LARGE),
        ("fresh: the same with 1 to 64 MiB, a size not used for half a second", &FRESH),
    ],
    bars,
    ..Section::BASE
};

macro_rules! columns {
    ($operation:literal) => {
        [
            count(concat!($operation, "_n"), "operations"),
            column(concat!($operation, "_p50"), "p50 ns", ONE, 0),
            EMPTY,
            column(concat!($operation, "_p999"), "p99.9 us", US, 2),
            column(concat!($operation, "_max"), "max us", US, 0),
            column(concat!($operation, "_20us"), "over 20 us", ONE, 0),
            column(concat!($operation, "_100us"), "over 100 us", ONE, 0),
            column(concat!($operation, "_1ms"), "over 1 ms", ONE, 0),
        ]
    };
}

const SMALL: [Column; 8] = columns!("small");
const LARGE: [Column; 8] = columns!("large");
const FRESH: [Column; 8] = columns!("fresh");

const SMALL_SIZES: [usize; 8] = [64, 4096, 128, 2048, 96, 1024, 640, 256];
const FREED: &str = "2 GiB freed";
const CONTROL: &str = "nothing freed";
const FRESH_EVERY: Duration = Duration::from_millis(10);

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(2 * GIB, 2 * GIB, 64 * MIB);
    vec![
        Case::new(CONTROL, bytes, move |report| stalls(bytes, false, scale, report)),
        Case::new(FREED, bytes, move |report| stalls(bytes, true, scale, report)),
    ]
}

struct Operations {
    small: Latencies,
    large: Latencies,
    fresh: Latencies,
}

fn stalls(bytes: usize, freed: bool, scale: Scale, report: &mut Report) {
    let mut operations =
        Operations { small: Latencies::new(), large: Latencies::new(), fresh: Latencies::new() };
    // Plain mimalloc purges a second after the free, on whichever thread allocates then: a loop of
    // one second would end before its stalls.
    let duration = Duration::from_millis(scale.pick(2500, 1500, 50));
    let mut blocks = Ledger::with_capacity(bytes / MIB);
    while !blocks.is_full() {
        blocks.push(Block::touched(MIB));
    }
    if freed {
        blocks.clear();
    }
    run_loop(&mut operations, duration);
    put(report, "small", &operations.small);
    put(report, "large", &operations.large);
    put(report, "fresh", &operations.fresh);
}

fn run_loop(operations: &mut Operations, duration: Duration) {
    let start = Instant::now();
    let mut next_fresh = Duration::ZERO;
    let mut fresh_sizes = fresh_sizes();
    loop {
        let elapsed = start.elapsed();
        if elapsed >= duration {
            return;
        }
        for size in SMALL_SIZES {
            operations.small.time(|| drop(Block::new(size)));
        }
        operations.large.time(|| Block::new(MIB).touch_first_page());
        if elapsed >= next_fresh {
            next_fresh = elapsed + FRESH_EVERY;
            let size = fresh_sizes.next().unwrap_or(2 * MIB);
            operations.fresh.time(|| Block::new(size).touch_first_page());
        }
    }
}

/// From 1.1 to 64 MiB in steps of 7 %, over and over: no two in a row fall into one size class, and
/// each comes back after 600 ms, when its last block has long been given back.
fn fresh_sizes() -> impl Iterator<Item = usize> {
    let up = std::iter::successors(Some(1.1), |mib| Some(mib * 1.07));
    up.take_while(|mib| *mib < 64.0).cycle().map(|mib| (mib * MIB as f64) as usize)
}

fn put(report: &mut Report, operation: &str, latencies: &Latencies) {
    let mut put = |key: &str, value| report.put(&format!("{operation}_{key}"), value);
    put("n", latencies.count() as f64);
    put("p50", latencies.median());
    put("max", latencies.max());
    put("20us", latencies.count_above(20_000));
    put("100us", latencies.count_above(100_000));
    put("1ms", latencies.count_above(1_000_000));
    report.put_some(&format!("{operation}_p999"), latencies.quantile(0.999));
}

fn bars(results: &Results) {
    for operation in ["small", "large", "fresh"] {
        let what = format!("longest stall, {operation}");
        bar_control(&what, &format!("{operation}_max"), FREED, CONTROL, results);
    }
}
