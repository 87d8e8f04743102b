//! Allocate, touch every page, free, again and again: the commonest pattern of large blocks.

use std::time::{Duration, Instant};

use super::figures::{BASE, CPU, MAX, P50, P99, P999, PEAK, SAMPLES, Section};
use super::support::block::Block;
use super::support::children::{Case, Report};
use super::support::discard::discard;
use super::support::table::{Column, US, column};
use super::support::timing::{Latencies, nanos};
use super::support::{KIB, MIB, Scale, size_name};

pub(crate) const SECTION: Section = Section {
    name: "recycle",
    about: "allocate, touch every page, free, in a loop; waits: each free",
    repetitions: 2,
    cases,
    tables: &[("", &COLUMNS)],
    ..BASE
};

const COLUMNS: [Column; 8] =
    [P50, P99, P999, MAX, SAMPLES, column("round", "whole round us", US, 0), CPU, PEAK];

fn cases(scale: Scale) -> Vec<Case> {
    let sizes: &[usize] =
        scale.pick(&[256 * KIB, 4 * MIB, 64 * MIB][..], &[256 * KIB, 16 * MIB], &[256 * KIB]);
    let run = |&size: &usize| {
        // With `thread::spawn` some blocks are on their way at a time.
        Case::new(size_name(size), 4 * size, move |report| recycle(size, scale, report))
    };
    sizes.iter().map(run).collect()
}

fn recycle(size: usize, scale: Scale, report: &mut Report) {
    let budget = Duration::from_millis(scale.pick(250, 60, 1));
    let mut waits = Latencies::new();
    let start = Instant::now();
    while start.elapsed() < budget {
        let block = Block::touched(size);
        waits.time(|| discard(block));
    }
    // Without clock readings in between: of the smallest block they would be a good part.
    let n_rounds = waits.count().max(1);
    let start = Instant::now();
    for _ in 0..n_rounds {
        discard(Block::touched(size));
    }
    report.put("round", nanos(start.elapsed()) as f64 / n_rounds as f64);
    report.put_waits(&waits);
}
