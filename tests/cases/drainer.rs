//! The background thread: drains, purges, sleeps, wakes, answers `flush`, takes no signals.
//!
//! Seen to fail: without the wake-up, `wakes_each_time`; without it for inline frees,
//! `wakes_to_purge`; without the purge, `goes_idle`; without going to sleep, `sleeps`; with a wake-up
//! for every free, `a_million_frees`; without `SignalsBlocked`, `signals`; without
//! `release_in_pieces`, `released_before_unmapped`; with a flush that is answered by a round that
//! drained only what was old, `flush_by_many`; with the time of the last purge not noted,
//! `purges_rarely_at_work`; with a wake-up for each sixteen MiB of other sizes, `sizes_of_all_kinds`; with all that
//! waits freed to make room, or given back for a smaller block, `a_size_in_use_stays`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::tracking::Tracking;
use common::{
    GIB, KIB, MIB, ROOM, drainers, nearly_start, nearly_started, rss, run_child, shuffle, sleep_ms,
    task_status, touched, voluntary_switches, wait_until,
};
use deferfree::{Backing, DeferFree};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new().max_pending(ROOM);

pub(crate) fn main() -> ExitCode {
    let case = common::child_case();
    if case.as_deref() != Some("small_blocks_alone") {
        nearly_start(&GLOBAL);
    }
    match case.as_deref() {
        Some("goes_idle") => goes_idle_child(),
        Some("sleeps") => sleeps_child(),
        Some("goes_idle_after_a_burst") => goes_idle_after_a_burst_child(),
        Some("wakes_each_time") => wakes_each_time_child(),
        Some("wakes_for_each_burst") => wakes_for_each_burst_child(),
        Some("wakes_to_purge") => wakes_to_purge_child(),
        Some("purges_rarely_at_work") => purges_rarely_at_work_child(),
        Some("purges_in_steps") => purges_in_steps_child(),
        Some("small_blocks_alone") => small_blocks_alone_child(),
        Some("a_million_frees") => a_million_frees_child(),
        Some("sizes_of_all_kinds") => sizes_of_all_kinds_child(),
        Some("a_size_in_use_stays") => a_size_in_use_stays_child(),
        Some("hurried_all_the_time") => hurried_all_the_time_child(),
        Some("flush_by_many") => flush_by_many_child(),
        Some("flush_alone") => flush_alone_child(),
        Some("flush_under_churn") => flush_under_churn_child(),
        Some("blocks_of_their_own") => blocks_of_their_own_child(),
        Some("released_before_unmapped") => released_before_unmapped_child(),
        Some("signals") => signals_child(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("goes_idle", || clean("goes_idle", "250ms")),
                ("sleeps", || clean("sleeps", "20ms")),
                ("goes_idle_after_a_burst", || clean("goes_idle_after_a_burst", "250ms")),
                ("wakes_each_time", || clean("wakes_each_time", "5ms")),
                ("wakes_for_each_burst", || clean("wakes_for_each_burst", "5ms")),
                ("wakes_to_purge", wakes_to_purge),
                ("purges_rarely_at_work", || {
                    clean("purges_rarely_at_work", "250ms");
                    // Its rounds are so far apart as a rest is long.
                    clean("purges_rarely_at_work", "1s");
                }),
                ("purges_in_steps", || clean("purges_in_steps", "250ms")),
                ("small_blocks_alone", || clean("small_blocks_alone", "250ms")),
                ("a_million_frees", a_million_frees),
                ("sizes_of_all_kinds", || clean("sizes_of_all_kinds", "40ms")),
                ("a_size_in_use_stays", || clean("a_size_in_use_stays", "3600s")),
                ("hurried_all_the_time", || clean("hurried_all_the_time", "250ms")),
                ("flush_by_many", || clean("flush_by_many", "3600s")),
                ("flush_alone", || clean("flush_alone", "4ms")),
                ("flush_under_churn", || clean("flush_under_churn", "50ms")),
                ("blocks_of_their_own", || clean("blocks_of_their_own", "250ms")),
                ("released_before_unmapped", || clean("released_before_unmapped", "3600s")),
                ("signals", || clean("signals", "20ms")),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn clean(case: &str, delay: &str) {
    run_child(case, &[("DEFERFREE_DELAY", delay)], 40).expect_clean();
}

fn pending_blocks() -> u64 {
    GLOBAL.stats().pending.blocks
}

fn drainer() -> i32 {
    wait_until("the drainer has its name", || !drainers().is_empty());
    let drainers = drainers();
    assert_eq!(drainers.len(), 1);
    drainers[0]
}

fn goes_idle_child() {
    let before = rss();
    let blocks: Vec<_> = (0..256).map(|_| touched(MIB)).collect();
    assert!(rss() > before + 250 * MIB);
    drop(blocks);
    assert!(pending_blocks() >= 250);
    wait_until("nothing is pending", || pending_blocks() == 0);
    wait_until("memory is returned", || rss() < before + 50 * MIB);
    wait_until("the purge is counted", || GLOBAL.stats().purges > 0);
    assert!(GLOBAL.stats().drained.blocks >= 250);
}

fn sleeps_child() {
    for _ in 0..3 {
        drop(touched(4 * MIB));
        wait_until("nothing is pending", || pending_blocks() == 0);
        // It purges after draining, stays awake for four delays, and falls asleep then.
        sleep_ms(1600);
        let before = voluntary_switches(drainer());
        sleep_ms(1000);
        assert_eq!(voluntary_switches(drainer()), before);
    }
}

fn wakes_each_time_child() {
    // A free that comes just as the drainer falls asleep is the one that could go unnoticed, so the
    // next one follows at different distances, from long before that to long after.
    for round in 0..80 {
        drop(touched(MIB));
        let deadline = Instant::now() + Duration::from_secs(5);
        while pending_blocks() > 0 {
            assert!(Instant::now() < deadline, "round {round}: the free went unnoticed");
            thread::yield_now();
        }
        let pause = Instant::now();
        while pause.elapsed() < Duration::from_micros(round * 500) {
            black_box(());
        }
    }
}

/// What was written down is freed, the memory goes back, and then there is nothing to do until the
/// next burst.
fn goes_idle_after_a_burst_child() {
    let before = rss();
    for _ in 0..3 {
        let mut blocks: Vec<_> = (0..500_000).map(|n| Box::new([n; 50])).collect();
        shuffle(&mut blocks);
        assert!(rss() > before + 90 * MIB);
        let scope = deferfree::defer_scope();
        drop(black_box(blocks));
        drop(scope);
        wait_until("nothing waits", || GLOBAL.stats().bursts.pending.blocks == 0);
        wait_until("memory is returned", || rss() < before + 30 * MIB);
        sleep_ms(1600);
        let of_drainer = || (voluntary_switches(drainer()), GLOBAL.stats().drainer_cpu_ns);
        let idle = of_drainer();
        sleep_ms(1000);
        assert_eq!(of_drainer(), idle);
    }
    assert_eq!(GLOBAL.stats().bursts.deferred.blocks, 3 * 500_000);
}

/// As `wakes_each_time`, for small blocks, which are too few for anybody to tell the drainer of while it is awake.
fn wakes_for_each_burst_child() {
    for round in 0..80 {
        let blocks = [0; 5].map(Box::new);
        let scope = deferfree::defer_scope();
        drop(black_box(blocks));
        drop(scope);
        let deadline = Instant::now() + Duration::from_secs(5);
        while GLOBAL.stats().bursts.pending.blocks > 0 {
            assert!(Instant::now() < deadline, "round {round}: the blocks went unnoticed");
            thread::yield_now();
        }
        let pause = Instant::now();
        while pause.elapsed() < Duration::from_micros(round * 500) {
            black_box(());
        }
    }
    assert_eq!(GLOBAL.stats().bursts.paid_back.blocks, 0);
}

/// Frees that are inline leave memory to be purged: the drainer hears of that too.
fn wakes_to_purge_child() {
    drop(touched(MIB));
    for round in 0..20 {
        wait_until("the drainer has nothing to do", || GLOBAL.stats().purges > 0);
        let purges = GLOBAL.stats().purges;
        // Awake in one round, asleep in the next.
        sleep_ms(if round % 2 == 0 { 0 } else { 60 });
        drop(touched(MIB));
        wait_until("memory is purged", || GLOBAL.stats().purges > purges);
    }
    assert_eq!(GLOBAL.stats().peak_pending_bytes, 0);
}

/// While a program is at work its memory goes back every five seconds, not in each round: what has gone
/// back has to be faulted in again. Sizes change, so that blocks are given back all the time.
fn purges_rarely_at_work_child() {
    let start = Instant::now();
    let mut size = 300 * KIB;
    while start.elapsed() < Duration::from_secs(8) {
        drop(black_box(touched(size)));
        size = 300 * KIB + size * 7 % (4 * MIB);
    }
    let stats = GLOBAL.stats();
    assert!(stats.paid_back.blocks > 100, "{stats:?}");
    // One after five seconds; some more where the machine was too busy for this thread to go on.
    assert!((1..10).contains(&stats.purges), "{stats:?}");
}

/// A fork waits for the purge that is under way: none is of a whole gigabyte.
fn purges_in_steps_child() {
    let blocks: Vec<_> = (0..1000).map(|_| touched(MIB)).collect();
    let purges = GLOBAL.stats().purges;
    drop(blocks);
    wait_until("all is given back", || pending_blocks() == 0 && rss() < 100 * MIB);
    let stats = GLOBAL.stats();
    assert!(stats.purges >= purges + 1000 / 64, "{stats:?}");
}

/// A program that never frees two blocks in a row, and none that is large: mimalloc notes that it is at work.
fn small_blocks_alone_child() {
    assert!(drainers().is_empty());
    let before = rss();
    let mut blocks: Vec<_> = (0..500_000).map(|i: u32| Box::new([i; 100])).collect();
    assert!(rss() > before + 180 * MIB && drainers().is_empty());
    while blocks.len() > 1000 {
        // An allocation beside each free: no burst.
        black_box(Box::new([0u32; 100]));
        blocks.pop();
    }
    drainer();
    wait_until("memory is returned", || rss() < before + 50 * MIB);
    assert_eq!(GLOBAL.stats().bursts.deferred.blocks, 0);
}

fn wakes_to_purge() {
    let env = [("DEFERFREE_DELAY", "4ms"), ("DEFERFREE_MAX_PENDING", "0")];
    run_child("wakes_to_purge", &env, 40).expect_clean();
}

fn a_million_frees() {
    for env in [
        &[("DEFERFREE_DELAY", "40ms")][..],
        &[("DEFERFREE_DELAY", "0ms")],
        &[("DEFERFREE_DELAY", "40ms"), ("DEFERFREE_MAX_PENDING", "0")],
    ] {
        run_child("a_million_frees", env, 60).expect_clean();
    }
}

fn a_million_frees_child() {
    drop(touched(256 * KIB));
    let tid = drainer();
    let (before, start) = (voluntary_switches(tid), Instant::now());
    for _ in 0..1_000_000 {
        drop(black_box(Vec::<u8>::with_capacity(256 * KIB)));
    }
    let switches = voluntary_switches(tid) - before;
    // Twice per tick, whose shortest distance is a millisecond, however slow this machine is.
    let allowed = 100 + 4 * start.elapsed().as_millis() as u64;
    assert!(switches <= allowed.min(200_000), "{switches}, {allowed} allowed");
    assert!(GLOBAL.stats().handed_over.blocks >= 1_000_000);
}

/// Of less than 2 MiB, and so that seldom one fits that waits: it allocates one and frees another.
struct OfAllKinds {
    live: Vec<Vec<u8>>,
    seed: usize,
}

impl OfAllKinds {
    fn new() -> Self {
        let live = (0..16).map(|_| Vec::with_capacity(MIB)).collect();
        OfAllKinds { live, seed: 1 }
    }

    fn step(&mut self) {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let random = self.seed >> 33;
        let new = Vec::with_capacity(256 * KIB + random % (6 * 256 * KIB));
        let place = random % self.live.len();
        drop(std::mem::replace(&mut self.live[place], black_box(new)));
    }
}

/// The program's sizes seem to change all the time: the drainer is not asked to make room for each.
fn sizes_of_all_kinds_child() {
    let mut all_kinds = OfAllKinds::new();
    let tid = drainer();
    let (before, start) = (voluntary_switches(tid), Instant::now());
    (0..200_000).for_each(|_| all_kinds.step());
    let switches = voluntary_switches(tid) - before;
    // Room is made once in a millisecond, and the drainer looks around as often.
    let allowed = 100 + 4 * start.elapsed().as_millis() as u64;
    assert!(switches <= allowed, "{switches}, {allowed} allowed");
    let stats = GLOBAL.stats();
    assert!(stats.paid_back.blocks > 100_000, "{stats:?}");
}

/// A large block that is needed now and then stays, among smaller ones that never fit.
fn a_size_in_use_stays_child() {
    let mut all_kinds = OfAllKinds::new();
    for _ in 0..200 {
        drop(black_box(Vec::<u8>::with_capacity(8 * MIB)));
        (0..10).for_each(|_| all_kinds.step());
        // Else room would not be made in each round.
        sleep_ms(2);
    }
    let stats = GLOBAL.stats();
    assert!(stats.reused.bytes >= 190 * 8 * MIB as u64, "{stats:?}");
    assert!(stats.paid_back.blocks > 1000, "{stats:?}");
}

/// A thread asks for huge blocks all the time, none of which waits: the others grow old all the same.
fn hurried_all_the_time_child() {
    drop((0..100).map(|_| touched(MIB)).collect::<Vec<_>>());
    assert!(pending_blocks() >= 50);
    let odd = Layout::from_size_align(4 * MIB, 4 * MIB).unwrap();
    let mut n_rounds = 0;
    while pending_blocks() >= 10 {
        // SAFETY: freed with the same layout.
        unsafe {
            let block = GLOBAL.alloc(odd);
            assert!(!block.is_null());
            GLOBAL.dealloc(block, odd);
        }
        sleep_ms(10);
        n_rounds += 1;
        assert!(n_rounds < 500, "{:?}", GLOBAL.stats());
    }
}

fn flush_by_many_child() {
    let before = rss();
    for round in 0..15 {
        let tracking = Tracking::leak();
        let local = nearly_started(
            DeferFree::with_backing(tracking).threshold(64 * KIB).delay_ms(3_600_000),
        );
        let layout = Layout::from_size_align(100 * KIB, 8).unwrap();
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let blocks: Vec<_> = (0..20).map(|_| touched(MIB)).collect();
                    // SAFETY: a valid layout.
                    let own: Vec<_> =
                        (0..20).map(|_| unsafe { local.alloc(layout) }.addr()).collect();
                    drop(blocks);
                    for block in own {
                        // SAFETY: allocated above with this layout; the backing is the system's.
                        unsafe {
                            local.dealloc(std::ptr::with_exposed_provenance_mut(block), layout)
                        };
                    }
                    // Nobody frees any more.
                    barrier.wait();
                    GLOBAL.flush();
                    assert_eq!(pending_blocks(), 0, "round {round}");
                    local.flush();
                    assert_eq!(local.stats().pending.blocks, 0, "round {round}");
                    assert_eq!(tracking.live_blocks(), 0, "round {round}");
                });
            }
        });
        assert!(rss() < before + 50 * MIB, "flush returns memory before it returns");
    }
    let stats = GLOBAL.stats();
    let inline = stats.queue_full.blocks + stats.over_bound.blocks;
    assert_eq!(
        stats.drained.blocks + stats.reused.blocks + stats.paid_back.blocks + inline,
        stats.handed_over.blocks
    );
}

/// A flush that meets the drainer in one of its own rounds, at all distances.
fn flush_alone_child() {
    let start = Instant::now();
    let mut n_flushes = 0;
    while n_flushes < 2000 || start.elapsed() < Duration::from_secs(4) {
        drop(touched(256 * KIB));
        GLOBAL.flush();
        assert_eq!(pending_blocks(), 0, "after {n_flushes} flushes");
        n_flushes += 1;
    }
}

fn flush_under_churn_child() {
    let done = AtomicBool::new(false);
    let n_freed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let blocks: Vec<_> =
                        (0..16).map(|_| Vec::<u8>::with_capacity(256 * KIB)).collect();
                    n_freed.fetch_add(black_box(blocks).len(), Ordering::Relaxed);
                }
            });
        }
        let flushers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..100 {
                        GLOBAL.flush();
                    }
                })
            })
            .collect();
        // A flush that waits for what is freed after it began would never end: the watchdog.
        for flusher in flushers {
            flusher.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(n_freed.into_inner() > 0);
    GLOBAL.flush();
    assert_eq!(pending_blocks(), 0);
}

/// Blocks that are mappings of their own: of 256 MiB and more, and with an alignment over 64 KiB.
fn blocks_of_their_own_child() {
    let before = rss();
    let size = 2 * GIB + 64 * MIB;
    let mut huge = Vec::<u8>::with_capacity(size);
    huge.extend_from_slice(&[7; 4096]);
    let spare = huge.spare_capacity_mut();
    for at in (0..spare.len()).step_by(4096) {
        spare[at].write(1);
    }
    assert!(rss() > before + size - 64 * MIB);
    drop(huge);
    assert_eq!(pending_blocks(), 1);
    drop(Vec::<u8>::with_capacity(size));
    assert_eq!(GLOBAL.stats().reused.blocks, 1);
    wait_until("two GiB are returned", || pending_blocks() == 0 && rss() < before + 50 * MIB);

    let layout = Layout::from_size_align(4 * MIB, 2 * MIB).unwrap();
    for round in 0..2 {
        let blocks: Vec<usize> = (0..32)
            .map(|n| {
                // SAFETY: a valid layout, and writes within the block.
                unsafe {
                    let block = GLOBAL.alloc(layout);
                    assert_eq!(block.addr() % layout.align(), 0);
                    block.write_bytes(n, layout.size());
                    block.expose_provenance()
                }
            })
            .collect();
        for (n, block) in blocks.into_iter().enumerate() {
            let block = std::ptr::with_exposed_provenance_mut::<u8>(block);
            // SAFETY: the block from above, still live.
            unsafe {
                for at in [0, layout.size() / 2, layout.size() - 1] {
                    assert_eq!(block.add(at).read(), n as u8);
                }
                GLOBAL.dealloc(block, layout);
            }
        }
        wait_until("aligned blocks are returned", || {
            pending_blocks() == 0 && rss() < before + 50 * MIB
        });
        let stats = GLOBAL.stats();
        assert_eq!(stats.handed_over.blocks, 2 + 32 * (round + 1), "{stats:?}");
    }
}

/// Maps each block by itself, and looks at its pages when it comes back.
#[derive(Clone, Copy)]
struct Mapped;

static MOST_RESIDENT_PAGES: AtomicUsize = AtomicUsize::new(0);
static N_UNMAPPED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: a fresh mapping each, which is aligned to a page: this test asks for no more.
unsafe impl GlobalAlloc for Mapped {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let ptr =
            unsafe { libc::mmap(std::ptr::null_mut(), layout.size(), protection, flags, -1, 0) };
        if ptr == libc::MAP_FAILED { std::ptr::null_mut() } else { ptr.cast() }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let mut pages = vec![0u8; layout.size().div_ceil(4096)];
        // SAFETY: the caller's block, and a byte for each of its pages.
        unsafe {
            libc::mincore(ptr.cast(), layout.size(), pages.as_mut_ptr());
            libc::munmap(ptr.cast(), layout.size());
        }
        let n_resident = pages.iter().filter(|&&page| page & 1 != 0).count();
        MOST_RESIDENT_PAGES.fetch_max(n_resident, Ordering::SeqCst);
        N_UNMAPPED.fetch_add(usize::from(layout.size() >= MIB), Ordering::SeqCst);
    }
}

// SAFETY: any thread may unmap; the size that a block is freed with is the one it is mapped with,
// because large blocks have the size of their class both times.
unsafe impl Backing for Mapped {
    fn unmaps_on_free(&self, _: Layout) -> bool {
        true
    }
}

/// The pages of a block that its free unmaps are gone before: `munmap` of a block that is resident
/// holds up every other thread for the time that it takes to free the pages.
fn released_before_unmapped_child() {
    let local = nearly_started(
        DeferFree::with_backing(Mapped).threshold(64 * KIB).delay_ms(3_600_000).max_pending(ROOM),
    );
    let n_before = N_UNMAPPED.load(Ordering::SeqCst);
    // More than one piece, not a whole number of them, and not so much that the crate maps it itself.
    let layout = Layout::from_size_align(7 * MIB, 8).unwrap();
    // SAFETY: a valid layout; written within the block, freed as allocated.
    unsafe {
        for _ in 0..3 {
            let block = local.alloc(layout);
            block.write_bytes(1, layout.size());
            local.dealloc(block, layout);
        }
    }
    assert_eq!(local.stats().pending.blocks, 1);
    local.flush();
    assert_eq!(N_UNMAPPED.load(Ordering::SeqCst), n_before + 1);
    assert_eq!(MOST_RESIDENT_PAGES.load(Ordering::SeqCst), 0);
}

static HANDLED_BY: AtomicI32 = AtomicI32::new(0);
static N_HANDLED: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: a system call without arguments.
    HANDLED_BY.store(unsafe { libc::gettid() }, Ordering::SeqCst);
    N_HANDLED.fetch_add(1, Ordering::SeqCst);
}

fn signals_child() {
    // SAFETY: the handler does nothing but atomics and a system call.
    unsafe { libc::signal(libc::SIGUSR1, on_signal as extern "C" fn(libc::c_int) as usize) };
    let mask_before = own_mask();
    drop(touched(4 * MIB));
    let tid = drainer();
    assert_eq!(own_mask(), mask_before, "the starting thread has its signals back");
    let bits_of =
        |signals: &[i32]| signals.iter().fold(0, |bits, signal| bits | 1u64 << (signal - 1));
    // SIGKILL, SIGSTOP and those that the C library keeps for itself: two, or three in musl.
    let never = bits_of(&[libc::SIGKILL, libc::SIGSTOP, 32, 33, 34]);
    // For crash handlers and profilers, which are to see each thread.
    let own =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGSYS];
    let own = bits_of(&own) | bits_of(&[libc::SIGABRT, libc::SIGPROF]);
    deferfree::later(vec![vec![1; 10]; 10]);
    assert!(deferfree::flush_values());
    for tid in [tid, common::threads_named("deferfree-drop")[0]] {
        let blocked = u64::from_str_radix(&task_status(tid, "SigBlk:")[..], 16).unwrap();
        assert_eq!((blocked | never, blocked & own), (!own, 0), "{blocked:x}");
    }
    for n in 1..=20 {
        // While the main thread is asleep the drainer would be the kernel's first choice.
        let sender = thread::spawn(|| common::kill(std::process::id() as i32, libc::SIGUSR1));
        sender.join().unwrap();
        wait_until("the signal is handled", || N_HANDLED.load(Ordering::SeqCst) == n);
        assert_ne!(HANDLED_BY.load(Ordering::SeqCst), tid);
        drop(touched(MIB));
    }
    // SIGTERM ends the process although the drainer runs, see `exit.rs`; here it is still alive.
    wait_until("nothing is pending", || pending_blocks() == 0);
}

fn own_mask() -> String {
    // SAFETY: a system call without arguments.
    task_status(unsafe { libc::gettid() }, "SigBlk:")
}
