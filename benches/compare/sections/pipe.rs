//! One thread fills buffers, another reads and drops them.

use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use super::figures::{BASE, CPU, MAX, P50, P99, P999, PEAK, SAMPLES, Section};
use super::support::block::Block;
use super::support::children::{Case, Report};
use super::support::discard::discard;
use super::support::table::{Column, US, column};
use super::support::timing::{Latencies, nanos};
use super::support::{GIB, KIB, MIB, Scale, size_name};

pub(crate) const SECTION: Section = Section {
    name: "pipe",
    about: "a producer passes buffers to a consumer, four in between; every page is written and \
            read; waits: the consumer's drop of each",
    repetitions: 2,
    cases,
    tables: &[("", &COLUMNS)],
    ..BASE
};

const COLUMNS: [Column; 8] =
    [P50, P99, P999, MAX, SAMPLES, column("per_buffer", "wall us a buffer", US, 0), CPU, PEAK];

const IN_BETWEEN: usize = 4;

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(4 * GIB, GIB, 16 * MIB);
    let run = |size: usize| {
        Case::new(size_name(size), 128 * MIB + 8 * size, move |report| {
            pipe(size, bytes / size, report);
        })
    };
    [256 * KIB, 4 * MIB].map(run).into()
}

fn pipe(size: usize, n_buffers: usize, report: &mut Report) {
    let (sender, receiver) = sync_channel(IN_BETWEEN);
    let start = Instant::now();
    let waits = thread::scope(|scope| {
        scope.spawn(move || {
            for _ in 0..n_buffers {
                sender.send(Block::touched(size)).expect("the other thread receives all");
            }
        });
        let mut waits = Latencies::new();
        let mut sum = 0;
        for buffer in receiver {
            sum += buffer.sum();
            waits.time(|| discard(buffer));
        }
        assert!(sum > 0, "the buffers were written");
        waits
    });
    report.put("per_buffer", nanos(start.elapsed()) as f64 / n_buffers as f64);
    report.put_waits(&waits);
}
