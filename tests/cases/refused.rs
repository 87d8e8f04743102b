//! What the system refuses to a drainer that runs: to take memory back, to grant memory for what is written down.
//! Everything is freed all the same, nothing is said, and nobody goes on trying.
//!
//! Each case in a child process under a watchdog.
//!
//! `locked_and_resident` seen to fail with room for four times the addresses.

use crate::common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use common::addresses::Addresses;
use common::{
    KIB, MIB, ROOM, cpu_time, limit_address_space, nearly_start, refuse_calls, rss, run_child,
    shuffle, sleep_ms, threads, to_be_deferred, touched, wait_until,
};
use deferfree::{DeferFree, defer_scope};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new().max_pending(ROOM);

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        None => {
            return common::run(&[
                ("return_of_memory_from_the_start", || run("return_of_memory_from_the_start")),
                ("return_of_memory_later", || run("return_of_memory_later")),
                ("memory_is_locked", || run("memory_is_locked")),
                ("locked_and_resident", locked_and_resident),
                ("memory_for_chunks", || run("memory_for_chunks")),
                ("memory_for_logs", || run("memory_for_logs")),
            ]);
        }
        Some("return_of_memory_from_the_start") => {
            refuse_return();
            nothing_is_returned();
        }
        Some("return_of_memory_later") => {
            work();
            refuse_return();
            nothing_is_returned();
        }
        Some("memory_is_locked") => {
            // Whatever is mapped from now on, as soon as it is touched.
            let flags = libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT;
            // SAFETY: a system call on a number.
            if unsafe { libc::mlockall(flags) } == 0 {
                nothing_is_returned();
            } else {
                println!("SKIPPED: memory may not be locked");
            }
        }
        Some("locked_and_resident") => locked_and_resident_child(),
        Some("memory_for_chunks") => memory_for_chunks(),
        Some("memory_for_logs") => memory_for_logs(),
        Some(case) => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

fn run(case: &str) {
    let output = run_child(case, &[("DEFERFREE_BURST", "128"), ("DEFERFREE_DELAY", "100ms")], 60);
    print!("{}", output.stdout);
    output.expect_clean();
}

/// As in a container, which may refuse other things besides that the drainer could do without.
fn refuse_return() {
    let calls = [
        libc::SYS_madvise,
        libc::SYS_membarrier,
        libc::SYS_sched_getaffinity,
        libc::SYS_sched_setaffinity,
        libc::SYS_sched_getscheduler,
        libc::SYS_sched_setscheduler,
        libc::SYS_getpriority,
        libc::SYS_setpriority,
        libc::SYS_prctl,
    ];
    refuse_calls(&calls, libc::EPERM);
}

/// Large blocks, one whose free unmaps it, and small ones in no order.
fn work() {
    let large: Vec<_> = (1..40).map(|n| touched(n * 100 * KIB)).collect();
    let layout = Layout::from_size_align(10 * MIB, 128 * KIB).unwrap();
    // SAFETY: a valid layout, a block of that size, freed once.
    unsafe {
        let block = GLOBAL.alloc(layout);
        block.write_bytes(1, layout.size());
        GLOBAL.dealloc(block, layout);
    }
    let mut small: Vec<_> = (0..100_000).map(|n| vec![n; 30]).collect();
    shuffle(&mut small);
    let _scope = defer_scope();
    drop(black_box((large, small)));
}

fn nothing_is_returned() {
    for round in 0..5 {
        work();
        if round % 2 == 0 {
            GLOBAL.flush();
            let stats = GLOBAL.stats();
            assert_eq!((stats.pending.blocks, stats.bursts.pending.blocks), (0, 0), "{stats:?}");
        }
    }
    wait_until("nothing waits", || {
        let stats = GLOBAL.stats();
        (stats.pending.blocks, stats.bursts.pending.blocks) == (0, 0)
    });
    let stats = GLOBAL.stats();
    assert!(to_be_deferred(&stats.bursts) >= 400_000 && stats.purges > 0, "{stats:?}");
    // The drainer lingers for four delays, and falls asleep: later on a busy machine.
    sleep_ms(1500);
    let mut spent = (0..5).map(|_| {
        let before = cpu_time();
        sleep_ms(2000);
        cpu_time() - before
    });
    assert!(spent.any(|spent| spent < Duration::from_millis(3)), "idle CPU time");
    // It has no name where that is refused.
    assert_eq!(threads().len(), 2);
}

/// What the crate itself has mapped is resident as a whole where a program locks what it is going to map, as it may be where
/// all memory is huge pages: 32 MiB for addresses, 0.3 MiB for each size, and less than a MiB for all else. Small
/// blocks, some of each of sixteen sizes, on the system's allocator, which maps the little that it needs.
fn locked_and_resident() {
    let output = run_child("locked_and_resident", &[("DEFERFREE_DELAY", "100ms")], 60);
    print!("{}", output.stdout);
    output.expect_clean();
}

const LOCKED_SIZES: usize = 16;
const LOCKED_MAX: usize = 44 * MIB;

fn locked_and_resident_child() {
    static HEAP: DeferFree<System> =
        DeferFree::with_backing(System).threshold(4096).burst(Some(0)).max_pending(64 * MIB);
    let layout = |n: usize| Layout::from_size_align((n + 4) * 1024, 8).unwrap();
    let work = |heap: &dyn GlobalAlloc| {
        // SAFETY: valid layouts; each block is freed once, as allocated.
        unsafe {
            for n in 0..LOCKED_SIZES {
                heap.dealloc(heap.alloc(layout(n)), layout(n));
            }
            let small = [(); 1000].map(|()| heap.alloc(SMALL));
            small.into_iter().for_each(|block| heap.dealloc(block, SMALL));
        }
    };
    // What the system's allocator maps for that is there already.
    work(&System);
    // SAFETY: a system call on a number.
    if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
        println!("SKIPPED: memory may not be locked");
        return;
    }
    let before = rss();
    nearly_start(&HEAP);
    work(&HEAP);
    wait_until("it has started", || HEAP.stats().drainer_running);
    HEAP.flush();
    let bursts = HEAP.stats().bursts;
    assert!(bursts.deferred.blocks > 0 && bursts.pending.blocks == 0, "{bursts:?}");
    assert_eq!(HEAP.stats_by_size().count(), LOCKED_SIZES);
    let taken = rss().saturating_sub(before);
    println!("{} KiB resident, of {LOCKED_SIZES} sizes", taken / KIB);
    assert!((32 * MIB..LOCKED_MAX).contains(&taken), "{taken} bytes");
}

type Heap = DeferFree<&'static Addresses>;

const SMALL: Layout = Layout::new::<[u64; 6]>();

/// Its drainer runs, without a small block so far.
fn running_heap() -> (&'static Heap, &'static Addresses) {
    let book = Addresses::leak();
    let heap: &Heap = Box::leak(Box::new(DeferFree::with_backing(book)));
    let large = Layout::from_size_align(16 * MIB, 8).unwrap();
    // SAFETY: a valid layout, freed once.
    unsafe { heap.dealloc(heap.alloc(large), large) };
    heap.flush();
    assert_eq!(book.n_live(), 0);
    (heap, book)
}

fn frees(heap: &Heap, blocks: Vec<usize>) {
    let _scope = defer_scope();
    for block in blocks {
        // SAFETY: from `allocs`, freed once.
        unsafe { heap.dealloc(std::ptr::with_exposed_provenance_mut(block), SMALL) };
    }
}

fn allocs(heap: &Heap, n: usize) -> Vec<usize> {
    // SAFETY: a valid layout.
    (0..n).map(|_| unsafe { heap.alloc(SMALL) }.expose_provenance()).collect()
}

/// What could not be written down is freed at once; once there is memory it is deferred.
fn memory_for_chunks() {
    let (heap, book) = running_heap();
    let blocks = [(); 2].map(|()| allocs(heap, 5000));
    // Not for the mapping with all chunks.
    limit_address_space(MIB);
    for blocks in blocks {
        frees(heap, blocks);
        assert_eq!(book.n_live() % 5000, 0);
    }
    let bursts = heap.stats().bursts;
    assert_eq!((bursts.deferred.blocks, bursts.no_chunk_blocks), (0, 10_000), "{bursts:?}");
    assert_eq!(book.n_live(), 0);
    limit_address_space(usize::MAX);
    frees(heap, allocs(heap, 5000));
    heap.flush();
    let bursts = heap.stats().bursts;
    assert_eq!((bursts.deferred.blocks, bursts.pending.blocks), (5000, 0), "{bursts:?}");
    assert_eq!((book.n_live(), bursts.over_bound_blocks), (0, 0));
}

/// Threads for which there is no log do without.
fn memory_for_logs() {
    const THREADS: usize = 200;
    let (heap, book) = running_heap();
    let barrier = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let blocks = [(); 2].map(|()| allocs(heap, 100));
                barrier.wait();
                for blocks in blocks {
                    barrier.wait();
                    frees(heap, blocks);
                    barrier.wait();
                }
            });
        }
        // One of these has the mapping with the chunks.
        frees(heap, allocs(heap, 100));
        barrier.wait();
        limit_address_space(0);
        barrier.wait();
        barrier.wait();
        limit_address_space(usize::MAX);
        let bursts = heap.stats().bursts;
        assert!(bursts.deferred.blocks < 20 * 100, "{bursts:?}");
        assert_eq!(bursts.deferred.blocks + bursts.no_chunk_blocks, 201 * 100, "{bursts:?}");
        barrier.wait();
        barrier.wait();
        let now = heap.stats().bursts;
        let n_deferred = to_be_deferred(&now) - to_be_deferred(&bursts);
        assert_eq!(n_deferred, 200 * 100, "{now:?}");
    });
    wait_until("all blocks are freed", || book.n_live() == 0);
}
