//! The bars that this crate is held to: what this bench shows of them, and which bench shows the rest.

use super::record::Record;
use super::report::significant;
use super::support::children::Results;
use super::support::contender::Contender::{self, Deferfree, JemallocBackground, Mimalloc};
use super::support::table::{MIB, NOISE, ratio};

pub(crate) struct Bar {
    pub(crate) what: &'static str,
    pub(crate) figure: String,
    pub(crate) is_met: Option<bool>,
    pub(crate) shown_by: &'static str,
}

impl Bar {
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.shown_by != HERE
    }
}

const HERE: &str = "compare";

/// How many times less than its peers' a free has to cost, from 1 MiB up.
const FREE_TIMES: f64 = 5.0;
const PEAK_TIMES: f64 = 1.10;
const IDLE_TIMES: f64 = 1.1;
const IDLE_BYTES: f64 = 50.0 * MIB;

pub(crate) fn rows(record: &Record) -> Vec<Bar> {
    let peers = [Mimalloc, JemallocBackground];
    let large_free = |case: &Case| {
        let of_peers = peers.map(|peer| case.ratio("p50", peer));
        of_peers.into_iter().flatten().max_by(f64::total_cmp)
    };
    let free = worst(record, &["vec", "blocks"], large_free);
    let recycle = worst(record, &["recycle"], |case| case.ratio("round", Mimalloc));
    let shapes = |key| worst(record, &["shapes"], move |case| case.ratio(key, Mimalloc));
    let idle = |section| {
        worst(record, &[section], |case| {
            let allowed = case.median("before")? * IDLE_TIMES + IDLE_BYTES;
            Some(case.median("rss500")? / allowed)
        })
    };
    let with_limit = record.parts.iter().filter(|part| part.section.peak_limit.is_finite());
    let every_section: Vec<&str> = with_limit.map(|part| part.section.name).collect();
    let peak = worst(record, &every_section, |case| case.ratio("peak", Mimalloc));
    vec![
        elsewhere(
            "free of one block, 64 KiB to 4 GiB: p50 30 ns, p99.9 5 us, first ever 200 us",
            "large_free -- free",
        ),
        here(
            "free from 1 MiB up: 5x under mimalloc and jemalloc with background threads",
            free,
            1.0 / FREE_TIMES,
        ),
        here("allocate, touch, free in a loop: as fast as mimalloc", recycle, NOISE),
        elsewhere(
            "drop, where deferring was chosen: 1.15x a free that does nothing, plus 1 ns a block",
            "bursts -- rest",
        ),
        elsewhere("drop of each shape, nothing deferred: 1.02x mimalloc's", "bursts -- free_path"),
        elsewhere("a command of 1 to 20 ms, start to end: 1.02x mimalloc's", "commands"),
        here(
            "drop of each shape, then rest: no slower than mimalloc, but for noise",
            shapes("p50"),
            NOISE,
        ),
        here(
            "drop and next build of each shape: at most mimalloc's, but for noise",
            shapes("wall"),
            NOISE,
        ),
        elsewhere(
            "drop, geometric mean: 4x under mimalloc, cold shapes; 2.2x, all",
            "bursts -- rest",
        ),
        elsewhere("build and drop in a row: wall 1.02x mimalloc's, CPU 1.05x", "bursts -- row"),
        here("2 GiB freed, 0.5 s idle: RSS within 1.1x live + 50 MiB", idle("blocks"), 1.0),
        here("the same after a peak of large and small blocks", idle("idle"), 1.0),
        elsewhere("stalls while memory goes back: none above the noise", "large_free -- stalls"),
        elsewhere("other threads' mmap while 4 GiB go back: as without", "large_free -- mmap"),
        elsewhere("changing sizes: time and peak RSS 1.05x mimalloc's", "large_free -- phases"),
        here("peak RSS, any workload: 1.10x mimalloc's", peak, PEAK_TIMES),
        elsewhere("instructions of a small pair: 0.9x mimalloc's", "benches/callgrind.sh"),
        elsewhere("later(map): p50 under 100 ns, 100x under thread::spawn", "later"),
    ]
}

/// One case of a section, and deferfree's figures in it.
struct Case<'a> {
    name: &'a str,
    results: &'a Results,
}

impl Case<'_> {
    fn ratio(&self, key: &str, peer: Contender) -> Option<f64> {
        ratio(self.results, self.name, peer, key)
    }

    fn median(&self, key: &str) -> Option<f64> {
        self.results.median(self.name, Deferfree, key)
    }
}

/// The largest figure of the sections' cases, and where it is.
fn worst(
    record: &Record,
    sections: &[&str],
    figure: impl Fn(&Case) -> Option<f64>,
) -> Option<(f64, String)> {
    let parts = sections.iter().filter_map(|section| record.part(section));
    let cases = parts.flat_map(|part| part.results.cases.iter().map(move |case| (part, case)));
    let figures = cases.filter_map(|(part, name)| {
        let figure = figure(&Case { name, results: &part.results })?;
        Some((figure, format!("{}: {name}", part.section.name)))
    });
    figures.max_by(|a, b| a.0.total_cmp(&b.0))
}

fn here(what: &'static str, worst: Option<(f64, String)>, limit: f64) -> Bar {
    let figure = |(figure, case): &(f64, String)| {
        format!("{} of {} at worst ({case})", significant(*figure), significant(limit))
    };
    Bar {
        what,
        figure: worst.as_ref().map_or(String::new(), figure),
        is_met: worst.map(|worst| worst.0 <= limit),
        shown_by: HERE,
    }
}

fn elsewhere(what: &'static str, shown_by: &'static str) -> Bar {
    Bar { what, figure: String::new(), is_met: None, shown_by }
}
