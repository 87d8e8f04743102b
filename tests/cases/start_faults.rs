//! Starts under bad conditions: a free comes before any allocation, frees of many threads come first at
//! once, the start itself allocates, the system refuses the thread.
//!
//! Seen to fail: with STARTING taken for OFF, `allocations_inside_the_start`; without the compare-exchange
//! in `PhaseCell::start`, `one_of_two_starts`; with FAILED taken for OFF, `refused_by_a_filter`; where the start asks the
//! dynamic linker, `while_a_library_is_loaded`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::CString;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::tracking::Tracking;
use common::{
    KIB, MIB, command, drainers, finish, flush_to_the_last, fork, library_that_calls, nearly_start,
    on_system, refuse_calls, run_child, shuffle, touched, wait_ok, wait_until,
};
use deferfree::{Backing, DeferFree};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("free_comes_first") => free_comes_first(),
        Some("first_bursts_at_once") => first_bursts_at_once_child(),
        Some("first_frees_after_a_fork") => first_frees_after_a_fork(),
        Some("allocations_inside_the_start") => allocations_inside_the_start(),
        Some("one_of_two_starts") => one_of_two_starts(),
        Some("while_a_library_is_loaded") => while_a_library_is_loaded_child(),
        Some("filter") => refused_by_a_filter_child(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("free_comes_first", || clean("free_comes_first")),
                ("first_bursts_at_once", first_bursts_at_once),
                ("first_frees_after_a_fork", || clean("first_frees_after_a_fork")),
                ("allocations_inside_the_start", || clean("allocations_inside_the_start")),
                ("one_of_two_starts", || clean("one_of_two_starts")),
                ("refused_by_a_filter", refused_by_a_filter),
                ("while_a_library_is_loaded", while_a_library_is_loaded),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn clean(case: &str) {
    run_child(case, &[("DEFERFREE_BURST", "128")], 30).expect_clean();
}

/// As an allocator sees it that is put in front of a running program.
fn free_comes_first() {
    let book = Tracking::leak();
    // The size of a class.
    let layout = Layout::from_size_align(16 * MIB, 8).unwrap();
    for small in [false, true] {
        let heap = DeferFree::with_backing(book);
        let layout = if small { Layout::new::<u64>() } else { layout };
        // SAFETY: a valid layout; freed once, by an allocator that stands on the same one.
        unsafe {
            let block = book.alloc(layout);
            heap.dealloc(block, layout);
            assert!(!book.is_live(block));
        }
        let stats = heap.stats();
        assert_eq!(stats.not_running.blocks, u64::from(!small), "{stats:?}");
        assert_eq!((stats.drainer_running, stats.handed_over.blocks), (false, 0), "{stats:?}");
        // And then as usual.
        // SAFETY: valid layouts; freed as allocated.
        unsafe { heap.dealloc(heap.alloc(layout), layout) };
        assert_eq!(heap.stats().handed_over.blocks, u64::from(!small));
    }
    wait_until("the drainer has ended", || drainers().is_empty());
}

/// The dynamic linker holds a lock while a library's constructor runs, and that waits for a thread whose allocation starts
/// the drainer.
fn while_a_library_is_loaded() {
    let Some(library) = library_that_calls() else { return };
    let mut command = command("while_a_library_is_loaded");
    command.env("LIBRARY", library);
    finish(command, 20).expect_clean();
}

static IS_HERE: AtomicUsize = AtomicUsize::new(0);
static IS_LOADING: AtomicUsize = AtomicUsize::new(0);
static IS_STARTED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn constructor() {
    IS_LOADING.store(1, Ordering::Release);
    wait_until("the drainer runs", || IS_STARTED.load(Ordering::Acquire) == 1);
}

fn while_a_library_is_loaded_child() {
    let other = thread::spawn(|| {
        // The start of a Rust thread needs the dynamic linker, too.
        IS_HERE.store(1, Ordering::Release);
        while IS_LOADING.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        assert!(!GLOBAL.stats().drainer_running);
        nearly_start(&GLOBAL);
        drop(touched(MIB));
        assert!(GLOBAL.stats().drainer_running);
        IS_STARTED.store(1, Ordering::Release);
    });
    wait_until("the thread is here", || IS_HERE.load(Ordering::Acquire) == 1);
    let library = CString::new(std::env::var("LIBRARY").unwrap()).unwrap();
    let address = CString::new((constructor as extern "C" fn() as usize).to_string()).unwrap();
    // SAFETY: C strings. The library calls a function of that type; nobody else looks at the environment.
    unsafe {
        assert_eq!(libc::setenv(c"CALL".as_ptr(), address.as_ptr(), 1), 0);
        assert!(!libc::dlopen(library.as_ptr(), libc::RTLD_NOW).is_null());
    }
    other.join().unwrap();
    GLOBAL.flush();
}

/// The first thing that starts a drainer is a free, on each of 64 threads.
fn first_bursts_at_once() {
    for _ in 0..10 {
        run_child("first_bursts_at_once", &[("DEFERFREE_BURST", "128")], 30).expect_clean();
    }
}

fn first_bursts_at_once_child() {
    const N: usize = 64;
    let all: Vec<Vec<Box<[u64; 6]>>> = (0..N)
        .map(|_| {
            let mut blocks: Vec<_> = (0..1000).map(|n| Box::new([n; 6])).collect();
            shuffle(&mut blocks);
            blocks
        })
        .collect();
    assert_eq!(drainers().len(), 0);
    let barrier = Barrier::new(N);
    thread::scope(|scope| {
        for blocks in all {
            let barrier = &barrier;
            scope.spawn(move || {
                drop(std::hint::black_box(Box::new(1)));
                // A younger thread starts no drainer for a burst.
                common::sleep_ms(41);
                barrier.wait();
                drop(blocks);
            });
        }
    });
    assert!(GLOBAL.stats().drainer_running);
    wait_until("a drainer", || !drainers().is_empty());
    assert_eq!(drainers().len(), 1);
    flush_to_the_last(&GLOBAL);
    let bursts = GLOBAL.stats().bursts;
    assert!(bursts.deferred.blocks > 0, "{bursts:?}");
    assert_eq!(bursts.pending.blocks, 0, "{bursts:?}");
    assert_eq!(bursts.deferred.blocks, bursts.drained.blocks + bursts.paid_back.blocks);
    assert_eq!(drainers().len(), 1);
}

/// 64 threads of a forked child, each of which begins with the free of a block of the parent's.
fn first_frees_after_a_fork() {
    const N: usize = 64;
    let blocks: Vec<_> = (0..N).map(|_| touched(MIB)).collect();
    wait_ok(fork(20, || {
        let barrier = Barrier::new(N);
        thread::scope(|scope| {
            for block in blocks {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    drop(block);
                    drop(touched(MIB));
                });
            }
        });
        wait_until("a drainer", || !drainers().is_empty());
        assert_eq!(drainers().len(), 1);
        GLOBAL.flush();
        let stats = GLOBAL.stats();
        assert_eq!(stats.handed_over.blocks + stats.not_running.blocks, 2 * N as u64, "{stats:?}");
        assert_eq!(stats.pending.blocks, 0);
    }));
}

/// The system's allocator, which uses the one above it wherever that calls it for something else than
/// blocks: before the thread starts, on the thread, and when memory is returned.
#[derive(Clone, Copy)]
struct Reentrant;

static HEAP: DeferFree<Reentrant> = DeferFree::with_backing(Reentrant).delay_ms(1);
static N_INSIDE: AtomicUsize = AtomicUsize::new(0);

fn use_heap() {
    for layout in [Layout::new::<[u64; 6]>(), Layout::from_size_align(MIB, 8).unwrap()] {
        // SAFETY: a valid layout, and a size that is; written within the block, freed as allocated.
        unsafe {
            let block = HEAP.alloc_zeroed(layout);
            assert_eq!(block.add(layout.size() - 1).read(), 0);
            block.write_bytes(7, layout.size());
            let grown = HEAP.realloc(block, layout, 3 * MIB);
            assert_eq!(grown.add(layout.size() - 1).read(), 7);
            HEAP.dealloc(grown, Layout::from_size_align(3 * MIB, 8).unwrap());
        }
    }
    assert!(HEAP.config().enabled);
    N_INSIDE.fetch_add(1, Ordering::SeqCst);
}

on_system!(Reentrant);

// SAFETY: as for `System`.
unsafe impl Backing for Reentrant {
    fn drainer_awake(&self, _: bool) {
        use_heap();
    }

    fn drainer_init(&self) {
        use_heap();
    }

    fn purge(&self) {
        use_heap();
    }
}

fn allocations_inside_the_start() {
    nearly_start(&HEAP);
    use_heap();
    // Before the start's thread, and on it.
    wait_until("it was used inside the start", || N_INSIDE.load(Ordering::SeqCst) >= 3);
    wait_until("a drainer", || !drainers().is_empty());
    assert_eq!(drainers().len(), 1);
    assert!(HEAP.stats().drainer_running);
    // What came while the start was under way is counted there.
    assert!(HEAP.stats().not_running.blocks > 1);
    HEAP.flush();
}

/// The system's, which counts its drainers.
#[derive(Clone, Copy)]
struct Counting;

static N_DRAINERS: AtomicUsize = AtomicUsize::new(0);

on_system!(Counting);

// SAFETY: as `System` is one.
unsafe impl Backing for Counting {
    fn drainer_init(&self) {
        N_DRAINERS.fetch_add(1, Ordering::SeqCst);
    }
}

/// Two threads come at the same moment, to one allocator after the other.
fn one_of_two_starts() {
    const ROUNDS: usize = 4000;
    let layout = Layout::from_size_align(MIB, 8).unwrap();
    for _ in 0..ROUNDS {
        let heap = DeferFree::with_backing(Counting);
        nearly_start(&heap);
        let n_here = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    n_here.fetch_add(1, Ordering::SeqCst);
                    while n_here.load(Ordering::SeqCst) < 2 {
                        thread::yield_now();
                    }
                    // SAFETY: a valid layout; freed as allocated.
                    unsafe { heap.dealloc(heap.alloc(layout), layout) };
                });
            }
        });
        assert!(heap.stats().drainer_running);
    }
    // One is known by its name, which it has not had from the beginning.
    wait_until("all have been born", || N_DRAINERS.load(Ordering::SeqCst) >= ROUNDS);
    // Where thousands of threads have made it large, the program's own allocator may have come to run one.
    let of_program = || usize::from(GLOBAL.stats().drainer_running);
    wait_until("all have ended", || drainers().len() == of_program());
    assert_eq!(N_DRAINERS.load(Ordering::SeqCst), ROUNDS);
}

/// As in a container: a filter answers the system calls that make a thread.
fn refused_by_a_filter() {
    for (errno, what, runs) in [
        (libc::EPERM, "both", false),
        (libc::ENOSYS, "both", false),
        (libc::EAGAIN, "both", false),
        // musl does not call it.
        (libc::EPERM, "clone3", cfg!(target_env = "musl")),
        // The C library takes this for an old kernel, and calls `clone`.
        (libc::ENOSYS, "clone3", true),
    ] {
        let mut command = command("filter");
        command.env("ERRNO", errno.to_string()).env("CALLS", what).env("DEFERFREE_BURST", "128");
        command.env("RUNS", if runs { "yes" } else { "no" });
        let output = finish(command, 20);
        output.expect_code(0);
        let lines: Vec<&str> = output.stderr.lines().collect();
        if runs {
            assert_eq!(output.stderr, "");
            continue;
        }
        assert_eq!(lines.len(), 2, "{output:?}");
        assert!(lines[0].starts_with("deferfree: cannot start the drainer"), "{output:?}");
        assert!(lines[1].starts_with("deferfree: cannot start the dropper"), "{output:?}");
    }
}

fn refused_by_a_filter_child() {
    let errno: i32 = std::env::var("ERRNO").unwrap().parse().unwrap();
    let both = std::env::var("CALLS").unwrap() == "both";
    let runs = std::env::var("RUNS").unwrap() == "yes";
    refuse_threads(errno, both);
    nearly_start(&GLOBAL);
    for _ in 0..100 {
        drop(touched(2 * MIB));
    }
    // A burst would start it as well.
    let blocks: Vec<_> = (0..5000).map(|n| Box::new([n; 40])).collect();
    drop(blocks);
    let values = (0..10).map(|n| vec![n; 10 * KIB]);
    values.for_each(deferfree::later);
    assert!(deferfree::flush_values());
    let stats = GLOBAL.stats();
    assert_eq!(stats.drainer_running, runs, "{stats:?}");
    if runs {
        wait_until("one drainer", || drainers().len() == 1);
        assert!(stats.handed_over.blocks >= 100, "{stats:?}");
    } else {
        assert_eq!(common::threads().len(), 1);
        assert!(stats.not_running.blocks >= 100, "{stats:?}");
        assert_eq!((stats.handed_over.blocks, stats.bursts.deferred.blocks), (0, 0), "{stats:?}");
    }
    GLOBAL.flush();
}

/// Has `clone3`, and `clone` with `both`, fail from now on.
fn refuse_threads(errno: i32, both: bool) {
    let calls = [libc::SYS_clone3, libc::SYS_clone];
    refuse_calls(if both { &calls } else { &calls[..1] }, errno);
    assert!(thread::Builder::new().spawn(|| ()).is_err() || !both);
}
