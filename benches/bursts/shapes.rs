//! Build and drop, one thread, one structure at a time.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::allocator::Contender;
use crate::support::children::{Case, Report, Results};
use crate::support::memory::{cpu_time, rss_bytes};
use crate::support::section::{PEAK_LIMIT, Section};
use crate::support::structures::{STRUCTURES, Structure};
use crate::support::table::{self, Column, MS, bar, bar_no_slower, column, ratio, worst};
use crate::support::timing::nanos;
use crate::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "shapes",
    about: "20 times: build a structure, drop it; the floor's drop frees nothing (5 times)",
    repetitions: 3,
    cases,
    tables: &[("shapes", &COLUMNS)],
    bars,
    peak_limit: PEAK_LIMIT,
};

const COLUMNS: [Column; 8] = [
    column("drop", "drop ms", MS, 2),
    column("best_drop", "best", MS, 2),
    column("worst_drop", "worst", MS, 2),
    column("first_drop", "first", MS, 2),
    column("rebuild", "rebuild ms", MS, 1),
    column("wall", "rounds, wall ms", MS, 0),
    column("rounds_cpu", "rounds, CPU ms", MS, 0),
    column("idle", "RSS 1 s later MiB", table::MIB, 0),
];

const ROUNDS: usize = 20;
const FLOOR_ROUNDS: usize = 5;
/// RSS of a program at rest with nothing live.
const IDLE_MIB: f64 = 50.0;
/// Times the floor, plus nanoseconds per block.
const DROP_FACTOR: f64 = 1.3;
const DROP_NS_PER_BLOCK: f64 = 1.5;

fn cases(scale: Scale) -> Vec<Case> {
    STRUCTURES
        .iter()
        .map(|structure| {
            let n = n_elements(structure, scale);
            Case::new(structure.name, 1500 * MIB, move |report| rounds(structure, n, scale, report))
        })
        .collect()
}

fn n_elements(structure: &Structure, scale: Scale) -> usize {
    structure.n_elements / scale.pick(1, 1, 100)
}

pub(crate) fn rounds(structure: &Structure, n: usize, scale: Scale, report: &mut Report) {
    let leaks = Contender::of_this_process() == Contender::Floor;
    let n_rounds = if leaks { FLOOR_ROUNDS } else { scale.pick(ROUNDS, ROUNDS, 2) };
    let mut drops = [0; ROUNDS];
    let mut builds = [0; ROUNDS];
    let cpu_before = cpu_time();
    let start = Instant::now();
    for round in 0..n_rounds {
        let building = Instant::now();
        let built = black_box((structure.build)(n));
        builds[round] = nanos(building.elapsed());
        let dropping = Instant::now();
        drop(built);
        drops[round] = nanos(dropping.elapsed());
    }
    let wall = start.elapsed();
    let cpu = cpu_time() - cpu_before;
    if !leaks {
        thread::sleep(Duration::from_secs(1));
        report.put("idle", rss_bytes() as f64);
        report.put("wall", nanos(wall) as f64);
        report.put("rounds_cpu", nanos(cpu) as f64);
    }
    report.put("first_drop", drops[0] as f64);
    let (drops, builds) = (&mut drops[1..n_rounds], &mut builds[1..n_rounds]);
    drops.sort_unstable();
    builds.sort_unstable();
    report.put("drop", drops[drops.len() / 2] as f64);
    report.put("best_drop", drops[0] as f64);
    report.put("worst_drop", drops[drops.len() - 1] as f64);
    report.put("rebuild", builds[builds.len() / 2] as f64);
}

fn bars(results: &Results) {
    let of = |case: &str| STRUCTURES.iter().find(|structure| structure.name == case);
    // How far the drop is over what it may be. A shape that plain mimalloc drops in less than that has
    // nothing to gain; the next bar is for those.
    let over = |case: &str| {
        let structure = of(case)?;
        let n_blocks = structure.n_elements as f64 * structure.blocks_per_element;
        let floor = results.median(case, Contender::Floor, "drop")?;
        let allowed = DROP_FACTOR * floor + DROP_NS_PER_BLOCK * n_blocks;
        let gains = allowed < results.median(case, Contender::Mimalloc, "drop")?;
        let took = results.median(case, Contender::Deferfree, "drop")?;
        gains.then_some(took / allowed)
    };
    for case in &results.cases {
        if let Some(over) = over(case) {
            println!("{case}: {over:.2} of the allowed");
        }
    }
    bar(
        "drop, against 1.3 x the floor + 1.5 ns a block, shapes with something to gain",
        " x",
        worst(&results.cases, over),
        1.0,
    );
    bar_no_slower("drop, each shape", "drop", &results.cases, results);
    let in_mean = results.cases.iter().filter(|case| of(case).is_some_and(|s| s.in_mean));
    let ratios: Vec<f64> =
        in_mean.filter_map(|case| ratio(results, case, Contender::Mimalloc, "drop")).collect();
    if ratios.len() == 8 {
        let mean = (ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / 8.0).exp();
        let verdict = if mean <= 0.25 { "met" } else { "NOT MET" };
        println!(
            "bar: drop, geometric mean over the eight: {:.2} x under plain mimalloc, limit 4 x: \
             {verdict}",
            1.0 / mean
        );
    }
    bar_no_slower("total wall time of the rounds", "wall", &results.cases, results);
    let idle = |case: &str| Some(results.median(case, Contender::Deferfree, "idle")? / table::MIB);
    bar("RSS 1 s after the last drop", " MiB", worst(&results.cases, idle), IDLE_MIB);
}
