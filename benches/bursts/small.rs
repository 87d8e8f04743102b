//! Structures of all sizes, dropped by a thread that rests and then builds the next one: what the drop saves must not be
//! paid in the build. The smaller the structure, the fewer pages it has, and the more of them were the thread's own again
//! when its burst began.

use std::time::Duration;

use super::rounds::{MOST, Rounds};
use super::support::children::{Case, Results};
use super::support::contender::Contender::Deferfree;
use super::support::section::Section;
use super::support::structures::STRUCTURES;
use super::support::table::{self, Column, MS, bar_each, column};
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "small",
    about: "20 times: build a structure of so many thousand elements, drop it, rest for 20 ms",
    repetitions: 3,
    cases,
    tables: &[("small", &COLUMNS)],
    bars,
    ..super::SECTION
};

const COLUMNS: [Column; 4] = [
    column("drop", "drop ms", MS, 3),
    column("build", "next build ms", MS, 3),
    column("both", "drop + next build ms", MS, 3),
    column("faults", "page faults", table::ONE, 0),
];

const THOUSANDS: [usize; 5] = [2, 8, 30, 125, 500];
/// The map of vectors, strings and boxes in disorder, a tree of strings.
const USED: [usize; 4] = [0, 1, 2, 4];
const REST: Duration = Duration::from_millis(20);
const BOTH_LIMIT: f64 = 1.0;

fn cases(scale: Scale) -> Vec<Case> {
    let structures = USED.map(|index| &STRUCTURES[index]);
    let each = structures.into_iter().flat_map(|it| THOUSANDS.map(|thousands| (it, thousands)));
    each.map(|(structure, thousands)| {
        let n = thousands * 1000 / scale.pick(1, 1, 100);
        let name = format!("{}, {thousands}", structure.name);
        Case::new(name, 200 * MIB / scale.pick(1, 1, 20), move |report| {
            Rounds::run(structure, n, scale.pick(MOST, 10, 2), REST).report(report);
        })
    })
    .collect()
}

fn bars(results: &Results) {
    bar_each(
        "drop and next build, each size",
        Deferfree,
        "both",
        &results.cases,
        BOTH_LIMIT,
        results,
    );
}
