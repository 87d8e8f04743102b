//! A thread that drops a structure and then has nothing to do: the case that deferring is for.

use std::time::Duration;

use super::n_deferred;
use super::rounds::{Rounds, idle_rss};
use super::support::Scale;
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender::{self, Deferfree, Floor, Mimalloc};
use super::support::section::Section;
use super::support::structures::{STRUCTURES, Structure, all};
use super::support::table::{self, Column, MS, bar, bar_each, column, count, ratio, worst};

pub(crate) const SECTION: Section = Section {
    name: "rest",
    about: "12 times: build a structure, drop it, rest for 40 ms; the floor's drop frees nothing (5 \
            times); deferred: of all blocks; faults: of the process, a round",
    repetitions: 3,
    cases,
    tables: &[("rest", &COLUMNS)],
    bars,
    contenders: &[Mimalloc, Floor, Deferfree],
    peak_limit: f64::INFINITY,
    ..super::SECTION
};

const COLUMNS: [Column; 8] = [
    column("drop", "drop ms", MS, 2),
    column("first_drop", "first", MS, 2),
    column("worst_drop", "worst", MS, 2),
    column("build", "next build ms", MS, 1),
    column("both", "drop + next build ms", MS, 1),
    count("deferred", "deferred %"),
    column("faults", "page faults", table::ONE, 0),
    column("idle", "RSS 1 s later MiB", table::MIB, 0),
];

const ROUNDS: usize = 12;
const FLOOR_ROUNDS: usize = 5;
const REST: Duration = Duration::from_millis(40);

/// Of the blocks, in percent: from here on deferring was chosen.
const CHOSEN: f64 = 50.0;
/// Times the floor, plus nanoseconds a block.
const DROP_FACTOR: f64 = 1.15;
const DROP_NS_PER_BLOCK: f64 = 1.0;
const DROP_LIMIT: f64 = 1.02;
const BOTH_LIMIT: f64 = 1.0;
/// How many times less than mimalloc's, in the mean.
const COLD_TIMES: f64 = 4.0;
const ALL_TIMES: f64 = 2.2;
/// Times mimalloc's, plus bytes of the log for each block.
const PEAK_FACTOR: f64 = 1.10;
const LOG_BYTES_PER_BLOCK: f64 = 4.0;
/// RSS of a program at rest with nothing live.
const IDLE_MIB: f64 = 50.0;

fn cases(scale: Scale) -> Vec<Case> {
    let case = |structure: &'static Structure| {
        // The floor keeps all that it builds.
        structure.case(FLOOR_ROUNDS, scale, move |n, report| rest(structure, n, scale, report))
    };
    all().map(case).collect()
}

fn rest(structure: &Structure, n: usize, scale: Scale, report: &mut Report) {
    let leaks = Contender::of_this_process() == Floor;
    let n_rounds = if leaks { FLOOR_ROUNDS } else { scale.pick(ROUNDS, 5, 2) };
    let rounds = Rounds::run(structure, n, n_rounds, REST);
    if !leaks {
        report.put("idle", idle_rss());
    }
    rounds.report(report);
    let n_blocks = n as f64 * structure.blocks_per_element;
    report.put("blocks", n_blocks);
    if let Some(n_deferred) = n_deferred() {
        report.put("deferred", 100.0 * n_deferred as f64 / (n_blocks * n_rounds as f64));
    }
}

fn bars(results: &Results) {
    let cases = &results.cases;
    let is_chosen = |case: &&String| results.median(case, Deferfree, "deferred") > Some(CHOSEN);
    let chosen = || cases.iter().filter(is_chosen);
    let names: Vec<&str> = chosen().map(String::as_str).collect();
    println!("deferring was chosen in {} of {}: {}", names.len(), cases.len(), names.join("; "));
    let of_allowed = |case: &str| {
        let floor = results.median(case, Floor, "drop")?;
        let n_blocks = results.median(case, Floor, "blocks")?;
        let allowed = DROP_FACTOR * floor + DROP_NS_PER_BLOCK * n_blocks;
        Some(results.median(case, Deferfree, "drop")? / allowed)
    };
    for case in chosen() {
        if let Some(of_allowed) = of_allowed(case) {
            println!("{case}: {of_allowed:.2} of the allowed");
        }
    }
    bar(
        "drop where deferring was chosen, against 1.15 x the floor + 1 ns a block",
        " x",
        worst(chosen(), of_allowed),
        1.0,
    );
    bar_each("drop, each shape", Deferfree, "drop", cases, DROP_LIMIT, results);
    bar_mean("over the cold shapes", |structure| structure.is_cold, COLD_TIMES, results);
    bar_mean("over all shapes", |_| true, ALL_TIMES, results);
    bar_each("drop and next build, each shape", Deferfree, "both", cases, BOTH_LIMIT, results);
    let peak = |case: &str| {
        let theirs = results.median(case, Mimalloc, "peak")?;
        let log = LOG_BYTES_PER_BLOCK * results.median(case, Deferfree, "blocks")?;
        Some(results.median(case, Deferfree, "peak")? / (PEAK_FACTOR * theirs + log))
    };
    bar(
        "peak RSS, against 1.10 x plain mimalloc's + 4 bytes a block",
        " x",
        worst(cases, peak),
        1.0,
    );
    let idle = |case: &str| Some(results.median(case, Deferfree, "idle")? / table::MIB);
    bar("RSS 1 s after the last drop", " MiB", worst(cases, idle), IDLE_MIB);
}

/// The geometric mean of the drops, over some of `STRUCTURES`. One of fewer shapes would be another
/// figure under the same name.
fn bar_mean(over: &str, is_in: fn(&Structure) -> bool, times: f64, results: &Results) {
    let names = STRUCTURES.iter().filter(|structure| is_in(structure)).map(|it| it.name);
    let ratios: Option<Vec<f64>> =
        names.map(|name| ratio(results, name, Mimalloc, "drop")).collect();
    let Some(ratios) = ratios else {
        println!("bar: drop, geometric mean {over}: not measured in this run");
        return;
    };
    let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
    let verdict = if mean <= 1.0 / times { "met" } else { "NOT MET" };
    println!(
        "bar: drop, geometric mean {over} ({}): {:.2} x under plain mimalloc, at least {times} x: \
         {verdict}",
        ratios.len(),
        1.0 / mean
    );
}
