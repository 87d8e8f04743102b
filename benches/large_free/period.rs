//! A service that is asked a few times a second and needs the same buffers each time: what a request costs when the pause
//! between two is as long as memory is kept, and what is resident in between.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::memory::{page_faults, rss_bytes};
use super::support::section::Section;
use super::support::table::{self, Column, ONE, US, bar, column, ratio, worst};
use super::support::timing::Latencies;
use super::support::{KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "period",
    about: "a request of some buffers of 0.5 to 1 MiB after each pause",
    repetitions: 3,
    cases,
    tables: &[("period", &COLUMNS)],
    bars,
    peak_limit: f64::INFINITY,
    ..Section::BASE
};

const COLUMNS: [Column; 4] = [
    column("median", "a request us", US, 0),
    column("slowest", "slowest us", US, 0),
    column("faults", "page faults each", ONE, 1),
    column("between", "RSS between MiB", table::MIB, 1),
];
const BODY: usize = 512 * KIB;
const LIMIT: f64 = 1.2;

fn cases(scale: Scale) -> Vec<Case> {
    let n = scale.pick(20, 10, 2);
    let pauses = scale.pick([100, 300, 900], [100, 300, 900], [1, 2, 3]);
    pauses
        .into_iter()
        .map(|ms| {
            Case::new(format!("every {ms} ms"), 8 * MIB, move |report| {
                period(Duration::from_millis(ms), n, report);
            })
        })
        .collect()
}

/// Decoded piece by piece into a buffer that grows, then indexed, then answered.
fn request(n: usize) -> usize {
    let body = vec![0xa5_u8; BODY];
    let mut decoded = Vec::new();
    for piece in body.chunks(16 * KIB) {
        decoded.extend(piece.iter().map(|byte| byte.wrapping_add(n as u8)));
    }
    let index: Vec<u32> = decoded.iter().step_by(4).map(|byte| u32::from(*byte)).collect();
    let answer = [&decoded[..], &body[..]].concat();
    black_box(answer.len() + index.len())
}

fn period(pause: Duration, n: usize, report: &mut Report) {
    let mut requests = Latencies::new();
    (0..3).for_each(|i| _ = request(i));
    let (mut faults, mut between) = (0, 0);
    let mut next = Instant::now();
    for i in 0..n {
        next += pause;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        between += rss_bytes();
        let before = page_faults();
        requests.time(|| request(i));
        faults += page_faults() - before;
    }
    report.put("median", requests.median());
    report.put("slowest", requests.max());
    report.put("faults", faults as f64 / n as f64);
    report.put("between", between as f64 / n as f64);
}

fn bars(results: &Results) {
    let time = worst(&results.cases, |case| ratio(results, case, Contender::Mimalloc, "median"));
    bar("a request against plain mimalloc's", " x", time, LIMIT);
    let rarest = results.cases.iter().rev().take(1);
    let between = worst(rarest, |case| ratio(results, case, Contender::Mimalloc, "between"));
    bar("resident between, against plain mimalloc's", " x", between, 0.5);
}
