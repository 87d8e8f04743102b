//! A program that held much lets go of all of it, and then has nothing to do.

use std::any::Any;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use super::figures::{BASE, CPU, PEAK, Section};
use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report};
use super::support::discard::discard;
use super::support::memory::rss_bytes;
use super::support::structures::STRUCTURES;
use super::support::table::{Column, MIB as IN_MIB, US, column};
use super::support::timing::nanos;
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "idle",
    about: "1 GiB in blocks of 1 MiB, a map of strings, a million boxes, a million nodes of a tree: \
            built, all dropped, then the program sleeps; waits: to drop all; RSS so long after the \
            caller went on",
    cases,
    tables: &[("", &COLUMNS)],
    ..BASE
};

const COLUMNS: [Column; 8] = [
    column("caller", "drop of all us", US, 0),
    Column { has_ratio: false, ..column("before", "RSS at start MiB", IN_MIB, 1) },
    PEAK,
    column("rss100", "RSS 0.1 s later MiB", IN_MIB, 0),
    column("rss500", "0.5 s", IN_MIB, 0),
    column("rss1000", "1 s", IN_MIB, 0),
    column("rss10000", "10 s", IN_MIB, 0),
    CPU,
];

/// Of the structures: maps of strings, boxes, a tree.
const STRUCTURES_USED: [usize; 3] = [5, 2, 7];

const SAMPLE_EVERY: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(60);
/// What the picture shows, in milliseconds around the start of the drop: jemalloc gives back over ten seconds.
pub(crate) const SHOWN_MS: std::ops::RangeInclusive<i64> = -1000..=11_000;
pub(crate) const STEP_MS: usize = 40;

/// The figure of the resident set at a time.
pub(crate) fn key_at(ms: i64) -> String {
    format!("rss_at{ms:+}")
}

fn cases(scale: Scale) -> Vec<Case> {
    let n_blocks = scale.pick(1024, 128, 8);
    let needs = scale.pick(1536 * MIB, 256 * MIB, 64 * MIB);
    vec![Case::new("peak, then idle", needs, move |report| idle(n_blocks, scale, report))]
}

fn idle(n_blocks: usize, scale: Scale, report: &mut Report) {
    let n_samples = (LONGEST.as_millis() / SAMPLE_EVERY.as_millis()) as usize;
    let mut samples = Ledger::with_capacity(n_samples);
    let stop = AtomicBool::new(false);
    report.put("before", rss_bytes() as f64);
    let start = Instant::now();
    let (dropped_ns, caller_ns) = thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) && !samples.is_full() {
                samples.push((nanos(start.elapsed()), rss_bytes()));
                thread::sleep(SAMPLE_EVERY);
            }
        });
        let mut held: Vec<Box<dyn Any + Send>> = Vec::new();
        held.push(Box::new((0..n_blocks).map(|_| Block::touched(MIB)).collect::<Vec<_>>()));
        for structure in STRUCTURES_USED.map(|index| &STRUCTURES[index]) {
            held.push((structure.build)(structure.n_elements / scale.pick(1, 4, 100)));
        }
        // A moment at the peak: the picture shows where it was.
        thread::sleep(Duration::from_millis(scale.pick(300, 300, 1)));
        let dropping = Instant::now();
        discard(black_box(held));
        let caller_ns = nanos(dropping.elapsed());
        thread::sleep(Duration::from_millis(scale.pick(11_100, 1200, 10)));
        stop.store(true, Relaxed);
        (nanos(dropping - start), caller_ns)
    });
    report.put("caller", caller_ns as f64);
    let at = |from_ns: u64, ms: i64| {
        let ns = from_ns.saturating_add_signed(ms * 1_000_000);
        // Nothing after the last sample: a run that was shorter leaves the figure out.
        let is_watched = samples.last().is_some_and(|last| last.0 >= ns);
        let sample = samples.iter().rev().find(|sample| sample.0 <= ns);
        sample.filter(|_| is_watched).map(|sample| sample.1 as f64)
    };
    for ms in [100, 500, 1000, 10_000] {
        report.put_some(&format!("rss{ms}"), at(dropped_ns + caller_ns, ms));
    }
    for ms in SHOWN_MS.step_by(STEP_MS) {
        report.put_some(&key_at(ms), at(dropped_ns, ms));
    }
}
