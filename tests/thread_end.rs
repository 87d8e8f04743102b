//! Frees in the destructors of pthread keys, which run on an ending thread after everything of Rust's is
//! gone, before and after this crate's own: nothing is lost, and nothing waits.
//!
//! Seen to fail: with a thread that takes a lane again after it gave its own up, `bursts`; without the
//! key's handler, `bursts`.
#![cfg(target_os = "linux")]

mod common;

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::c_void;
use std::process::ExitCode;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread;

use common::tracking::Tracking;
use common::{MIB, drainers, run_child, wait_until};
use deferfree::DeferFree;

fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("bursts") => bursts(),
        Some("large") => large(),
        Some("first") => first(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("bursts", || run("bursts")),
                ("large", || run("large")),
                ("first", || run("first")),
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

/// Allocates and frees 500 small blocks in no order, and two large ones.
fn use_heap() {
    let heap = heap();
    // SAFETY: valid layouts; each is freed once, as allocated.
    unsafe {
        let mut blocks: Vec<*mut u8> = (0..500).map(|_| heap.alloc(SMALL)).collect();
        for i in 0..blocks.len() {
            blocks.swap(i, i * 7919 % 500);
        }
        let large = [heap.alloc(LARGE), heap.alloc(LARGE)];
        large.into_iter().for_each(|block| heap.dealloc(block, LARGE));
        blocks.into_iter().for_each(|block| heap.dealloc(block, SMALL));
    }
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
