//! When memory runs out: what waits is given back and the allocation retried once, then it is null.
//! Never an abort.
//!
//! Seen to fail: without `give_back_everything`, or without the retry after it,
//! `gives_back_and_retries`; with the old block freed although there is no new one, `realloc_fails`;
//! without a look at whether there is a queue, `queue_that_does_not_fit`; without `allocate_again` and the look at what
//! `realloc` gives, `small_blocks`; without `Giver::come`, `small_blocks_under_a_limit`; with it called by the owner of the
//! bursts alone, `small_blocks_of_another_allocator`; without
//! `is_short`, `threads_that_end_give_nothing_back`; without the resource limits,
//! `limit_is_known`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;

use common::tracking::Tracking;
use common::{
    GIB, KIB, MIB, ROOM, limit_address_space, nearly_start, nearly_started, run_child, touched,
    wait_until,
};
use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new().max_pending(ROOM);

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("gives_back_and_retries") => gives_back_and_retries_child(),
        Some("queue_that_does_not_fit") => queue_that_does_not_fit_child(),
        Some("realloc_fails") => realloc_fails_child(),
        Some("under_a_limit") => under_a_limit_child(),
        Some("first_block") => first_block_child(),
        Some("contended") => contended_child(),
        Some("small_blocks") => small_blocks_child(),
        Some("small_blocks_under_a_limit") => small_blocks_under_a_limit_child(),
        Some("small_blocks_of_another_allocator") => small_blocks_of_another_allocator_child(),
        Some("below_the_threshold_under_a_limit") => below_the_threshold_under_a_limit_child(),
        Some("threads_that_end_give_nothing_back") => threads_that_end_give_nothing_back_child(),
        Some("limit_is_known") => limit_is_known_child(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("gives_back_and_retries", || clean("gives_back_and_retries")),
                ("queue_that_does_not_fit", || clean("queue_that_does_not_fit")),
                ("realloc_fails", || clean("realloc_fails")),
                ("under_a_limit", || clean("under_a_limit")),
                ("first_block", first_block),
                ("contended", || clean("contended")),
                ("small_blocks", || clean("small_blocks")),
                ("small_blocks_under_a_limit", small_blocks_under_a_limit),
                ("small_blocks_of_another_allocator", small_blocks_of_another_allocator),
                ("below_the_threshold_under_a_limit", below_the_threshold_under_a_limit),
                ("threads_that_end_give_nothing_back", || {
                    clean("threads_that_end_give_nothing_back")
                }),
                ("limit_is_known", || clean("limit_is_known")),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn clean(case: &str) {
    run_child(case, &[("DEFERFREE_DELAY", "3600s")], 30).expect_clean();
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn limited(limit: usize) -> (&'static Tracking, DeferFree<&'static Tracking>) {
    let book = Tracking::leak();
    let heap = nearly_started(
        DeferFree::with_backing(book).threshold(64 * KIB).delay_ms(3_600_000).max_pending(8 * GIB),
    );
    book.limit(limit);
    (book, heap)
}

fn fill(heap: &DeferFree<&'static Tracking>, n_blocks: usize, size: usize) {
    // SAFETY: a valid layout; each is freed once, as allocated.
    unsafe {
        let blocks: Vec<_> = (0..n_blocks).map(|_| heap.alloc(layout(size))).collect();
        for block in blocks {
            assert!(!block.is_null());
            heap.dealloc(block, layout(size));
        }
    }
}

/// So small that nothing here is huge, nor so much that the drainer is asked to make room.
const UNIT: usize = 128 * KIB;

fn gives_back_and_retries_child() {
    for zeroed in [false, true] {
        let alloc = |heap: &DeferFree<&'static Tracking>, size| {
            // SAFETY: a valid layout.
            unsafe {
                if zeroed { heap.alloc_zeroed(layout(size)) } else { heap.alloc(layout(size)) }
            }
        };
        let (book, heap) = limited(100 * UNIT);
        fill(&heap, 100, UNIT);
        assert_eq!(heap.stats().pending.blocks, 100);
        // More than one allocation pays back on its own: refused, then granted.
        let block = alloc(&heap, 96 * UNIT);
        assert!(!block.is_null());
        assert_eq!(book.n_refused(), 1);
        let stats = heap.stats();
        assert_eq!(stats.pending.blocks, 0, "{stats:?}");
        assert_eq!(stats.drained.blocks + stats.paid_back.blocks, 100, "{stats:?}");
        // SAFETY: allocated with this layout.
        unsafe { heap.dealloc(block, layout(96 * UNIT)) };

        // It does not fit at all: null, after one retry, with nothing left waiting.
        fill(&heap, 2, UNIT);
        let n_refused = book.n_refused();
        assert!(alloc(&heap, 101 * UNIT).is_null());
        assert_eq!(book.n_refused(), n_refused + 2);
        assert_eq!(heap.stats().pending.blocks, 0);
        assert_eq!(book.live_blocks(), 0);
        // What is larger than any address space has no class.
        assert!(alloc(&heap, isize::MAX as usize - 4096).is_null());

        // And all goes on.
        fill(&heap, 10, UNIT);
        assert!(!alloc(&heap, UNIT).is_null());
    }
}

/// Without a queue the block is freed inline, and counted.
fn queue_that_does_not_fit_child() {
    let (book, heap) = limited(usize::MAX);
    fill(&heap, 10, MIB);
    // SAFETY: valid layouts; freed as allocated.
    unsafe {
        // The C library keeps this for the blocks below, but nothing has room for a new mapping.
        System.dealloc(System.alloc(layout(120 * KIB)), layout(120 * KIB));
        limit_address_space(64 * KIB);
        let block = heap.alloc(layout(72 * KIB));
        assert!(!block.is_null());
        heap.dealloc(block, layout(72 * KIB));
        assert!(!book.is_live(block));
        let stats = heap.stats();
        assert_eq!((stats.handed_over.blocks, stats.queue_full.blocks), (11, 1), "{stats:?}");
        // Now there is room for it.
        limit_address_space(usize::MAX);
        let again = heap.alloc(layout(72 * KIB));
        heap.dealloc(again, layout(72 * KIB));
        assert!(book.is_live(again));
        assert_eq!(heap.stats().queue_full.blocks, 1);
    }
}

fn realloc_fails_child() {
    for waiting in [0, 30] {
        let (book, heap) = limited(64 * UNIT);
        // SAFETY: layouts are valid, bytes within the block, the block is freed once.
        unsafe {
            let block = heap.alloc(layout(20 * UNIT));
            block.write_bytes(0xab, 20 * UNIT);
            fill(&heap, waiting, UNIT);
            // The old block stays until the new one is there: 70 of 64.
            let moved = heap.realloc(block, layout(20 * UNIT), 50 * UNIT);
            assert!(moved.is_null());
            assert!(book.is_live(block));
            for at in (0..20 * UNIT).step_by(1000).chain([20 * UNIT - 1]) {
                assert_eq!(block.add(at).read(), 0xab);
            }
            // With what waits given back, 60 of 64.
            fill(&heap, waiting, UNIT);
            let moved = heap.realloc(block, layout(20 * UNIT), 40 * UNIT);
            assert!(!moved.is_null());
            for at in (0..20 * UNIT).step_by(1000).chain([20 * UNIT - 1]) {
                assert_eq!(moved.add(at).read(), 0xab);
            }
            heap.dealloc(moved, layout(40 * UNIT));
        }
        heap.flush();
        assert_eq!(book.live_blocks(), 0);
    }
}

fn try_block(size: usize) -> Option<Vec<u8>> {
    let mut block = Vec::new();
    block.try_reserve_exact(size).ok()?;
    Some(black_box(block))
}

/// The whole of it on mimalloc, whose memory the system refuses to extend.
fn under_a_limit_child() {
    let blocks: Vec<_> = (0..40).map(|_| Vec::<u8>::with_capacity(16 * MIB)).collect();
    drop(black_box(blocks));
    limit_address_space(64 * MIB);
    let waiting = GLOBAL.stats().pending.bytes;
    assert!(waiting >= 600 * MIB as u64);
    // mimalloc's arena has 1 GiB, of which 640 MiB wait: it takes them all to make room for this.
    let large = try_block(900 * MIB).expect("what waits is given back");
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
    drop(large);
    for _ in 0..20 {
        drop(try_block(20 * MIB));
        assert!(try_block(4 * GIB).is_none());
        assert!(try_block(1 << 46).is_none());
        assert_eq!(GLOBAL.stats().pending.blocks, 0);
    }
    let mut grown = vec![5u8; MIB];
    assert!(grown.try_reserve_exact(8 * GIB).is_err());
    assert!(grown.iter().all(|&byte| byte == 5));
    // Two threads at once, which find each other's blocks.
    let worker = || {
        for n in 1..60 {
            drop(try_block(n * 16 * MIB % (1000 * MIB)));
            assert!(try_block(3 * GIB).is_none());
        }
    };
    // A stack that the limit has room for.
    let other = thread::Builder::new().stack_size(256 * KIB).spawn(worker).unwrap();
    worker();
    other.join().unwrap();
    assert_eq!(grown.len(), MIB);
}

/// The first large block of all when there is no room for the drainer: inline, one line.
fn first_block() {
    let output = run_child("first_block", &[], 20);
    output.expect_code(0);
    let lines: Vec<&str> = output.stderr.lines().collect();
    assert_eq!(lines.len(), 1, "{output:?}");
    assert!(lines[0].starts_with("deferfree: "), "{output:?}");
}

fn first_block_child() {
    limit_address_space(100 * KIB);
    for _ in 0..10 {
        drop(touched(4 * MIB));
    }
    assert!(try_block(4 * GIB).is_none());
    let stats = GLOBAL.stats();
    assert_eq!((stats.drainer_running, stats.handed_over.blocks), (false, 0), "{stats:?}");
    assert!(stats.not_running.blocks >= 10);
}

/// Eight threads at the limit: whoever is refused takes what the others let wait.
fn contended_child() {
    let (book, heap) = limited(6 * MIB);
    // All hold what they got before the first one frees: some must be refused in each round.
    let all_have_tried = Barrier::new(8);
    thread::scope(|scope| {
        for n in 0..8usize {
            let (heap, all_have_tried) = (&heap, &all_have_tried);
            scope.spawn(move || {
                for round in 0..100 {
                    let size = (1 + (n + round) % 5) * MIB;
                    // SAFETY: a valid layout; freed once if it was granted.
                    unsafe {
                        let block = heap.alloc(layout(size));
                        all_have_tried.wait();
                        if !block.is_null() {
                            block.write_bytes(n as u8, 64);
                            assert_eq!(block.add(63).read(), n as u8);
                            heap.dealloc(block, layout(size));
                        }
                    }
                }
            });
        }
    });
    assert!(book.n_refused() >= 100);
    heap.flush();
    wait_until("everything is freed", || book.live_blocks() == 0);
}

/// Small blocks of all kinds find what large ones and logs hold back, on an allocator that only says no.
fn small_blocks_child() {
    let (book, heap) = limited(3 * MIB);
    for size in [400, 4 * KIB, 20 * KIB] {
        fill(&heap, 2, MIB);
        let mut blocks = Vec::new();
        for n in 0..2 * MIB / size {
            // SAFETY: a valid layout.
            let block = unsafe {
                match n % 3 {
                    0 => heap.alloc(layout(size)),
                    1 => heap.alloc_zeroed(layout(size)),
                    _ => {
                        let block = heap.alloc(layout(size / 2));
                        assert!(!block.is_null());
                        heap.realloc(block, layout(size / 2), size)
                    }
                }
            };
            assert!(!block.is_null(), "{size}: {:?}", heap.stats());
            blocks.push(block);
        }
        assert!(book.n_refused() > 0);
        assert_eq!(heap.stats().pending.blocks, 0);
        for block in blocks {
            // SAFETY: allocated above, freed once.
            unsafe { heap.dealloc(block, layout(size)) };
        }
    }
    wait_until("everything is freed", || {
        heap.flush();
        book.live_blocks() == 0
    });
}

/// The same on mimalloc, which calls by itself. Its arenas are small, or they would have room for all of it.
fn small_blocks_under_a_limit() {
    for size in ["100", "4096", "100000"] {
        let env = [("DEFERFREE_DELAY", "3600s"), ("MIMALLOC_ARENA_RESERVE", "64M"), ("SIZE", size)];
        run_child("small_blocks_under_a_limit", &env, 30).expect_clean();
    }
}

fn small_blocks_of_another_allocator() {
    let env = [("DEFERFREE_DELAY", "3600s"), ("MIMALLOC_ARENA_RESERVE", "64M")];
    run_child("small_blocks_of_another_allocator", &env, 30).expect_clean();
}

fn small_blocks_under_a_limit_child() {
    let size: usize = std::env::var("SIZE").unwrap().parse().unwrap();
    let n_blocks = 100 * MIB / size;
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(n_blocks);
    let large: Vec<_> = (0..300).map(|_| Vec::<u8>::with_capacity(MIB)).collect();
    drop(black_box(large));
    assert_eq!(GLOBAL.stats().pending.blocks, 300);
    limit_address_space(MIB);
    for _ in 0..n_blocks {
        blocks.push(try_block(size).unwrap_or_else(|| panic!("{:?}", GLOBAL.stats())));
    }
    assert!(GLOBAL.stats().pending.blocks < 300);
}

/// Blocks for which mimalloc wants more at once than for small ones, while there is room for those still.
fn below_the_threshold_under_a_limit() {
    for how in ["alloc", "realloc", "aligned"] {
        let env = [
            ("DEFERFREE_DELAY", "3600s"),
            ("DEFERFREE_THRESHOLD", "128M"),
            ("MIMALLOC_ARENA_RESERVE", "64M"),
            ("HOW", how),
        ];
        run_child("below_the_threshold_under_a_limit", &env, 30).expect_clean();
    }
}

fn below_the_threshold_under_a_limit_child() {
    let how = std::env::var("HOW").unwrap();
    let mut block = try_block(20_000).unwrap();
    drop(black_box((0..3).map(|_| Vec::<u8>::with_capacity(150 * MIB)).collect::<Vec<_>>()));
    assert_eq!(GLOBAL.stats().pending.blocks, 3);
    limit_address_space(40 * MIB);
    let got = match how.as_str() {
        "alloc" => try_block(100 * MIB).is_some(),
        "realloc" => block.try_reserve_exact(100 * MIB).is_ok(),
        _ => {
            let layout = Layout::from_size_align(4096, 64 * MIB).unwrap();
            // SAFETY: a valid layout.
            black_box(unsafe { GLOBAL.alloc(layout) });
            // mimalloc has it mapped anew, and keeps the addresses of what was given back.
            true
        }
    };
    assert!(got, "{:?}", GLOBAL.stats());
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
}

/// The blocks that wait are another allocator's than the one that needs memory.
fn small_blocks_of_another_allocator_child() {
    static OTHER: DeferFree = DeferFree::new().max_pending(ROOM);
    drop(black_box((0..20).map(|_| Vec::<u8>::with_capacity(MIB)).collect::<Vec<_>>()));
    // It is the first one, and has nothing to give.
    assert!(GLOBAL.stats().drainer_running);
    GLOBAL.flush();
    nearly_start(&OTHER);
    let n_blocks = 100 * MIB / 4096;
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(n_blocks);
    // SAFETY: a valid layout; each is freed once, as allocated.
    unsafe {
        let large: Vec<_> = (0..300).map(|_| OTHER.alloc(layout(MIB))).collect();
        large.into_iter().for_each(|block| OTHER.dealloc(block, layout(MIB)));
    }
    assert_eq!(OTHER.stats().pending.blocks, 300);
    limit_address_space(MIB);
    for _ in 0..n_blocks {
        blocks.push(try_block(4096).unwrap_or_else(|| panic!("{:?}", OTHER.stats())));
    }
    assert!(OTHER.stats().pending.blocks < 300);
}

/// mimalloc calls for that, too.
fn threads_that_end_give_nothing_back_child() {
    drop(black_box((0..40).map(|_| Vec::<u8>::with_capacity(MIB)).collect::<Vec<_>>()));
    let before = GLOBAL.stats().pending.blocks;
    assert!(before > 0);
    for _ in 0..10 {
        thread::spawn(|| drop(black_box(vec![0u8; 100]))).join().unwrap();
    }
    assert_eq!(GLOBAL.stats().pending.blocks, before);
}

fn limit_is_known_child() {
    for resource in [libc::RLIMIT_AS, libc::RLIMIT_DATA] {
        let limit = libc::rlimit { rlim_cur: 4 * GIB as u64, rlim_max: libc::RLIM_INFINITY };
        let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the limits are live variables.
        unsafe {
            assert_eq!(libc::setrlimit(resource, &limit), 0);
            let by_limit = DeferFree::new().config().max_pending_bytes;
            assert_eq!(libc::setrlimit(resource, &none), 0);
            assert_eq!(by_limit, GIB);
            assert!(DeferFree::new().config().max_pending_bytes > by_limit, "a machine of 4 GiB");
        }
    }
}
