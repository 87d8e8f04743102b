//! A thread that builds and drops without a pause: there is no time in which the drainer could be done
//! before the memory is wanted again, so there is nothing to gain, and nothing may be lost.

use std::time::Duration;

use super::n_deferred;
use super::requests::{SETS, Set, requests};
use super::rounds::{MOST, Rounds, Taken, idle_rss};
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender::{Deferfree, Mimalloc};
use super::support::section::{PEAK_LIMIT, Section};
use super::support::structures::{Structure, all};
use super::support::table::{self, Column, MS, bar_each, column, count};
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "row",
    about: "20 times in a row: build a structure, drop it; and requests that free a working set and \
            allocate the next; CPU total is that until a second later",
    repetitions: 3,
    cases,
    tables: &[("row", &COLUMNS)],
    bars,
    peak_limit: f64::INFINITY,
    ..super::SECTION
};

const COLUMNS: [Column; 7] = [
    column("wall", "wall ms", MS, 0),
    column("wall_cpu", "CPU until then ms", MS, 0),
    column("drop", "drop ms", MS, 2),
    column("worst_drop", "worst", MS, 2),
    column("build", "build ms", MS, 1),
    count("deferred", "deferred %"),
    column("idle", "RSS 1 s later MiB", table::MIB, 0),
];

const WALL_LIMIT: f64 = 1.02;
const CPU_LIMIT: f64 = 1.05;

fn cases(scale: Scale) -> Vec<Case> {
    let shape = |structure: &'static Structure| {
        structure.case(2, scale, move |n, report| {
            row(structure, n, scale.pick(MOST, 6, 2), report);
        })
    };
    let set = |set: Set| {
        let n_blocks = scale.pick(8_000_000, 2_000_000, 20_000);
        Case::new(format!("requests of {} blocks", set.n_blocks), 8 * MIB, move |report| {
            let (taken, ()) = Taken::by(|| requests(n_blocks / set.n_blocks, set.n_blocks));
            report.put("idle", idle_rss());
            taken.report(report);
            report_deferred(report, n_blocks as f64);
        })
    };
    all().map(shape).chain(SETS.map(set)).collect()
}

pub(crate) fn row(structure: &Structure, n: usize, n_rounds: usize, report: &mut Report) {
    let (taken, rounds) = Taken::by(|| Rounds::run(structure, n, n_rounds, Duration::ZERO));
    report.put("idle", idle_rss());
    taken.report(report);
    rounds.report(report);
    report_deferred(report, n as f64 * structure.blocks_per_element * n_rounds as f64);
}

fn report_deferred(report: &mut Report, n_blocks: f64) {
    if let Some(n_deferred) = n_deferred() {
        report.put("deferred", 100.0 * n_deferred as f64 / n_blocks);
    }
}

fn bars(results: &Results) {
    bar_each("wall, each shape", Deferfree, "wall", &results.cases, WALL_LIMIT, results);
    bar_each("CPU, each shape", Deferfree, "cpu", &results.cases, CPU_LIMIT, results);
    bar_each("peak RSS, each shape", Deferfree, "peak", &results.cases, PEAK_LIMIT, results);
}
