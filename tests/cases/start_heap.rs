//! What the drainer's start leaves on the program's heap: nothing, so that the memory around it can go.
//!
//! Seen to fail: with a thread of the standard library, both; without `reserve`, `list_of_two_chunks`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::collections::LinkedList;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::{KIB, MIB, run_child, sleep_ms, task_status};
use deferfree::DeferFree;

/// As `DeferFree` itself, counting while `COUNTS`.
struct Counting(DeferFree);

static COUNTS: AtomicBool = AtomicBool::new(false);
static N_ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: that of `DeferFree`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(Ordering::Relaxed) {
            N_ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's layout.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's block.
        unsafe { self.0.dealloc(ptr, layout) };
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting(DeferFree::new());

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("allocates_nothing") => allocates_nothing(),
        Some("list_of_two_chunks") => list_of_two_chunks(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("allocates_nothing", || {
                    run_child("allocates_nothing", &[("DEFERFREE_BURST", "128")], 20).expect_clean()
                }),
                ("list_of_two_chunks", || {
                    let runs =
                        || run_child("list_of_two_chunks", &[("DEFERFREE_BURST", "128")], 60);
                    let told =
                        |output: &common::Output| output.status.code() != Some(TELLS_NOTHING);
                    let output = (0..10).map(|_| runs()).find(told);
                    output.expect("a list is freed at once").expect_clean();
                }),
            ]);
        }
    }
    ExitCode::SUCCESS
}

/// Status of a child in which a list was deferred, because the thread was interrupted while it was judged. The next one
/// grew beside it.
const TELLS_NOTHING: i32 = 7;

fn list(n_nodes: u64) -> LinkedList<u64> {
    (0..n_nodes).collect()
}

/// Neither the start nor the drainer on its way to sleep.
fn allocates_nothing() {
    let list = list(10_000);
    // A younger thread starts no drainer for a burst.
    sleep_ms(41);
    assert!(!GLOBAL.0.stats().drainer_running);
    COUNTS.store(true, Ordering::Relaxed);
    drop(list);
    GLOBAL.0.flush();
    sleep_ms(1000);
    COUNTS.store(false, Ordering::Relaxed);
    let stats = GLOBAL.0.stats();
    assert!(stats.drainer_running && stats.purges > 0, "{stats:?}");
    assert_eq!(N_ALLOCATIONS.load(Ordering::Relaxed), 0);
    COUNTS.store(true, Ordering::Relaxed);
    drop(black_box(Box::new(1)));
    assert_eq!(N_ALLOCATIONS.load(Ordering::Relaxed), 1, "or the test cannot tell");
}

/// mimalloc takes small blocks from chunks of 32 MiB, one after the other but for those in which something has
/// stayed, which come first. A list that reaches into a second chunk, built and dropped again and again, is to
/// use the same memory each time.
fn list_of_two_chunks() {
    const NODES: usize = 1_000_000;
    // What mimalloc needs for a node.
    const NODE_BYTES: usize = 32;
    drop(black_box(list(NODES as u64)));
    // A younger thread starts no drainer for a burst.
    sleep_ms(41);
    for _ in 0..5 {
        drop(black_box(list(NODES as u64)));
    }
    let stats = GLOBAL.0.stats();
    assert!(stats.drainer_running);
    if stats.bursts.deferred.blocks > NODES as u64 / 10 {
        common::exit_now(TELLS_NOTHING);
    }
    let peak = task_status(std::process::id() as i32, "VmHWM");
    let peak_kib: usize = peak.trim_end_matches(" kB").parse().unwrap();
    let (peak, list) = (peak_kib * KIB, NODES * NODE_BYTES);
    // 37 MiB; 67 where it goes wrong.
    assert!(peak > list && peak < list + 16 * MIB, "{} MiB for {} MiB", peak / MIB, list / MIB);
}
