//! How the drainer comes to life: once, when large allocations come to 16 MiB, or not at all.
//!
//! Seen to fail: with a start at the first large allocation, with what grows not counted, with blocks from before the
//! start left out of the stats or their memory left with the allocator, `few_large_blocks`; without the
//! compare-exchange in `start`, `rush`; with a start at the first allocation of any size, `small_program`; with FAILED
//! taken for OFF, and with a start that is not tried again, `refused`; with blocks not rounded while no drainer runs,
//! `rounded_before_the_start`; without `stop` in `drop`, `dropped`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use common::tracking::Tracking;
use common::{
    KIB, MIB, ROOM, START_BYTES, command, drainers, finish, nearly_started, run_child, shuffle,
    sleep_ms, start, thread_refuser, threads_named, touched, wait_until,
};
use deferfree::{Backing, DeferFree, defer_scope};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

const TESTS: &[(&str, fn())] = &[
    ("first_operation", first_operation),
    ("rush", rush),
    ("rounded_before_the_start", rounded_before_the_start),
    ("few_large_blocks", || run_child("few_large_blocks", &[], 20).expect_clean()),
    ("small_program", || run_child("small_program", &[], 20).expect_clean()),
    ("refused", refused),
    ("two_allocators", || run_child("two_allocators", &[], 30).expect_clean()),
    ("moved", || run_child("moved", &[], 20).expect_clean()),
    ("dropped", || run_child("dropped", &[], 30).expect_clean()),
    ("errno_is_kept", || run_child("errno_is_kept", &[], 30).expect_clean()),
    ("errno_is_kept_where_calls_fail", || {
        run_child("errno_is_kept_where_calls_fail", &[], 30).expect_clean();
    }),
];

pub(crate) fn main() -> ExitCode {
    let Some(case) = common::child_case() else {
        return common::run(TESTS);
    };
    match case.as_str() {
        "rush" => rush_child(),
        "few_large_blocks" => few_large_blocks_child(),
        "small_program" => small_program_child(),
        "refused once" => refused_child(1),
        "refused always" => refused_child(1000),
        "two_allocators" => two_allocators_child(),
        "moved" => moved_child(),
        "dropped" => dropped_child(),
        "errno_is_kept" => errno_is_kept_child(),
        "errno_is_kept_where_calls_fail" => errno_is_kept_where_calls_fail_child(),
        first => first_operation_child(first),
    }
    ExitCode::SUCCESS
}

/// Starts the drainer.
const LARGE: Layout = match Layout::from_size_align(16 * MIB, 8) {
    Ok(layout) => layout,
    Err(_) => panic!(),
};

fn first_operation() {
    for first in ["alloc", "alloc_zeroed", "realloc", "flush", "stats", "config", "aligned"] {
        run_child(first, &[], 20).expect_clean();
    }
}

fn first_operation_child(first: &str) {
    assert_eq!(drainers().len(), 0);
    match first {
        "alloc" => {
            black_box(Vec::<u8>::with_capacity(LARGE.size()));
        }
        "alloc_zeroed" => {
            let zeroed = vec![0u8; LARGE.size()];
            assert!(zeroed.iter().step_by(512).all(|&byte| byte == 0));
        }
        "realloc" => {
            let mut grown = vec![9u8; 100];
            grown.reserve_exact(LARGE.size());
            assert_eq!(grown, [9; 100]);
        }
        "aligned" => {
            let layout = LARGE.align_to(2 * MIB).unwrap();
            // SAFETY: a valid layout; freed as allocated.
            unsafe {
                let block = GLOBAL.alloc(layout);
                assert_eq!(block.addr() % layout.align(), 0);
                GLOBAL.dealloc(block, layout);
            }
        }
        // These do not start it.
        "flush" => GLOBAL.flush(),
        "stats" => assert_eq!(GLOBAL.stats().handed_over.blocks, 0),
        "config" => assert!(GLOBAL.config().enabled),
        _ => panic!("{first}"),
    }
    if matches!(first, "flush" | "stats" | "config") {
        assert_eq!(drainers().len(), 0);
        assert!(!GLOBAL.stats().drainer_running);
        drop(touched(LARGE.size()));
    }
    let stats = GLOBAL.stats();
    assert!(stats.drainer_running);
    // From the very first block on: it is allocated with the drainer under way.
    assert_eq!((stats.handed_over.blocks, stats.not_running.blocks), (1, 0), "{stats:?}");
    wait_until("one drainer", || drainers().len() == 1);
    GLOBAL.flush();
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
}

fn rush() {
    for _ in 0..20 {
        run_child("rush", &[], 20).expect_clean();
    }
}

fn rush_child() {
    const N: usize = 64;
    let barrier = Barrier::new(N);
    thread::scope(|scope| {
        for n in 0..N {
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                // Not a class's own size: a block that is not rounded is too small for the next.
                let mut block = vec![n as u8; MIB + 1 + n];
                block.fill(n as u8 + 1);
                assert!(block.iter().step_by(4096).all(|&byte| byte == n as u8 + 1));
            });
        }
    });
    wait_until("a drainer", || !drainers().is_empty());
    sleep_ms(10);
    assert_eq!(drainers().len(), 1);
    let stats = GLOBAL.stats();
    assert!(stats.drainer_running);
    assert_eq!(stats.handed_over.blocks + stats.not_running.blocks, N as u64, "{stats:?}");
}

/// A block that was allocated while the drainer was being started waits among the others: it has
/// room for the whole class too.
fn rounded_before_the_start() {
    const N: usize = 16;
    for _ in 0..50 {
        let book = Tracking::leak();
        let heap =
            nearly_started(DeferFree::with_backing(book).threshold(64 * KIB).delay_ms(3_600_000));
        let barrier = Barrier::new(N);
        thread::scope(|scope| {
            for n in 0..N {
                let (heap, barrier) = (&heap, &barrier);
                scope.spawn(move || {
                    let layout = Layout::from_size_align(MIB + 1 + n, 8).unwrap();
                    barrier.wait();
                    // SAFETY: a valid layout; freed as allocated.
                    unsafe {
                        let block = heap.alloc(layout);
                        barrier.wait();
                        heap.dealloc(block, layout);
                    }
                });
            }
        });
        let whole = Layout::from_size_align(MIB + MIB / 16, 8).unwrap();
        while heap.stats().pending.blocks > 0 {
            // SAFETY: a valid layout.
            let block = unsafe { heap.alloc(whole) };
            assert!(book.size_of(block) >= whole.size());
        }
        assert!(heap.stats().reused.blocks > 0);
    }
}

/// A program is served as by the backing alone until it has allocated 16 MiB.
fn few_large_blocks_child() {
    let mut grown = Vec::<u8>::with_capacity(MIB);
    for n in [2, 4, 8] {
        grown.reserve_exact(n * MIB);
    }
    drop(black_box(grown));
    let early = black_box(Vec::<u8>::with_capacity(MIB - KIB));
    let stats = GLOBAL.stats();
    assert!(!stats.drainer_running, "{stats:?}");
    assert_eq!((stats.handed_over.blocks, stats.not_running.blocks), (0, 4), "{stats:?}");
    let last = black_box(Vec::<u8>::with_capacity(2 * MIB));
    assert!(GLOBAL.stats().drainer_running);
    // Nothing can wait of a size that has not been allocated since; its memory goes back all the same.
    drop(early);
    let stats = GLOBAL.stats();
    assert_eq!((stats.handed_over.blocks, stats.not_running.blocks), (0, 5), "{stats:?}");
    wait_until("memory is returned", || GLOBAL.stats().purges > 0);
    drop(last);
    let stats = GLOBAL.stats();
    assert_eq!((stats.pending.blocks, stats.not_running.blocks), (1, 5), "{stats:?}");
    assert_eq!(drainers().len(), 1);
}

fn small_program_child() {
    let mut words: HashMap<usize, String> = HashMap::new();
    for n in 0..1000 {
        words.insert(n % 100, n.to_string().repeat(10));
    }
    // Never more than two frees in a row.
    let work = move || (0..100).for_each(|n| _ = words.remove(&n).map(|word| word + "s"));
    thread::spawn(work).join().unwrap();
    let almost = vec![1u8; GLOBAL.config().threshold_bytes - 1];
    drop(black_box(almost));
    assert_eq!(drainers().len(), 0);
    let stats = GLOBAL.stats();
    assert!(!stats.drainer_running);
    assert_eq!((stats.handed_over.blocks, stats.not_running.blocks), (0, 0));
}

fn refused() {
    let Some(library) = thread_refuser() else { return };
    for (case, n) in [("refused once", "1"), ("refused always", "1000")] {
        let mut command = command(case);
        command.env("LD_PRELOAD", &library).env("REFUSE_THREADS", n);
        let output = finish(command, 20);
        output.expect_code(0);
        let lines: Vec<&str> = output.stderr.lines().collect();
        // The second is the dropper's, which starts at once where only the first thread is refused.
        assert_eq!(lines.len(), if n == "1" { 1 } else { 2 }, "{output:?}");
        assert!(lines[0].starts_with("deferfree: cannot start the drainer"), "{output:?}");
        assert!(lines.iter().all(|line| line.ends_with("; it will be tried again")), "{output:?}");
    }
}

fn refused_child(n_refused: usize) {
    const N: u64 = 100;
    let before = common::rss();
    for _ in 0..N {
        drop(touched(2 * MIB));
    }
    if n_refused > 1 {
        assert!(thread::Builder::new().spawn(|| ()).is_err(), "the refuser refuses");
    }
    let mut grown = touched(MIB);
    grown.resize(5 * MIB, 2);
    assert!(grown[..MIB].iter().all(|&byte| byte == 1));
    drop(grown);
    assert_eq!(drainers().len(), 0);
    let stats = GLOBAL.stats();
    assert!(!stats.drainer_running);
    assert_eq!((stats.handed_over.blocks, stats.pending.blocks), (0, 0));
    assert!(stats.not_running.blocks >= N && stats.start_failed, "{stats:?}");
    assert!(stats.not_running.bytes >= N * 2 * MIB as u64, "{stats:?}");
    // Without a drainer flush purges on the calling thread.
    GLOBAL.flush();
    assert!(common::rss() < before + 50 * MIB);
    // It is tried again a second after the first time.
    sleep_ms(1000);
    drop(touched(2 * MIB));
    let stats = GLOBAL.stats();
    assert_eq!((stats.drainer_running, stats.start_failed), (n_refused == 1, n_refused > 1));
    assert_eq!(stats.handed_over.blocks, u64::from(n_refused == 1), "{stats:?}");
    let values = || (0..10).map(|n| vec![n; 100]).for_each(deferfree::later);
    values();
    sleep_ms(1000);
    values();
    assert!(deferfree::flush_values());
    // The first values started the dropper where it may: nothing had tried before.
    assert_eq!(threads_named("deferfree-drop").len(), usize::from(n_refused == 1));
}

/// Allocates and frees on four threads, blocks passed on from one to the next.
fn churn<B: Backing>(heap: &DeferFree<B>, rounds: usize) {
    let n_bad = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..4usize {
            let n_bad = &n_bad;
            scope.spawn(move || {
                for round in 0..rounds {
                    let size = 64 * KIB + (n * 7 + round) % 5 * 16 * KIB;
                    let layout = Layout::from_size_align(size, 8).unwrap();
                    let mark = (n * 31 + round) as u8;
                    // SAFETY: a valid layout, bytes within the block, freed as allocated.
                    unsafe {
                        let block = heap.alloc(layout);
                        block.write(mark);
                        block.add(size - 1).write(mark);
                        drop(black_box(Vec::<u8>::with_capacity(300 * KIB)));
                        if block.read() != mark || block.add(size - 1).read() != mark {
                            n_bad.fetch_add(1, Ordering::Relaxed);
                        }
                        heap.dealloc(block, layout);
                    }
                }
            });
        }
    });
    assert_eq!(n_bad.into_inner(), 0);
}

/// The global one on mimalloc, one on the C library and two that keep books: `Tracking` ends the
/// process when it is given a block that is not its own.
fn two_allocators_child() {
    let (book_a, book_b) = (Tracking::leak(), Tracking::leak());
    let a = nearly_started(DeferFree::with_backing(book_a).threshold(64 * KIB).delay_ms(2));
    let b = nearly_started(DeferFree::with_backing(book_b).threshold(64 * KIB).delay_ms(3));
    let system = nearly_started(DeferFree::with_backing(System).threshold(64 * KIB).delay_ms(1));
    drop(touched(MIB));
    thread::scope(|scope| {
        scope.spawn(|| churn(&a, 300));
        scope.spawn(|| churn(&b, 300));
        scope.spawn(|| churn(&system, 300));
    });
    wait_until("four drainers", || drainers().len() == 4);
    for stats in [a.stats(), b.stats(), system.stats()] {
        // One more was freed before the start.
        let n_before = u64::from(START_BYTES > 0);
        let n_freed = stats.handed_over.blocks + stats.not_running.blocks;
        assert_eq!(n_freed, 4 * 300 + n_before, "{stats:?}");
    }
    a.flush();
    assert_eq!(book_a.live_blocks(), 0);
    b.flush();
    assert_eq!(book_b.live_blocks(), 0);
    drop((a, b));
    wait_until("two have ended", || drainers().len() == 2);
    churn(&system, 10);
    assert!(GLOBAL.stats().handed_over.blocks > 0);
}

#[inline(never)]
fn pass_on<T>(value: T) -> T {
    black_box(value)
}

fn moved_child() {
    let book = Tracking::leak();
    let heap = DeferFree::with_backing(book).threshold(64 * KIB).delay_ms(3_600_000);
    let mut heap = nearly_started(heap.max_pending(ROOM));
    let mut blocks = Vec::new();
    for _ in 0..20 {
        // SAFETY: a valid layout.
        blocks.push(unsafe { heap.alloc(LARGE) });
        heap = pass_on(heap);
    }
    for block in blocks {
        // SAFETY: allocated above.
        unsafe { heap.dealloc(block, LARGE) };
        heap = *pass_on(Box::new(heap));
    }
    assert_eq!(heap.stats().pending.blocks, 20);
    let heap = thread::spawn(move || {
        // SAFETY: a valid layout; freed as allocated.
        unsafe {
            let block = heap.alloc(LARGE);
            heap.dealloc(block, LARGE);
        }
        heap
    })
    .join()
    .unwrap();
    let stats = heap.stats();
    assert_eq!((stats.pending.blocks, stats.reused.blocks), (20, 1), "{stats:?}");
    drop(heap);
    wait_until("everything is freed", || book.live_blocks() == 0);
    wait_until("the drainer has ended", || drainers().is_empty());
}

fn dropped_child() {
    // One that never did anything, and one that only did small things.
    drop(DeferFree::with_backing(System));
    let small = DeferFree::with_backing(System);
    let layout = Layout::new::<u64>();
    // SAFETY: a valid layout; freed as allocated.
    unsafe { small.dealloc(small.alloc(layout), layout) };
    drop(small);
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let mut n_maps = 0;
    for round in 0..100 {
        let book = Tracking::leak();
        let heap = nearly_started(
            DeferFree::with_backing(book).threshold(64 * KIB).delay_ms(round % 3 * 1000),
        );
        churn(&heap, 3);
        drop(heap);
        wait_until("everything is freed", || book.live_blocks() == 0);
        if round == 20 {
            wait_until("all but the global one have ended", || drainers().len() == 1);
            n_maps = maps();
        }
    }
    wait_until("all but the global one have ended", || drainers().len() == 1);
    // What a drainer lived in goes with it. Stacks are kept for reuse by the C library.
    assert!(maps() < n_maps + 40, "{} mappings, {n_maps} before", maps());
}

/// Does something that is not to change `errno`.
#[track_caller]
fn keeps_errno(f: impl FnOnce()) {
    const MARK: libc::c_int = 4711;
    // SAFETY: the calling thread's own.
    unsafe {
        let errno = libc::__errno_location();
        errno.write_volatile(MARK);
        f();
        assert_eq!(errno.read_volatile(), MARK);
    }
}

/// As `errno_is_kept`, where no file can be opened and nothing be mapped.
fn errno_is_kept_where_calls_fail_child() {
    let mut small: Vec<_> = (0..10_000u64).map(|n| Box::new([n; 8])).collect();
    shuffle(&mut small);
    let medium: Vec<_> = (0..64).map(|_| touched(100 * KIB)).collect();
    let nothing = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a limit of this process's own; the file is one that there is.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &nothing), 0);
        assert_eq!(libc::open(c"/proc/self/statm".as_ptr(), libc::O_RDONLY), -1);
    }
    assert!(!GLOBAL.stats().drainer_running);
    for block in medium {
        keeps_errno(|| drop(block));
    }
    start(&GLOBAL);
    assert!(GLOBAL.stats().drainer_running);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &nothing) }, 0);
    let _scope = defer_scope();
    for block in small {
        keeps_errno(|| drop(block));
    }
    assert!(GLOBAL.stats().bursts.no_chunk_blocks > 0);
}

/// Whatever a free has to do beside: here it begins bursts and starts the drainer.
fn errno_is_kept_child() {
    let mut boxes: Vec<_> = (0..400_000u64).map(|n| Box::new([n; 8])).collect();
    shuffle(&mut boxes);
    // A younger thread starts no drainer for a burst.
    sleep_ms(50);
    assert_eq!(drainers().len(), 0);
    let large: Vec<_> = (0..4).map(|_| touched(MIB)).collect();
    let mut boxes = boxes.into_iter();
    while boxes.len() > 0 {
        keeps_errno(|| drop(boxes.next()));
    }
    wait_until("the drainer runs", || drainers().len() == 1);
    let mut large = large.into_iter();
    while large.len() > 0 {
        keeps_errno(|| drop(large.next()));
    }
}
