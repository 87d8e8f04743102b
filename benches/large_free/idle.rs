//! A program frees 2 GiB and then does nothing: when does the memory go back?

use std::thread;
use std::time::{Duration, Instant};

use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::memory::rss_bytes;
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{self, Column, MS, bar, column, worst};
use super::support::timing::nanos;
use super::support::{GIB, KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "idle",
    about: "2 GiB in blocks of 1 MiB, or 2.2 GiB in blocks of 1 to 100 KiB (log-uniform), touched, freed in a row; then the \
            program sleeps",
    repetitions: 5,
    cases,
    tables: &[("idle", &COLUMNS)],
    bars,
    ..Section::BASE
};

const COLUMNS: [Column; 7] = [
    column("caller", "caller in all ms", MS, 2),
    column("before", "live RSS MiB", table::MIB, 0),
    column("freed", "RSS at once MiB", table::MIB, 0),
    column("back", "under live + 50 MiB after ms", MS, 0),
    column("rss500", "RSS at 500 ms MiB", table::MIB, 0),
    column("rss600", "at 600 ms", table::MIB, 0),
    column("rss1000", "RSS at 1 s MiB", table::MIB, 0),
];

const SAMPLE_EVERY: Duration = Duration::from_millis(20);
const WATCH: Duration = Duration::from_secs(1);
const SLACK_BYTES: u64 = 50 * MIB as u64;

const LARGE: &str = "1 MiB blocks";
const MIXED: &str = "1 to 100 KiB";

fn cases(scale: Scale) -> Vec<Case> {
    let case = |name, bytes, smallest, largest| {
        Case::new(name, bytes, move |report| idle(bytes, smallest, largest, report))
    };
    let bytes = scale.pick(2 * GIB, 2 * GIB, 128 * MIB);
    vec![case(LARGE, bytes, MIB, MIB), case(MIXED, bytes / 10 * 11, KIB, 100 * KIB)]
}

fn idle(bytes: usize, smallest: usize, largest: usize, report: &mut Report) {
    let mut random = Random(1);
    // Half of the mean of a mix.
    let mut blocks = Ledger::with_capacity(bytes / largest * 10);
    let mut rss =
        Ledger::with_capacity((WATCH.as_millis() / SAMPLE_EVERY.as_millis()) as usize + 1);
    let before = rss_bytes();
    let mut made = 0;
    while made < bytes {
        let block = Block::touched(random.size(smallest, largest));
        made += block.len();
        blocks.push(block);
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
    for ms in [500, 600, 1000] {
        report.put_some(&format!("rss{ms}"), at(Duration::from_millis(ms)));
    }
}

fn bars(results: &Results) {
    let cases = |name: &'static str| results.cases.iter().filter(move |case| *case == name);
    let over_live = |name, key: &'static str| {
        worst(cases(name), |case| {
            let rss = results.median(case, Contender::Deferfree, key)?;
            Some((rss - results.median(case, Contender::Deferfree, "before")?) / MIB as f64)
        })
    };
    bar("RSS above live, 500 ms after", " MiB", over_live(LARGE, "rss500"), 50.0);
    bar("RSS above live, 600 ms after", " MiB", over_live(MIXED, "rss600"), 60.0);
    // A repetition that never came down has no time: the bar holds only if all have one.
    let back = worst(cases(LARGE), |case| {
        let n = results.get(case, Contender::Deferfree, "caller")?.n;
        let back = results.get(case, Contender::Deferfree, "back").filter(|back| back.n == n);
        Some(back.map_or(f64::INFINITY, |back| back.median / MS))
    });
    bar("time until under live + 50 MiB", " ms", back, 500.0);
}
