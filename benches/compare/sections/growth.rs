//! A vector grows by `push`: each growth copies it into a larger block and frees the old one.

use std::hint::black_box;
use std::time::Instant;

use super::figures::{BASE, CPU, IDLE, MAX, P50, PEAK, SAMPLES, Section, WALL, put_idle};
use super::support::children::{Case, Report};
use super::support::discard::discard;
use super::support::table::{Column, US, column};
use super::support::timing::{Latencies, nanos};
use super::support::{GIB, MIB, Scale, size_name};

pub(crate) const SECTION: Section = Section {
    name: "growth",
    about: "a Vec<u64> grown by push, then dropped; waits: each push that grows it (its block is \
            freed inside realloc, which no hand-over of values reaches)",
    cases,
    tables: &[("", &COLUMNS)],
    ..BASE
};

const COLUMNS: [Column; 8] =
    [P50, MAX, SAMPLES, column("drop", "last drop us", US, 0), WALL, CPU, PEAK, IDLE];

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(GIB, 128 * MIB, MIB);
    // The old block and the new one live side by side while it is copied.
    vec![Case::new(format!("to {}", size_name(bytes)), 2 * bytes, move |report| {
        grow(bytes / size_of::<u64>(), report);
        put_idle(report, scale);
    })]
}

fn grow(n_items: usize, report: &mut Report) {
    let mut growths = Latencies::new();
    let start = Instant::now();
    let mut items: Vec<u64> = Vec::new();
    for item in 0..n_items as u64 {
        if items.len() == items.capacity() {
            growths.time(|| items.push(black_box(item)));
        } else {
            items.push(black_box(item));
        }
    }
    let dropping = Instant::now();
    discard(black_box(items));
    report.put("drop", nanos(dropping.elapsed()) as f64);
    report.put("wall", nanos(start.elapsed()) as f64);
    report.put_waits(&growths);
}
