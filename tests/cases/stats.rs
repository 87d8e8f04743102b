//! The numbers: what `stats` says while the program runs and what the report says at its end match what
//! the program did.
//!
//! Seen to fail: with `alloc_large` not counting small blocks, `latency`; with each call counted twice,
//! `released`; with resident and mapped bytes exchanged, minor faults left out, or what the last purge, those in steps or
//! unmapped blocks give back not counted, `of_the_process`.

use crate::common;
#[path = "../common/taken_apart.rs"]
mod taken_apart;

use std::alloc::{GlobalAlloc, Layout};
use std::fs;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{KIB, MIB, ROOM, TINY, nearly_start, run_child, sleep_ms, touched, wait_until};
use deferfree::{DeferFree, Stats, Tally};
use serde_json::Value;
use taken_apart::{FATES, ROUNDS, SECS, blocks, check_work, churn, directory, line, to_json, work};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new().max_pending(ROOM);

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        None => {
            return common::run(&[
                ("off_by_default", off_by_default),
                ("table", table),
                ("json", json),
                ("many_sizes", many_sizes),
                ("nothing_to_report", nothing_to_report),
                ("latency", latency),
                ("adds_up_at_all_times", adds_up_at_all_times),
                ("bursts", bursts),
                ("released", released),
                ("of_the_process", of_the_process),
            ]);
        }
        Some("work") => {
            work(&GLOBAL);
            // Allocated, and never freed.
            std::mem::forget(touched(5 * MIB));
            println!("{}", numbers(&stats()));
        }
        Some("many_sizes") => many_sizes_child(),
        Some("nothing") => {}
        Some("times") => times_child(),
        Some("adds_up") => adds_up_child(),
        Some("bursts") => bursts_child(),
        Some("released") => released_child(),
        Some("of_the_process") => of_the_process_child(),
        Some(case) => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

fn stats() -> Stats {
    GLOBAL.stats()
}

fn tallies(stats: &Stats) -> [Tally; 7] {
    [
        stats.handed_over,
        stats.reused,
        stats.drained,
        stats.paid_back,
        stats.over_bound,
        stats.queue_full,
        stats.pending,
    ]
}

/// As in the table's line with the blocks.
fn numbers(stats: &Stats) -> String {
    let blocks = tallies(stats).map(|tally| tally.blocks.to_string());
    blocks.join(" ")
}

fn parsed(numbers: &str) -> [u64; 7] {
    let numbers: Vec<u64> =
        numbers.split_whitespace().map(|number| number.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

fn off_by_default() {
    for value in [None, Some("off"), Some("0")] {
        let env = value.map(|value| ("DEFERFREE_STATS", value));
        run_child("work", env.as_slice(), SECS).expect_clean();
    }
}

fn table() {
    let output = run_child("work", &[("DEFERFREE_STATS", "1")], SECS);
    output.expect_code(0);
    check_work(parsed(&output.stdout));
    let table = &output.stderr;
    assert_eq!(parsed(line(table, "all, blocks")), parsed(&output.stdout), "{table}");
    let row = |name| line(table, name).split_whitespace().collect::<Vec<_>>();
    assert_eq!(row("1.0 MiB"), ["22", "6", "10", "6", ".", ".", "."], "{table}");
    assert_eq!(row("3.0 MiB"), ["1", ".", "1", ".", ".", ".", "."], "{table}");
    assert!(line(table, "all, bytes").starts_with("25.0 MiB"), "{table}");
    assert_eq!(line(table, "waited at most"), "16.0 MiB");
    assert!(line(table, "drainer's CPU time").contains(" of the process's "), "{table}");
    let settings = line(table, "settings, DEFERFREE_");
    assert!(settings.starts_with("THRESHOLD=256K BURST="), "{table}");
    assert!(settings.contains(" DELAY=250ms MAX_PENDING="), "{table}");
    assert!(table.contains("(23 of 23) were deferred"), "{table}");
    assert!(!table.contains("a large free cost"), "{table}");
}

fn json() {
    let (output, report) = to_json("work", "json", &[("DEFERFREE_DELAY", "100ms")]);
    let order = ["handed_over"].into_iter().chain(FATES);
    let numbers: Vec<String> = order.map(|name| blocks(&report, name).to_string()).collect();
    assert_eq!(numbers.join(" "), output.stdout.trim());
    assert_eq!(blocks(&report, "missed"), 17 + 1, "{report}");
    assert_eq!(report["peak_pending_bytes"], 16 * MIB);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(report["forked"], false);
    assert_eq!(report["drainer_running"], true);
    assert!(report["free_latency"].is_null());
    assert!(report["purges"].as_u64().unwrap() > 0, "{report}");
    let config = &report["config"];
    assert_eq!((&config["enabled"], &config["delay_ms"]), (&true.into(), &100.into()));
    assert_eq!(config["threshold_bytes"], 256 * KIB);
    let (drainer, process) = (&report["drainer_cpu_ns"], &report["process_cpu_ns"]);
    let (drainer, process) = (drainer.as_u64().unwrap(), process.as_u64().unwrap());
    // Windows counts a thread's time in ticks of its clock.
    assert!((drainer > 0 || cfg!(windows)) && drainer <= process, "{report}");
    assert!(report["advice"].as_str().unwrap().ends_with('.'), "{report}");
}

/// More than fit into one buffer, and more than a table shows one by one.
fn many_sizes() {
    let (_, report) = to_json("many_sizes", "many_sizes", &[]);
    assert_eq!(report["sizes"].as_array().unwrap().len(), 96, "{report}");
    assert_eq!(blocks(&report, "handed_over"), 96);
    let output = run_child("many_sizes", &[("DEFERFREE_STATS", "1")], SECS);
    let table = &output.stderr;
    let rows: Vec<&str> =
        ["512.0 KiB", "1.0 MiB", "2.0 MiB", "4.0 MiB", "8.0 MiB", "16.0 MiB", "all, blocks"]
            .map(|name| line(table, name).split_whitespace().next().unwrap())
            .to_vec();
    assert_eq!(rows, ["16", "16", "16", "16", "16", "16", "96"], "{table}");
}

fn many_sizes_child() {
    nearly_start(&GLOBAL);
    for log2 in 18..24 {
        for step in 1..=16 {
            drop(black_box(Vec::<u8>::with_capacity((16 + step) << (log2 - 4))));
        }
    }
    GLOBAL.flush();
}

fn nothing_to_report() {
    let output = run_child("nothing", &[("DEFERFREE_STATS", "1")], SECS);
    output.expect_code(0);
    assert!(output.stderr.contains("no block of 256.0 KiB or more was freed"), "{output:?}");
    assert!(output.stderr.contains("does as well without deferfree"), "{output:?}");
    let output = run_child("work", &[("DEFERFREE_STATS", "1"), ("DEFERFREE", "off")], SECS);
    output.expect_code(0);
    assert_eq!(line(&output.stderr, "settings"), "DEFERFREE=off");
    assert!(output.stderr.contains("Nothing was deferred"), "{output:?}");
}

/// Every large free is timed, no other; bursts go on as without.
fn latency() {
    let env = [("DEFERFREE_STATS", "latency"), ("DEFERFREE_BURST", "128")];
    let output = run_child("times", &env, SECS);
    output.expect_code(0);
    let cost = line(&output.stderr, "a large free cost");
    assert!(cost.starts_with("500 frees, p50 "), "{output:?}");
    for part in [", p90 ", ", p99 ", ", max ", " (a pair of clock readings: "] {
        assert!(cost.contains(part), "{output:?}");
    }
    assert!(!cost.contains("p99.9"), "{output:?}");

    // Without deferring, to compare.
    let output = run_child("times", &[("DEFERFREE", "off"), env[0]], SECS);
    assert!(line(&output.stderr, "a large free cost").starts_with("500 frees"), "{output:?}");

    let directory = directory("latency");
    let path = directory.join("a.json");
    let output = run_child(
        "times",
        &[("DEFERFREE_STATS", &format!("latency,{}", path.display())), env[1]],
        SECS,
    );
    output.expect_clean();
    let report: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let latency = &report["free_latency"];
    assert_eq!(latency["samples"], 500, "{report}");
    let of = |name: &str| latency[name].as_u64().unwrap();
    assert!(of("p50_ns") <= of("p90_ns") && of("p90_ns") <= of("p99_ns"), "{report}");
    assert!(of("p99_ns") <= of("max_ns") && latency["p999_ns"].is_null(), "{report}");
}

fn times_child() {
    for _ in 0..50 {
        drop((0..10).map(|_| Vec::<u8>::with_capacity(MIB)).collect::<Vec<_>>());
        // Not large; one of them beyond what is known to be small without a look at the settings.
        drop(black_box((vec![0u8; 100], Vec::<u8>::with_capacity(100 * KIB))));
    }
    let latency = stats().free_latency.unwrap();
    assert_eq!(latency.samples, 500);
    assert!(latency.max_ns > 0);
    // Frees with an allocation between any two of them are no burst.
    let mut some: Vec<Vec<u8>> = (0..2000).map(|_| Vec::with_capacity(5000)).collect();
    for one in &mut some {
        *one = black_box(Vec::with_capacity(5000));
    }
    assert_eq!(stats().bursts.deferred.blocks, 0, "{:?}", stats().bursts);
    for one in &mut some {
        one.reserve_exact(6000);
    }
    assert_eq!(stats().bursts.deferred.blocks, 0, "{:?}", stats().bursts);
    if GLOBAL.config().enabled {
        let scope = deferfree::defer_scope();
        drop(some);
        drop(scope);
        GLOBAL.flush();
        assert_eq!(stats().bursts.deferred.blocks, 2000, "{:?}", stats().bursts);
    }
}

fn adds_up_at_all_times() {
    run_child("adds_up", &[("DEFERFREE_DELAY", "4ms")], SECS).expect_clean();
}

fn fates(stats: &Stats) -> [u64; 5] {
    let Stats { reused, drained, paid_back, over_bound, queue_full, .. } = stats;
    [reused, drained, paid_back, over_bound, queue_full].map(|tally| tally.blocks)
}

fn adds_up_child() {
    nearly_start(&GLOBAL);
    const THREADS: u64 = 3;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    churn();
                }
            });
        }
        wait_until("threads are busy", || ROUNDS.load(Ordering::Relaxed) > 10);
        for _ in 0..200 {
            let (before, now, after) = (stats(), stats(), stats());
            // What moved between the first count of `before` and the last one of `after`.
            let moved = after.handed_over.blocks - before.handed_over.blocks
                + fates(&after).iter().sum::<u64>()
                - fates(&before).iter().sum::<u64>();
            let sum = fates(&now).iter().sum::<u64>() + now.pending.blocks;
            let off = now.handed_over.blocks.abs_diff(sum);
            // And what every thread and the drainer had in hand.
            assert!(off <= moved + THREADS + 1, "{off} {moved} {now:?}");
            sleep_ms(1);
        }
        stop.store(true, Ordering::Relaxed);
    });
    GLOBAL.flush();
    let end = stats();
    let [freed, fates @ ..] = tallies(&end);
    assert_eq!(freed.blocks, fates.iter().map(|tally| tally.blocks).sum::<u64>(), "{end:?}");
    assert_eq!(freed.bytes, fates.iter().map(|tally| tally.bytes).sum::<u64>(), "{end:?}");
    assert_eq!(end.pending, Tally::default());
    let by_size: u64 = GLOBAL.stats_by_size().map(|size| size.handed_over).sum();
    assert_eq!(by_size, freed.blocks);
    // Windows counts in ticks of its clock.
    wait_until("the drainer has worked for a tick", || {
        churn();
        GLOBAL.flush();
        stats().drainer_cpu_ns > 0
    });
}

/// Blocks that are deferred at the same time.
const N: u64 = if TINY { 2000 } else { 20_000 };

/// Small blocks that were deferred are in the report, and nowhere else.
fn bursts() {
    let (_, report) = to_json("bursts", "bursts", &[("DEFERFREE_BURST", "off")]);
    let burst = &report["bursts"];
    assert_eq!(blocks(burst, "deferred"), N + 10, "{report}");
    let bytes = |name: &str| burst[name]["bytes"].as_u64().unwrap();
    let gone = blocks(burst, "drained") + blocks(burst, "paid_back");
    assert_eq!(bytes("drained") + bytes("paid_back"), 300 * gone, "{report}");
    assert_eq!(blocks(burst, "pending"), N + 10 - gone, "{report}");
    // The last ones came just before the exit.
    assert!((N..=N + 10).contains(&gone), "{report}");
    for name in ["deferred_bursts", "hot_bursts", "wasted_bursts", "skipped_bursts"] {
        assert_eq!(burst[name], 0, "nothing was judged: {report}");
    }
    assert_eq!((blocks(&report, "handed_over"), &report["sizes"]), (0, &Value::Array(Vec::new())));
    let env = [("DEFERFREE_STATS", "1"), ("DEFERFREE_BURST", "off")];
    let table = run_child("bursts", &env, SECS).stderr;
    let (bursts, rest) = table.split_once("small blocks in bursts").unwrap();
    assert_eq!(line(bursts, "deferred"), "0", "{table}");
    let first = |name| line(rest, name).split_whitespace().next().unwrap().parse::<u64>().unwrap();
    assert_eq!(first("deferred"), N + 10, "{table}");
    assert!(first("waiting") <= 10, "{table}");
}

fn bursts_child() {
    let mut blocks: Vec<_> = (0..N + 10).map(|_| Some(Box::new([1u8; 300]))).collect();
    let mut free = |from, to| {
        let _scope = deferfree::defer_scope();
        (from..to).for_each(|i| blocks[i as usize] = None);
    };
    free(0, N);
    GLOBAL.flush();
    free(N, N + 10);
}

/// Blocks whose free unmaps them are released by system calls of 4 MiB at most.
fn released() {
    let output = run_child("released", &[("DEFERFREE_STATS", "1")], SECS);
    output.expect_code(0);
    let table = &output.stderr;
    let returned = line(table, "returned to the system");
    assert!(returned.ends_with("; of blocks that are unmapped 10.0 MiB in 3 calls"), "{table}");
    assert!(line(table, "10.0 MiB, unmapped").starts_with("1 "), "{table}");
}

fn released_child() {
    nearly_start(&GLOBAL);
    let layout = Layout::from_size_align(10 * MIB, 128 * KIB).unwrap();
    // SAFETY: a valid layout, a block of that size, freed once.
    unsafe {
        let block = GLOBAL.alloc(layout);
        block.write_bytes(1, layout.size());
        GLOBAL.dealloc(block, layout);
    }
    GLOBAL.flush();
    let stats = stats();
    assert_eq!((stats.released_bytes, stats.release_calls), (10 * MIB as u64, 3));
    let own: Vec<_> = GLOBAL.stats_by_size().filter(|size| size.own_mapping).collect();
    assert_eq!((own.len(), own[0].drained), (1, 1), "{own:?}");
}

/// What is touched is resident, and what is freed has been returned: by one purge, by one after each 64 MiB that are
/// freed, or because a block is a mapping of its own.
fn of_the_process() {
    // No huge pages: each page is a fault of its own.
    let env = [("MIMALLOC_ALLOW_THP", "0"), ("DEFERFREE_STATS", "1")];
    let output = run_child("of_the_process", &env, SECS);
    output.expect_code(0);
    let table = &output.stderr;
    let memory = line(table, "the process's memory");
    assert!(memory.contains(" MiB resident, ") && memory.ends_with(" mapped"), "{table}");
    let faults = line(table, "its page faults");
    assert!(faults.split(',').next().unwrap().parse::<u64>().is_ok(), "{table}");
    // The MiB before "; 7 purges".
    let returned = line(table, "returned to the system").split(' ').next().unwrap();
    let returned: f64 = returned.parse().unwrap();
    assert!((230.0..250.0).contains(&returned) || cfg!(windows), "{table}");

    let (_, report) = to_json("of_the_process", "of_the_process", &env[..1]);
    let of = |name: &str| report[name].as_u64().unwrap_or_else(|| panic!("{name}: {report}"));
    assert!(of("resident_bytes") < of("mapped_bytes") || cfg!(windows), "{report}");
    if cfg!(unix) {
        assert!(of("returned_bytes") > 230 * MIB as u64, "{report}");
        assert!(of("major_page_faults") < of("page_faults"), "{report}");
    } else {
        assert!(report["major_page_faults"].is_null() && report["page_faults"].is_u64());
    }
}

fn of_the_process_child() {
    const SLACK: u64 = 4 * MIB as u64;
    nearly_start(&GLOBAL);
    for (n_blocks, size, align) in [(48, MIB, 1), (128, MIB, 1), (1, 64 * MIB, 128 * KIB)] {
        let written = (n_blocks * size) as u64;
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: a valid layout.
        let blocks: Vec<_> = (0..n_blocks).map(|_| unsafe { GLOBAL.alloc(layout) }).collect();
        let before = stats();
        for &block in &blocks {
            // SAFETY: a block of that size.
            unsafe { block.write_bytes(1, layout.size()) };
        }
        let touched = stats();
        for &block in &blocks {
            // SAFETY: freed once.
            unsafe { GLOBAL.dealloc(block, layout) };
        }
        GLOBAL.flush();
        let freed = stats();

        let grown = |of: fn(&Stats) -> Option<u64>| of(&touched).unwrap() - of(&before).unwrap();
        let resident = grown(|stats| stats.resident_bytes);
        assert!(resident.abs_diff(written) < SLACK, "{resident} {before:?} {touched:?}");
        // On Windows libraries are in the one and not in the other.
        assert!(touched.mapped_bytes >= touched.resident_bytes || cfg!(windows), "{touched:?}");
        // Wine counts no faults.
        assert!(grown(|stats| stats.page_faults) >= 1 || cfg!(windows), "{before:?} {touched:?}");
        let returned = freed.returned_bytes - touched.returned_bytes;
        // On Windows mimalloc decommits as it frees, before there is a purge.
        let by_purge = cfg!(unix) || align > 1;
        assert!(
            !by_purge || returned.abs_diff(written) < SLACK,
            "{returned} {touched:?} {freed:?}"
        );
        let left = touched.resident_bytes.unwrap() - freed.resident_bytes.unwrap();
        assert!(left.abs_diff(written) < SLACK, "{left} {touched:?} {freed:?}");
    }
}
