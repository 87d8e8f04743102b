//! Ways to hand values over, and the paces at which that is done.

#[path = "../support/mod.rs"]
mod support;

use std::cell::Cell;
use std::collections::HashMap;
use std::env;
use std::hint::black_box;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use defer_drop::DeferDrop;

use support::MIB;
use support::memory::{cpu_time, proc_field_bytes};
use support::timing::{Latencies, nanos};

/// The map of <https://abramov.io/rust-dropping-things-in-another-thread>.
fn map() -> HashMap<usize, Vec<usize>> {
    (1..=1_000_000).map(|v| (v, vec![v])).collect()
}

fn vec() -> Vec<usize> {
    black_box((0..100).collect())
}

const BURST: usize = 100_000;
const PARTS: [&str; 7] = ["built", "ready", "vec", "sparse", "burst", "asleep", "cold"];
const OPTIONS: [&str; 4] = ["--bench", "--test", "--quick", "--rounds"];

pub(crate) fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [flag, way, what] = &args[..] {
        if flag == "--one" {
            one(Way::named(way), what);
            return ExitCode::SUCCESS;
        }
    }
    let mut unknown = args.iter().enumerate().filter(|&(at, arg)| {
        let is_number = at > 0 && args[at - 1] == "--rounds";
        !is_number && !PARTS.iter().chain(&OPTIONS).any(|known| known == arg)
    });
    if let Some((_, arg)) = unknown.next() {
        eprintln!("later: there is no part or option {arg}");
        return ExitCode::FAILURE;
    }
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    // `cargo bench` passes `--bench`; `cargo test --benches` does not.
    let quick = !has("--bench") || has("--quick") || has("--test");
    let rounds = args
        .iter()
        .position(|arg| arg == "--rounds")
        .map(|at| args[at + 1].parse().expect("--rounds takes a number"));
    let or = |n_quick: usize, n_full: usize| rounds.unwrap_or(if quick { n_quick } else { n_full });
    let wants = |part: &str| has(part) || !PARTS.iter().any(|part| has(part));

    let mut empty = Latencies::precise();
    (0..1_000_000).for_each(|_| empty.time(|| ()));
    println!("empty timer pair: {}", figures(&empty));

    if wants("built") {
        let title = "1M-key map, built just before: the caller's caches hold nothing else";
        compare(title, map, &Way::ALL, or(1, 200), Pace { per_round: 1, pause: Pause::None });
    }
    if wants("ready") {
        let title = "1M-key maps, built beforehand, each once the one before has been dropped";
        let pace = Pace { per_round: if quick { 1 } else { 8 }, pause: Pause::Dropped };
        compare(title, map, &Way::ALL, or(1, 25), pace);
    }
    if wants("vec") {
        let pace = Pace { per_round: 1000, pause: Pause::Spin(Duration::from_micros(5)) };
        compare("100-element Vec, one every 5 us", vec, &Way::ALL, or(2, 100), pace);
    }
    if wants("sparse") {
        let pace = Pace { per_round: 1, pause: Pause::Sleep(Duration::from_millis(10)) };
        compare("100-element Vec, after a sleep of 10 ms", vec, &Way::ALL, or(10, 300), pace);
    }
    if wants("burst") {
        let pace = Pace { per_round: BURST, pause: Pause::None };
        compare("100-element Vec, burst of 100k", vec, &Way::ALL, or(1, 10), pace);
    }
    if wants("asleep") && !quick {
        let pace = Pace { per_round: 1, pause: Pause::Sleep(Duration::from_secs(12)) };
        compare("100-element Vec, after a sleep of 12 s", vec, &[Way::Later], or(1, 5), pace);
    }
    if wants("cold") {
        for what in ["map", "vec", "burst"] {
            cold(what, or(1, 20));
        }
    }
    ExitCode::SUCCESS
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Later,
    DeferDrop,
    Spawn,
    Mpsc,
    Inline,
    /// Forgets the value: what the clock itself costs at this place, caches as they are.
    Nothing,
}

impl Way {
    const ALL: [Way; 6] =
        [Way::Later, Way::DeferDrop, Way::Spawn, Way::Mpsc, Way::Inline, Way::Nothing];

    fn name(self) -> &'static str {
        match self {
            Way::Later => "later",
            Way::DeferDrop => "defer-drop",
            Way::Spawn => "thread::spawn",
            Way::Mpsc => "mpsc thread",
            Way::Inline => "inline drop",
            Way::Nothing => "nothing",
        }
    }

    fn named(name: &str) -> Way {
        Way::ALL.into_iter().find(|way| way.name() == name).expect("a way's name")
    }
}

/// As large as its value; counts where that was dropped, and when that is over.
struct Counted<T> {
    _value: T,
    _count: Count,
}

struct Count;

static DROPPED: AtomicU64 = AtomicU64::new(0);
static DROPPED_BY_CALLER: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static IS_CALLER: Cell<bool> = const { Cell::new(false) };
}

impl Drop for Count {
    fn drop(&mut self) {
        if IS_CALLER.get() {
            DROPPED_BY_CALLER.fetch_add(1, Ordering::Relaxed);
        }
        DROPPED.fetch_add(1, Ordering::Release);
    }
}

fn counted<T>(value: T) -> Counted<T> {
    Counted { _value: value, _count: Count }
}

struct Caller<T> {
    channel: mpsc::Sender<Counted<T>>,
    handed_over: u64,
}

impl<T: Send + 'static> Caller<T> {
    fn new() -> Self {
        IS_CALLER.set(true);
        let (channel, receiver) = mpsc::channel();
        thread::spawn(move || receiver.into_iter().for_each(drop));
        Caller { channel, handed_over: DROPPED.load(Ordering::Acquire) }
    }

    fn hand_over(&mut self, way: Way, value: Counted<T>) -> Duration {
        self.handed_over += 1;
        let mut kept = None;
        let start = Instant::now();
        match way {
            Way::Later => deferfree::later(value),
            Way::DeferDrop => drop(DeferDrop::new(value)),
            Way::Spawn => drop(thread::spawn(move || drop(value))),
            Way::Mpsc => assert!(self.channel.send(value).is_ok(), "the receiver lives"),
            Way::Inline => drop(value),
            Way::Nothing => kept = Some(value),
        }
        let took = start.elapsed();
        drop(kept);
        took
    }

    /// Waits until everything has been dropped.
    fn settle(&self) {
        while DROPPED.load(Ordering::Acquire) < self.handed_over {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

#[derive(Clone, Copy)]
struct Pace {
    per_round: usize,
    /// Before each hand-off.
    pause: Pause,
}

#[derive(Clone, Copy)]
enum Pause {
    None,
    Spin(Duration),
    Sleep(Duration),
    /// Until everything is dropped, and a millisecond more, after which the other threads sleep. The
    /// caller spins meanwhile.
    Dropped,
}

impl Pause {
    fn pause<T: Send + 'static>(self, caller: &Caller<T>) {
        match self {
            Pause::None => (),
            Pause::Spin(duration) => spin(duration),
            Pause::Sleep(duration) => thread::sleep(duration),
            Pause::Dropped => {
                while DROPPED.load(Ordering::Acquire) < caller.handed_over {
                    spin(Duration::from_micros(20));
                }
                spin(Duration::from_millis(1));
            }
        }
    }
}

fn spin(duration: Duration) {
    let start = Instant::now();
    while start.elapsed() < duration {}
}

struct Row {
    way: Way,
    took: Latencies,
    cpu: Duration,
    by_caller: u64,
}

fn compare<T: Send + 'static>(
    title: &str,
    make: impl Fn() -> T,
    ways: &[Way],
    n_rounds: usize,
    pace: Pace,
) {
    println!("\n{title}, {n_rounds} rounds of {}", pace.per_round);
    let mut caller = Caller::new();
    let mut rows: Vec<Row> = ways
        .iter()
        .map(|&way| Row { way, took: Latencies::precise(), cpu: Duration::ZERO, by_caller: 0 })
        .collect();
    let mut values = Vec::with_capacity(pace.per_round);
    // One round more: the first warms up.
    for round in 0..=n_rounds {
        for row in &mut rows {
            values.extend((0..pace.per_round).map(|_| counted(make())));
            let by_caller = DROPPED_BY_CALLER.load(Ordering::Relaxed);
            let cpu = cpu_time();
            for value in values.drain(..) {
                pace.pause.pause(&caller);
                let took = caller.hand_over(row.way, value);
                if round > 0 {
                    row.took.record(nanos(took));
                }
            }
            caller.settle();
            if round > 0 {
                row.cpu += cpu_time() - cpu;
                row.by_caller += DROPPED_BY_CALLER.load(Ordering::Relaxed) - by_caller;
            }
        }
    }
    for row in &rows {
        let n = row.took.count() as f64;
        println!(
            "  {:<14} {}  cpu {:>9.2} us each  dropped by the caller {:>5.1} %",
            row.way.name(),
            figures(&row.took),
            row.cpu.as_secs_f64() * 1e6 / n,
            row.by_caller as f64 * 100.0 / n,
        );
    }
    let p50 = |way: Way| {
        let row = rows.iter().find(|row| row.way == way)?;
        Some(row.took.median())
    };
    if let [Some(later), Some(spawn), Some(defer_drop)] =
        [Way::Later, Way::Spawn, Way::DeferDrop].map(p50)
    {
        println!(
            "  p50 over that of later: thread::spawn {:.0}, defer-drop {:.0}",
            spawn / later,
            defer_drop / later
        );
    }
}

/// The first hand-off of a process, and what all of them cost.
fn cold(what: &str, n_processes: usize) {
    println!("\ncold, {what}: first hand-off of each of {n_processes} processes");
    let exe = env::current_exe().expect("this program's path");
    let mut first: Vec<_> = Way::ALL.iter().map(|_| Latencies::precise()).collect();
    let mut means = [[0.0; 3]; Way::ALL.len()];
    for _ in 0..n_processes {
        for (at, way) in Way::ALL.iter().enumerate() {
            let output = Command::new(&exe).args(["--one", way.name(), what]).output();
            let output = output.expect("this program runs").stdout;
            let output = String::from_utf8(output).expect("numbers");
            let numbers: Vec<f64> =
                output.split_whitespace().map(|n| n.parse().expect("a number")).collect();
            let [first_ns, rest @ ..] = &numbers[..] else {
                panic!("no figures from {}", way.name());
            };
            first[at].record(*first_ns as u64);
            for (mean, number) in means[at].iter_mut().zip(rest) {
                *mean += number / n_processes as f64;
            }
        }
    }
    for (at, way) in Way::ALL.iter().enumerate() {
        let [all_ms, cpu_ms, peak_mib] = means[at];
        println!(
            "  {:<14} {}  all {all_ms:>8.2} ms  cpu {cpu_ms:>8.2} ms  peak RSS {peak_mib:>6.1} MiB",
            way.name(),
            figures(&first[at]),
        );
    }
}

/// In a process of its own: prints the first hand-off in ns, all of them in ms, the CPU time until
/// everything was dropped in ms, and the peak of the resident set in MiB.
fn one(way: Way, what: &str) {
    fn run<T: Send + 'static>(way: Way, values: Vec<T>) {
        let mut caller = Caller::new();
        let mut values: Vec<_> = values.into_iter().map(counted).collect();
        // The channel's thread is the ready-made one: let it come up.
        thread::sleep(Duration::from_millis(20));
        let cpu = cpu_time();
        let start = Instant::now();
        let mut first = None;
        for value in values.drain(..) {
            let took = caller.hand_over(way, value);
            first.get_or_insert(took);
        }
        let all = start.elapsed();
        caller.settle();
        let peak = proc_field_bytes("/proc/self/status", "VmHWM:");
        println!(
            "{} {} {} {}",
            first.unwrap_or_default().as_nanos(),
            all.as_secs_f64() * 1e3,
            (cpu_time() - cpu).as_secs_f64() * 1e3,
            peak.unwrap_or(0) as f64 / MIB as f64
        );
    }
    match what {
        "map" => run(way, vec![map()]),
        "vec" => run(way, vec![vec()]),
        "burst" => run(way, (0..BURST).map(|_| vec()).collect()),
        _ => panic!("map, vec or burst"),
    }
}

fn figures(latencies: &Latencies) -> String {
    let [p99, p999] = [0.99, 0.999]
        .map(|quantile| latencies.quantile(quantile).map_or("-".to_owned(), |ns| ns.to_string()));
    let (p50, max) = (latencies.median(), latencies.max());
    format!("p50 {p50:>8}  p99 {p99:>8}  p99.9 {p999:>8}  max {max:>9} ns")
}
