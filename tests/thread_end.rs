//! Frees in the destructors of pthread keys, which run on an ending thread after everything of Rust's is
//! gone, before and after this crate's own: nothing is lost, and nothing waits. And what a thread that ends owes
//! is freed before it has ended.
//!
//! Seen to fail: with a thread that takes a lane again after it gave its own up, `bursts`; without the
//! key's handler, `bursts`; without `at_thread_end`, `settles`; without `withdraw`, `settles_while_heaps_go`;
//! without the look at the exit, `not_at_exit`.
#![cfg(target_os = "linux")]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread;

use common::tracking::Tracking;
use common::{MIB, drainers, run_child, wait_until};
use deferfree::{Backing, DeferFree, Mimalloc};

fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("bursts") => bursts(),
        Some("large") => large(),
        Some("first") => first(),
        Some("settles") => settles(),
        Some("settles_while_heaps_go") => settles_while_heaps_go(),
        Some("not_at_exit") => not_at_exit(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("bursts", || run("bursts")),
                ("large", || run("large")),
                ("first", || run("first")),
                ("settles", || run("settles")),
                ("settles_while_heaps_go", || run("settles_while_heaps_go")),
                ("not_at_exit", || run("not_at_exit")),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn run(case: &str) {
    run_child(case, &[("DEFERFREE_BURST", "256")], 60).expect_clean();
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
        for i in 0..n_blocks {
            blocks.swap(i, i * 7919 % n_blocks);
        }
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

const THREADS: usize = 300;

/// More threads than there are lanes; each ends in the midst of a burst.
fn bursts() {
    make_keys();
    for n in 0..THREADS {
        let before = heap().stats().bursts.deferred.blocks;
        let ending = thread::spawn(|| {
            set(&BEFORE, TIMES);
            set(&AFTER, TIMES);
            use_heap();
        });
        ending.join().unwrap();
        // It had a lane, hence got it from one before it.
        let deferred = heap().stats().bursts.deferred.blocks - before;
        assert!(deferred >= 200, "{deferred} of thread {n}");
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
