//! What memory buys: how much a server answers against how much it holds, over how long each allocator keeps what was
//! freed.

use std::collections::VecDeque;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use super::figures::{BASE, CPU, PEAK, Section};
use super::support::children::{Case, Report};
use super::support::contender::Contender;
use super::support::memory::{cpu_time, page_faults, rss_bytes};
use super::support::random::Random;
use super::support::table::{Column, MIB as IN_MIB, ONE, column, count};
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "price",
    about: "two workers answer bursts of 100 requests, of which 8 to 64 are open at a time, and rest for 5 ms to 2 s after \
            each; a request's blocks are of 64 B to 4 MiB (log-uniform), every byte written; by how long freed memory is \
            kept: DEFERFREE_DELAY, MIMALLOC_PURGE_DELAY, jemalloc's dirty_decay_ms and muzzy_decay_ms; requests/s: while \
            a worker works, of both; requests per CPU s: CPU of the whole run",
    cases,
    tables: &[("", &COLUMNS)],
    contenders: &[Contender::Mimalloc, Contender::JemallocBackground, Contender::Deferfree],
    peak_limit: f64::INFINITY,
    ..BASE
};

const COLUMNS: [Column; 6] = [
    count(RATE, "requests/s"),
    count(PER_CPU, "requests per CPU s"),
    column(MEAN, "mean RSS MiB", IN_MIB, 0),
    PEAK,
    column("faults", "page faults", ONE, 0),
    CPU,
];

// What the picture shows.
pub(crate) const RATE: &str = "rate";
pub(crate) const PER_CPU: &str = "per_cpu";
pub(crate) const MEAN: &str = "mean";

const DELAYS_MS: [u32; 6] = [0, 10, 100, 250, 1000, 10_000];

const WORKERS: usize = 2;
const REQUESTS: usize = 100;
const SAMPLE_EVERY: Duration = Duration::from_millis(5);

fn cases(scale: Scale) -> Vec<Case> {
    let case = |ms: u32| {
        let name = if ms < 1000 { format!("{ms} ms") } else { format!("{} s", ms / 1000) };
        let run = move |report: &mut Report| serve(scale, report);
        Case::new(name, scale.pick(600, 300, 50) * MIB, run)
            .with_variable_of(move |contender| keeping(contender, ms))
    };
    DELAYS_MS.map(case).into()
}

/// The setting by which a contender keeps for so long what was freed.
fn keeping(contender: Contender, ms: u32) -> Option<(&'static str, String)> {
    match contender {
        Contender::Mimalloc => Some(("MIMALLOC_PURGE_DELAY", ms.to_string())),
        Contender::JemallocBackground => {
            let conf = format!("background_thread:true,dirty_decay_ms:{ms},muzzy_decay_ms:{ms}");
            Some(("_RJEM_MALLOC_CONF", conf))
        }
        Contender::Deferfree => Some(("DEFERFREE_DELAY", format!("{ms}ms"))),
        _ => None,
    }
}

fn serve(scale: Scale, report: &mut Report) {
    let n_bursts = scale.pick(12, 2, 1);
    let longest_rest_us = scale.pick(2_000_000, 300_000, 6_000);
    let (cpu_before, faults_before) = (cpu_time(), page_faults());
    let (mut rss_sum, mut n_samples) = (0, 0);
    let busy: Duration = thread::scope(|scope| {
        let work = |i| move || work(Random(i as u64 + 1), n_bursts, longest_rest_us);
        let workers: [_; WORKERS] = std::array::from_fn(|i| scope.spawn(work(i)));
        while !workers.iter().all(|worker| worker.is_finished()) {
            rss_sum += rss_bytes();
            n_samples += 1;
            thread::sleep(SAMPLE_EVERY);
        }
        workers.map(|worker| worker.join().expect("a worker does not panic")).iter().sum()
    });
    let n_requests = (WORKERS * n_bursts * REQUESTS) as f64;
    report.put(RATE, n_requests * WORKERS as f64 / busy.as_secs_f64());
    report.put(PER_CPU, n_requests / (cpu_time() - cpu_before).as_secs_f64());
    report.put(MEAN, rss_sum as f64 / n_samples as f64);
    report.put("faults", (page_faults() - faults_before) as f64);
}

/// How long it took without the rests.
fn work(mut random: Random, n_bursts: usize, longest_rest_us: usize) -> Duration {
    let mut busy = Duration::ZERO;
    let mut open = VecDeque::with_capacity(64);
    for _ in 0..n_bursts {
        let most_open = random.size(8, 64);
        let begin = Instant::now();
        for i in 0..REQUESTS {
            if open.len() == most_open {
                open.pop_front();
            }
            open.push_back(black_box(request(i as u8 | 1, &mut random)));
        }
        open.clear();
        busy += begin.elapsed();
        let rest_us = random.size(5_000, longest_rest_us);
        thread::sleep(Duration::from_micros(rest_us as u64));
    }
    busy
}

/// All that a request needs until it is answered: 4.5 MiB on average.
fn request(byte: u8, random: &mut Random) -> [Vec<u8>; 12] {
    std::array::from_fn(|_| vec![byte; random.size(64, 4 * MIB)])
}
