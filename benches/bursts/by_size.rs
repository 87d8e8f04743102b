//! The same structure with ever more elements.

use std::time::Duration;

use super::rounds::{MOST, Rounds};
use super::row::row;
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender::Deferfree;
use super::support::section::Section;
use super::support::structures::{STRUCTURES, Structure};
use super::support::table::{self, Column, MS, bar_each, column};
use super::support::{MIB, Scale};

/// What the drop saves must not be paid in the build. The smaller the structure, the fewer pages it has, and the more of
/// them were the thread's own again when its burst began.
pub(crate) const SMALL: Section = Section {
    name: "small",
    about: "20 times: build a structure of so many thousand elements, drop it, rest for 20 ms",
    repetitions: 3,
    cases: small_cases,
    tables: &[("small", &SMALL_COLUMNS)],
    bars: small_bars,
    ..super::SECTION
};

/// Peak RSS. mimalloc takes small pages from chunks of 32 MiB: what lives for long in a second chunk keeps it in use, and
/// then the next structure begins there, beside what the last one left in the first. Which sizes that concerns, and by how
/// much, is what this shows.
pub(crate) const SIZES: Section = Section {
    name: "sizes",
    about: "a list and a tree of so many thousand nodes, built and dropped 20 times in a row",
    cases: sizes_cases,
    tables: &[("sizes", &SIZES_COLUMNS)],
    ..super::SECTION
};

const SMALL_COLUMNS: [Column; 4] = [
    column("drop", "drop ms", MS, 3),
    column("build", "next build ms", MS, 3),
    column("both", "drop + next build ms", MS, 3),
    column("faults", "page faults", table::ONE, 0),
];
const SIZES_COLUMNS: [Column; 2] =
    [column("drop", "drop ms", MS, 2), column("wall", "wall ms", MS, 0)];

const REST: Duration = Duration::from_millis(20);
const BOTH_LIMIT: f64 = 1.0;

fn small_cases(scale: Scale) -> Vec<Case> {
    let n_rounds = scale.pick(MOST, 10, 2);
    // The map of vectors, strings and boxes in disorder, a tree of strings.
    cases(
        [0, 1, 2, 4],
        [2, 8, 30, 125, 500],
        |_| 200,
        scale,
        move |structure, n, report| {
            Rounds::run(structure, n, n_rounds, REST).report(report);
        },
    )
}

fn sizes_cases(scale: Scale) -> Vec<Case> {
    let n_rounds = scale.pick(MOST, 6, 2);
    let thousands = [500, 800, 1000, 1200, 1500, 2000, 3000];
    // A list, a tree.
    cases(
        [6, 7],
        thousands,
        |thousands| thousands / 8,
        scale,
        move |structure, n, report| {
            row(structure, n, n_rounds, report);
        },
    )
}

/// Some of [`STRUCTURES`], each with so many thousand elements, which take so many MiB.
fn cases<const S: usize, const N: usize>(
    structures: [usize; S],
    thousands: [usize; N],
    mib: fn(usize) -> usize,
    scale: Scale,
    run: impl Fn(&Structure, usize, &mut Report) + Copy + 'static,
) -> Vec<Case> {
    let structures = structures.into_iter().map(|index| &STRUCTURES[index]);
    let each = structures.flat_map(|it| thousands.map(|thousands| (it, thousands)));
    each.map(|(structure, thousands)| {
        let n = thousands * 1000 / scale.pick(1, 1, 100);
        let name = format!("{}, {thousands}", structure.name);
        let needs = mib(thousands) * MIB / scale.pick(1, 1, 20);
        Case::new(name, needs, move |report| run(structure, n, report))
    })
    .collect()
}

fn small_bars(results: &Results) {
    let what = "drop and next build, each size";
    bar_each(what, Deferfree, "both", &results.cases, BOTH_LIMIT, results);
}
