//! Memory that is refused at each point in turn, and a drainer that does not come back from a free.
//!
//! Seen to fail: without the retry in `alloc_fresh`, `each_allocation_refused`; with the old block freed
//! although there is no new one, `budget_used_up`; without the bound in
//! `Backlog::reserve`, `drainer_held_up`; with an odd number of bytes reserved, `odd_sizes`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use common::tracking::Tracking;
use common::{
    KIB, MIB, join_all, nearly_start, nearly_started, on_system, run_child, shuffle, sleep_ms,
    to_be_deferred, wait_until,
};
use deferfree::{Backing, DeferFree};

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("each_allocation_refused") => each_allocation_refused(),
        Some("budget_used_up") => budget_used_up(),
        Some("drainer_held_up") => drainer_held_up(),
        Some("odd_sizes") => odd_sizes(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("each_allocation_refused", || run("each_allocation_refused")),
                ("budget_used_up", || run("budget_used_up")),
                ("drainer_held_up", || run("drainer_held_up")),
                ("odd_sizes", || run("odd_sizes")),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn run(case: &str) {
    run_child(case, &[("DEFERFREE_BURST", "0")], 60).expect_clean();
}

const THRESHOLD: usize = 64 * KIB;

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// A block that knows its size and what is in it.
struct Block {
    ptr: *mut u8,
    size: usize,
    mark: u8,
}

impl Block {
    fn write(ptr: *mut u8, size: usize, mark: u8) -> Block {
        // SAFETY: both ends of a live block.
        unsafe {
            ptr.write(mark);
            ptr.add(size - 1).write(mark);
        }
        Block { ptr, size, mark }
    }

    fn check(&self) {
        // SAFETY: both ends of a live block, which `write` wrote.
        let found = unsafe { (self.ptr.read(), self.ptr.add(self.size - 1).read()) };
        assert_eq!(found, (self.mark, self.mark), "{} bytes", self.size);
    }
}

/// Everything once or a few times, where each call may fail; returns how many allocations of large blocks
/// did, and of small ones.
fn script(heap: &DeferFree<&'static Tracking>) -> (usize, usize) {
    let (mut n_large, mut n_small) = (0, 0);
    let mut blocks: Vec<Block> = Vec::new();
    let mut fails =
        |size: usize| *(if size >= THRESHOLD { &mut n_large } else { &mut n_small }) += 1;
    for round in 0..3u8 {
        for size in [40, 5000, THRESHOLD, 100 * KIB, MIB, 100 * KIB, THRESHOLD - 1, 3 * MIB] {
            // SAFETY: valid layouts.
            let ptr = unsafe {
                if round == 1 { heap.alloc_zeroed(layout(size)) } else { heap.alloc(layout(size)) }
            };
            if ptr.is_null() {
                fails(size);
                continue;
            }
            // SAFETY: within the block.
            assert!(round != 1 || unsafe { ptr.add(size - 1).read() } == 0);
            blocks.push(Block::write(ptr, size, round + 1));
        }
        for block in &mut blocks {
            block.check();
            let size = if block.size % 3 == 0 { block.size / 2 } else { block.size * 2 };
            // SAFETY: a live block and its layout.
            let ptr = unsafe { heap.realloc(block.ptr, layout(block.size), size) };
            if ptr.is_null() {
                fails(size);
                block.check();
                continue;
            }
            // SAFETY: within the block, whose first byte was kept.
            assert_eq!(unsafe { ptr.read() }, block.mark);
            *block = Block::write(ptr, size, block.mark);
        }
        for block in blocks.drain(..) {
            block.check();
            // SAFETY: a live block and its layout.
            unsafe { heap.dealloc(block.ptr, layout(block.size)) };
        }
        // A burst, of what could be had.
        // SAFETY: a valid layout; freed once, as allocated.
        unsafe {
            let small: Vec<*mut u8> = (0..300).map(|_| heap.alloc(layout(48))).collect();
            for i in 0..small.len() {
                let ptr = small[i * 101 % small.len()];
                if ptr.is_null() { fails(48) } else { heap.dealloc(ptr, layout(48)) }
            }
        }
    }
    (n_large, n_small)
}

fn heap() -> (&'static Tracking, DeferFree<&'static Tracking>) {
    let book = Tracking::leak();
    (book, nearly_started(DeferFree::with_backing(book).threshold(THRESHOLD).delay_ms(3_600_000)))
}

/// A large allocation that is refused once succeeds when it is tried again.
fn each_allocation_refused() {
    let (book, unhindered) = heap();
    assert_eq!(script(&unhindered), (0, 0));
    let n_allocs = book.n_allocs();
    drop(unhindered);
    assert!(n_allocs > 900, "{n_allocs}");
    // The first ones each; then small blocks are in the majority.
    let interesting = (1..60).chain((60..n_allocs).step_by(13));
    for n in interesting {
        let (book, heap) = heap();
        book.refuse_nth(n);
        let (n_large, n_small) = script(&heap);
        assert_eq!(n_large, 0, "allocation {n}");
        assert!(n_small <= 1, "allocation {n}");
        heap.flush();
        assert_eq!(book.live_blocks(), 0, "allocation {n}");
        drop(heap);
    }
}

/// Nothing is granted any more, whatever is given back; then memory is there again.
fn budget_used_up() {
    for budget in [0, 1000, THRESHOLD, MIB, 5 * MIB, 20 * MIB] {
        let (book, heap) = heap();
        book.budget(budget);
        let (n_large, n_small) = script(&heap);
        assert!(n_large + n_small > 0, "{budget}");
        assert!(book.n_refused() >= n_large + n_small);
        book.budget(usize::MAX);
        assert_eq!(script(&heap), (0, 0));
        heap.flush();
        assert_eq!(book.live_blocks(), 0);
    }
}

/// The system's allocator, with a drainer that stays inside a free for as long as it is told.
#[derive(Clone, Copy)]
struct HeldUp;

static HOLD: AtomicBool = AtomicBool::new(true);
static N_HELD: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_DRAINER: Cell<bool> = const { Cell::new(false) };
}

fn hold_up_drainer(_: Layout) {
    if IS_DRAINER.get() {
        N_HELD.fetch_add(1, Ordering::SeqCst);
        while HOLD.load(Ordering::SeqCst) {
            sleep_ms(1);
        }
    }
}

on_system!(HeldUp, hold_up_drainer);

// SAFETY: as for `System`.
unsafe impl Backing for HeldUp {
    fn drainer_init(&self) {
        IS_DRAINER.set(true);
    }
}

fn drainer_held_up() {
    const BOUND: usize = 8 * MIB;
    static HEAP: DeferFree<HeldUp> = DeferFree::with_backing(HeldUp).delay_ms(1).max_pending(BOUND);
    nearly_start(&HEAP);
    let free = |size: usize, n: usize| {
        // SAFETY: a valid layout; each is freed once, as allocated.
        unsafe {
            let mut blocks: Vec<*mut u8> = (0..n).map(|_| HEAP.alloc(layout(size))).collect();
            shuffle(&mut blocks);
            blocks.into_iter().for_each(|block| HEAP.dealloc(block, layout(size)));
        }
    };
    free(MIB, 1);
    wait_until("the drainer is inside a free", || N_HELD.load(Ordering::SeqCst) == 1);
    thread::scope(|scope| {
        join_all([300 * KIB, MIB, 3 * MIB, 1000, 5000].map(|size| {
            scope.spawn(move || {
                for _ in 0..4 {
                    free(size, 4000.min(64 * MIB / size));
                    let stats = HEAP.stats();
                    assert!(stats.pending.bytes <= BOUND as u64, "{stats:?}");
                }
            })
        }));
    });
    let stats = HEAP.stats();
    assert!(stats.peak_pending_bytes <= BOUND as u64, "{stats:?}");
    assert!(stats.over_bound.blocks > 0, "{stats:?}");
    assert!(stats.bursts.over_bound_blocks > 0, "{stats:?}");
    assert_eq!(N_HELD.load(Ordering::SeqCst), 1);
    HOLD.store(false, Ordering::SeqCst);
    HEAP.flush();
    let stats = HEAP.stats();
    assert_eq!((stats.pending.blocks, stats.bursts.pending.blocks), (0, 0), "{stats:?}");
}

/// The lowest bit of the bytes that wait says something else. What chunks of odd sizes reserve is given
/// back to the byte, or one day everything is over the bound.
fn odd_sizes() {
    let (book, heap) = heap();
    let sized = |i: usize| Layout::from_size_align(30 + i * i % 11, 1).unwrap();
    for _ in 0..10 {
        // SAFETY: valid layouts; each is freed once, as allocated.
        unsafe {
            let mut blocks: Vec<_> =
                (0..20_001).map(|i| (heap.alloc(sized(i)), sized(i))).collect();
            shuffle(&mut blocks);
            blocks.into_iter().for_each(|(block, layout)| heap.dealloc(block, layout));
            heap.flush();
            let block = heap.alloc(layout(MIB));
            heap.dealloc(block, layout(MIB));
            let stats = heap.stats();
            assert_eq!((stats.pending.blocks, stats.over_bound.blocks), (1, 0), "{stats:?}");
        }
    }
    let bursts = heap.stats().bursts;
    // An allocator may have blocks of different sizes lie too far apart.
    let n_small = to_be_deferred(&bursts) + bursts.out_of_reach_blocks;
    assert!(bursts.deferred.blocks > 1000 && n_small == 10 * 20_001, "{bursts:?}");
    assert_eq!(bursts.over_bound_blocks, 0, "{bursts:?}");
    heap.flush();
    assert_eq!(book.live_blocks(), 0);
}
