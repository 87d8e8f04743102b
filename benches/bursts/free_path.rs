//! What a free costs where nothing is deferred: all that this crate does before it calls mimalloc.
//!
//! A drop of blocks that are in no cache is as fast as the misses that the processor has under way at
//! once, and each instruction between two frees makes those fewer.

use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::rounds::{Rounds, Taken};
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::section::Section;
use super::support::structures::{Structure, all};
use super::support::table::{Column, MS, bar_each, column};
use super::support::timing::{Latencies, nanos};
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "free_path",
    about: "nothing is deferred, by DEFERFREE=off and by DEFERFREE_BURST=off: structures built and \
            dropped 12 times, and a JSON text parsed and dropped 12 times; wall is that of all",
    repetitions: 5,
    cases,
    tables: &[("free_path", &COLUMNS)],
    bars,
    contenders: &[
        Contender::Mimalloc,
        Contender::MimallocAgain,
        Contender::DeferfreeOff,
        Contender::BurstsOff,
    ],
    ..super::SECTION
};

const COLUMNS: [Column; 5] = [
    column("drop", "drop ms", MS, 2),
    column("best_drop", "best", MS, 2),
    column("worst_drop", "worst", MS, 2),
    column("build", "build or parse ms", MS, 1),
    column("wall", "wall ms", MS, 0),
];

const LIMIT: f64 = 1.02;
const ROUNDS: usize = 12;
const TEXT: &str = "JSON text of 30 MB";
const TEXT_BYTES: usize = 30_000_000;

fn cases(scale: Scale) -> Vec<Case> {
    let shape = |structure: &'static Structure| {
        structure.case(2, scale, move |n, report| {
            let n_rounds = scale.pick(ROUNDS, 4, 2);
            let (taken, rounds) = Taken::by(|| Rounds::run(structure, n, n_rounds, Duration::ZERO));
            taken.report(report);
            rounds.report(report);
        })
    };
    let mut cases: Vec<Case> = all().map(shape).collect();
    cases.push(Case::new(TEXT, 450 * MIB / scale.pick(1, 1, 20), move |report| {
        parse(TEXT_BYTES / scale.pick(1, 1, 100), scale.pick(ROUNDS, 3, 2), report);
    }));
    cases
}

fn parse(text_bytes: usize, n_rounds: usize, report: &mut Report) {
    let text = text(text_bytes);
    let (mut parses, mut drops) = (Latencies::new(), Latencies::new());
    let (taken, ()) = Taken::by(|| {
        for _ in 0..n_rounds {
            let parsing = Instant::now();
            let value: Value = serde_json::from_str(black_box(&text)).expect("the text is JSON");
            parses.record(nanos(parsing.elapsed()));
            drops.time(|| drop(black_box(value)));
        }
    });
    taken.report(report);
    report.put("build", parses.median());
    report.put("drop", drops.median());
    report.put("best_drop", drops.min());
    report.put("worst_drop", drops.max());
}

/// An array of records as a web service lists them.
fn text(bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 1024);
    text.push('[');
    for i in 0.. {
        let (name, score) = (i * 7919 % 100_003, i % 1000);
        _ = write!(
            text,
            r#"{{"id":{i},"name":"user {name}","score":{score}.5,"active":{},"#,
            i % 3 == 0
        );
        _ = write!(
            text,
            r#""tags":["tag {}","of {}"],"place":{{"city":"town {}","at":[{score},{name}]}}}}"#,
            i % 16,
            i % 500,
            i % 4001,
        );
        if text.len() >= bytes {
            break;
        }
        text.push(',');
    }
    text.push(']');
    text
}

fn bars(results: &Results) {
    let shapes = results.cases.iter().filter(|case| *case != TEXT);
    let text = results.cases.iter().filter(|case| *case == TEXT);
    for ours in [Contender::DeferfreeOff, Contender::BurstsOff] {
        bar_each("drop, each shape", ours, "drop", shapes.clone(), LIMIT, results);
        bar_each("JSON text parsed and dropped", ours, "wall", text.clone(), LIMIT, results);
    }
}
