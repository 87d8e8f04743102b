//! Threads that allocate, hand over what they have made, and end: what they leave is freed by another thread, and has no
//! owner that could look after it.

use std::collections::VecDeque;
use std::hint::black_box;
use std::thread;
use std::time::Instant;

use super::support::children::{Case, Report, Results};
use super::support::contender::Contender::Deferfree;
use super::support::memory::page_faults;
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{Column, MS, ONE, bar_each, column};
use super::support::timing::nanos;
use super::support::{KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "hand_over",
    about: "threads, two at a time, make 100 MiB in blocks of 100 B to 1 MiB (log-uniform, every byte written) each and \
            end; another keeps the last four's",
    repetitions: 3,
    cases,
    tables: &[("hand_over", &COLUMNS)],
    bars,
    ..Section::BASE
};

const COLUMNS: [Column; 2] =
    [column("wall", "wall ms", MS, 0), column("faults", "page faults", ONE, 0)];
/// Of wall and CPU time.
const LIMIT: f64 = 1.05;
const AT_ONCE: u64 = 2;
const KEPT: usize = 4;

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(100 * MIB, 100 * MIB, MIB);
    let n_rounds = scale.pick(40, 10, 2);
    let run = move |report: &mut Report| hand_over(bytes, n_rounds, report);
    vec![Case::new("threads that end", 8 * bytes, run)]
}

fn hand_over(bytes: usize, n_rounds: u64, report: &mut Report) {
    let faults_before = page_faults();
    let start = Instant::now();
    let mut kept = VecDeque::new();
    for round in 0..n_rounds {
        let first = round * AT_ONCE + 1;
        let threads: Vec<_> = (first..first + AT_ONCE)
            .map(|seed| thread::spawn(move || make(bytes, Random(seed))))
            .collect();
        kept.extend(threads.into_iter().map(|thread| thread.join().expect("it does not panic")));
        kept.drain(..kept.len().saturating_sub(KEPT));
    }
    drop(black_box(kept));
    report.put("wall", nanos(start.elapsed()) as f64);
    report.put("faults", (page_faults() - faults_before) as f64);
}

fn make(bytes: usize, mut random: Random) -> Vec<Vec<u8>> {
    let (mut blocks, mut made) = (Vec::new(), 0);
    while made < bytes {
        let size = random.size(100, 1024 * KIB);
        blocks.push(vec![made as u8 | 1; size]);
        made += size;
    }
    blocks
}

fn bars(results: &Results) {
    bar_each("wall", Deferfree, "wall", &results.cases, LIMIT, results);
    bar_each("CPU", Deferfree, "cpu", &results.cases, LIMIT, results);
}
