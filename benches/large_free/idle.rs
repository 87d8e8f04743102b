//! A program frees 2 GiB and then does nothing: when does the memory go back?

use std::thread;
use std::time::{Duration, Instant};

use crate::section::{CONTENDERS, PEAK_LIMIT, Section};
use crate::support::block::{Block, Ledger};
use crate::support::children::{Case, Report, Results};
use crate::support::contender::Contender;
use crate::support::memory::rss_bytes;
use crate::support::table::{self, Column, MS, bar, column, worst};
use crate::support::timing::nanos;
use crate::support::{GIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "idle",
    about: "2 GiB in blocks of 1 MiB, touched, freed in a row; then the program sleeps",
    repetitions: 5,
    cases,
    tables: &[("idle", &COLUMNS)],
    bars,
    contenders: &CONTENDERS,
    peak_limit: PEAK_LIMIT,
};

const COLUMNS: [Column; 6] = [
    column("caller", "caller in all ms", MS, 2),
    column("before", "live RSS MiB", table::MIB, 0),
    column("freed", "RSS at once MiB", table::MIB, 0),
    column("back", "under live + 50 MiB after ms", MS, 0),
    column("rss500", "RSS at 500 ms MiB", table::MIB, 0),
    column("rss1000", "RSS at 1 s MiB", table::MIB, 0),
];

const SAMPLE_EVERY: Duration = Duration::from_millis(20);
const WATCH: Duration = Duration::from_secs(1);
const SLACK_BYTES: u64 = 50 * MIB as u64;

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(2 * GIB, 2 * GIB, 128 * MIB);
    vec![Case::new("1 MiB blocks", bytes, move |report| idle(bytes, report))]
}

fn idle(bytes: usize, report: &mut Report) {
    let mut blocks = Ledger::with_capacity(bytes / MIB);
    let mut rss =
        Ledger::with_capacity((WATCH.as_millis() / SAMPLE_EVERY.as_millis()) as usize + 1);
    let before = rss_bytes();
    while !blocks.is_full() {
        blocks.push(Block::touched(MIB));
    }

    let start = Instant::now();
    blocks.clear();
    let caller_ns = nanos(start.elapsed());
    let freed = Instant::now();
    while !rss.is_full() && freed.elapsed() < WATCH + SAMPLE_EVERY {
        rss.push((nanos(freed.elapsed()), rss_bytes()));
        thread::sleep(SAMPLE_EVERY);
    }

    report.put("caller", caller_ns as f64);
    report.put("before", before as f64);
    report.put("freed", rss[0].1 as f64);
    // Left out of the table if it never came down.
    let back = rss.iter().find(|(_, rss)| *rss < before + SLACK_BYTES).map(|(ns, _)| *ns as f64);
    report.put_some("back", back);
    let at =
        |time: Duration| rss.iter().rev().find(|(ns, _)| *ns <= nanos(time)).map(|at| at.1 as f64);
    report.put_some("rss500", at(Duration::from_millis(500)));
    report.put_some("rss1000", at(WATCH));
}

fn bars(results: &Results) {
    let over_live = |key: &'static str| {
        worst(&results.cases, |case| {
            let rss = results.median(case, Contender::Deferfree, key)?;
            Some((rss - results.median(case, Contender::Deferfree, "before")?) / MIB as f64)
        })
    };
    bar("RSS above live, 500 ms after", " MiB", over_live("rss500"), 50.0);
    bar("RSS above live, 1 s after", " MiB", over_live("rss1000"), 50.0);
    // A repetition that never came down has no time: the bar holds only if all have one.
    let back = worst(&results.cases, |case| {
        let n = results.get(case, Contender::Deferfree, "caller")?.n;
        let back = results.get(case, Contender::Deferfree, "back").filter(|back| back.n == n);
        Some(back.map_or(f64::INFINITY, |back| back.median / MS))
    });
    bar("time until under live + 50 MiB", " ms", back, 500.0);
}
