//! One value is built and dropped, again and again: a map, the shapes of small blocks, large vectors,
//! a vector of large blocks.

use std::collections::HashMap;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use super::figures::{
    BASE, COMMON, CPU, IDLE, MAX, P50, PEAK, SAMPLES, Section, WALL, put_idle, put_idle_always,
};
use super::support::block::Block;
use super::support::children::{Case, Report};
use super::support::discard::discard;
use super::support::memory::rss_bytes;
use super::support::structures::{STRUCTURES, Structure};
use super::support::table::{Column, MIB as IN_MIB, column};
use super::support::timing::{Latencies, nanos};
use super::support::{GIB, MIB, Scale, size_name};

pub(crate) const MAP: Section = Section {
    name: "map",
    about: "a HashMap<usize, Vec<usize>> of a million entries, built and dropped six times; \
            waits: each drop",
    repetitions: 2,
    cases: map_cases,
    tables: &[("", &COMMON)],
    ..BASE
};

pub(crate) const SHAPES: Section = Section {
    name: "shapes",
    about: "structures of many small blocks, each built and dropped five times, with a rest of 40 ms after each drop; \
            waits: each drop; wall: without the rests",
    cases: shape_cases,
    tables: &[("", &FEW_SAMPLES)],
    ..BASE
};

pub(crate) const ROW: Section = Section {
    name: "row",
    about: "some of them, each built and dropped six times in a row, without a rest: what was put off comes back to a \
            thread that goes on; waits: each drop",
    cases: row_cases,
    ..SHAPES
};

pub(crate) const VEC: Section = Section {
    name: "vec",
    about: "one vector, every page written, then dropped, three times; waits: each drop",
    cases: vec_cases,
    tables: &[("", &FEW_SAMPLES)],
    ..BASE
};

pub(crate) const BLOCKS: Section = Section {
    name: "blocks",
    about: "2 GiB in a vector of blocks of 1 MiB, every page written, then dropped, three times; \
            waits: each drop of all",
    cases: blocks_cases,
    tables: &[("", &BLOCKS_COLUMNS)],
    ..BASE
};

const FEW_SAMPLES: [Column; 7] = [P50, MAX, SAMPLES, WALL, CPU, PEAK, IDLE];
const BLOCKS_COLUMNS: [Column; 8] =
    [P50, MAX, SAMPLES, WALL, CPU, PEAK, column("rss500", "RSS idle 0.5 s MiB", IN_MIB, 0), IDLE];

fn map_cases(scale: Scale) -> Vec<Case> {
    let n_entries = scale.pick(1_000_000, 250_000, 10_000);
    let n_rounds = scale.pick(6, 3, 2);
    let needs = scale.pick(400 * MIB, 100 * MIB, 10 * MIB);
    vec![Case::new(format!("{n_entries} entries"), needs, move |report| {
        // The blog post's.
        let build =
            || (1..=n_entries).map(|v| (v, vec![v])).collect::<HashMap<usize, Vec<usize>>>();
        rounds(n_rounds, build, report);
        put_idle_always(report, scale);
    })]
}

fn shape_cases(scale: Scale) -> Vec<Case> {
    let rest = Duration::from_millis(scale.pick(40, 40, 1));
    let shapes = STRUCTURES.iter().filter(|structure| structure.in_compare);
    shapes.map(|it| structure_case(it, scale.pick(5, 3, 2), rest, scale)).collect()
}

/// Of those that the drainer frees when there is a rest. One of a map is the section `map`.
fn row_cases(scale: Scale) -> Vec<Case> {
    let cold = STRUCTURES.iter().filter(|structure| structure.in_compare && structure.is_cold);
    let cold = cold.skip(1);
    cold.map(|it| structure_case(it, scale.pick(6, 3, 2), Duration::ZERO, scale)).collect()
}

fn structure_case(
    structure: &'static Structure,
    n_rounds: usize,
    rest: Duration,
    scale: Scale,
) -> Case {
    let n = structure.n_elements / scale.pick(1, 10, 100);
    let needs = scale.pick(500 * MIB, 50 * MIB, 5 * MIB);
    Case::new(structure.name, needs, move |report| {
        rounds_with_rests(n_rounds, rest, || (structure.build)(n), report);
        put_idle(report, scale);
    })
}

fn vec_cases(scale: Scale) -> Vec<Case> {
    let sizes = scale.pick([GIB, 3 * GIB], [64 * MIB, 256 * MIB], [MIB, 4 * MIB]);
    let run = |size: usize| {
        Case::new(size_name(size), size, move |report| {
            rounds(scale.pick(3, 2, 2), || Block::touched(size), report);
            put_idle(report, scale);
        })
    };
    sizes.into_iter().map(run).collect()
}

fn blocks_cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(2 * GIB, 256 * MIB, 32 * MIB);
    let name = format!("{} in blocks of 1 MiB", size_name(bytes));
    vec![Case::new(name, bytes, move |report| {
        let build = || (0..bytes / MIB).map(|_| Block::touched(MIB)).collect::<Vec<_>>();
        let before = rss_bytes();
        // Of two the smaller one would be the median.
        rounds(scale.pick(3, 2, 2), build, report);
        thread::sleep(Duration::from_millis(scale.pick(500, 500, 1)));
        report.put("before", before as f64);
        report.put("rss500", rss_bytes() as f64);
        thread::sleep(Duration::from_millis(scale.pick(500, 500, 1)));
        report.put("idle", rss_bytes() as f64);
    })]
}

fn rounds<T: Send + 'static>(n_rounds: usize, build: impl Fn() -> T, report: &mut Report) {
    rounds_with_rests(n_rounds, Duration::ZERO, build, report);
}

fn rounds_with_rests<T: Send + 'static>(
    n_rounds: usize,
    rest: Duration,
    build: impl Fn() -> T,
    report: &mut Report,
) {
    let mut waits = Latencies::new();
    let mut wall = Duration::ZERO;
    for _ in 0..n_rounds {
        let start = Instant::now();
        let value = black_box(build());
        waits.time(|| discard(value));
        wall += start.elapsed();
        if !rest.is_zero() {
            thread::sleep(rest);
        }
    }
    report.put_waits(&waits);
    report.put("wall", nanos(wall) as f64);
}
