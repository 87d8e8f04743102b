//! Threads that rest while another one frees their blocks: what stays with them, and what it costs them to say that they
//! rest.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::allocator::Switch;
use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::memory::rss_bytes;
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{self, Column, NOISE, US, bar, column, count};
use super::support::timing::{Latencies, nanos};
use super::support::{GIB, KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "parked",
    about: "256 threads make 150 blocks of 20 to 250 KiB each and rest, another frees them all; a thread that rests \
            after each request. `says so`: deferfree's `thread_idle`",
    repetitions: 3,
    cases,
    tables: &[("readers", &READERS), ("requests", &REQUESTS)],
    bars,
    // A thread that has not rested yet holds as much as without this crate.
    peak_limit: f64::INFINITY,
    ..Section::BASE
};

const READERS: [Column; 2] = [
    column("full", "RSS before MiB", table::MIB, 0),
    column("left", "RSS 7 s after MiB", table::MIB, 0),
];

const REQUESTS: [Column; 4] = [
    column("request", "request p50 us", US, 1),
    column("rest", "rest p50 us", US, 2),
    column("both", "both, mean us", US, 1),
    count("n", "requests"),
];

const THREADS: usize = 256;
const BLOCKS_PER_THREAD: usize = 150;
const QUIET: &str = "256 readers";
const SAYS_SO: &str = "256 readers, says so";
const NO_REST: &str = "requests";
const REST: &str = "requests, says so";

fn cases(scale: Scale) -> Vec<Case> {
    let n_threads = scale.pick(THREADS, THREADS / 4, 8);
    let n_bytes = scale.pick(8 * GIB, 2 * GIB, 256 * MIB);
    let readers =
        |name, says_so| Case::new(name, n_bytes, move |report| readers(n_threads, says_so, report));
    let requests =
        |name, says_so| Case::new(name, 16 * MIB, move |report| requests(says_so, scale, report));
    vec![
        readers(QUIET, false),
        readers(SAYS_SO, true),
        requests(NO_REST, false),
        requests(REST, true),
    ]
}

fn readers(n_threads: usize, says_so: bool, report: &mut Report) {
    let barrier = Barrier::new(n_threads + 1);
    thread::scope(|scope| {
        let barrier = &barrier;
        let threads: Vec<_> = (0..n_threads)
            .map(|i| {
                let (sender, made) = std::sync::mpsc::sync_channel(1);
                scope.spawn(move || {
                    let mut random = Random(i as u64 + 1);
                    let mut blocks = Ledger::with_capacity(BLOCKS_PER_THREAD);
                    while !blocks.is_full() {
                        let bytes = 20 * KIB + (random.unit() * 230.0 * KIB as f64) as usize;
                        blocks.push(Block::touched(bytes));
                    }
                    sender.send(blocks).expect("it is waited for");
                    drop(sender);
                    if says_so {
                        Switch::thread_idle();
                    }
                    // All have; and then the other one has looked.
                    barrier.wait();
                    barrier.wait();
                });
                made
            })
            .collect();
        let mut blocks: Vec<_> =
            threads.iter().map(|made| made.recv().expect("it sends")).collect();
        barrier.wait();
        report.put("full", rss_bytes() as f64);
        blocks.iter_mut().for_each(Ledger::clear);
        // The program is not idle, so that it waits for its memory for as long as one at work does: without the drainer
        // nobody might give anything back.
        let end = Instant::now() + Duration::from_secs(7);
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(10));
            drop(Block::touched(MIB));
        }
        report.put("left", rss_bytes() as f64);
        barrier.wait();
    });
}

/// One thread, not the program's first one.
fn requests(says_so: bool, scale: Scale, report: &mut Report) {
    let n = scale.pick(50_000, 10_000, 10);
    let (mut requests, mut rests) = (Latencies::new(), Latencies::new());
    let start = Instant::now();
    let mut work = || {
        let mut blocks = Ledger::with_capacity(256);
        for i in 0..n {
            requests.time(|| {
                while !blocks.is_full() {
                    blocks.push(Block::touched(16 + (blocks.len() * 37 + i) % 2000));
                }
                blocks.clear();
                (1..5).for_each(|size| Block::new(size * 10 * KIB).touch_first_page());
            });
            rests.time(|| {
                if says_so {
                    Switch::thread_idle();
                }
            });
        }
    };
    thread::scope(|scope| scope.spawn(&mut work).join().expect("it does not panic"));
    report.put("both", nanos(start.elapsed()) as f64 / n as f64);
    report.put("request", requests.median());
    report.put("rest", rests.median());
    report.put("n", n as f64);
}

fn bars(results: &Results) {
    let of = |case, key| results.median(case, Contender::Deferfree, key);
    let left = of(SAYS_SO, "left").map(|left| (left / MIB as f64, SAYS_SO));
    bar("left of readers that say so", " MiB", left, 100.0);
    let cost =
        of(REST, "both").zip(of(NO_REST, "both")).map(|(with, without)| (with / without, REST));
    bar("requests with a rest after each", " x those without", cost, NOISE);
}
