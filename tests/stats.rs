//! The numbers: what `stats` says while the program runs and what the report says at its end match what
//! the program did, and no report, wherever it goes, changes how the program ends.
//!
//! Seen to fail: with the counts or the runtime of a fork's parent kept, `forked`; with the file written
//! in place, or left half written, `disk`; with the signals of a failing write let through, `disk` and
//! `standard_error`; with a `format!` in the handler, `allocates_nothing`; with the handler registered
//! when the drainer starts, `exit_handlers`; with `alloc_large` not counting small blocks, `latency`; with
//! totals that are not the sums of the sizes shown, `busy`; with the rights of the program not looked at,
//! `privileged`; with each call counted twice, `released`.
#![cfg(target_os = "linux")]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashMap;
use std::fs::{self, File};
use std::hint::black_box;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{
    KIB, MIB, Output, command, finish, fork, run_child, sleep_ms, thread_refuser, touched, wait_ok,
    wait_until,
};
use deferfree::{DeferFree, Stats, Tally};
use serde_json::Value;

/// Counts the calls, so that a test can tell whether there were any.
struct Counting(DeferFree, AtomicU64);

// SAFETY: all calls are passed on.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.1.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's layout.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.1.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's layout.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        self.1.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's block.
        unsafe { self.0.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        self.1.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's block.
        unsafe { self.0.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting(DeferFree::new(), AtomicU64::new(0));

fn stats() -> Stats {
    GLOBAL.0.stats()
}

const SECS: u64 = 30;

fn main() -> ExitCode {
    let Some(case) = common::child_case() else {
        return common::run(&[
            ("off_by_default", off_by_default),
            ("table", table),
            ("json", json),
            ("many_sizes", many_sizes),
            ("nothing_to_report", nothing_to_report),
            ("latency", latency),
            ("disk", disk),
            ("paths", paths),
            ("standard_error", standard_error),
            ("ways_to_end", ways_to_end),
            ("exit_handlers", exit_handlers),
            ("allocates_nothing", allocates_nothing),
            ("forked", forked),
            ("refused", refused),
            ("busy", busy),
            ("adds_up_at_all_times", adds_up_at_all_times),
            ("bursts", bursts),
            ("released", released),
            ("privileged", privileged),
        ]);
    };
    match case.as_str() {
        "work" => {
            work();
            println!("{}", numbers(&stats()));
        }
        "work 7" => {
            work();
            std::process::exit(7);
        }
        "work as whom" => {
            work();
            // SAFETY: returns a number.
            print!("{}", unsafe { libc::getauxval(libc::AT_SECURE) });
            std::process::exit(7);
        }
        "sigpipe 7" => {
            // As in a program that is not written in Rust.
            // SAFETY: the default action.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            work();
            std::process::exit(7);
        }
        "many_sizes" => many_sizes_child(),
        "nothing" => {}
        "times" => times_child(),
        "end return" => return ExitCode::from(3),
        "end exit" => std::process::exit(7),
        "end _exit" => common::exit_now(9),
        "end panic" => panic!("on purpose"),
        "end abort" => {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the limit is a live variable.
            unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) };
            std::process::abort()
        }
        "end small stack" => {
            let small = thread::Builder::new().stack_size(64 * KIB);
            small.spawn(|| std::process::exit(11)).unwrap().join().unwrap();
        }
        "handlers" => handlers_child(),
        "allocates_nothing" => allocates_nothing_child(),
        "forked" => forked_child(),
        "refused" => (0..5).for_each(|_| drop(touched(MIB))),
        "busy" => busy_child(),
        "adds_up" => adds_up_child(),
        "bursts" => bursts_child(),
        "released" => released_child(),
        _ => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

/// Sixteen blocks of 1 MiB freed and six of them allocated again, then one of 3 MiB, which finds nothing.
fn work() {
    drop((0..16).map(|_| touched(MIB)).collect::<Vec<_>>());
    let six: Vec<_> = (0..6).map(|_| touched(MIB)).collect();
    let other = touched(3 * MIB);
    drop(six);
    drop(other);
    GLOBAL.0.flush();
}

/// What `work` makes of them: blocks handed over, and all that happened to them.
fn check_work(numbers: [u64; 7]) {
    let [freed, reused, drained, paid_back, over_bound, queue_full, pending] = numbers;
    assert_eq!(freed, 23, "{numbers:?}");
    assert_eq!(reused, 6, "{numbers:?}");
    // Two times 3 MiB.
    assert_eq!(paid_back, 6, "{numbers:?}");
    assert_eq!(drained, 23 - 6 - 6, "{numbers:?}");
    assert_eq!([over_bound, queue_full, pending], [0; 3], "{numbers:?}");
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

/// The one line that begins with `name`, without it.
#[track_caller]
fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let lines: Vec<&str> =
        text.lines().filter_map(|line| line.trim_start().strip_prefix(name)).collect();
    assert_eq!(lines.len(), 1, "{name}: {text}");
    lines[0].trim()
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

/// A new directory for the files of one test.
fn directory(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("stats").join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn files(directory: &PathBuf) -> Vec<String> {
    let files = fs::read_dir(directory).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

fn to_json(case: &str, name: &str, env: &[(&str, &str)]) -> (Output, Value) {
    let directory = directory(name);
    let path = directory.join("report.json");
    let mut command = command(case);
    command.env("DEFERFREE_STATS", &path).envs(env.iter().copied());
    let output = finish(command, SECS);
    output.expect_code(0);
    assert_eq!(output.stderr, "", "{output:?}");
    assert_eq!(files(&directory), ["report.json"]);
    let report = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    check_sums(&report);
    (output, report)
}

const FATES: [&str; 6] = ["reused", "drained", "paid_back", "over_bound", "queue_full", "pending"];

/// The report's totals are those of its sizes, whatever threads did meanwhile.
fn check_sums(report: &Value) {
    for name in FATES.iter().chain(&["handed_over", "missed"]) {
        let (mut blocks, mut bytes) = (0, 0);
        for size in report["sizes"].as_array().unwrap() {
            let n = size[name].as_u64().unwrap();
            blocks += n;
            bytes += n * size["block_bytes"].as_u64().unwrap();
        }
        assert_eq!(report[name]["blocks"], blocks, "{name}: {report}");
        assert_eq!(report[name]["bytes"], bytes, "{name}: {report}");
    }
}

fn blocks(report: &Value, name: &str) -> u64 {
    report[name]["blocks"].as_u64().unwrap()
}

fn json() {
    let (output, report) = to_json("work", "json", &[("DEFERFREE_DELAY", "100ms")]);
    let order = ["handed_over"].into_iter().chain(FATES);
    let numbers: Vec<String> = order.map(|name| blocks(&report, name).to_string()).collect();
    assert_eq!(numbers.join(" "), output.stdout.trim());
    assert_eq!(blocks(&report, "missed"), 17, "{report}");
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
    assert!(drainer > 0 && drainer <= process, "{report}");
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
    for log2 in 18..24 {
        for step in 1..=16 {
            drop(black_box(Vec::<u8>::with_capacity((16 + step) << (log2 - 4))));
        }
    }
    GLOBAL.0.flush();
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
    let env = [("DEFERFREE_STATS", "latency"), ("DEFERFREE_BURST", "256")];
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
    if GLOBAL.0.config().enabled {
        drop(some);
        GLOBAL.0.flush();
        assert!(stats().bursts.deferred.blocks > 1000, "{:?}", stats().bursts);
    }
}

/// One line, the status kept, no litter, and what was there before is still there.
#[track_caller]
fn refuses(command: Command, path: &str) {
    let output = finish(command, SECS);
    output.expect_code(7);
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{path}: {output:?}");
    let start = format!("deferfree: cannot write statistics to \"{path}\": ");
    assert!(lines[0].starts_with(&start), "{output:?}");
}

fn disk() {
    let directory = directory("disk");
    let here = directory.display();
    fs::create_dir(directory.join("directory")).unwrap();
    for path in [
        format!("{here}/missing/a.json"),
        format!("{here}/directory"),
        format!("{here}/{}", "x".repeat(300)),
        "/dev/full".to_owned(),
        "/proc/self/cmdline/a".to_owned(),
        "/proc/a.json".to_owned(),
    ] {
        let mut command = command("work 7");
        command.env("DEFERFREE_STATS", &path);
        let output = finish(command, SECS);
        output.expect_code(7);
        assert_eq!(output.stderr.lines().count(), 1, "{path}: {output:?}");
        assert!(output.stderr.starts_with("deferfree: cannot write statistics"), "{output:?}");
    }
    // A pipe without a reader: no waiting for one.
    let pipe = format!("{here}/pipe.json");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut to_pipe = command("work 7");
    to_pipe.env("DEFERFREE_STATS", &pipe);
    refuses(to_pipe, &pipe);
    fs::remove_file(&pipe).unwrap();

    // No more than half of it may be written: a disk that fills up meanwhile.
    let limited = |path: &str| {
        let mut command = command("work 7");
        command.env("DEFERFREE_STATS", path);
        let limit = libc::rlimit { rlim_cur: 700, rlim_max: 700 };
        // SAFETY: `setrlimit` is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
                Ok(())
            });
        }
        command
    };
    let path = format!("{here}/kept.json");
    fs::write(&path, "before").unwrap();
    refuses(limited(&path), &path);
    assert_eq!(fs::read_to_string(&path).unwrap(), "before");
    let link = format!("{here}/link.json");
    std::os::unix::fs::symlink("kept.json", &link).unwrap();
    refuses(limited(&link), &link);
    assert_eq!(fs::read_to_string(&path).unwrap(), "", "nothing rather than half of it");
    let mut left = files(&directory);
    left.sort();
    assert_eq!(left, ["directory", "kept.json", "link.json"]);
}

fn paths() {
    let directory = directory("paths");
    let valid = |name: &str| {
        let report: Value =
            serde_json::from_slice(&fs::read(directory.join(name)).unwrap()).unwrap();
        report
    };
    fs::write(directory.join("replaced.json"), "x".repeat(100_000)).unwrap();
    fs::write(directory.join("target"), "x".repeat(100_000)).unwrap();
    std::os::unix::fs::symlink("target", directory.join("link.json")).unwrap();
    for name in ["new.json", "replaced.json", "./a \"b\"\\\n", "link.json"] {
        let mut command = command("work");
        command.env("DEFERFREE_STATS", name).current_dir(&directory);
        let output = finish(command, SECS);
        assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""), "{name}");
        assert_eq!(blocks(&valid(name), "handed_over"), 23);
    }
    assert_eq!(blocks(&valid("target"), "handed_over"), 23, "the link has been followed");
    let link = fs::symlink_metadata(directory.join("link.json")).unwrap();
    assert!(link.file_type().is_symlink());
    // The number of the process.
    let mut numbered = command("work");
    numbered.env("DEFERFREE_STATS", "%p.json").current_dir(&directory);
    numbered.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = numbered.spawn().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(valid(&format!("{}.json", child.id()))["process"], child.id());
    // Standard output is as good.
    let output = run_child("work 7", &[("DEFERFREE_STATS", "/dev/stdout")], SECS);
    output.expect_code(7);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(blocks(&report, "handed_over"), 23);
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().file_type().is_symlink());
}

fn standard_error() {
    let closed = |command: &mut Command| {
        // SAFETY: `close` is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::close(2);
                Ok(())
            });
        }
    };
    let full = |command: &mut Command| {
        command.stderr(File::options().write(true).open("/dev/full").unwrap());
    };
    let no_reader = |command: &mut Command| {
        let mut ends = [0; 2];
        // SAFETY: two new descriptors are written to `ends`, each owned once.
        let (reader, writer) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
        };
        drop(reader);
        command.stderr(writer);
    };
    let ways: [&dyn Fn(&mut Command); 3] = [&closed, &full, &no_reader];
    for case in ["work 7", "sigpipe 7"] {
        for way in ways {
            for value in ["1", "/missing/a.json"] {
                let mut command = command(case);
                command.env("DEFERFREE_STATS", value);
                way(&mut command);
                finish(command, SECS).expect_code(7);
            }
        }
    }
}

fn ways_to_end() {
    let end = |way: &str| run_child(&format!("end {way}"), &[("DEFERFREE_STATS", "1")], SECS);
    for (way, code) in [("return", 3), ("exit", 7), ("panic", 101), ("small stack", 11)] {
        let output = end(way);
        output.expect_code(code);
        assert_eq!(output.stderr.matches(", at exit\n").count(), 1, "{output:?}");
    }
    let output = end("_exit");
    output.expect_code(9);
    assert_eq!(output.stderr, "");
    let output = end("abort");
    output.expect_signal(libc::SIGABRT);
    assert_eq!(output.stderr, "");
}

static KEPT: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

extern "C" fn free_kept() {
    KEPT.lock().unwrap().clear();
}

fn at_exit(handler: extern "C" fn()) {
    // SAFETY: a function of this program.
    assert_eq!(unsafe { libc::atexit(handler) }, 0);
}

/// What exit handlers of the program free is in it, also of those that were registered before the
/// drainer was started.
fn exit_handlers() {
    let output = run_child("handlers", &[("DEFERFREE_STATS", "1")], SECS);
    output.expect_code(0);
    let freed = line(&output.stderr, "all, blocks").split_whitespace().next();
    assert_eq!(freed, Some("5"), "{output:?}");
}

fn handlers_child() {
    at_exit(free_kept);
    let mut kept = KEPT.lock().unwrap();
    kept.extend((0..5).map(|_| Vec::with_capacity(MIB)));
}

static CALLS_BEFORE: AtomicU64 = AtomicU64::new(0);
static CHECKS: AtomicBool = AtomicBool::new(false);

/// Runs before `main`, so that what it registers runs last.
#[used]
#[unsafe(link_section = ".init_array")]
static FIRST: extern "C" fn() = {
    extern "C" fn first() {
        // SAFETY: a function of this program.
        unsafe { libc::atexit(after_the_report) };
    }
    first
};

extern "C" fn before_the_report() {
    CALLS_BEFORE.store(GLOBAL.1.load(Ordering::SeqCst), Ordering::SeqCst);
}

extern "C" fn after_the_report() {
    if CHECKS.load(Ordering::SeqCst)
        && GLOBAL.1.load(Ordering::SeqCst) != CALLS_BEFORE.load(Ordering::SeqCst)
    {
        common::exit_now(99);
    }
}

fn allocates_nothing() {
    for value in ["1", "latency", "/dev/null", "/missing/a.json"] {
        run_child("allocates_nothing", &[("DEFERFREE_STATS", value)], SECS).expect_code(5);
    }
}

fn allocates_nothing_child() {
    work();
    // The first one to run.
    CHECKS.store(true, Ordering::SeqCst);
    at_exit(before_the_report);
    std::process::exit(5);
}

/// A child has numbers of its own and a report of its own.
fn forked() {
    let directory = directory("forked");
    let pattern = directory.join("%p.json");
    let mut to_files = command("forked");
    to_files.env("DEFERFREE_STATS", &pattern);
    let output = finish(to_files, SECS);
    output.expect_clean();
    let reports: HashMap<u64, Value> = files(&directory)
        .iter()
        .map(|file| {
            let report: Value =
                serde_json::from_slice(&fs::read(directory.join(file)).unwrap()).unwrap();
            check_sums(&report);
            (blocks(&report, "handed_over"), report)
        })
        .collect();
    assert_eq!(reports.len(), 3, "{reports:?}");
    for (freed, forked) in [(10, false), (3, true), (0, true)] {
        assert_eq!(reports[&freed]["forked"], forked, "{reports:?}");
        assert_eq!(reports[&freed]["drainer_running"], freed > 0, "{reports:?}");
    }
    assert_eq!(reports[&3]["lost_in_fork_bytes"], 10 * MIB);

    let output = run_child("forked", &[("DEFERFREE_STATS", "latency")], SECS);
    assert_eq!(output.stderr.matches(", forked off, at exit\n").count(), 2, "{output:?}");
    for n in ["10 frees, ", "3 frees, ", "0 frees "] {
        assert_eq!(output.stderr.matches(&format!("a large free cost       {n}")).count(), 1);
    }
}

fn forked_child() {
    drop((0..10).map(|_| Vec::<u8>::with_capacity(MIB)).collect::<Vec<_>>());
    let child = fork(10, || {
        let mine: Vec<_> = (0..3).map(|_| Vec::<u8>::with_capacity(MIB)).collect();
        drop(mine);
        std::process::exit(0);
    });
    wait_ok(child);
    wait_ok(fork(10, || std::process::exit(0)));
}

fn refused() {
    let Some(library) = thread_refuser() else { return };
    let mut table = command("refused");
    table.env("LD_PRELOAD", &library).env("REFUSE_THREADS", "1000").env("DEFERFREE_STATS", "1");
    let output = finish(table, SECS);
    output.expect_code(0);
    let at_once = output.stderr.lines().find(|line| line.contains("freed at once  "));
    let at_once = at_once.unwrap_or_default();
    assert!(at_once.contains("5 large blocks, 5.0 MiB: the drainer could not"), "{output:?}");
    assert!(output.stderr.contains("because the drainer could not be started"), "{output:?}");
}

/// Threads go on while the report is written.
fn busy() {
    for _ in 0..10 {
        to_json("busy", "busy", &[("DEFERFREE_DELAY", "4ms")]);
        let output = run_child("busy", &[("DEFERFREE_STATS", "latency")], SECS);
        output.expect_code(0);
        assert_eq!(output.stderr.matches("all, bytes").count(), 1, "{output:?}");
    }
}

static ROUNDS: AtomicU64 = AtomicU64::new(0);

fn churn() {
    for size in [256 * KIB, 300 * KIB, MIB] {
        let blocks: Vec<_> = (0..8).map(|_| Vec::<u8>::with_capacity(size)).collect();
        drop(black_box(blocks));
    }
    ROUNDS.fetch_add(1, Ordering::Relaxed);
}

fn busy_child() {
    for _ in 0..3 {
        thread::spawn(|| {
            loop {
                churn();
            }
        });
    }
    wait_until("threads are busy", || {
        stats().drainer_running && ROUNDS.load(Ordering::Relaxed) > 10
    });
}

fn adds_up_at_all_times() {
    run_child("adds_up", &[("DEFERFREE_DELAY", "4ms")], SECS).expect_clean();
}

fn fates(stats: &Stats) -> [u64; 5] {
    let Stats { reused, drained, paid_back, over_bound, queue_full, .. } = stats;
    [reused, drained, paid_back, over_bound, queue_full].map(|tally| tally.blocks)
}

fn adds_up_child() {
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
    GLOBAL.0.flush();
    let end = stats();
    let [freed, fates @ ..] = tallies(&end);
    assert_eq!(freed.blocks, fates.iter().map(|tally| tally.blocks).sum::<u64>(), "{end:?}");
    assert_eq!(freed.bytes, fates.iter().map(|tally| tally.bytes).sum::<u64>(), "{end:?}");
    assert_eq!(end.pending, Tally::default());
    let by_size: u64 = GLOBAL.0.stats_by_size().map(|size| size.handed_over).sum();
    assert_eq!(by_size, freed.blocks);
    assert!(end.drainer_cpu_ns > 0);
}

/// Those of a burst are in the report, and nowhere else.
fn bursts() {
    let (_, report) = to_json("bursts", "bursts", &[("DEFERFREE_BURST", "256")]);
    let burst = &report["bursts"];
    assert!(blocks(burst, "deferred") > 15_000, "{report}");
    assert_eq!(burst["deferred"]["bytes"], 300 * blocks(burst, "deferred"), "{report}");
    let gone = ["drained", "paid_back"].map(|name| blocks(burst, name)).iter().sum::<u64>();
    assert_eq!(blocks(burst, "deferred"), gone + blocks(burst, "pending"), "{report}");
    assert_eq!(blocks(burst, "pending"), 0, "{report}");
    let env = [("DEFERFREE_STATS", "1"), ("DEFERFREE_BURST", "256")];
    let table = run_child("bursts", &env, SECS).stderr;
    let deferred = line(&table, "deferred").split_whitespace().next().unwrap();
    assert!(deferred.parse::<u64>().unwrap() > 15_000, "{table}");
    assert_eq!(line(&table, "waiting "), "0        0 B", "{table}");
}

fn bursts_child() {
    let mut blocks: Vec<_> = (0..20_000).map(|_| Some(Box::new([1u8; 300]))).collect();
    for i in 0..blocks.len() {
        // In no order: blocks that follow each other are freed at once.
        let other = i * 7919 % 20_000;
        blocks[other] = None;
    }
    GLOBAL.0.flush();
    drop(black_box(blocks));
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
    let layout = Layout::from_size_align(10 * MIB, 128 * KIB).unwrap();
    // SAFETY: a valid layout, a block of that size, freed once.
    unsafe {
        let block = GLOBAL.alloc(layout);
        block.write_bytes(1, layout.size());
        GLOBAL.dealloc(block, layout);
    }
    GLOBAL.0.flush();
    let stats = stats();
    assert_eq!((stats.released_bytes, stats.release_calls), (10 * MIB as u64, 3));
    let own: Vec<_> = GLOBAL.0.stats_by_size().filter(|size| size.own_mapping).collect();
    assert_eq!((own.len(), own[0].drained), (1, 1), "{own:?}");
}

/// A program with more rights than its user writes no file where that user says.
fn privileged() {
    use std::os::unix::fs::{PermissionsExt, chown};
    const NOBODY: u32 = 65534;
    // SAFETY: returns a number.
    if unsafe { libc::geteuid() } != 0 {
        println!("SKIPPED: only root can make a setuid program of another user's");
        return;
    }
    let directory = directory("privileged");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    let program = directory.join("program");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for (setuid, n_files) in [(false, 1), (true, 0)] {
        chown(&program, Some(NOBODY), Some(NOBODY)).unwrap();
        let mode = if setuid { 0o4755 } else { 0o755 };
        fs::set_permissions(&program, fs::Permissions::from_mode(mode)).unwrap();
        let mut command = Command::new(&program);
        let report = directory.join("report.json");
        command.env("TEST_CASE", "work as whom").env("DEFERFREE_STATS", &report);
        command.stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.process_group(0);
        let output = finish(command, SECS);
        output.expect_code(7);
        if setuid && output.stdout == "0" {
            println!("SKIPPED: setuid programs are not honoured in {}", directory.display());
            break;
        }
        assert_eq!(files(&directory).len(), 1 + n_files, "{setuid}: {output:?}");
        let _ = fs::remove_file(report);
    }
    fs::remove_file(program).unwrap();
}
