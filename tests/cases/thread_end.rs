//! Threads that end: what they have written down is freed, others get their logs, and what they free in the
//! destructors of pthread keys, which run after everything of Rust's is gone, before and after this crate's own, is
//! freed too. Where the allocator tells of a thread's end it has freed what it owed before it has ended.
//!
//! Every free is deferred, but for those after a thread's end has begun.
//!
//! Seen to fail: see `README.md`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_ulonglong, c_void};
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Barrier, OnceLock, mpsc};
use std::thread;

use common::addresses::Addresses;
use common::tracking::Tracking;
use common::{MIB, drainers, run_child, shuffle, start, to_be_deferred, wait_until};
use deferfree::{Backing, DeferFree, Mimalloc};
use libmimalloc_sys as ffi;

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("one_after_another") => one_after_another(),
        Some("all_at_once") => all_at_once(),
        Some("rested") => rested(),
        Some("keys") => keys(),
        Some("large") => large(),
        Some("first") => first(),
        Some("settles") => settles(),
        Some("settles_while_heaps_go") => settles_while_heaps_go(),
        Some("another_allocator_tells") => another_allocator_tells(),
        Some("not_at_exit") => not_at_exit(),
        Some("left_to_the_drainer") => left_to_the_drainer(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("one_after_another", || run("one_after_another")),
                ("all_at_once", || run("all_at_once")),
                ("rested", || run("rested")),
                ("keys", || run("keys")),
                ("large", || run("large")),
                ("first", || run("first")),
                ("settles", || run("settles")),
                ("settles_while_heaps_go", || run("settles_while_heaps_go")),
                ("another_allocator_tells", || run("another_allocator_tells")),
                ("not_at_exit", || run("not_at_exit")),
                ("left_to_the_drainer", || run("left_to_the_drainer")),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn run(case: &str) {
    run_child(case, &[("DEFERFREE_BURST", "0")], 60).expect_clean();
}

const SMALL: Layout = Layout::new::<[u64; 6]>();
const LARGE: Layout = match Layout::from_size_align(MIB, 8) {
    Ok(layout) => layout,
    Err(_) => panic!(),
};
/// As often as the C library calls the destructors of a thread that keeps setting its keys.
const TIMES: usize = 4;

static BOOK: OnceLock<&Tracking> = OnceLock::new();
static HEAP: OnceLock<DeferFree<&Tracking>> = OnceLock::new();
static N_CALLS: AtomicUsize = AtomicUsize::new(0);
static BEFORE: AtomicU32 = AtomicU32::new(u32::MAX);
static AFTER: AtomicU32 = AtomicU32::new(u32::MAX);

fn heap() -> &'static DeferFree<&'static Tracking> {
    HEAP.get_or_init(|| DeferFree::with_backing(*BOOK.get_or_init(Tracking::leak)))
}

fn book() -> &'static Tracking {
    heap();
    BOOK.get().unwrap()
}

/// Allocates small blocks and frees them in no order.
fn drop_many<B: Backing>(heap: &DeferFree<B>, n_blocks: usize) {
    // SAFETY: a valid layout; each is freed once, as allocated.
    unsafe {
        let mut blocks: Vec<*mut u8> = (0..n_blocks).map(|_| heap.alloc(SMALL)).collect();
        shuffle(&mut blocks);
        blocks.into_iter().for_each(|block| heap.dealloc(block, SMALL));
    }
}

/// Two large blocks and 500 small ones.
fn use_heap() {
    let heap = heap();
    // SAFETY: a valid layout; each is freed once, as allocated.
    unsafe {
        let large = [heap.alloc(LARGE), heap.alloc(LARGE)];
        large.into_iter().for_each(|block| heap.dealloc(block, LARGE));
    }
    drop_many(heap, 500);
}

fn set(key: &AtomicU32, left: usize) {
    let value: *const c_void = ptr::without_provenance(left);
    // SAFETY: a key that exists; the value is a number.
    assert_eq!(unsafe { libc::pthread_setspecific(key.load(Ordering::SeqCst), value) }, 0);
}

unsafe extern "C" fn at_end_before(left: *mut c_void) {
    at_end(&BEFORE, left.addr());
}

unsafe extern "C" fn at_end_after(left: *mut c_void) {
    at_end(&AFTER, left.addr());
}

fn at_end(key: &AtomicU32, left: usize) {
    N_CALLS.fetch_add(1, Ordering::SeqCst);
    use_heap();
    // Has the C library call it once more, after it has called the others.
    set(key, left - 1);
}

fn make_key(key: &AtomicU32, destructor: unsafe extern "C" fn(*mut c_void)) {
    let mut made = 0;
    // SAFETY: a live variable, and a function of this program.
    assert_eq!(unsafe { libc::pthread_key_create(&mut made, Some(destructor)) }, 0);
    key.store(made, Ordering::SeqCst);
}

/// One key that is older than this crate's, hence called before it, and one that is younger.
fn make_keys() {
    make_key(&BEFORE, at_end_before);
    // The crate makes its own at the first burst.
    thread::spawn(use_heap).join().unwrap();
    make_key(&AFTER, at_end_after);
}

fn addresses() -> (&'static DeferFree<&'static Addresses>, &'static Addresses) {
    let book = Addresses::leak();
    (Box::leak(Box::new(DeferFree::with_backing(book))), book)
}

fn deferred<B: Backing>(heap: &DeferFree<B>) -> usize {
    to_be_deferred(&heap.stats().bursts) as usize
}

/// In a tiny run that may happen.
fn freed_at_once<B: Backing>(heap: &DeferFree<B>) -> usize {
    deferred(heap) - heap.stats().bursts.deferred.blocks as usize
}

/// That many have been deferred in all. The count may be off while the drainer takes the log of a thread that ended.
#[track_caller]
fn have_been_deferred<B: Backing>(heap: &DeferFree<B>, n: usize) {
    assert!(deferred(heap) <= n);
    wait_until("all are counted", || deferred(heap) == n);
}

/// Far more threads than there are logs at first. Nobody flushes.
fn one_after_another() {
    let (heap, book) = addresses();
    for n in 1..=500 {
        thread::spawn(|| drop_many(heap, 3000)).join().unwrap();
        have_been_deferred(heap, n * 3000);
    }
    wait_until("all blocks are freed", || book.n_live() == 0);
    assert_eq!(book.n_freed_by_drainer() + freed_at_once(heap), 500 * 3000);
}

/// They all hold a log at the same time, and end at the same time.
fn all_at_once() {
    const THREADS: usize = 200;
    let (heap, book) = addresses();
    drop_many(heap, 1);
    for round in 1..=5 {
        let barrier = Barrier::new(THREADS);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    drop_many(heap, 1500);
                    barrier.wait();
                });
            }
        });
        have_been_deferred(heap, 1 + round * THREADS * 1500);
        wait_until("all blocks are freed", || book.n_live() == 0);
    }
    assert_eq!(heap.stats().bursts.no_chunk_blocks as usize, freed_at_once(heap));
}

/// Threads whose logs are empty when they end, the last chunk half full: more of them than there are chunks.
fn rested() {
    let (heap, book) = addresses();
    for n in 1..=10_000 {
        let ending = || {
            drop_many(heap, 10);
            heap.flush();
            assert_eq!(book.n_live(), 0);
        };
        thread::scope(|scope| scope.spawn(ending).join().unwrap());
        have_been_deferred(heap, n * 10);
    }
}

/// Each thread ends in the midst of what it writes down, and frees more in the destructors of keys.
fn keys() {
    const THREADS: usize = 300;
    make_keys();
    let before = deferred(heap());
    for n in 1..=THREADS {
        let ending = thread::spawn(|| {
            set(&BEFORE, TIMES);
            set(&AFTER, TIMES);
            use_heap();
        });
        ending.join().unwrap();
        // Those of the thread, and those of the one destructor that ran before the crate's.
        have_been_deferred(heap(), before + n * 1000);
    }
    assert_eq!(N_CALLS.load(Ordering::SeqCst), THREADS * 2 * TIMES);
    wait_until("all small blocks are freed", || book().live_bytes() < MIB / 2);
    heap().flush();
    assert_eq!(book().live_blocks(), 0);
}

/// Large blocks only, which need no state of the thread.
fn large() {
    make_keys();
    let others: Vec<_> = (0..16)
        .map(|_| {
            thread::spawn(|| {
                set(&BEFORE, TIMES);
                set(&AFTER, TIMES);
            })
        })
        .collect();
    others.into_iter().for_each(|other| other.join().unwrap());
    assert_eq!(N_CALLS.load(Ordering::SeqCst), 16 * 2 * TIMES);
    heap().flush();
    let stats = heap().stats();
    // Two for each use; nothing is freed past the counts.
    let n_large = 2 * (16 * 2 * TIMES + 1) as u64;
    assert_eq!(stats.handed_over.blocks + stats.not_running.blocks, n_large, "{stats:?}");
    assert_eq!(book().live_blocks(), 0);
}

/// The very first operation comes in the destructor of a key.
fn first() {
    make_key(&BEFORE, at_end_before);
    thread::spawn(|| set(&BEFORE, 1)).join().unwrap();
    assert_eq!(N_CALLS.load(Ordering::SeqCst), 1);
    wait_until("one drainer", || drainers().len() == 1);
    use_heap();
    heap().flush();
    assert_eq!(book().live_blocks(), 0);
}

/// mimalloc tells of a thread's end in time.
static ON_MIMALLOC: DeferFree = DeferFree::new();

/// A thread that ends has freed what it deferred: nothing waits once it has been joined.
fn settles() {
    const ROUNDS: u64 = 30;
    const BLOCKS: usize = 20_000;
    let mut settled = 0;
    for _ in 0..ROUNDS {
        let before = ON_MIMALLOC.stats().bursts;
        thread::spawn(|| drop_many(&ON_MIMALLOC, BLOCKS)).join().unwrap();
        let after = ON_MIMALLOC.stats().bursts;
        assert!(after.deferred.blocks - before.deferred.blocks > BLOCKS as u64 / 2, "{after:?}");
        // Unless it was interrupted so long that the drainer took it for quiet.
        settled += u64::from(after.pending.blocks == 0 && after.drained == before.drained);
    }
    assert!(settled > ROUNDS / 2, "{settled} of {ROUNDS}");
    ON_MIMALLOC.flush();
    let bursts = ON_MIMALLOC.stats().bursts;
    assert_eq!(bursts.pending.blocks, 0);
    assert_eq!(bursts.deferred.blocks, bursts.paid_back.blocks + bursts.drained.blocks);
}

/// Threads end while the allocator that they used is dropped: its runtime stays as long as they need it.
fn settles_while_heaps_go() {
    for _ in 0..100 {
        let heap = Box::into_raw(Box::new(DeferFree::with_backing(Mimalloc)));
        // SAFETY: it is there until all threads are done with it.
        let borrowed = unsafe { &*heap };
        // Threads that are done with the allocator, but have not ended.
        let (done, all_done) = mpsc::channel();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let done = done.clone();
                thread::spawn(move || {
                    drop_many(borrowed, 3000);
                    done.send(()).unwrap();
                })
            })
            .collect();
        threads.iter().for_each(|_| all_done.recv().unwrap());
        // SAFETY: from above; the threads do not use it any more.
        drop(unsafe { Box::from_raw(heap) });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
    wait_until("all drainers have ended", || drainers().is_empty());
}

/// Small blocks are deferred in the first allocator; that of which a thread hears its end is another one, on another backing.
fn another_allocator_tells() {
    let book = Addresses::leak();
    book.tells_of_ends();
    let heap: &DeferFree<&'static Addresses> = Box::leak(Box::new(DeferFree::with_backing(book)));
    start(heap);
    start(&ON_MIMALLOC);
    assert!(heap.stats().drainer_running && ON_MIMALLOC.stats().drainer_running);
    for _ in 0..30 {
        thread::spawn(|| {
            // mimalloc tells of threads that have used it.
            drop(Box::new(0));
            drop_many(&ON_MIMALLOC, 10);
            drop_many(heap, 3000);
        })
        .join()
        .unwrap();
    }
    let bursts = heap.stats().bursts;
    assert!(bursts.paid_back.blocks > 0, "{bursts:?}");
    heap.flush();
    assert_eq!((heap.stats().bursts.pending.blocks, book.n_live()), (0, 0));
}

/// A program may have mimalloc tell itself of a thread's end, once the drainer runs: it is told, and the thread frees
/// nothing of what it owes.
fn left_to_the_drainer() {
    unsafe extern "C" fn of_the_programs_own(force: bool, _: c_ulonglong, _: *mut c_void) {
        N_CALLS.fetch_add(usize::from(force), Ordering::SeqCst);
    }
    drop_many(&ON_MIMALLOC, 10_000);
    wait_until("it has started", || ON_MIMALLOC.stats().drainer_running);
    ON_MIMALLOC.flush();
    let before = ON_MIMALLOC.stats().bursts;
    // SAFETY: a function that stays.
    unsafe { ffi::mi_register_deferred_free(Some(of_the_programs_own), ptr::null_mut()) };
    thread::spawn(|| drop_many(&ON_MIMALLOC, 10_000)).join().unwrap();
    assert!(N_CALLS.load(Ordering::SeqCst) > 0);
    wait_until("nothing waits", || ON_MIMALLOC.stats().bursts.pending.blocks == 0);
    let after = ON_MIMALLOC.stats().bursts;
    assert_eq!(after.paid_back, before.paid_back, "{after:?}");
    assert_eq!(to_be_deferred(&after) - to_be_deferred(&before), 10_000, "{after:?}");
}

/// The end of the process is not that of a thread, though mimalloc collects then as well.
fn not_at_exit() {
    extern "C" fn after_the_crates_own() {
        let [before, after] = [(); 2].map(|()| {
            let bursts = ON_MIMALLOC.stats().bursts;
            Mimalloc.purge();
            bursts
        });
        let waits = before.pending.blocks > 0;
        if !waits || after.paid_back != before.paid_back {
            eprintln!("{before:?} {after:?}");
            std::process::abort();
        }
    }
    // SAFETY: a function of this program.
    assert_eq!(unsafe { libc::atexit(after_the_crates_own) }, 0);
    drop_many(&ON_MIMALLOC, 1_000_000);
}
