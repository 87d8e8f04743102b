//! Many processes at once whose threads push, burst and fork; daemons; children of the raw `clone`.
//!
//! On the system's allocator, which has fork handlers of its own. mimalloc 3.3.2 has none: a thread that
//! claims an abandoned page clears its bit first (bitmap.c, `mi_bitmap_try_find_and_claim_visit`), and a child
//! made before it is done waits for that bit for ever when it frees a block of the page
//! (`mi_bfield_atomic_clear_once_set`). `fork.rs` forks on mimalloc.
//!
//! Seen to fail: without any fork handlers, `daemons`; with the counts of an open chunk kept, `storm`.

use crate::common;

use std::alloc::System;
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use common::{
    KIB, MIB, exit_now, flush_to_the_last, fork, nearly_start, run_child, touched, under_load,
    wait, wait_ok, wait_until,
};
use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree<System> = DeferFree::with_backing(System);

/// What a forked child may take. It is done in a tenth of a second where there is nothing else to be done.
const CHILD_SECS: u32 = 20;
const PROCESSES: usize = 100;

pub(crate) fn main() -> ExitCode {
    nearly_start(&GLOBAL);
    match common::child_case().as_deref() {
        Some("storm") => storm_child(),
        Some("daemons") => daemons_child(),
        Some("raw_clone") => raw_clone_child(),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("storm", storm),
                ("daemons", || clean("daemons")),
                ("raw_clone", || clean("raw_clone")),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn clean(case: &str) {
    let env = [("DEFERFREE_DELAY", "2ms"), ("DEFERFREE_BURST", "128")];
    run_child(case, &env, 120).expect_clean();
}

fn storm() {
    let left = AtomicUsize::new(PROCESSES);
    let take =
        || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while take() {
                    clean("storm");
                }
            });
        }
    });
}

/// Small blocks that are written down, whatever they would cost. Who goes on with the next ones takes them back.
fn burst(n: usize) {
    let blocks: Vec<_> = (0..n).map(|i| Box::new([i; 6])).collect();
    let _scope = deferfree::defer_scope();
    drop(black_box(blocks));
}

fn push() {
    for size in [256 * KIB, 300 * KIB, 700 * KIB] {
        let blocks: Vec<_> = (0..4).map(|_| Vec::<u8>::with_capacity(size)).collect();
        drop(black_box(blocks));
    }
}

/// What every child must be able to do.
fn use_it() {
    drop(touched(MIB));
    burst(2000);
    push();
    deferfree::later((0..100).map(|n| vec![n; 10]).collect::<Vec<_>>());
    assert!(GLOBAL.stats().drainer_running);
    // The dropper's own beginnings are over by then.
    assert!(deferfree::flush_values());
    flush_to_the_last(&GLOBAL);
    let stats = GLOBAL.stats();
    assert_eq!((stats.pending.blocks, stats.bursts.pending.blocks), (0, 0), "{stats:?}");
}

/// Runs `body` while one thread pushes large blocks, one frees in bursts, and one hands values over.
///
/// They stay inside what mimalloc has mapped already, see `under_churn` in `fork.rs`.
fn under_churn(body: impl FnOnce()) {
    drop((0..100).map(|_| Vec::<u8>::with_capacity(MIB)).collect::<Vec<_>>());
    under_load(&[&push, &|| burst(1500), &|| deferfree::later(vec![vec![1; 8]; 50])], body);
}

fn storm_child() {
    under_churn(|| {
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..4 {
                        wait_ok(fork(CHILD_SECS, use_it));
                    }
                });
            }
        });
    });
    use_it();
}

/// Twice over: fork, a session of its own, fork, and both parents gone. The second daemon reports.
fn daemons_child() {
    for _ in 0..20 {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors, which are ours.
        let (mut reader, mut writer) = unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            let own = |end| std::fs::File::from(OwnedFd::from_raw_fd(end));
            (own(ends[0]), own(ends[1]))
        };
        under_churn(|| {
            let pid = fork(CHILD_SECS, || {
                burst(1000);
                become_daemon();
                push();
                become_daemon();
                use_it();
                writer.write_all(b"done").unwrap();
            });
            // The one forked here ends as soon as it has a child.
            wait_ok(pid);
        });
        drop(writer);
        let mut said = String::new();
        // Ends when the last daemon has, which the alarm sees to.
        reader.read_to_string(&mut said).unwrap();
        assert_eq!(said, "done");
    }
}

fn become_daemon() {
    // SAFETY: a system call without arguments; the child goes on, its parent ends at once.
    unsafe {
        libc::setsid();
        match libc::fork() {
            0 => libc::alarm(CHILD_SECS),
            pid => exit_now(if pid > 0 { 0 } else { 101 }),
        };
    }
}

/// The raw system call runs no handlers, neither this crate's nor the C library's. Such a child does not
/// know that it has no drainer: it may end or execute another program, and use small blocks if no other
/// thread of the parent, the drainer included, was at work.
fn raw_clone_child() {
    let held = touched(3 * MIB);
    under_churn(|| (0..100).for_each(|n| raw_clone(n, &held, false)));
    GLOBAL.flush();
    // The drainer has nothing to do from now on.
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
    let drainer = common::drainers()[0];
    wait_until("the drainer sleeps", || common::task_status(drainer, "State").starts_with('S'));
    (0..50).for_each(|n| raw_clone(n, &held, true));
    // Nothing has changed for the parent.
    drop(held);
    use_it();
}

fn raw_clone(n: usize, held: &[u8], calm: bool) {
    // SAFETY: as `fork`, past the C library; the child does what is documented to work.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: a system call on a number.
        unsafe { libc::alarm(CHILD_SECS) };
        if !held.iter().step_by(4096).all(|&byte| byte == 1) {
            exit_now(1);
        }
        if calm {
            // Pairs, and more than a chunk's worth in a row.
            (0..500).for_each(|i| drop(black_box(i.to_string().repeat(10))));
            burst(5000);
        }
        if n % 2 == 0 {
            exit_now(0);
        }
        // SAFETY: C strings and an array of them that ends with a null pointer.
        unsafe {
            let arguments = [c"true".as_ptr(), std::ptr::null()];
            libc::execvp(c"true".as_ptr(), arguments.as_ptr());
        }
        exit_now(2);
    }
    let status = wait(pid);
    assert_eq!(status.code(), Some(0), "child {n}, calm: {calm}: {status}");
}
