//! Where the report at exit goes and when it is written: whatever becomes of it, the program ends as it
//! would have.
//!
//! Seen to fail: with the counts or the runtime of a fork's parent kept, `forked`; with the file written
//! in place, or left half written, `disk`; with the signals of a failing write let through, `disk` and
//! `standard_error`; with a `format!` in the handler, `allocates_nothing`; with the handler registered
//! when the drainer starts, `exit_handlers`; with totals that are not the sums of the sizes shown, `busy`;
//! with the rights of the program not looked at, `privileged`.

use crate::common;
#[path = "../common/taken_apart.rs"]
mod taken_apart;

use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use common::{
    KIB, MIB, ROOM, SPOIL_STDERR, START_BYTES, at_exit, command, finish, fork, nearly_start,
    run_child, thread_refuser, touched, wait_ok, wait_until,
};
use deferfree::DeferFree;
use serde_json::Value;
use taken_apart::{ROUNDS, SECS, blocks, check_sums, churn, directory, files, line, to_json, work};

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
static GLOBAL: Counting = Counting(DeferFree::new().max_pending(ROOM), AtomicU64::new(0));

pub(crate) fn main() -> ExitCode {
    let Some(case) = common::child_case() else {
        return common::run(&[
            ("disk", disk),
            ("paths", paths),
            ("standard_error", standard_error),
            ("ways_to_end", ways_to_end),
            ("exit_handlers", exit_handlers),
            ("allocates_nothing", allocates_nothing),
            ("forked", forked),
            ("refused", refused),
            ("busy", busy),
            ("privileged", privileged),
        ]);
    };
    match case.as_str() {
        "work" => work(&GLOBAL.0),
        "work 7" => {
            work(&GLOBAL.0);
            std::process::exit(7);
        }
        "work as whom" => {
            work(&GLOBAL.0);
            // SAFETY: returns a number.
            print!("{}", unsafe { libc::getauxval(libc::AT_SECURE) });
            std::process::exit(7);
        }
        "sigpipe 7" => {
            // As in a program that is not written in Rust.
            // SAFETY: the default action.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            work(&GLOBAL.0);
            std::process::exit(7);
        }
        "end return" => return ExitCode::from(3),
        "end exit" => std::process::exit(7),
        "end _exit" => common::exit_now(9),
        "end panic" => panic!("on purpose"),
        "end abort" => {
            common::no_core();
            std::process::abort()
        }
        "end small stack" => {
            let small = thread::Builder::new().stack_size(64 * KIB);
            small.spawn(|| std::process::exit(11)).unwrap().join().unwrap();
        }
        "handlers" => handlers_child(),
        "allocates_nothing" => allocates_nothing_child(),
        "forked" => forked_child(),
        "refused" => (0..20).for_each(|_| drop(touched(MIB))),
        "busy" => busy_child(),
        _ => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

/// One line, the status kept, no litter, and what was there before is still there.
#[track_caller]
fn refuses(command: Command, path: &str) {
    let output = finish(command, SECS);
    output.expect_code(7);
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{path}: {output:?}");
    // Of a longer one the beginning is shown.
    let shown = if path.len() > 64 { format!("{}...", &path[..64]) } else { path.to_owned() };
    let start = format!("deferfree: cannot write statistics to \"{shown}\": ");
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
    numbered.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = numbered.spawn().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(valid(&format!("{}.json", child.id()))["process"], child.id());
    // Standard output is as good.
    let output = run_child("work 7", &[("DEFERFREE_STATS", "/dev/stdout")], SECS);
    output.expect_code(7);
    let report: Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(blocks(&report, "handed_over"), 23);
    assert!(fs::symlink_metadata("/dev/stdout").unwrap().file_type().is_symlink());
    // What is in the file that it leads to stays.
    let log = directory.join("log");
    fs::write(&log, "what there was\n").unwrap();
    let mut command = command("work");
    command.env("DEFERFREE_STATS", "/dev/stderr");
    command.stdout(Stdio::null());
    command.stderr(fs::OpenOptions::new().append(true).open(&log).unwrap());
    assert!(command.spawn().unwrap().wait().unwrap().success());
    let text = fs::read_to_string(&log).unwrap();
    let report = text.strip_prefix("what there was\n").unwrap();
    assert_eq!(blocks(&serde_json::from_str(report).unwrap(), "handed_over"), 23);
}

fn standard_error() {
    for case in ["work 7", "sigpipe 7"] {
        for spoil in SPOIL_STDERR {
            for value in ["1", "/missing/a.json"] {
                let mut command = command(case);
                command.env("DEFERFREE_STATS", value);
                spoil(&mut command);
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

/// What exit handlers of the program free is in it, also of those that were registered before the
/// drainer was started.
fn exit_handlers() {
    let output = run_child("handlers", &[("DEFERFREE_STATS", "1")], SECS);
    output.expect_code(0);
    let freed = line(&output.stderr, "all, blocks").split_whitespace().next();
    assert_eq!(freed, Some("5"), "{output:?}");
}

fn handlers_child() {
    nearly_start(&GLOBAL);
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
    work(&GLOBAL.0);
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
    // One of them may have been before the start.
    let parent = if START_BYTES > 0 { "11 frees, " } else { "10 frees, " };
    for n in [parent, "3 frees, ", "0 frees "] {
        assert_eq!(output.stderr.matches(&format!("a large free cost       {n}")).count(), 1);
    }
}

fn forked_child() {
    nearly_start(&GLOBAL);
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
    assert!(at_once.contains("20 large blocks, 20.0 MiB: the drainer could not"), "{output:?}");
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

fn busy_child() {
    for _ in 0..3 {
        thread::spawn(|| {
            loop {
                churn();
            }
        });
    }
    wait_until("threads are busy", || {
        GLOBAL.0.stats().handed_over.blocks > 0 && ROUNDS.load(Ordering::Relaxed) > 10
    });
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
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
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
