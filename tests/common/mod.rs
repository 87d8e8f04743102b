//! Shared by the tests: child processes under a watchdog, what `/proc` says about this process, and
//! an allocator that keeps books.

// Each test file uses a part of this.
#![allow(dead_code, unused_imports, unused_macros)]

#[cfg(any(target_os = "linux", windows))]
pub(crate) mod addresses;
pub(crate) mod content;
mod limits;
mod on_system;
mod shuffle;
pub(crate) mod tracking;

/// A mutex that the thread sanitizer sees through, as it is compiled together with the tests: std's is
/// not, and what it orders is reported as a race.
pub(crate) type Mutex<T> = spin::mutex::SpinMutex<T, spin::Yield>;

// What is asked of the system; where there is no file for one, the tests that need it are left out.
#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(windows, path = "windows.rs")]
mod other;
pub(crate) use limits::*;
pub(crate) use on_system::on_system;
pub(crate) use other::*;
pub(crate) use shuffle::shuffle;

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::OsStr;
use std::io::Read;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Names the case that a child runs. Outside the crate's own `DEFERFREE_` names, which it reports.
const CASE: &str = "TEST_CASE";

pub(crate) const KIB: usize = 1 << 10;
pub(crate) const MIB: usize = 1 << 20;
pub(crate) const GIB: usize = 1 << 30;

/// The case that this process is to run, if it is a child.
pub(crate) fn child_case() -> Option<String> {
    std::env::var(CASE).ok()
}

/// Runs tests one after the other in a program without the usual harness, whose threads and output
/// capture would be part of what is tested. Understands a name filter, `--exact` and `--list`.
pub(crate) fn run(tests: &[(&str, fn())]) -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().any(|arg| arg == name);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let mut failed = Vec::new();
    for (name, test) in tests {
        let wanted = filters.is_empty()
            || filters.iter().any(|filter| {
                if flag("--exact") { name == filter } else { name.contains(filter.as_str()) }
            });
        if !wanted {
            continue;
        }
        if flag("--list") {
            println!("{name}: test");
            continue;
        }
        if let Some(reason) = not_in_a_tiny_run(name) {
            println!("test {name} ... left out: {reason}");
            continue;
        }
        let start = Instant::now();
        let passed = std::panic::catch_unwind(test).is_ok();
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("test {name} ... {verdict} ({:.1} s)", start.elapsed().as_secs_f32());
        if !passed {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::from(101)
}

/// Why this program's test of that name is left out, if it is.
fn not_in_a_tiny_run(test: &str) -> Option<&'static str> {
    let program = std::env::current_exe().unwrap();
    // "start-f564a809a333d12c".
    let program = program.file_stem().unwrap().to_str().unwrap().rsplit_once('-').unwrap().0;
    let left_out = NOT_TINY.iter().find(|entry| (entry.0, entry.1) == (program, test));
    left_out.filter(|_| TINY).map(|entry| entry.2)
}

/// In place of the cases, on a system that they are not written for: with forks, signals, limits, filters of system calls
/// and `/proc` they ask for what Linux has, and for threads' names and the resident set, which these tests know
/// how to find on Linux and Windows.
pub(crate) fn left_out() -> ExitCode {
    println!("SKIPPED: not for this system, see left_out in tests/common");
    ExitCode::SUCCESS
}

/// What a child left behind.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    #[track_caller]
    pub(crate) fn expect_code(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
    }

    #[cfg(unix)]
    #[track_caller]
    pub(crate) fn expect_signal(&self, signal: i32) {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(self.status.signal(), Some(signal), "{self:?}");
    }

    /// Status 0 and nothing on standard error.
    #[track_caller]
    pub(crate) fn expect_clean(&self) {
        self.expect_code(0);
        assert_eq!(self.stderr, "", "{self:?}");
    }
}

/// This program again, as a child that runs `case`, with no setting of the caller's environment.
pub(crate) fn command(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os() {
        let name_bytes = name.as_encoded_bytes();
        if name_bytes.starts_with(b"DEFERFREE") || name_bytes.starts_with(b"MIMALLOC") {
            command.env_remove(&name);
        }
    }
    command
        .env(CASE, case)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // So that the watchdog gets what the child forks off too.
    set_apart(&mut command);
    command
}

/// Runs a command to its end; after `secs` it is killed and the test fails.
#[track_caller]
pub(crate) fn finish(mut command: Command, secs: u64) -> Output {
    let mut child = command.spawn().unwrap();
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let deadline = Instant::now() + Duration::from_secs(secs);
    let mut pause = Duration::from_millis(1);
    let ended = loop {
        if child.try_wait().unwrap().is_some() && stdout.is_finished() && stderr.is_finished() {
            break true;
        }
        if Instant::now() > deadline {
            break false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    let seen = if ended { String::new() } else { describe_threads(&child) };
    if !ended {
        kill_all_of(&mut child);
    }
    let status = child.wait().unwrap();
    let stdout = stdout.join().unwrap();
    let mut stderr = stderr.join().unwrap();
    // QEMU's own words about a program that a signal ended.
    if let Some(at) = stderr.find("qemu: uncaught target signal") {
        stderr.truncate(at);
    }
    let output = Output { status, stdout, stderr };
    assert!(ended, "hung: killed after {secs} s, {output:?}, threads {seen}");
    output
}

/// As `finish`, for a case and some environment variables.
#[track_caller]
pub(crate) fn run_child(case: &str, env: &[(&str, &str)], secs: u64) -> Output {
    let mut command = command(case);
    for (name, value) in env {
        command.env(name, OsStr::new(value));
    }
    finish(command, secs)
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            pipe.read_to_end(&mut bytes).unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// 0 up to `n`, or to fewer where the machine is slow: a twentieth of them in any case, and no more after 20 s.
pub(crate) fn rounds(n: usize) -> impl Iterator<Item = usize> {
    let deadline = Instant::now() + Duration::from_secs(20);
    (0..n).take_while(move |round| round * 20 < n || Instant::now() < deadline)
}

/// Waits for what is to become true some time; fails after 10 s.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// As if the program had had all the large blocks that it may have before the drainer starts: the next one starts it.
pub(crate) fn nearly_start(heap: &impl GlobalAlloc) {
    let Some(bytes) = START_BYTES.checked_sub(1) else { return };
    let layout = Layout::from_size_align(bytes, 8).unwrap();
    // SAFETY: a valid layout; freed as allocated.
    unsafe {
        let block = heap.alloc(layout);
        assert!(!block.is_null());
        heap.dealloc(block, layout);
    }
}

/// Starts the drainer.
pub(crate) fn start(heap: &impl GlobalAlloc) {
    nearly_start(heap);
    let layout = Layout::new::<[u8; MIB]>();
    // SAFETY: a valid layout; freed as allocated.
    unsafe { heap.dealloc(heap.alloc(layout), layout) };
}

/// See `nearly_start`.
pub(crate) fn nearly_started<B: deferfree::Backing>(
    heap: deferfree::DeferFree<B>,
) -> deferfree::DeferFree<B> {
    nearly_start(&heap);
    heap
}

/// Flushes until no small block waits. A scope ends before its threads have: they free a few blocks after
/// that, and those of a thread in a burst wait.
pub(crate) fn flush_to_the_last<B: deferfree::Backing>(heap: &deferfree::DeferFree<B>) {
    wait_until("no small block waits", || {
        heap.flush();
        heap.stats().bursts.pending.blocks == 0
    });
}

/// Runs `body` while a thread for each of `works` does it over and over.
///
/// Each has been through it by then. A thread that begins takes locks of mimalloc's, which has no fork handlers: a child
/// that `body` forks meanwhile finds them held, and its drainer waits for ever for one.
pub(crate) fn under_load(works: &[&(dyn Fn() + Sync)], body: impl FnOnce()) {
    let (done, n_busy) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let (done, n_busy) = (&done, &n_busy);
        let mut threads = Vec::new();
        for work in works {
            threads.push(scope.spawn(move || {
                work();
                n_busy.fetch_add(1, Ordering::Relaxed);
                while !done.load(Ordering::Relaxed) {
                    work();
                }
            }));
        }
        wait_until("threads are busy", || n_busy.load(Ordering::Relaxed) == works.len());
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        done.store(true, Ordering::Relaxed);
        join_all(threads);
        assert!(result.is_ok());
    });
}

/// Waits until the threads have ended. The end of a scope does so too, but by words of the standard library's
/// that the thread sanitizer is not shown: what the thread had on its stack would be reported as shared with
/// whatever comes to lie there next.
pub(crate) fn join_all<'s>(threads: impl IntoIterator<Item = thread::ScopedJoinHandle<'s, ()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

pub(crate) fn sleep_ms(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
}

/// Has it called when this process ends in an orderly way.
pub(crate) fn at_exit(handler: extern "C" fn()) {
    // SAFETY: a function of this program.
    assert_eq!(unsafe { libc::atexit(handler) }, 0);
}

/// A block whose pages have been written to.
pub(crate) fn touched(bytes: usize) -> Vec<u8> {
    std::hint::black_box(vec![1u8; bytes])
}
