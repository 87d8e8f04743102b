//! Small blocks freed in bursts: every one is freed exactly once, whatever happens to the thread that
//! freed it, and nothing that a burst meets makes it wait.
//!
//! Each case in a child process under a watchdog. The backing keeps books: it ends the process when a
//! block is freed twice, and its live blocks are what was lost.
//!
//! Seen to fail: without the pthread key's handler, `thread_exit`; without `steal_open`, `quiet_thread`;
//! without `Batches::forked_child`, `fork_here`; without the reservation of a chunk's bytes, `bound`.
#![cfg(target_os = "linux")]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::tracking::Tracking;
use common::{MIB, drainers, fork, run_child, sleep_ms, wait_ok, wait_until};
use deferfree::DeferFree;

type Heap = DeferFree<&'static Tracking>;

fn main() -> ExitCode {
    match common::child_case().as_deref() {
        None => common::run(&[
            ("never_bursting", || run("never_bursting")),
            ("near_blocks", || run("near_blocks")),
            ("short_bursts", || run_child("short_bursts", &[], 60).expect_clean()),
            ("everything_comes_back", || run("everything_comes_back")),
            ("thread_exit", || run("thread_exit")),
            ("quiet_thread", || run("quiet_thread")),
            ("pays_back", || run("pays_back")),
            ("many_threads", || run("many_threads")),
            ("bound", || run("bound")),
            ("dropped_heap", || run("dropped_heap")),
            ("fork_here", || run("fork_here")),
            ("fork_elsewhere", || run("fork_elsewhere")),
            ("exit_in_burst", || run("exit_in_burst")),
            ("scope", || run("scope")),
        ]),
        Some("never_bursting") => child(never_bursting),
        Some("near_blocks") => child(near_blocks),
        Some("short_bursts") => child(short_bursts),
        Some("everything_comes_back") => child(everything_comes_back),
        Some("thread_exit") => child(thread_exit),
        Some("quiet_thread") => child(quiet_thread),
        Some("pays_back") => child(pays_back),
        Some("many_threads") => child(many_threads),
        Some("bound") => child(bound),
        Some("dropped_heap") => child(dropped_heap),
        Some("fork_here") => child(fork_here),
        Some("fork_elsewhere") => child(fork_elsewhere),
        Some("exit_in_burst") => child(exit_in_burst),
        Some("scope") => child(scope),
        Some(other) => panic!("there is no case {other}"),
    }
}

fn run(case: &str) {
    run_child(case, &[("DEFERFREE_BURST", "256")], 60).expect_clean();
}

fn child(case: fn()) -> ExitCode {
    case();
    ExitCode::SUCCESS
}

const SMALL: Layout = Layout::new::<[u64; 6]>();

/// A heap that lives as long as the process, with its books.
fn heap() -> (&'static Heap, &'static Tracking) {
    let book = Tracking::leak();
    (Box::leak(Box::new(DeferFree::with_backing(book))), book)
}

/// Addresses of new blocks. In no order, so that the blocks do not follow each other when they are
/// freed in this one.
fn blocks(heap: &Heap, n: usize) -> Vec<usize> {
    // SAFETY: a valid layout.
    let mut blocks: Vec<usize> =
        (0..n).map(|_| unsafe { heap.alloc(SMALL) }.expose_provenance()).collect();
    for i in 0..n {
        blocks.swap(i, i * 7919 % n);
    }
    blocks
}

fn free(heap: &Heap, blocks: &[usize]) {
    for &block in blocks {
        // SAFETY: from `blocks`, freed once.
        unsafe { heap.dealloc(std::ptr::with_exposed_provenance_mut(block), SMALL) };
    }
}

/// A burst that leaves a chunk half full.
const BURST: usize = 5000;

fn never_bursting() {
    let (heap, book) = heap();
    for _ in 0..1000 {
        let some = blocks(heap, 200);
        free(heap, &some);
    }
    assert_eq!(book.live_blocks(), 0);
    assert_eq!(drainers(), []);
    assert_eq!(heap.stats().bursts.deferred.blocks, 0);
}

/// Blocks that follow each other are freed at once, and their memory is the drainer's to return.
fn near_blocks() {
    let (heap, book) = heap();
    let mut some = blocks(heap, 50_000);
    some.sort_unstable();
    free(heap, &some);
    assert_eq!(book.live_blocks(), 0);
    assert_eq!(heap.stats().bursts.deferred.blocks, 0);
    assert_eq!(drainers().len(), 1);
    wait_until("memory is returned", || heap.stats().purges > 0);
}

/// Without a setting: working sets that are freed in a row and built again are left alone after a few, until a
/// structure is dropped that is worth it.
fn short_bursts() {
    let (heap, book) = heap();
    let set = |n| {
        let before = heap.stats().bursts.deferred.blocks;
        let some = blocks(heap, n);
        free(heap, &some);
        heap.stats().bursts.deferred.blocks - before
    };
    assert!(set(1001) > 0);
    for n in [1001, 4001] {
        (0..10).for_each(|_| _ = set(n));
    }
    for _ in 0..100 {
        assert_eq!(set(1001), 0);
        assert_eq!(set(4001), 0);
    }
    assert!(set(50_000) > 40_000);
    assert!(set(1001) > 0, "as at the start");
    heap.flush();
    assert_eq!(book.live_blocks(), 0);
}

fn everything_comes_back() {
    let (heap, book) = heap();
    for _ in 0..5 {
        let some = blocks(heap, 50_000);
        free(heap, &some);
    }
    heap.flush();
    assert_eq!(book.live_blocks(), 0);
    let bursts = heap.stats().bursts;
    assert!(bursts.deferred.blocks > 100_000, "{bursts:?}");
    assert_eq!(bursts.pending.blocks, 0, "{bursts:?}");
    assert_eq!(bursts.deferred.blocks, bursts.drained.blocks + bursts.paid_back.blocks);
    assert_eq!(bursts.deferred.bytes, bursts.drained.bytes + bursts.paid_back.bytes);
    assert_eq!(bursts.deferred.bytes, bursts.deferred.blocks * SMALL.size() as u64);
}

fn thread_exit() {
    let (heap, book) = heap();
    for _ in 0..300 {
        let some = blocks(heap, 1000);
        thread::spawn(move || free(heap, &some)).join().unwrap();
    }
    // More threads than there are lanes: none was lost with its thread.
    assert_eq!(heap.stats().bursts.no_chunk_blocks, 0);
    // Nobody flushes.
    wait_until("all blocks are freed", || book.live_blocks() == 0);
}

/// A thread that does nothing after its burst, and goes on with another one.
fn quiet_thread() {
    let (heap, book) = heap();
    let some = blocks(heap, BURST);
    let (go, gone) = mpsc::channel();
    let quiet = thread::spawn(move || {
        for some in gone {
            let some: Vec<usize> = some;
            free(heap, &some);
        }
    });
    go.send(some).unwrap();
    wait_until("all blocks are freed", || book.live_blocks() == 0);
    go.send(blocks(heap, BURST)).unwrap();
    wait_until("all blocks are freed again", || book.live_blocks() == 0);
    drop(go);
    quiet.join().unwrap();
    assert_eq!(drainers().len(), 1);
}

fn pays_back() {
    let (heap, book) = heap();
    free(heap, &blocks(heap, 100_000));
    let again = blocks(heap, 100_000);
    assert!(heap.stats().bursts.paid_back.blocks > 0);
    free(heap, &again);
    heap.flush();
    assert_eq!(book.live_blocks(), 0);
}

/// Threads that build and drop, and drop what others have built, with flushes in between.
fn many_threads() {
    let (heap, book) = heap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                heap.flush();
            }
        });
        let workers: Vec<_> = (0..6)
            .map(|worker| {
                scope.spawn(move || {
                    for round in 0..30 {
                        let n = 300 + (worker * 7 + round * 13) % 40 * 100;
                        let some = blocks(heap, n);
                        if round % 3 == 0 {
                            thread::spawn(move || free(heap, &some)).join().unwrap();
                        } else {
                            free(heap, &some);
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        flusher.join().unwrap();
    });
    wait_until("all blocks are freed", || book.live_blocks() == 0);
}

fn bound() {
    let book = Tracking::leak();
    let heap: &Heap = Box::leak(Box::new(DeferFree::with_backing(book).max_pending(MIB)));
    let some = blocks(heap, 300_000);
    let start = Instant::now();
    free(heap, &some);
    let bursts = heap.stats().bursts;
    assert!(bursts.over_bound_blocks > 0, "{bursts:?} in {:?}", start.elapsed());
    assert!(heap.stats().peak_pending_bytes <= MIB as u64);
    heap.flush();
    assert_eq!(book.live_blocks(), 0);
}

/// The next heap can have the batches, and never sees a block of the last.
fn dropped_heap() {
    for _ in 0..20 {
        let book = Tracking::leak();
        let heap: Heap = DeferFree::with_backing(book);
        let some = blocks(&heap, BURST);
        free(&heap, &some);
        assert!(heap.stats().bursts.deferred.blocks > 0);
        drop(heap);
        wait_until("all blocks are freed", || book.live_blocks() == 0);
        wait_until("the drainer has ended", || drainers().is_empty());
    }
}

fn fork_here() {
    let (heap, book) = heap();
    for _ in 0..20 {
        let some = blocks(heap, BURST);
        free(heap, &some);
        let child = fork(20, || {
            // What was inherited, and another burst.
            let own = blocks(heap, BURST);
            free(heap, &own);
            heap.flush();
            assert_eq!(book.live_blocks(), 0);
            assert_eq!(heap.stats().bursts.pending.blocks, 0);
        });
        wait_ok(child);
    }
    heap.flush();
    assert_eq!(book.live_blocks(), 0);
}

/// Another thread is in the middle of a burst at the fork. At most the one block that it had in hand is
/// lost to the child.
fn fork_elsewhere() {
    let (heap, book) = heap();
    let stop = AtomicBool::new(false);
    let n = 20_000;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let some = blocks(heap, n);
                free(heap, &some);
            }
        });
        for _ in 0..50 {
            sleep_ms(3);
            let child = fork(20, || {
                // The books themselves may have been locked by the other thread: only a child in
                // which they are not can tell.
                if book.is_locked() {
                    return;
                }
                let own = blocks(heap, BURST);
                let before = book.live_blocks();
                free(heap, &own);
                heap.flush();
                // Nothing spins: the drainer is asleep some time later.
                assert!(book.live_blocks() <= before - BURST);
            });
            wait_ok(child);
        }
        stop.store(true, Ordering::Relaxed);
    });
    heap.flush();
    assert_eq!(book.live_blocks(), 0);
}

fn exit_in_burst() {
    let (heap, _) = heap();
    let barrier: &'static Barrier = Box::leak(Box::new(Barrier::new(2)));
    thread::spawn(move || {
        let some = blocks(heap, 200_000);
        barrier.wait();
        free(heap, &some);
    });
    barrier.wait();
    thread::sleep(Duration::from_millis(1));
    std::process::exit(0);
}

fn scope() {
    let (heap, book) = heap();
    let some = blocks(heap, 100);
    {
        let _outer = deferfree::defer_scope();
        let inner = deferfree::defer_scope();
        free(heap, &some[..50]);
        drop(inner);
        free(heap, &some[50..]);
        // An allocation does not pay back.
        let more = blocks(heap, 10);
        assert_eq!(book.live_blocks(), 110);
        free(heap, &more);
        assert_eq!(book.live_blocks(), 110);
    }
    let more = blocks(heap, 10);
    free(heap, &more);
    heap.flush();
    assert_eq!(book.live_blocks(), 0);
    assert_eq!(heap.stats().bursts.deferred.blocks, 110);
}
