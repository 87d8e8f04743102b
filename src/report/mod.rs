//! The report at exit (`DEFERFREE_STATS`): who writes it, and when.
//!
//! There is one per process, that of the allocator which read its settings first: the global one, which
//! the runtime uses before `main`. An exit handler writes it, registered at that moment: so it comes
//! after all those of the program. What is freed after it is not in it.
//!
//! The allocator itself may be moved and dropped, so the report never refers to it: what it needs is
//! here, and in the `Runtime`, which stays where it is. When the allocator is dropped, the runtime goes:
//!
//! ```text
//! FREE => CLAIMED => READING, for good: a runtime that is dropped meanwhile stays
//!                 => GONE: nothing is reported
//! ```
//!
//! Nothing here allocates or takes a lock. In a forked child the counts begin anew, and the child
//! reports for itself if it ends through `exit`.

mod advice;
mod json;
mod not_running;
mod out;
mod path;
mod table;

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, Ordering};
use std::time::Instant;

pub(crate) use self::not_running::NotRunning;
use self::out::Out;
use crate::config::{self, Config, ReportTo, Reporting, say};
use crate::latency::FREES;
use crate::stats::{SizeStats, Stats};
use crate::sys;

/// What has the numbers: a `Runtime`, whatever it stands on.
pub(crate) trait Source {
    /// Whether it is this process's own, not one that it was forked off from.
    fn is_current(&self) -> bool;
    fn stats(&self) -> Stats;
    /// Those of the size classes of which any block was freed, or allocated anew.
    fn for_each_size(&self, f: &mut dyn FnMut(&SizeStats));
}

/// Longest path of a report.
const PATH_BYTES: usize = 1024;

/// What is known from the claim on, and does not change.
struct Claim {
    config: Config,
    reporting: Reporting,
    /// Makes a source of what `runtime` points to.
    source_of: unsafe fn(*const ()) -> *const dyn Source,
    path: [u8; PATH_BYTES],
}

struct Report {
    state: AtomicU8,
    /// Written while CLAIMING by the one who claims, read from CLAIMED on.
    claim: UnsafeCell<MaybeUninit<Claim>>,
    /// The runtime, once there is one.
    runtime: AtomicPtr<()>,
    start_failed: AtomicBool,
    /// The process is the child of one that has claimed.
    forked: AtomicBool,
}

// SAFETY: `claim` is written by one thread and read by others only afterwards, see `state`.
unsafe impl Sync for Report {}

const FREE: u8 = 0;
const CLAIMING: u8 = 1;
const CLAIMED: u8 = 2;
const READING: u8 = 3;
const GONE: u8 = 4;

static REPORT: Report = Report {
    state: AtomicU8::new(FREE),
    claim: UnsafeCell::new(MaybeUninit::uninit()),
    runtime: AtomicPtr::new(ptr::null_mut()),
    start_failed: AtomicBool::new(false),
    forked: AtomicBool::new(false),
};

/// Those of the allocator that reports.
pub(crate) static NOT_RUNNING: NotRunning = NotRunning::new();

/// Makes the caller's the report of this process; false if there is one already. `config` is asked
/// only if there is none.
pub(crate) fn claim<S: Source + 'static>(
    reporting: Reporting,
    config: impl FnOnce() -> Config,
) -> bool {
    let state = &REPORT.state;
    let claimed =
        state.compare_exchange(FREE, CLAIMING, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if !claimed {
        return false;
    }
    let mut path = [0; PATH_BYTES];
    // The last byte stays 0.
    config::report_path(&mut path[..PATH_BYTES - 1]);
    let claim = Claim { config: config(), reporting, source_of: source_of::<S>, path };
    // SAFETY: in CLAIMING, which only one thread ever gets to, nobody else looks at it.
    unsafe { (*REPORT.claim.get()).write(claim) };
    // Release pairs with the Acquire in `at_exit`.
    state.store(CLAIMED, Ordering::Release);
    if !sys::at_exit(at_exit) {
        say(format_args!("cannot register for exit; there will be no statistics"));
    }
    // When it is refused, a child's report has some numbers of its parent's in it.
    let _ = sys::at_fork(nothing, nothing, forked_child);
    true
}

/// # Safety
/// `runtime` points to an `S` that lives as long as the source is used.
unsafe fn source_of<S: Source + 'static>(runtime: *const ()) -> *const dyn Source {
    runtime.cast::<S>()
}

/// The allocator that has claimed the report has started its runtime.
pub(crate) fn started<S: Source>(runtime: &S) {
    // Release pairs with the Acquire in `at_exit`.
    REPORT.runtime.store(ptr::from_ref(runtime).cast_mut().cast(), Ordering::Release);
    REPORT.start_failed.store(false, Ordering::Relaxed);
}

/// It could not.
pub(crate) fn start_failed() {
    REPORT.start_failed.store(true, Ordering::Relaxed);
}

/// The allocator that has claimed the report is being dropped: false if its runtime must stay, because
/// it is being read and the process exits.
pub(crate) fn withdraw() -> bool {
    // Release: what the dropper does afterwards is nothing that a reader could still see.
    match REPORT.state.compare_exchange(CLAIMED, GONE, Ordering::AcqRel, Ordering::Relaxed) {
        Ok(_) => true,
        Err(state) => state != READING,
    }
}

/// All that a report is made from.
struct View<'a> {
    config: &'a Config,
    latency: bool,
    source: Option<&'a dyn Source>,
    start_failed: bool,
    process: u32,
    forked: bool,
    process_cpu_ns: Option<u64>,
    /// What a pair of clock readings takes.
    timer_ns: u64,
}

impl View<'_> {
    fn stats(&self) -> Stats {
        let mut stats = self.source.map(Source::stats).unwrap_or_default();
        stats.not_running = NOT_RUNNING.tally();
        stats.start_failed = self.start_failed;
        stats.free_latency = self.latency.then(|| FREES.summary());
        stats.add_process();
        stats
    }

    fn for_each_size(&self, f: &mut dyn FnMut(&SizeStats)) {
        if let Some(source) = self.source {
            source.for_each_size(f);
        }
    }
}

extern "C" fn at_exit() {
    let state = &REPORT.state;
    // Acquire: what was claimed is complete; and see `withdraw`.
    let reads =
        state.compare_exchange(CLAIMED, READING, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if !reads {
        return;
    }
    // SAFETY: initialised before CLAIMED, and not written again.
    let claim = unsafe { (*REPORT.claim.get()).assume_init_ref() };
    let runtime = REPORT.runtime.load(Ordering::Acquire);
    let source = (!runtime.is_null()).then(|| {
        // SAFETY: a runtime of the allocator that has claimed, which stays now that the state is READING,
        // or has been inherited in a fork and stays for ever.
        unsafe { &*(claim.source_of)(runtime) }
    });
    let latency = claim.reporting.latency;
    let view = View {
        config: &claim.config,
        latency,
        source: source.filter(|source| source.is_current()),
        start_failed: REPORT.start_failed.load(Ordering::Relaxed),
        process: std::process::id(),
        forked: REPORT.forked.load(Ordering::Relaxed),
        process_cpu_ns: sys::process_cpu_ns(),
        timer_ns: if latency { timer_ns() } else { 0 },
    };
    match claim.reporting.to {
        // Nothing is claimed then.
        ReportTo::Nowhere => {}
        ReportTo::StandardError => {
            let mut out_of = |bytes: &[u8]| sys::write_stderr(bytes);
            let mut out = Out::new(&mut out_of);
            // An error only says that nobody listens.
            let _ = table::write(&mut out, &view);
            out.finish();
        }
        ReportTo::File => to_file(&claim.path, &view),
    }
}

/// The quickest of some pairs of clock readings.
fn timer_ns() -> u64 {
    let pair = || {
        let start = Instant::now();
        start.elapsed().as_nanos() as u64
    };
    (0..64).map(|_| pair()).min().unwrap_or(0)
}

/// Writes JSON to the file that the pattern names, all of it or nothing.
fn to_file(pattern: &[u8], view: &View<'_>) {
    let mut path = [0; PATH_BYTES + 64];
    let Some(path) = path::expand(pattern, view.process, &mut path) else {
        return say(format_args!("cannot write statistics: the path is too long"));
    };
    let written = sys::replace_file(path, |take| {
        let mut out = Out::new(take);
        // The error, if any, is told by `finish`.
        let _ = json::write(&mut out, view);
        out.finish()
    });
    if let Err(error) = written {
        let shown = config::Quoted(path.to_bytes());
        say(format_args!("cannot write statistics to \"{shown}\": {error}"));
    }
}

unsafe extern "C" fn nothing() {}

/// On the child's only thread.
unsafe extern "C" fn forked_child() {
    REPORT.forked.store(true, Ordering::Relaxed);
    REPORT.start_failed.store(false, Ordering::Relaxed);
    // Forked off by a program's exit handler or another thread while the report was being written: the
    // child's is its own.
    let _ = REPORT.state.compare_exchange(READING, CLAIMED, Ordering::Relaxed, Ordering::Relaxed);
    FREES.reset();
}
