//! A large zeroed table of which little is used (a set of what was visited, the memory of a virtual machine, a sketch):
//! made, 200 of its pages written, dropped, again and again.

use std::time::Instant;

use super::support::block::Block;
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::memory::{page_faults, rss_bytes};
use super::support::section::Section;
use super::support::table::{self, Column, ONE, US, bar, column, ratio, worst};
use super::support::timing::{Latencies, nanos};
use super::support::{MIB, Scale, size_name};

pub(crate) const SECTION: Section = Section {
    name: "zeroed",
    about: "a zeroed table, 200 of its pages written, dropped; 10 times",
    repetitions: 3,
    cases,
    tables: &[("zeroed", &COLUMNS)],
    bars,
    contenders: &[Contender::System, Contender::Mimalloc, Contender::Deferfree],
    peak_limit: f64::INFINITY,
    ..Section::BASE
};

const COLUMNS: [Column; 4] = [
    column("median", "a round us", US, 0),
    column("slowest", "slowest us", US, 0),
    column("more", "peak above start MiB", table::MIB, 0),
    column("faults", "page faults", ONE, 0),
];
const ROUNDS: usize = 10;
const PAGES: usize = 200;
const LIMIT: f64 = 1.3;
const SLACK_MIB: f64 = 32.0;

fn cases(scale: Scale) -> Vec<Case> {
    let sizes = scale.pick(
        [64 * MIB, 900 * MIB, 2560 * MIB],
        [64 * MIB, 256 * MIB, 900 * MIB],
        [MIB, 2 * MIB, 4 * MIB],
    );
    sizes
        .into_iter()
        .map(|bytes| Case::new(size_name(bytes), bytes, move |report| sparse(bytes, report)))
        .collect()
}

fn sparse(bytes: usize, report: &mut Report) {
    let mut rounds = Latencies::new();
    let (mut most, before, faults) = (0, rss_bytes(), page_faults());
    for round in 0..ROUNDS {
        let start = Instant::now();
        let table = Block::zeroed(bytes);
        for i in 0..PAGES {
            let at = bytes / PAGES * i + round * 4099 % (bytes / PAGES);
            // SAFETY: below the table's length.
            unsafe {
                assert_eq!(table.as_ptr().add(at).read_volatile(), 0);
                table.as_ptr().add(at).write_volatile(1);
            }
        }
        let used = nanos(start.elapsed());
        most = most.max(rss_bytes());
        let start = Instant::now();
        drop(table);
        rounds.record(used + nanos(start.elapsed()));
    }
    report.put("median", rounds.median());
    report.put("slowest", rounds.max());
    report.put("more", most.saturating_sub(before) as f64);
    report.put("faults", (page_faults() - faults) as f64);
}

fn bars(results: &Results) {
    let time = worst(&results.cases, |case| ratio(results, case, Contender::System, "median"));
    bar("a round against glibc's", " x", time, LIMIT);
    let more = |case: &str, contender| results.median(case, contender, "more");
    let above = worst(&results.cases, |case| {
        Some((more(case, Contender::Deferfree)? - more(case, Contender::System)?) / MIB as f64)
    });
    bar("peak above glibc's", " MiB", above, SLACK_MIB);
}
