//! A thread that says that it is about to rest gives up what is held for it, once for each time that it has used the
//! allocator, but never so often that this is much of its time; wherever it says so.
//!
//! Seen to fail: with a call of the backing each time, or without the look that a thread's first free, first
//! allocation or first large allocation after a rest takes, `once`; without the share of time, `seldom`; without the look
//! at the settings, `off`; with a `settle` that does not look whether the thread rests, `written_down`; without the call
//! of the backing, `memory`; where the thread's heap goes along with its pages (`mi_thread_done`), `anywhere` (crash on the first
//! thread); outside of the gate, and without the share of time, `forks` (a child hangs).

use crate::common;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::RefCell;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::Duration;

use common::{
    KIB, MIB, TINY, fork, on_system, rss, run_child, sleep_ms, under_load, wait_ok, wait_until,
};
use deferfree::{Backing, DeferFree};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("once") => on_a_thread(once),
        Some("seldom") => on_a_thread(seldom),
        Some("off") => on_a_thread(off),
        Some("written_down") => on_a_thread(written_down),
        Some("memory") => memory(),
        Some("anywhere") => anywhere(),
        Some("forks") => forks(),
        Some("exit") => exit(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("once", || run("once", &[])),
                ("seldom", || run("seldom", &[])),
                ("off", || run("off", &[("DEFERFREE", "off")])),
                ("written_down", || run("written_down", &[("DEFERFREE_BURST", "0")])),
                ("memory", || run("memory", &[])),
                ("anywhere", || run("anywhere", &[])),
                ("forks", || run("forks", &[])),
                ("exit", || (0..20).for_each(|_| run("exit", &[]))),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn run(case: &str, env: &[(&str, &str)]) {
    run_child(case, env, 60).expect_clean();
}

fn on_a_thread(case: fn()) {
    thread::spawn(case).join().unwrap();
}

/// The system's allocator, which counts how often it is told that a thread rests.
#[derive(Clone, Copy)]
struct Counting;

static N_RESTS: AtomicUsize = AtomicUsize::new(0);
/// How long it takes over that.
static TAKES_MS: AtomicU64 = AtomicU64::new(0);

on_system!(Counting);

// SAFETY: as for the system's.
unsafe impl Backing for Counting {
    fn thread_idle(&self) {
        N_RESTS.fetch_add(1, Ordering::Relaxed);
        sleep_ms(TAKES_MS.load(Ordering::Relaxed));
    }
}

static COUNTED: DeferFree<Counting> = DeferFree::with_backing(Counting);

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

fn alloc(size: usize) -> *mut u8 {
    // SAFETY: a valid layout.
    black_box(unsafe { COUNTED.alloc(layout(size)) })
}

fn free(block: *mut u8, size: usize) {
    // SAFETY: from `alloc` with that size.
    unsafe { COUNTED.dealloc(block, layout(size)) };
}

/// How often the backing is told when the thread has done `what` and then says time and again that it rests.
fn n_rests<T>(what: impl FnOnce() -> T) -> (usize, T) {
    // What the last time took allows for the next one.
    sleep_ms(50);
    let before = N_RESTS.load(Ordering::Relaxed);
    let result = what();
    (0..100).for_each(|_| COUNTED.thread_idle());
    (N_RESTS.load(Ordering::Relaxed) - before, result)
}

fn once() {
    // The thread itself has come to be.
    assert_eq!(n_rests(|| ()).0, 1);
    assert_eq!(n_rests(|| ()).0, 0);
    for size in [64, 2 * KIB, 20 * KIB, MIB, 40 * MIB] {
        let (n, block) = n_rests(|| alloc(size));
        assert_eq!(n, 1, "{size}: allocated");
        assert_eq!(n_rests(|| ()).0, 0, "{size}: not used since");
        // One of 16 KiB and more is freed without a look at the thread.
        let (n, ()) = n_rests(|| free(block, size));
        assert!(n == 1 || size >= 16 * KIB, "{size}: freed");
    }
    let block = alloc(100);
    let grow = |block, from, to| {
        // SAFETY: from `alloc` with the size `from`.
        unsafe { COUNTED.realloc(block, layout(from), to) }
    };
    let (n, block) = n_rests(|| grow(block, 100, 50 * KIB));
    assert_eq!(n, 1, "reallocated");
    let (n, block) = n_rests(|| grow(block, 50 * KIB, 3 * MIB));
    assert_eq!(n, 1, "grown large");
    free(block, 3 * MIB);
    COUNTED.flush();
}

fn seldom() {
    TAKES_MS.store(20, Ordering::Relaxed);
    free(alloc(64), 64);
    COUNTED.thread_idle();
    // Fifty times as long.
    for _ in 0..50 {
        free(alloc(64), 64);
        COUNTED.thread_idle();
    }
    assert_eq!(N_RESTS.load(Ordering::Relaxed), 1);
    wait_until("the share is used up", || {
        free(alloc(64), 64);
        COUNTED.thread_idle();
        N_RESTS.load(Ordering::Relaxed) == 2
    });
}

fn off() {
    assert_eq!(n_rests(|| free(alloc(64), 64)).0, 0);
}

/// What a thread has written down is freed by the drainer, not by the thread on its way to rest.
fn written_down() {
    const N: u64 = if TINY { 5000 } else { 20_000 };
    for round in 1..=3 {
        let blocks: Vec<_> = (0..N).map(|i| Box::new([i; 4])).collect();
        // In order, they would be found to be hot.
        drop(black_box(blocks));
        GLOBAL.thread_idle();
        wait_until("the drainer has freed them", || GLOBAL.stats().bursts.pending.blocks == 0);
        let bursts = GLOBAL.stats().bursts;
        assert!(bursts.deferred.blocks >= round * N, "{bursts:?}");
        assert_eq!(bursts.paid_back.blocks, 0, "{bursts:?}");
        sleep_ms(20);
    }
}

/// Threads make buffers and rest; another one frees them.
fn memory() {
    let left_bytes = |says_so: bool| {
        const THREADS: usize = 32;
        let before = rss();
        let (sender, made) = mpsc::channel();
        let barrier = Barrier::new(THREADS + 1);
        thread::scope(|scope| {
            for i in 0..THREADS {
                let (sender, barrier) = (sender.clone(), &barrier);
                scope.spawn(move || {
                    // 20 to 250 KiB.
                    let size = |n: usize| (20 + (n * 7919 + i * 104_729) % 230) * KIB;
                    let buffers: Vec<_> = (0..60).map(|n| vec![1u8; size(n)]).collect();
                    sender.send(buffers).unwrap();
                    drop(sender);
                    if says_so {
                        GLOBAL.thread_idle();
                    }
                    barrier.wait();
                    barrier.wait();
                });
            }
            barrier.wait();
            drop(made.iter().take(THREADS).collect::<Vec<_>>());
            GLOBAL.flush();
            let left = rss().saturating_sub(before);
            barrier.wait();
            left
        })
    };
    let with = left_bytes(true);
    let without = left_bytes(false);
    assert!(with < 40 * MIB && without > 3 * with, "{} MiB, {} MiB", with / MIB, without / MIB);
}

fn use_it() {
    let map: std::collections::BTreeMap<u32, String> =
        (0..300).map(|i| (i, i.to_string())).collect();
    let buffers: Vec<_> = (1..20).map(|i| vec![i as u8; i * 13 * KIB]).collect();
    assert!(map.values().zip(0..).all(|(text, i)| *text == i.to_string()));
    assert!(buffers.iter().zip(1..).all(|(buffer, i)| buffer.iter().all(|&byte| byte == i)));
}

/// Says so when it is dropped, and uses the allocator before and after.
struct Late;

impl Drop for Late {
    fn drop(&mut self) {
        use_it();
        GLOBAL.thread_idle();
        use_it();
        GLOBAL.thread_idle();
    }
}

thread_local! {
    static LATE: RefCell<Vec<Late>> = const { RefCell::new(Vec::new()) };
}

fn use_and_rest() {
    for _ in 0..200 {
        use_it();
        GLOBAL.thread_idle();
        thread::sleep(Duration::from_micros(100));
    }
    LATE.with_borrow_mut(|late| late.push(Late));
}

fn anywhere() {
    GLOBAL.thread_idle();
    // The first thread, others, and children of both, in each of which there are others again.
    use_and_rest();
    let on_others = || {
        let others = [(); 4].map(|()| thread::spawn(use_and_rest));
        // To the last: the end of a thread takes locks of mimalloc's, as `under_load` says of its beginning.
        others.into_iter().for_each(|other| other.join().unwrap());
    };
    on_others();
    let in_child = move || {
        use_and_rest();
        on_others();
    };
    wait_ok(fork(30, in_child));
    let of_another = thread::spawn(move || {
        use_and_rest();
        wait_ok(fork(30, in_child));
    });
    of_another.join().unwrap();
    // It has not allocated anything.
    on_a_thread(|| GLOBAL.thread_idle());
}

/// Children start threads, whatever the parent's threads were giving up.
fn forks() {
    let rest = || {
        drop(black_box(vec![1u8; 100]));
        GLOBAL.thread_idle();
    };
    under_load(&[&rest, &rest, &rest, &rest], || {
        (0..100).for_each(|_| wait_ok(fork(30, || on_a_thread(use_it))))
    });
}

/// The process ends while threads say so.
fn exit() {
    for _ in 0..4 {
        thread::spawn(|| {
            loop {
                use_it();
                GLOBAL.thread_idle();
            }
        });
    }
    sleep_ms(5);
}
