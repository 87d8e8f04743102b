//! Peak RSS by size. mimalloc takes small pages from chunks of 32 MiB: what lives for long in a second
//! chunk keeps it in use, and then the next structure begins there, beside what the last one left in the
//! first. Which sizes that concerns, and by how much, is what this shows.

use super::rounds::MOST;
use super::row::row;
use super::support::children::{Case, Results};
use super::support::contender::Contender;
use super::support::section::Section;
use super::support::structures::STRUCTURES;
use super::support::table::{Column, MS, column};
use super::support::{KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "sizes",
    about: "a list and a tree of so many thousand nodes, built and dropped 20 times in a row",
    cases,
    tables: &[("sizes", &COLUMNS)],
    ..super::SECTION
};

const COLUMNS: [Column; 2] = [column("drop", "drop ms", MS, 2), column("wall", "wall ms", MS, 0)];

const THOUSANDS: [usize; 7] = [500, 800, 1000, 1200, 1500, 2000, 3000];
const USED: [usize; 2] = [6, 7];

fn cases(scale: Scale) -> Vec<Case> {
    let structures = USED.map(|index| &STRUCTURES[index]);
    let each = structures.into_iter().flat_map(|it| THOUSANDS.map(|thousands| (it, thousands)));
    each.map(|(structure, thousands)| {
        let n = thousands * 1000 / scale.pick(1, 1, 100);
        let name = format!("{}, {thousands}", structure.name);
        Case::new(name, 2 * thousands * 64 * KIB / scale.pick(1, 1, 20), move |report| {
            row(structure, n, scale.pick(MOST, 6, 2), report);
        })
    })
    .collect()
}
