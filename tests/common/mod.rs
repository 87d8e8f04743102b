//! Shared by the tests: child processes under a watchdog, what `/proc` says about this process, and
//! an allocator that keeps books.

// Each test file uses a part of this.
#![allow(dead_code)]

pub(crate) mod addresses;
pub(crate) mod content;
pub(crate) mod tracking;

/// A mutex that the thread sanitizer sees through, as it is compiled together with the tests: std's is
/// not, and what it orders is reported as a race.
pub(crate) type Mutex<T> = spin::mutex::SpinMutex<T, spin::Yield>;

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
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

    #[track_caller]
    pub(crate) fn expect_signal(&self, signal: i32) {
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
        let name_bytes = name.as_bytes();
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
    // A group of its own, so that the watchdog gets what the child forks off too.
    command.process_group(0);
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
        kill(-(child.id() as i32), libc::SIGKILL);
    }
    let status = child.wait().unwrap();
    let output = Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() };
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

/// Name, state and system call of each thread of a child that hangs.
fn describe_threads(child: &Child) -> String {
    let mut seen = String::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten() {
        let Ok(task) = task else { continue };
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let state = stat.rsplit(')').next().unwrap_or("").trim().get(..1).unwrap_or("?").to_owned();
        seen += &format!("[{} {state} {}]", read("comm").trim(), read("syscall").trim());
    }
    seen
}

/// Thread id and name of each thread of this process.
pub(crate) fn threads() -> Vec<(i32, String)> {
    let mut threads = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap();
        // A thread that ends meanwhile has no name any more.
        if let Ok(name) = std::fs::read_to_string(task.path().join("comm")) {
            let tid = task.file_name().to_str().unwrap().parse().unwrap();
            threads.push((tid, name.trim_end().to_owned()));
        }
    }
    threads
}

/// A new thread gets its name some time after it started.
pub(crate) fn threads_named(wanted: &str) -> Vec<i32> {
    threads().into_iter().filter(|(_, name)| name == wanted).map(|(tid, _)| tid).collect()
}

/// The drainers among the threads.
pub(crate) fn drainers() -> Vec<i32> {
    threads_named("deferfree")
}

/// One field of `/proc/self/task/<tid>/status`.
pub(crate) fn task_status(tid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line[field.len()..].trim_start_matches(":").trim().to_owned()
}

pub(crate) fn voluntary_switches(tid: i32) -> u64 {
    task_status(tid, "voluntary_ctxt_switches").parse().unwrap()
}

/// CPU time of all threads of this process.
pub(crate) fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a live variable.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) }, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident bytes of this process.
pub(crate) fn rss() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
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
    // A byte less than `START_BYTES` of the crate.
    let layout = Layout::from_size_align(16 * MIB - 1, 8).unwrap();
    // SAFETY: a valid layout; freed as allocated.
    unsafe {
        let block = heap.alloc(layout);
        assert!(!block.is_null());
        heap.dealloc(block, layout);
    }
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

pub(crate) fn sleep_ms(ms: u64) {
    thread::sleep(Duration::from_millis(ms));
}

/// This process and all that it starts share the CPU it is on. For as long as there is one thread.
pub(crate) fn use_one_cpu() {
    // SAFETY: a set that is all zeros is empty; the CPU is one of those that there are.
    unsafe {
        let mut cpus = std::mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(libc::sched_getcpu() as usize, &mut cpus);
        assert_eq!(libc::sched_setaffinity(0, size_of_val(&cpus), &cpus), 0);
    }
}

/// Has a filter answer these system calls with an error from now on, on all threads.
pub(crate) fn refuse_calls(calls: &[libc::c_long], errno: i32) {
    // linux/bpf_common.h
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The number of the system call comes first in `struct seccomp_data`.
    let mut filter = vec![step(LOAD_WORD, 0, 0, 0)];
    for (n, &call) in calls.iter().enumerate() {
        filter.push(step(JUMP_EQUAL, (calls.len() - n) as u8, 0, call as u32));
    }
    filter.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    filter.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: a program of the given length, which the kernel copies.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let (mode, all) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_TSYNC);
        let set = libc::syscall(libc::SYS_seccomp, mode, all, &raw const program);
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    }
}

/// From now on this process may map so many bytes more than it has; `usize::MAX` for any number.
pub(crate) fn limit_address_space(more: usize) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let now: usize = statm.split(' ').next().unwrap().parse::<usize>().unwrap() * 4096;
    let limit =
        libc::rlimit { rlim_cur: now.saturating_add(more) as u64, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the limit is a live variable.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

/// A block whose pages have been written to.
pub(crate) fn touched(bytes: usize) -> Vec<u8> {
    std::hint::black_box(vec![1u8; bytes])
}

pub(crate) fn kill(pid: i32, signal: i32) {
    // SAFETY: a system call on numbers.
    unsafe { libc::kill(pid, signal) };
}

pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Forks; the child does `body` and ends with status 0, or 101 if that panics. It kills itself when
/// it takes longer than `secs`.
pub(crate) fn fork(secs: u32, body: impl FnOnce()) -> i32 {
    // SAFETY: the child goes on with what this crate promises to work after a fork.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: a system call on a number.
        unsafe { libc::alarm(secs) };
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_ok();
        exit_now(if done { 0 } else { 101 });
    }
    pid
}

/// Waits for a forked child.
pub(crate) fn wait(pid: i32) -> ExitStatus {
    let mut status = 0;
    // SAFETY: the status is a live variable.
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 {
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EINTR));
    }
    ExitStatus::from_raw(status)
}

/// Waits for a forked child that must have ended with status 0.
#[track_caller]
pub(crate) fn wait_ok(pid: i32) {
    let status = wait(pid);
    let hint = if status.signal() == Some(libc::SIGALRM) { " (it hung)" } else { "" };
    assert_eq!(status.code(), Some(0), "forked child: {status}{hint}");
}

/// A library to be preloaded that refuses the first `REFUSE_THREADS` threads with `EAGAIN`, and has the
/// others begin `DELAY_THREADS` milliseconds late; `None`, said loudly, where there is no C compiler.
/// (Root is not bound by `RLIMIT_NPROC`.)
pub(crate) fn thread_refuser() -> Option<PathBuf> {
    const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static int refused;
struct late { void *(*f)(void *); void *x; int ms; };
static void *begin_late(void *p) {
    struct late late = *(struct late *)p;
    free(p);
    usleep(late.ms * 1000);
    return late.f(late.x);
}
int pthread_create(pthread_t *t, const pthread_attr_t *a, void *(*f)(void *), void *x) {
    static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    const char *n = getenv("REFUSE_THREADS");
    if (n && __atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED) < atoi(n)) return EAGAIN;
    if (!next) next = dlsym(RTLD_NEXT, "pthread_create");
    n = getenv("DELAY_THREADS");
    if (n) {
        struct late *late = malloc(sizeof *late);
        *late = (struct late){f, x, atoi(n)};
        return next(t, a, begin_late, late);
    }
    return next(t, a, f, x);
}
"#;
    // One name per test program: they may run at the same time.
    let stem = std::env::current_exe().unwrap().file_stem().unwrap().to_owned();
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(stem);
    std::fs::create_dir_all(&directory).unwrap();
    let (source, library) = (directory.join("refuse.c"), directory.join("refuse.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    match built {
        Ok(status) if status.success() => Some(library),
        other => {
            println!("SKIPPED: no C compiler to build the thread refuser with ({other:?})");
            None
        }
    }
}
