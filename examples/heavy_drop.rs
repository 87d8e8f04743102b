//! What a function waits when it drops something heavy on its way out.
//!
//! Two values are dropped: the map of a blog post ("Dropping heavy things in another thread can
//! make your code 10000 times faster") and one second of decoded 4K film. Six ways to do it are
//! compared:
//!
//! - `glibc`: Rust's default allocator (the system's, so on other systems not glibc),
//! - `mimalloc`: the `mimalloc` crate as the global allocator,
//! - `thread::spawn`: the blog post's answer, `thread::spawn(move || drop(value))` on the default
//!   allocator,
//! - `deferfree`: this crate as the global allocator, and an ordinary drop,
//! - `defer_scope`: the same within a scope in which every free of the thread is deferred,
//! - `later`: the same allocator, and the whole value handed over.
//!
//! Each value is dropped twice, because the first drop of a process pays for what it starts, such as
//! a thread. Between the two the program rests for a second, after which it should hold nothing more.
//!
//! A process has one global allocator and remembers its past, so each measurement is a process of
//! its own: the program runs itself again. Run it with `cargo run --release --example heavy_drop`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::ffi::CStr;
use std::io::Write;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{env, hint, io, thread};

use deferfree::{DeferFree, defer_scope, later};
use mimalloc::MiMalloc;

const MAP_CONTENDERS: &[&str] =
    &["glibc", "mimalloc", "thread::spawn", "deferfree", "defer_scope", "later"];
/// The frames are large blocks, which a scope makes no difference to.
const FRAMES_CONTENDERS: &[&str] = &["glibc", "mimalloc", "thread::spawn", "deferfree", "later"];

const MAP_ENTRIES: usize = 1_000_000;
/// One second of film.
const FRAMES: usize = 24;
/// 3840 x 2160 pixels, four bytes each.
const FRAME_BYTES: usize = 3840 * 2160 * 4;
/// More than the map and its vectors take.
const MAP_WARM_UP_BYTES: usize = 256 << 20;

type Map = HashMap<usize, Vec<usize>>;
type Frames = Vec<Vec<u8>>;

fn build_map() -> Map {
    (1..=MAP_ENTRIES).map(|v| (v, vec![v])).collect::<HashMap<usize, Vec<usize>>>()
}

fn decode_frames() -> Frames {
    // A value other than zero, so that every page is written.
    (0..FRAMES).map(|frame| vec![frame as u8 | 1; FRAME_BYTES]).collect()
}

// The function that the blog post complains about: it needs only the length, yet it waits for the
// whole drop.

fn count_entries(map: Map) -> usize {
    map.len()
}

fn count_entries_spawn(map: Map) -> usize {
    let n_entries = map.len();
    thread::spawn(move || drop(map));
    n_entries
}

fn count_entries_scope(map: Map) -> usize {
    let n_entries = map.len();
    let _scope = defer_scope();
    // Here, because parameters outlive `_scope`.
    drop(map);
    n_entries
}

fn count_entries_later(map: Map) -> usize {
    let n_entries = map.len();
    later(map);
    n_entries
}

fn count_bytes(frames: Frames) -> usize {
    frames.iter().map(Vec::len).sum()
}

fn count_bytes_spawn(frames: Frames) -> usize {
    let n_bytes = frames.iter().map(Vec::len).sum();
    thread::spawn(move || drop(frames));
    n_bytes
}

fn count_bytes_later(frames: Frames) -> usize {
    let n_bytes = frames.iter().map(Vec::len).sum();
    later(frames);
    n_bytes
}

// The allocator, chosen once per process by an environment variable. All contenders go through the
// same switch, so all pay the same for it.

const CONTENDER_VARIABLE: &str = "HEAVY_DROP_CONTENDER";
const CONTENDER_VARIABLE_C: &CStr = c"HEAVY_DROP_CONTENDER";
const WORKLOAD_VARIABLE: &str = "HEAVY_DROP_WORKLOAD";

const UNREAD: u8 = 0;
const SYSTEM: u8 = 1;
const MIMALLOC: u8 = 2;
const DEFERFREE: u8 = 3;

static CHOICE: AtomicU8 = AtomicU8::new(UNREAD);
static DEFER_FREE: DeferFree = DeferFree::new();

#[global_allocator]
static GLOBAL: Switch = Switch;

struct Switch;

fn choice() -> u8 {
    match CHOICE.load(Relaxed) {
        UNREAD => read_choice(),
        choice => choice,
    }
}

/// `std::env::var` allocates, so inside the allocator the variable is read with C's `getenv`.
/// Threads that get here together store the same value.
#[cold]
fn read_choice() -> u8 {
    // SAFETY: the name ends in NUL, and this program never changes its environment.
    let value = unsafe { libc::getenv(CONTENDER_VARIABLE_C.as_ptr()) };
    let choice = if value.is_null() {
        SYSTEM
    } else {
        // SAFETY: `getenv` returned a string that ends in NUL and that nobody changes.
        match unsafe { CStr::from_ptr(value) }.to_bytes() {
            b"mimalloc" => MIMALLOC,
            b"deferfree" | b"defer_scope" | b"later" => DEFERFREE,
            _ => SYSTEM,
        }
    };
    CHOICE.store(choice, Relaxed);
    choice
}

macro_rules! chosen {
    ($method:ident($($argument:expr),*)) => {
        match choice() {
            MIMALLOC => MiMalloc.$method($($argument),*),
            DEFERFREE => DEFER_FREE.$method($($argument),*),
            _ => System.$method($($argument),*),
        }
    };
}

// SAFETY: the choice never changes once read, so each block goes back to the allocator it came
// from.
unsafe impl GlobalAlloc for Switch {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { chosen!(alloc(layout)) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { chosen!(dealloc(ptr, layout)) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { chosen!(alloc_zeroed(layout)) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's promises are passed on.
        unsafe { chosen!(realloc(ptr, layout, new_size)) }
    }
}

// One measurement, in a process of its own.

/// What the caller waited for the first drop and for the second (ns), RSS before the first and one
/// second after it (bytes), CPU time up to there (us); negative where this system does not tell.
type Figures = [i64; 5];

fn measure<T>(build: fn() -> T, consume: fn(T) -> usize) -> Figures {
    let waited = |value| {
        let start = Instant::now();
        hint::black_box(consume(value));
        start.elapsed().as_nanos() as i64
    };
    let value = build();
    let rss_before = rss_bytes();
    let first = waited(value);
    thread::sleep(Duration::from_secs(1));
    let (rss_after, cpu) = (rss_bytes(), cpu_us().unwrap_or(-1));
    [first, waited(build()), rss_before, rss_after, cpu]
}

fn run_child(contender: &str, workload: &str) -> ExitCode {
    let [first, second, rss_before, rss_after, cpu] = match (workload, contender) {
        ("map", "thread::spawn") => measure(build_map, count_entries_spawn),
        ("map", "defer_scope") => measure(build_map, count_entries_scope),
        ("map", "later") => measure(build_map, count_entries_later),
        ("map", _) => measure(build_map, count_entries),
        ("frames", "thread::spawn") => measure(decode_frames, count_bytes_spawn),
        ("frames", "later") => measure(decode_frames, count_bytes_later),
        ("frames", _) => measure(decode_frames, count_bytes),
        _ => {
            eprintln!("heavy_drop: unknown workload {workload:?}");
            return ExitCode::FAILURE;
        }
    };
    println!("{first} {second} {rss_before} {rss_after} {cpu}");
    ExitCode::SUCCESS
}

/// That of the process, whatever its allocator.
fn rss_bytes() -> i64 {
    DEFER_FREE.stats().resident_bytes.map_or(-1, |bytes| bytes as i64)
}

/// User and system time of all threads of this process.
#[cfg(unix)]
fn cpu_us() -> Option<i64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `usage` has room for the structure that the call writes.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it filled the structure.
    let usage = unsafe { usage.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between systems")]
    let micros = |time: libc::timeval| time.tv_sec as i64 * 1_000_000 + time.tv_usec as i64;
    Some(micros(usage.ru_utime) + micros(usage.ru_stime))
}

#[cfg(not(unix))]
fn cpu_us() -> Option<i64> {
    None
}

/// A virtual machine gets a page from its host at the first touch since boot, which costs many
/// times a normal page fault. Touching and releasing as much memory as the child will use keeps
/// that cost out of the figures. In huge pages, which is quick: the kernel splits them where it
/// needs small ones.
#[cfg(target_os = "linux")]
fn warm_up_memory(bytes: usize) {
    // SAFETY: a fresh mapping that nobody else uses, written inside its length, unmapped whole.
    unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let region = libc::mmap(std::ptr::null_mut(), bytes, prot, flags, -1, 0);
        if region == libc::MAP_FAILED {
            return;
        }
        libc::madvise(region, bytes, libc::MADV_HUGEPAGE);
        for offset in (0..bytes).step_by(4096) {
            region.cast::<u8>().add(offset).write_volatile(1);
        }
        libc::munmap(region, bytes);
    }
}

#[cfg(not(target_os = "linux"))]
fn warm_up_memory(_bytes: usize) {}

// The parent: runs the children in turn and prints the tables.

fn run_contender(contender: &str, workload: &str) -> Result<Figures, String> {
    let program =
        env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut child = Command::new(program);
    child.env(CONTENDER_VARIABLE, contender).env(WORKLOAD_VARIABLE, workload);
    let output = child.output().map_err(|error| format!("cannot start the process: {error}"))?;
    io::stderr().write_all(&output.stderr).ok();
    if !output.status.success() {
        return Err(format!("the process failed: {}", output.status));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let figures: Vec<i64> =
        stdout.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    figures.try_into().map_err(|_| format!("the process printed {stdout:?} instead of its figures"))
}

fn run_workload(
    workload: &str,
    contenders: &[&str],
    warm_up_bytes: usize,
) -> Result<Vec<Figures>, String> {
    let run = |contender: &&str| {
        eprintln!("{workload}: {contender}");
        warm_up_memory(warm_up_bytes);
        run_contender(contender, workload)
            .map_err(|error| format!("{workload}, {contender}: {error}"))
    };
    contenders.iter().map(run).collect()
}

fn print_table(title: &str, contenders: &[&str], results: &[Figures]) {
    let row = |[name, first, ratio, second, before, after, cpu]: [&str; 7]| {
        println!("{name:14}{first:>12}{ratio:>14}{second:>13}{before:>12}{after:>15}{cpu:>11}");
    };
    let scaled = |value: i64, unit: i64| match value {
        ..0 => "n/a".to_owned(),
        _ => (value / unit).to_string(),
    };
    println!("\n{title}");
    row([
        "",
        "first drop",
        "glibc / this",
        "second drop",
        "RSS before",
        "RSS 1 s after",
        "CPU time",
    ]);
    row(["", "us", "", "us", "MiB", "MiB", "ms"]);
    let [glibc_ns, ..] = results[0];
    for (contender, &[first, second, rss_before, rss_after, cpu]) in contenders.iter().zip(results)
    {
        let us = |ns: i64| format!("{:.1}", ns as f64 / 1000.0);
        let ratio = format!("{:.1} x", glibc_ns as f64 / first as f64);
        let (before, after) = (scaled(rss_before, 1 << 20), scaled(rss_after, 1 << 20));
        row([contender, &us(first), &ratio, &us(second), &before, &after, &scaled(cpu, 1000)]);
    }
}

fn compare() -> Result<(), String> {
    let map = run_workload("map", MAP_CONTENDERS, MAP_WARM_UP_BYTES)?;
    let frames = run_workload("frames", FRAMES_CONTENDERS, FRAMES * FRAME_BYTES)?;
    let title = format!("A HashMap<usize, Vec<usize>> of {MAP_ENTRIES} entries");
    print_table(&title, MAP_CONTENDERS, &map);
    let title =
        format!("{FRAMES} decoded 4K frames (3840 x 2160 RGBA) of {FRAME_BYTES} bytes each");
    print_table(&title, FRAMES_CONTENDERS, &frames);
    println!(
        "\nWhat the caller waits, in one run of each. CPU time: build, first drop and the second after."
    );
    Ok(())
}

fn main() -> ExitCode {
    if let (Ok(contender), Ok(workload)) =
        (env::var(CONTENDER_VARIABLE), env::var(WORKLOAD_VARIABLE))
    {
        return run_child(&contender, &workload);
    }
    match compare() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heavy_drop: {error}");
            ExitCode::FAILURE
        }
    }
}
