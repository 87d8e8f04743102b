//! Small blocks that are written down instead of freed: each is freed exactly once, whatever becomes of the log, and
//! what cannot be written down is freed at once.
//!
//! Whether it pays to defer is not asked here, see `judged`: all frees are deferred, by `DEFERFREE_BURST=0`, or those
//! in a scope. Each case in a child process under a watchdog. The backings keep books: they end the process when a
//! block is freed twice or by another allocator than its own, and their live blocks are what was lost.
//!
//! Seen to fail: with chunks that are not asked to be granted, `bound`; with the last slot of a chunk not cleared when it is
//! given back, seven of them, see `README.md`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::mem;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;

use common::addresses::Addresses;
use common::tracking::Tracking;
use common::{
    ALL_CHUNKS, CHUNK, KIB, MIB, TINY, drainers, join_all, run_child, shuffle, to_be_deferred,
    wait_until,
};
use deferfree::{Backing, BurstStats, DeferFree, defer_scope};

const ALWAYS: (&str, &str) = ("DEFERFREE_BURST", "0");
const NEVER: (&str, &str) = ("DEFERFREE_BURST", "off");

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        None => {
            return common::run(&[
                ("bytes_add_up", || run("bytes_add_up", ALWAYS)),
                ("sizes", || run("sizes", ALWAYS)),
                ("off", off),
                ("scopes", || run("scopes", NEVER)),
                ("quiet_threads", || run("quiet_threads", ALWAYS)),
                ("flushed_in_the_midst", || run("flushed_in_the_midst", ALWAYS)),
                ("bound", || run("bound", ALWAYS)),
                ("nowhere_to_write", || {
                    // Millions of blocks, which a sanitizer takes minutes for.
                    run_child("nowhere_to_write", &[ALWAYS], 600).expect_clean();
                }),
                ("far_apart", || run("far_apart", ALWAYS)),
                ("many_threads", || run("many_threads", ("DEFERFREE_BURST", "128"))),
                ("two_allocators", || run("two_allocators", ALWAYS)),
                ("dropped", || run("dropped", ALWAYS)),
                ("dropped_under_a_scope", || run("dropped_under_a_scope", NEVER)),
            ]);
        }
        Some("bytes_add_up") => bytes_add_up(),
        Some("sizes") => sizes(),
        Some("off") => off_child(),
        Some("scopes") => scopes(),
        Some("quiet_threads") => quiet_threads(),
        Some("flushed_in_the_midst") => flushed_in_the_midst(),
        Some("bound") => bound(),
        Some("nowhere_to_write") => nowhere_to_write(),
        Some("far_apart") => far_apart(),
        Some("many_threads") => many_threads(),
        Some("two_allocators") => two_allocators(),
        Some("dropped") => dropped(),
        Some("dropped_under_a_scope") => dropped_under_a_scope(),
        Some(case) => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

fn run(case: &str, burst: (&str, &str)) {
    // A minute under the thread sanitizer.
    run_child(case, &[burst], 300).expect_clean();
}

const SMALL: Layout = Layout::new::<[u64; 6]>();

type Heap<B> = DeferFree<B>;

/// A heap that lives as long as the process, with its books.
fn heap() -> (&'static Heap<&'static Addresses>, &'static Addresses) {
    let book = Addresses::leak();
    (Box::leak(Box::new(DeferFree::with_backing(book))), book)
}

/// Blocks of one layout, in no order.
fn allocs<B: Backing>(heap: &Heap<B>, layout: Layout, n: usize) -> Vec<usize> {
    // SAFETY: a valid layout.
    let alloc = |_| unsafe { heap.alloc(layout) }.expose_provenance();
    let mut blocks: Vec<usize> = (0..n).map(alloc).collect();
    shuffle(&mut blocks);
    blocks
}

fn free<B: Backing>(heap: &Heap<B>, layout: Layout, block: usize) {
    // SAFETY: from `allocs` with this layout, freed once.
    unsafe { heap.dealloc(std::ptr::with_exposed_provenance_mut(block), layout) };
}

fn frees<B: Backing>(heap: &Heap<B>, layout: Layout, blocks: Vec<usize>) {
    blocks.into_iter().for_each(|block| free(heap, layout, block));
}

fn bursts<B: Backing>(heap: &Heap<B>) -> BurstStats {
    heap.stats().bursts
}

/// Once nothing waits; that many were to be deferred since the start.
#[track_caller]
fn add_up(bursts: BurstStats, n_deferred: usize) {
    assert_eq!(to_be_deferred(&bursts), n_deferred as u64, "{bursts:?}");
    assert_eq!(bursts.pending.blocks, 0, "{bursts:?}");
    assert_eq!(bursts.deferred.blocks, bursts.drained.blocks + bursts.paid_back.blocks);
    assert_eq!(bursts.deferred.bytes, bursts.drained.bytes + bursts.paid_back.bytes);
}

/// Of odd sizes and any alignment, taken out by the drainer while they are being written.
fn bytes_add_up() {
    let (heap, book) = heap();
    let (mut n, mut n_bytes) = (0, 0);
    for round in 0..20 {
        let mut blocks = Vec::new();
        for i in 0..3000 {
            let layout = Layout::from_size_align(1 + (i * 31 + round) % 500, 1 << (i % 7)).unwrap();
            blocks.push((allocs(heap, layout, 1)[0], layout));
            n_bytes += layout.size();
            n += 1;
        }
        if round % 2 == 0 {
            heap.flush();
        }
        blocks.into_iter().for_each(|(block, layout)| free(heap, layout, block));
    }
    heap.flush();
    let bursts = bursts(heap);
    // A sanitizer's allocator has a region of its own, terabytes away, for each size.
    let n_far = bursts.out_of_reach_blocks as usize;
    add_up(bursts, n - n_far);
    let n_at_once = bursts.no_chunk_blocks + bursts.out_of_reach_blocks;
    assert!(n_at_once > 0 || bursts.deferred.bytes == n_bytes as u64, "{bursts:?}");
    assert_eq!(book.n_live(), 0);
}

/// Blocks below 16 KiB are written down, whatever their alignment, from the first one on.
fn sizes() {
    let (heap, book) = heap();
    let layout = |size, align| Layout::from_size_align(size, align).unwrap();
    book.hold_drainer(heap, SMALL);
    let mut n_deferred = 1;
    for size in [1, 7, 8, 100, 1000, 4095, 4096, 5000, 16 * KIB - 1, 16 * KIB, 100 * KIB] {
        for align in [1, 8, 16, 64, 4096] {
            let n_live = book.n_live();
            frees(heap, layout(size, align), allocs(heap, layout(size, align), 1));
            let is_small = size < 16 * KIB;
            n_deferred += usize::from(is_small);
            assert_eq!(bursts(heap).deferred.blocks, n_deferred as u64, "{size} {align}");
            assert_eq!(book.n_live() - n_live, usize::from(is_small), "{size} {align}");
        }
    }
    book.let_go();
    heap.flush();
    add_up(bursts(heap), n_deferred);
    assert_eq!(heap.stats().handed_over.blocks, 0);
}

/// Nothing is written down where the settings say so, in the environment or in code.
fn off() {
    for env in [("DEFERFREE", "off"), NEVER, ("CODE", "")] {
        run_child("off", &[env], 60).expect_clean();
    }
}

fn off_child() {
    let book = Addresses::leak();
    let mut heap = DeferFree::with_backing(book);
    if std::env::var("CODE").is_ok() {
        heap = heap.burst(None);
    }
    book.are_cold(true);
    frees(&heap, SMALL, allocs(&heap, SMALL, 100_000));
    assert_eq!((book.n_live(), bursts(&heap)), (0, BurstStats::default()));
    assert_eq!(drainers().len(), 0);
    let blocks = allocs(&heap, SMALL, 1000);
    {
        // It defers all the same, but for where nothing is.
        let _scope = defer_scope();
        frees(&heap, SMALL, blocks);
        let n_deferred = if heap.config().enabled { 1000 } else { 0 };
        assert_eq!(bursts(&heap).deferred.blocks, n_deferred);
    }
    frees(&heap, SMALL, allocs(&heap, SMALL, 100_000));
    heap.flush();
    assert_eq!(book.n_live(), 0);
    assert!(bursts(&heap).deferred.blocks <= 1000);
    assert_eq!(drainers().len(), usize::from(heap.config().enabled));
}

/// All that a thread frees between its outermost scope's beginning and end, whatever it allocates.
fn scopes() {
    let (heap, book) = heap();
    let in_scope = |n_expected: usize, f: &dyn Fn()| {
        let before = bursts(heap).deferred.blocks;
        f();
        assert_eq!(bursts(heap).deferred.blocks - before, n_expected as u64);
    };
    let work = |n| frees(heap, SMALL, allocs(heap, SMALL, n));
    // The first thing that this thread does.
    in_scope(310, &|| {
        let _outer = defer_scope();
        {
            let _inner = defer_scope();
            work(100);
            (0..10).for_each(|_| work(1));
        }
        work(100);
        let (first, second) = (defer_scope(), defer_scope());
        drop(first);
        work(100);
        drop(second);
    });
    // Between scopes nothing is.
    in_scope(0, &|| (0..100).for_each(|_| work(1)));
    in_scope(50, &|| {
        let _scope = defer_scope();
        work(50);
    });
    // Nor is it if the thread goes on freeing.
    let before = bursts(heap).deferred.blocks;
    let blocks = allocs(heap, SMALL, 1000);
    drop(defer_scope());
    frees(heap, SMALL, blocks);
    assert_eq!(bursts(heap).deferred.blocks, before);
    // A scope that is forgotten lasts as long as the thread, and is no other thread's.
    let forgotten = || {
        thread::spawn(move || {
            work(100);
            mem::forget(defer_scope());
            work(3000);
        })
        .join()
        .unwrap();
    };
    in_scope(3000, &forgotten);
    in_scope(0, &|| work(10));
    heap.flush();
    add_up(bursts(heap), 310 + 50 + 3000);
    assert_eq!(book.n_live(), 0);
}

/// Threads that do nothing after a burst, and go on with another one: nobody flushes, nobody ends.
fn quiet_threads() {
    let (heap, book) = heap();
    let barrier = Barrier::new(6);
    thread::scope(|scope| {
        let barrier = &barrier;
        let start = |n: usize| {
            scope.spawn(move || {
                for round in 0..5 {
                    frees(heap, SMALL, allocs(heap, SMALL, n * 900 + round));
                    barrier.wait();
                    barrier.wait();
                }
            })
        };
        let threads = [1, 2, 3, 4, 5].map(start);
        for _ in 0..5 {
            barrier.wait();
            wait_until("all blocks are freed", || book.n_live() == 0);
            barrier.wait();
        }
        join_all(threads);
    });
    assert_eq!(book.n_freed_by_drainer() as u64, bursts(heap).deferred.blocks);
    assert_eq!(drainers().len(), 1);
}

/// A flush frees what threads have written down so far that are going to go on.
fn flushed_in_the_midst() {
    let (heap, book) = heap();
    // What comes while the drainer is being started is freed at once.
    frees(heap, SMALL, allocs(heap, SMALL, 1));
    let (go, stop) = (Barrier::new(5), AtomicBool::new(false));
    thread::scope(|scope| {
        let start = || {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    frees(heap, SMALL, allocs(heap, SMALL, 2500));
                    go.wait();
                    go.wait();
                }
            })
        };
        let threads = [start(), start(), start(), start()];
        // On a busy machine the drainer may have been there first.
        let mut n_waited = 0;
        for round in 0..100 {
            go.wait();
            n_waited += usize::from(book.n_live() > 0);
            heap.flush();
            assert_eq!((book.n_live(), bursts(heap).pending.blocks), (0, 0));
            stop.store(round == 99, Ordering::SeqCst);
            go.wait();
        }
        join_all(threads);
        assert!(n_waited > 0);
    });
    add_up(bursts(heap), 1 + 100 * 4 * 2500);
}

/// As many bytes wait as may, but for those in each thread's last chunk. The others are freed at once, and when the
/// drainer has been there as many may wait as before.
fn bound() {
    let book = Addresses::leak();
    const BOUND: usize = if TINY { MIB / 8 } else { MIB };
    let heap: &_ = Box::leak(Box::new(DeferFree::with_backing(book).max_pending(BOUND)));
    for round in 1..=10 {
        book.hold_drainer(heap, SMALL);
        let before = bursts(heap);
        frees(heap, SMALL, allocs(heap, SMALL, 100_000));
        let now = bursts(heap);
        let n_deferred = (now.deferred.blocks - before.deferred.blocks) as usize;
        assert_eq!(now.over_bound_blocks - before.over_bound_blocks, 100_000 - n_deferred as u64);
        let chunks = BOUND - CHUNK * SMALL.size()..BOUND + CHUNK * SMALL.size();
        assert!(chunks.contains(&(n_deferred * SMALL.size())), "{n_deferred} in round {round}");
        assert_eq!(book.n_live(), n_deferred + 1);
        book.let_go();
        heap.flush();
        assert_eq!(book.n_live(), 0);
    }
    let bursts = bursts(heap);
    add_up(bursts, bursts.deferred.blocks as usize);
}

/// Eight million addresses are the most that are written down. The others are freed at once, and when the drainer
/// has been there as many can be as before.
fn nowhere_to_write() {
    const N: usize = ALL_CHUNKS + 100_000;
    // The thread whose block holds up the drainer has a chunk too, and the drainer one to sort with.
    const FEWEST: usize = ALL_CHUNKS - 3 * CHUNK;
    let layout = Layout::new::<u64>();
    let book = Addresses::leak();
    let heap: &_ = Box::leak(Box::new(DeferFree::with_backing(book).max_pending(256 * MIB)));
    for _ in 0..2 {
        book.hold_drainer(heap, layout);
        let before = bursts(heap);
        frees(heap, layout, allocs(heap, layout, N));
        let now = bursts(heap);
        let n_deferred = now.deferred.blocks - before.deferred.blocks;
        assert!((FEWEST as u64..ALL_CHUNKS as u64).contains(&n_deferred), "{now:?}");
        assert_eq!(now.no_chunk_blocks - before.no_chunk_blocks, N as u64 - n_deferred);
        assert_eq!(book.n_live() as u64, n_deferred + 1);
        book.let_go();
        heap.flush();
        assert_eq!(book.n_live(), 0);
    }
    let bursts = bursts(heap);
    assert_eq!(bursts.over_bound_blocks, 0, "{bursts:?}");
    add_up(bursts, to_be_deferred(&bursts) as usize);
}

/// Blocks of which each is further from the one before than an entry in a chunk reaches.
fn far_apart() {
    let (heap, book) = heap();
    book.alternate();
    for n in [10, 20_000, 20_000] {
        let before = bursts(heap);
        frees(heap, SMALL, allocs(heap, SMALL, n));
        let now = bursts(heap);
        let n_freed = now.no_chunk_blocks - before.no_chunk_blocks + now.out_of_reach_blocks
            - before.out_of_reach_blocks;
        assert_eq!(now.deferred.blocks - before.deferred.blocks + n_freed, n as u64, "{now:?}");
        heap.flush();
        assert_eq!(book.n_live(), 0);
    }
    assert!(bursts(heap).deferred.blocks > 0);
}

/// Threads that build and drop, and drop what others have built, with flushes in between.
fn many_threads() {
    let book = Tracking::leak();
    let heap = DeferFree::with_backing(book);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let flusher = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                heap.flush();
            }
        });
        let heap = &heap;
        let workers: Vec<_> = (0..6)
            .map(|worker| {
                scope.spawn(move || {
                    for round in 0..30 {
                        let n = 300 + (worker * 7 + round * 13) % 40 * 100;
                        let some = allocs(heap, SMALL, n);
                        let drop_it = || {
                            let _scope = (round % 5 > 0).then(defer_scope);
                            frees(heap, SMALL, some);
                        };
                        if round % 3 == 0 {
                            thread::scope(|scope| scope.spawn(drop_it).join().unwrap());
                        } else {
                            drop_it();
                        }
                    }
                })
            })
            .collect();
        join_all(workers);
        stop.store(true, Ordering::Relaxed);
        join_all([flusher]);
    });
    // Nobody flushes any more.
    wait_until("all blocks are freed", || book.live_blocks() == 0);
    assert!(bursts(&heap).deferred.blocks > 10_000);
}

/// The second one frees at once, what it is given in a scope too, and keeps nobody else from deferring.
fn two_allocators() {
    let ((first, first_book), (second, second_book)) = (heap(), heap());
    frees(first, SMALL, allocs(first, SMALL, 10));
    const N: usize = if TINY { 5000 } else { 10_000 };
    let both = [first, second].map(|heap| allocs(heap, SMALL, N));
    let n_live = first_book.n_live();
    let _scope = defer_scope();
    let [of_first, of_second] = both;
    for (i, (one, other)) in of_first.into_iter().zip(of_second).enumerate() {
        free(first, SMALL, one);
        free(second, SMALL, other);
        assert_eq!(second_book.n_live(), N - 1 - i);
    }
    assert!(n_live <= N + 10 && bursts(first).deferred.blocks == N as u64 + 10);
    second.flush();
    assert_eq!(bursts(second), BurstStats::default());
    first.flush();
    assert_eq!(first_book.n_live(), 0);
    add_up(bursts(first), N + 10);
}

/// All that waits is freed, that of threads which go on to live too, and the next one takes over: it counts from
/// zero and never sees a block of the last.
fn dropped() {
    let (to_thread, theirs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
    let (done, is_done) = mpsc::channel();
    let other = thread::spawn(move || {
        theirs.into_iter().for_each(|work| {
            work();
            done.send(()).unwrap();
        });
    });
    for round in 0..30 {
        let book = Tracking::leak();
        let heap = DeferFree::with_backing(book);
        let n = 200 + round * 613;
        let blocks = allocs(&heap, SMALL, n);
        {
            // SAFETY: the heap is there until the thread says that it is done.
            let heap: &'static DeferFree<&'static Tracking> =
                unsafe { &*std::ptr::from_ref(&heap) };
            to_thread.send(Box::new(move || frees(heap, SMALL, blocks))).unwrap();
            is_done.recv().unwrap();
        }
        frees(&heap, SMALL, allocs(&heap, SMALL, n));
        let bursts = bursts(&heap);
        assert_eq!(to_be_deferred(&bursts), 2 * n as u64, "{bursts:?}");
        let bytes = bursts.deferred.blocks * SMALL.size() as u64;
        assert_eq!(bursts.deferred.bytes, bytes, "{bursts:?}");
        if round % 2 == 0 {
            heap.flush();
            add_up(heap.stats().bursts, 2 * n);
        }
        drop(heap);
        wait_until("all blocks are freed", || book.live_blocks() == 0);
        wait_until("the drainer has ended", || drainers().is_empty());
    }
    drop(to_thread);
    other.join().unwrap();
}

/// A thread whose frees are deferred goes on after the allocator is gone that it had deferred them in.
fn dropped_under_a_scope() {
    let books = [(); 3].map(|()| Tracking::leak());
    let [first, second, third] = books.map(DeferFree::with_backing);
    let blocks = [&first, &second, &third].map(|heap| allocs(heap, SMALL, 100));
    let _scope = defer_scope();
    let [of_first, of_second, of_third] = blocks;
    frees(&first, SMALL, of_first);
    drop(first);
    wait_until("all blocks are freed", || books[0].live_blocks() == 0);
    wait_until("the drainer has ended", || drainers().is_empty());
    frees(&second, SMALL, of_second);
    frees(&third, SMALL, of_third);
    second.flush();
    third.flush();
    assert_eq!(books.map(Tracking::live_blocks), [0; 3]);
}
