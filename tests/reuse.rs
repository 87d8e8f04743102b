//! Pending blocks and the allocations that take them back, on allocators of the tests' own.
//!
//! Seen to fail: without the zeroing of a block taken back, `zeroed`; without the alignment test in
//! `take`, `alignment`; without paying back, `a_miss_pays_back_first`; without the bound,
//! `bound_on_bytes`; with the queue before the slot, `the_slot_comes_first`; with nothing ageing,
//! `blocks_that_nobody_needs_age`; without the low-water mark, `blocks_in_use_stay`; without the
//! comparison of classes, `realloc_within_the_class`; with one byte too few copied,
//! `realloc_keeps_contents`; without the queue for the class shrunk to,
//! `a_block_shrunk_in_place_is_deferred`; with unknown classes left out of the stats,
//! `no_free_goes_uncounted`.
// Where nothing is deferred there is nothing of this.
#![cfg(not(deferfree_inline))]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashSet;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::tracking::Tracking;
use common::{GIB, KIB, MIB, START_BYTES, join_all, nearly_started, wait_until};
use deferfree::{Backing, DeferFree, Mimalloc, Stats};

/// Nothing ages within a test.
const NEVER_MS: u64 = 3_600_000;

fn tracked() -> (&'static Tracking, DeferFree<&'static Tracking>) {
    let backing = Tracking::leak();
    (backing, patient(backing))
}

fn patient<B: Backing>(backing: B) -> DeferFree<B> {
    nearly_started(
        DeferFree::with_backing(backing)
            .threshold(64 * KIB)
            .delay_ms(NEVER_MS)
            .max_pending(8 * GIB),
    )
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

#[track_caller]
fn alloc<B: Backing>(heap: &DeferFree<B>, layout: Layout) -> *mut u8 {
    // SAFETY: the layout is not empty.
    let ptr = unsafe { heap.alloc(layout) };
    check(ptr, layout)
}

#[track_caller]
fn alloc_zeroed<B: Backing>(heap: &DeferFree<B>, layout: Layout) -> *mut u8 {
    // SAFETY: the layout is not empty.
    let ptr = unsafe { heap.alloc_zeroed(layout) };
    let ptr = check(ptr, layout);
    assert!(bytes(ptr, layout.size()).iter().all(|&byte| byte == 0), "{layout:?}");
    ptr
}

#[track_caller]
fn realloc<B: Backing>(heap: &DeferFree<B>, ptr: *mut u8, old: Layout, size: usize) -> *mut u8 {
    // SAFETY: all callers give a live block with its layout.
    let new = unsafe { heap.realloc(ptr, old, size) };
    check(new, layout(size, old.align()))
}

#[track_caller]
fn check(ptr: *mut u8, layout: Layout) -> *mut u8 {
    assert!(!ptr.is_null(), "{layout:?}");
    assert_eq!(ptr.addr() % layout.align(), 0, "{layout:?}");
    ptr
}

fn free<B: Backing>(heap: &DeferFree<B>, ptr: *mut u8, layout: Layout) {
    // SAFETY: all callers give a live block with its layout.
    unsafe { heap.dealloc(ptr, layout) };
}

fn bytes<'a>(ptr: *mut u8, len: usize) -> &'a mut [u8] {
    // SAFETY: all callers hold a live block of at least this size, which they have initialised.
    unsafe { slice::from_raw_parts_mut(ptr, len) }
}

fn fill(ptr: *mut u8, len: usize, byte: u8) {
    // SAFETY: all callers hold a live block of at least this size.
    unsafe { ptr.write_bytes(byte, len) };
}

/// The sum that holds once everybody is quiet.
#[track_caller]
fn check_sums(stats: &Stats) {
    let parts = [
        stats.reused,
        stats.drained,
        stats.paid_back,
        stats.over_bound,
        stats.queue_full,
        stats.pending,
    ];
    let blocks: u64 = parts.iter().map(|tally| tally.blocks).sum();
    let bytes: u64 = parts.iter().map(|tally| tally.bytes).sum();
    assert_eq!((stats.handed_over.blocks, stats.handed_over.bytes), (blocks, bytes), "{stats:?}");
}

#[test]
fn the_slot_comes_first() {
    let (backing, heap) = tracked();
    let size = layout(MIB, 8);
    let blocks: Vec<_> = (0..4).map(|_| alloc(&heap, size)).collect();
    let n_allocs = backing.n_allocs();
    for &block in &blocks {
        free(&heap, block, size);
        assert!(backing.is_live(block));
    }
    // Any size of the class will do; the largest one below belongs to the class below.
    let first = alloc(&heap, layout(MIB - MIB / 32 + 1, 8));
    assert_eq!(first, blocks[0]);
    // What is freed now is what the next allocation gets, however many wait.
    free(&heap, first, size);
    assert_eq!(alloc(&heap, size), first);
    let rest: HashSet<_> = (0..3).map(|_| alloc(&heap, size)).collect();
    assert_eq!(rest, blocks[1..].iter().copied().collect());
    assert_eq!(backing.n_allocs(), n_allocs);
    let other = alloc(&heap, layout(MIB - MIB / 32, 8));
    assert!(!blocks.contains(&other));
    assert_eq!(heap.stats().reused.blocks, 5);
    // A pair at a time keeps coming back to the same block.
    for _ in 0..100 {
        free(&heap, first, size);
        assert_eq!(alloc(&heap, size), first);
    }
    check_sums(&heap.stats());
}

#[test]
fn zeroed() {
    let (_, heap) = tracked();
    for size in [64 * KIB, 100 * KIB + 7, MIB, 3 * MIB + 1] {
        let layout = layout(size, 1);
        let dirty = alloc(&heap, layout);
        fill(dirty, size, 0xa5);
        free(&heap, dirty, layout);
        assert_eq!(alloc_zeroed(&heap, layout), dirty);
        fill(dirty, size, 0x5a);
        // Through the queue as well as through the slot.
        let other = alloc(&heap, layout);
        fill(other, size, 0x77);
        free(&heap, dirty, layout);
        free(&heap, other, layout);
        for _ in 0..2 {
            alloc_zeroed(&heap, layout);
        }
    }
}

/// What has waited long enough for the drainer to clear it is handed out as it is: no more than one block of a size.
#[test]
fn cleared_ahead() {
    // Four marks: it is cleared at the second one at the latest, and given back at the fourth at the earliest.
    let heap = DeferFree::with_backing(Tracking::leak()).threshold(64 * KIB).delay_ms(8000);
    let heap = nearly_started(heap);
    let (size, align) = (MIB, 16);
    let layout = layout(size, align);
    // Zeroed blocks of that size are wanted.
    let first = alloc_zeroed(&heap, layout);
    let second = alloc(&heap, layout);
    // And of a larger one, whose turn comes later: where one of those shows zeros, the smaller one is out of hand.
    let larger = self::layout(2 * size, align);
    let last = alloc_zeroed(&heap, larger);
    for (block, layout) in [(first, layout), (second, layout), (last, larger)] {
        fill(block, layout.size(), 0xa5);
        free(&heap, block, layout);
    }
    // SAFETY: a block of the heap's, which has it and writes nothing else to it.
    let is_zero = |byte: *mut u8| unsafe { byte.read_volatile() == 0 };
    let is_cleared = |block: *mut u8| is_zero(block.wrapping_add(size - 1));
    wait_until("the larger one is cleared", || is_zero(last));
    assert!(is_cleared(first) || is_cleared(second));
    let (cleared, dirty) = if is_cleared(first) { (first, second) } else { (second, first) };
    assert!(!is_cleared(dirty));
    assert_eq!(alloc_zeroed(&heap, layout), cleared);
    assert_eq!(heap.stats().pending.blocks, 2);
    // And where nobody wants a zeroed one it serves as any other.
    free(&heap, cleared, layout);
    assert_eq!([alloc(&heap, layout), alloc(&heap, layout)].map(|it| it == dirty), [true, false]);
    assert_eq!(heap.stats().reused.blocks, 3);
}

#[test]
fn realloc_within_the_class() {
    let (backing, heap) = tracked();
    let ptr = alloc(&heap, layout(MIB - 10, 8));
    bytes_ramp(ptr, MIB - 10);
    let n_allocs = backing.n_allocs();
    for (from, to) in [(MIB - 10, MIB), (MIB, MIB - MIB / 32 + 1), (MIB - MIB / 32 + 1, MIB)] {
        assert_eq!(realloc(&heap, ptr, layout(from, 8), to), ptr);
    }
    check_ramp(ptr, MIB - MIB / 32);
    assert_eq!(backing.n_allocs(), n_allocs);
    assert_eq!(heap.stats().handed_over.blocks, 0);
    // Out of the class it moves, and the old block waits.
    let moved = realloc(&heap, ptr, layout(MIB, 8), MIB + 1);
    assert_ne!(moved, ptr);
    check_ramp(moved, MIB - MIB / 32);
    assert!(backing.is_live(ptr));
    assert_eq!(heap.stats().pending.blocks, 1);
    // Growth takes a waiting block.
    assert_eq!(realloc(&heap, moved, layout(MIB + 1, 8), MIB), ptr);
    check_ramp(ptr, MIB - MIB / 32);
}

fn bytes_ramp(ptr: *mut u8, len: usize) {
    fill(ptr, len, 0);
    for (at, byte) in bytes(ptr, len).iter_mut().enumerate() {
        *byte = (at % 251) as u8;
    }
}

#[track_caller]
fn check_ramp(ptr: *mut u8, len: usize) {
    let good = bytes(ptr, len).iter().enumerate().all(|(at, &byte)| byte == (at % 251) as u8);
    assert!(good, "contents of {len} bytes");
}

/// Sizes on both sides of every kind of boundary: threshold, class edges, half of a block.
fn edges(threshold: usize) -> Vec<usize> {
    let mut sizes = vec![1, 16, threshold / 2, 2 * threshold];
    for edge in [threshold, threshold + threshold / 16, 128 * KIB, 136 * KIB, 144 * KIB] {
        sizes.extend([edge - 1, edge, edge + 1, edge / 2 - 1, edge / 2 + 1]);
    }
    sizes
}

#[test]
fn realloc_keeps_contents() {
    fn all_pairs<B: Backing>(backing: B, align: usize) {
        let heap = patient(backing);
        let sizes = edges(64 * KIB);
        for &from in &sizes {
            for &to in &sizes {
                let ptr = alloc(&heap, layout(from, align));
                fill(ptr, from, 0xee);
                // First, last and middle: a byte each would be enough for a copy that stops short.
                let marks = [0, from / 2, from.min(to) - 1, from - 1];
                for (n, &at) in marks.iter().enumerate() {
                    bytes(ptr, from)[at] = n as u8;
                }
                let before = bytes(ptr, from.min(to)).to_vec();
                let ptr = realloc(&heap, ptr, layout(from, align), to);
                assert!(bytes(ptr, from.min(to)) == before, "{from} -> {to}");
                fill(ptr, to, 0xdd);
                free(&heap, ptr, layout(to, align));
            }
        }
        check_sums(&heap.stats());
    }
    for align in [1, 64] {
        all_pairs(Tracking::leak(), align);
        all_pairs(Mimalloc, align);
    }
}

#[test]
fn alignment() {
    fn all<B: Backing>(backing: B) {
        let heap = patient(backing);
        for size in [64 * KIB, 130 * KIB, 2 * MIB] {
            for align in (0..=21).map(|log2| 1 << log2) {
                let wanted = layout(size, align);
                // Blocks of the same class with any alignment wait: each must be told from a fit.
                let waiting: Vec<_> = (0..3).map(|_| alloc(&heap, layout(size, 1))).collect();
                for block in waiting {
                    fill(block, size, 0xff);
                    free(&heap, block, layout(size, 1));
                }
                let plain = alloc(&heap, wanted);
                let zeroed = alloc_zeroed(&heap, wanted);
                fill(zeroed, size, 3);
                let grown = realloc(&heap, zeroed, wanted, 2 * size);
                assert!(bytes(grown, size).iter().all(|&byte| byte == 3));
                let shrunk = realloc(&heap, grown, layout(2 * size, align), size + 1);
                assert!(bytes(shrunk, size).iter().all(|&byte| byte == 3));
                free(&heap, shrunk, layout(size + 1, align));
                free(&heap, plain, wanted);
            }
        }
        check_sums(&heap.stats());
    }
    all(Tracking::leak());
    all(Mimalloc);
}

#[test]
fn a_miss_pays_back_first() {
    let (backing, heap) = tracked();
    // Too little in all is allocated while something waits for the sizes to count as changed, upon which the drainer
    // would free the rest at a moment of its own.
    let large = alloc(&heap, layout(24 * MIB, 8));
    let blocks: Vec<_> = (0..32).map(|_| alloc(&heap, layout(MIB, 8))).collect();
    for block in blocks {
        free(&heap, block, layout(MIB, 8));
    }
    assert_eq!(heap.stats().pending.blocks, 32);
    let most = backing.live_bytes();
    alloc(&heap, layout(4 * MIB, 8));
    let stats = heap.stats();
    // At least what was asked for, and not all of what waits for the sake of one block.
    assert!((4..=24).contains(&stats.paid_back.blocks), "{stats:?}");
    assert!(backing.live_bytes() <= most);
    free(&heap, large, layout(24 * MIB, 8));
    // One that is much larger than what is wanted does not make way for it.
    let before = heap.stats();
    alloc(&heap, layout(5 * MIB, 8));
    let stats = heap.stats();
    let n_paid_back = stats.paid_back.blocks - before.paid_back.blocks;
    assert!((5..=14).contains(&n_paid_back), "{stats:?}");
    assert_eq!(stats.paid_back.bytes, before.paid_back.bytes + n_paid_back * MIB as u64);
    // One that is not goes first: it makes room in one piece.
    let before = stats;
    alloc(&heap, layout(6 * MIB, 8));
    let stats = heap.stats();
    assert_eq!(stats.paid_back.blocks, before.paid_back.blocks + 1);
    assert_eq!(stats.paid_back.bytes, before.paid_back.bytes + 24 * MIB as u64);
    assert_eq!(stats.drained.blocks, 0);
    check_sums(&stats);
}

/// Eight threads that allocate and free blocks of their own; returns how many each freed in all, and
/// how many bytes those are by their classes.
fn hammer<B: Backing>(heap: &DeferFree<B>, rounds: usize, watch: impl Fn() + Sync) -> (u64, u64) {
    // Sizes that are their class's own, so that bytes can be counted.
    const SIZES: [usize; 4] = [64 * KIB, 72 * KIB, 128 * KIB, 256 * KIB];
    let (n_freed, n_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                watch();
                thread::yield_now();
            }
        });
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let (n_freed, n_bytes) = (&n_freed, &n_bytes);
                scope.spawn(move || {
                    let mut seed = worker as u64 + 1;
                    let mut held: Vec<(*mut u8, usize)> = Vec::new();
                    for round in 0..rounds {
                        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                        let size = SIZES[(seed >> 33) as usize % SIZES.len()];
                        let ptr = alloc(heap, layout(size, 8));
                        // SAFETY: the first byte of a live block.
                        unsafe { ptr.write(worker as u8) };
                        held.push((ptr, size));
                        if held.len() > 20 || round + 1 == rounds {
                            for (ptr, size) in held.drain(..) {
                                // SAFETY: as above.
                                assert_eq!(unsafe { ptr.read() }, worker as u8);
                                free(heap, ptr, layout(size, 8));
                                n_freed.fetch_add(1, Ordering::Relaxed);
                                n_bytes.fetch_add(size as u64, Ordering::Relaxed);
                            }
                        }
                    }
                })
            })
            .collect();
        let all_well = workers.into_iter().all(|worker| worker.join().is_ok());
        done.store(true, Ordering::Relaxed);
        join_all([watcher]);
        assert!(all_well);
    });
    (n_freed.into_inner(), n_bytes.into_inner())
}

#[test]
fn bound_on_bytes() {
    const BOUND: usize = 5 * MIB;
    let backing = Tracking::leak();
    let heap = nearly_started(
        DeferFree::with_backing(backing).threshold(64 * KIB).delay_ms(NEVER_MS).max_pending(BOUND),
    );
    drop_one(&heap);
    let (n_freed, n_bytes) = hammer(&heap, 2000, || {
        let stats = heap.stats();
        assert!(stats.peak_pending_bytes <= BOUND as u64, "{stats:?}");
    });
    // The drainer may be between taking a block and counting it.
    heap.flush();
    let stats = heap.stats();
    check_sums(&stats);
    assert_eq!(stats.handed_over.blocks, n_freed + 1);
    assert_eq!(stats.handed_over.bytes, n_bytes + 64 * KIB as u64);
    assert!(stats.reused.blocks > 0 && stats.peak_pending_bytes > 0, "{stats:?}");
    // To the byte: what fits exactly waits, one class more does not.
    let fits = alloc(&heap, layout(BOUND, 8));
    let too_large = alloc(&heap, layout(BOUND + 1, 8));
    free(&heap, too_large, layout(BOUND + 1, 8));
    assert_eq!(heap.stats().over_bound.blocks, stats.over_bound.blocks + 1);
    assert!(!backing.is_live(too_large));
    free(&heap, fits, layout(BOUND, 8));
    let stats = heap.stats();
    assert_eq!(stats.peak_pending_bytes, BOUND as u64, "{stats:?}");
}

/// Has the drainer started, so that every free after this is counted.
fn drop_one<B: Backing>(heap: &DeferFree<B>) {
    let ptr = alloc(heap, layout(64 * KIB, 8));
    free(heap, ptr, layout(64 * KIB, 8));
}

#[test]
fn stats_add_up() {
    for (delay_ms, max_pending) in [(NEVER_MS, GIB), (1, 64 * MIB), (0, 64 * MIB)] {
        let backing = Tracking::leak();
        let heap = nearly_started(
            DeferFree::with_backing(backing)
                .threshold(64 * KIB)
                .delay_ms(delay_ms)
                .max_pending(max_pending),
        );
        drop_one(&heap);
        let (n_freed, n_bytes) = hammer(&heap, 1500, || {
            let _ = heap.stats();
        });
        // The drainer may be between taking a block and counting it.
        heap.flush();
        let stats = heap.stats();
        check_sums(&stats);
        assert_eq!(stats.handed_over.blocks, n_freed + 1, "{stats:?}");
        assert_eq!(stats.handed_over.bytes, n_bytes + 64 * KIB as u64, "{stats:?}");
        assert_eq!(stats.pending.blocks, 0);
        assert_eq!(backing.live_blocks(), 0);
        let n_before = u64::from(START_BYTES > 0);
        assert_eq!(stats.not_running.blocks, n_before, "the one before the start");
    }
}

#[test]
fn a_full_queue_frees_inline() {
    // More than the queue of any class has room for.
    const N: usize = 20_000;
    let backing = Tracking::leak();
    let heap = nearly_started(
        DeferFree::with_backing(backing).threshold(4 * KIB).delay_ms(NEVER_MS).max_pending(8 * GIB),
    );
    let blocks: Vec<_> = (0..N).map(|_| alloc(&heap, layout(4 * KIB, 8))).collect();
    for &block in &blocks {
        free(&heap, block, layout(4 * KIB, 8));
    }
    let stats = heap.stats();
    check_sums(&stats);
    assert_eq!(stats.handed_over.blocks, N as u64);
    assert_eq!(stats.pending.blocks + stats.queue_full.blocks, N as u64);
    assert!(stats.pending.blocks >= 4096 && stats.queue_full.blocks > 0, "{stats:?}");
    assert_eq!(backing.live_blocks() as u64, stats.pending.blocks);
    // Classes have queues of their own.
    let other = alloc(&heap, layout(MIB, 8));
    free(&heap, other, layout(MIB, 8));
    assert_eq!(heap.stats().queue_full.blocks, stats.queue_full.blocks);
}

#[test]
fn blocks_that_nobody_needs_age() {
    let backing = Tracking::leak();
    let heap = nearly_started(
        DeferFree::with_backing(backing).threshold(64 * KIB).delay_ms(40).max_pending(8 * GIB),
    );
    let size = layout(64 * KIB, 8);
    let burst: Vec<_> = (0..1000).map(|_| alloc(&heap, size)).collect();
    for block in burst {
        free(&heap, block, size);
    }
    // Eight at a time go round and round through the whole queue all the while.
    wait_until("992 of a thousand blocks have aged", || {
        for _ in 0..100 {
            let round: Vec<_> = (0..8).map(|_| alloc(&heap, size)).collect();
            for block in round {
                free(&heap, block, size);
            }
        }
        heap.stats().pending.blocks <= 16
    });
    assert!(heap.stats().reused.blocks > 1000);
    wait_until("the last eight have aged", || heap.stats().pending.blocks == 0);
    assert_eq!(backing.live_blocks(), 0);
    check_sums(&heap.stats());
}

/// As many blocks as a loop needs stay, however long it runs: they were all in use a moment ago.
#[test]
fn blocks_in_use_stay() {
    let backing = Tracking::leak();
    let heap = nearly_started(
        DeferFree::with_backing(backing).threshold(64 * KIB).delay_ms(400).max_pending(8 * GIB),
    );
    let size = layout(64 * KIB, 8);
    let mut seen = HashSet::new();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        let round: Vec<_> = (0..8).map(|_| alloc(&heap, size)).collect();
        for block in round {
            seen.insert(block);
            free(&heap, block, size);
        }
        // Most of the time all eight wait.
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(heap.stats().drained.blocks, 0);
    assert_eq!(seen.len(), 8);
    heap.flush();
    assert_eq!(backing.live_blocks(), 0);
}

/// A block that realloc shrinks where it is belongs to another class afterwards, one that nothing
/// was ever allocated in; its free is deferred like any other.
#[test]
fn a_block_shrunk_in_place_is_deferred() {
    let heap = patient(Mimalloc);
    let ptr = alloc(&heap, layout(MIB, 8));
    let shrunk = realloc(&heap, ptr, layout(MIB, 8), 600 * KIB);
    assert_eq!(shrunk, ptr, "mimalloc's rule: in place down to one half");
    free(&heap, shrunk, layout(600 * KIB, 8));
    let stats = heap.stats();
    assert_eq!(stats.handed_over.blocks, 1, "{stats:?}");
    assert_eq!(stats.pending.blocks, 1, "{stats:?}");
}

/// Four threads at the slot of one class, and at nothing else: whoever has a block is alone with it.
///
/// Seen to fail where the slot is emptied, or its block exchanged, by a load and a store.
#[test]
fn nobody_shares_a_block() {
    const IN_USE: u64 = 0x6465_6665_7266_7265;
    let (book, heap) = tracked();
    let layout = layout(MIB, 8);
    thread::scope(|scope| {
        let hammer = || {
            scope.spawn(|| {
                for _ in 0..3_000_000 {
                    let block = alloc(&heap, layout);
                    // SAFETY: an aligned word of a live block, which nobody else should look at.
                    let word = unsafe { &*block.cast::<AtomicU64>() };
                    assert_ne!(word.swap(IN_USE, Ordering::Relaxed), IN_USE, "two have it");
                    word.store(0, Ordering::Relaxed);
                    free(&heap, block, layout);
                }
            })
        };
        join_all([hammer(), hammer(), hammer(), hammer()]);
    });
    heap.flush();
    assert_eq!((heap.stats().pending.blocks, book.live_blocks()), (0, 0));
}
