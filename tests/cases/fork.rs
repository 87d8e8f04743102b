//! Forks at bad moments: while other threads push, while the drainer is inside the allocator, nested,
//! from several threads at once. Each forked child allocates, frees and has a drainer of its own.
//!
//! Seen to fail: without the generation or with the parent's gate kept, `fresh_start`; without the wait
//! for the drainer in `prepare`, `while_purging`; with the drainer born outside the gate, `at_birth`;
//! with the drainer's end outside the gate, `drainers_that_end`;
//! without any fork handlers, all but `of_a_parent_that_is_off`; with handlers registered by the start only, and musl,
//! `handlers_that_allocate`.

use crate::common;

use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    KIB, MIB, ROOM, command, drainers, finish, fork, nearly_start, on_system, rounds, rss,
    run_child, shuffle, sleep_ms, start, thread_refuser, touched, under_load, wait, wait_ok,
    wait_until,
};
use deferfree::{Backing, DeferFree};

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new().max_pending(ROOM);

/// What one forked child may take at most, among twenty others on a busy machine.
const CHILD_SECS: u32 = 10;

pub(crate) fn main() -> ExitCode {
    nearly_start(&GLOBAL);
    let Some(case) = common::child_case() else {
        return common::run(&[
            ("fresh_start", || clean("fresh_start", "250ms")),
            ("while_others_push", || clean("while_others_push", "2ms")),
            ("while_purging", || clean("while_purging", "1ms")),
            ("at_birth", || clean("at_birth", "4ms")),
            ("nested", || clean("nested", "4ms")),
            ("from_two_threads", || clean("from_two_threads", "2ms")),
            ("commands", || clean("commands", "2ms")),
            ("drainers_that_end", || clean("drainers_that_end", "2ms")),
            ("from_inside", || clean("from_inside", "2ms")),
            ("handlers_that_allocate", handlers_that_allocate),
            ("before_the_first_block", || clean("before_the_first_block", "2ms")),
            ("of_a_parent_that_is_off", of_a_parent_that_is_off),
            ("of_a_parent_that_failed", of_a_parent_that_failed),
        ]);
    };
    match case.as_str() {
        "fresh_start" => fresh_start_child(),
        "while_others_push" => while_others_push_child(),
        "while_purging" => while_purging_child(),
        "at_birth" => at_birth_child(),
        "nested" => nested_child(),
        "from_two_threads" => from_two_threads_child(),
        "commands" => commands_child(),
        "drainers_that_end" => drainers_that_end_child(),
        "from_inside" => from_inside_child(),
        "handlers_that_allocate" => handlers_that_allocate_child(),
        "before_the_first_block" => before_the_first_block_child(),
        "off" => off_child(),
        "failed" => failed_child(),
        _ => panic!("{case}"),
    }
    ExitCode::SUCCESS
}

/// Much time, as QEMU takes a fifth of a second for each of the 50 `commands` at least, and several times that where others
/// use the CPUs, with this crate or without it. (None hung in 14 runs; nor did 2050 that a program without it started.)
const CASE_SECS: u64 = 120;

fn clean(case: &str, delay: &str) {
    run_child(case, &[("DEFERFREE_DELAY", delay)], CASE_SECS).expect_clean();
}

/// What every child must be able to do.
fn use_it() {
    for round in 0..3 {
        let mut block = vec![round; 512 * KIB];
        block.extend_from_slice(&[7; 512 * KIB]);
        assert_eq!((block[0], block[512 * KIB]), (round, 7));
        let zeroed = vec![0u8; MIB];
        assert!(zeroed.iter().step_by(4096).all(|&byte| byte == 0));
    }
    let stats = GLOBAL.stats();
    assert!(stats.drainer_running);
    assert!(stats.handed_over.blocks > 0 && stats.handed_over.blocks < 20, "{stats:?}");
    wait_until("nothing is pending", || GLOBAL.stats().pending.blocks == 0);
    let stats = GLOBAL.stats();
    assert!(stats.drained.blocks > 0, "{stats:?}");
}

fn fill(n_blocks: usize) {
    let blocks: Vec<_> = (0..n_blocks).map(|_| Vec::<u8>::with_capacity(256 * KIB)).collect();
    drop(black_box(blocks));
}

fn fresh_start_child() {
    let held = touched(3 * MIB);
    fill(50);
    let parent = GLOBAL.stats();
    assert!(parent.pending.blocks >= 50);
    wait_ok(fork(CHILD_SECS, || {
        assert_eq!(drainers().len(), 0);
        let stats = GLOBAL.stats();
        assert_eq!((stats.drainer_running, stats.handed_over.blocks), (false, 0), "{stats:?}");
        // The parent's blocks are readable and can be freed.
        assert!(held.iter().all(|&byte| byte == 1));
        drop(held.clone());
        let stats = GLOBAL.stats();
        assert!(stats.drainer_running);
        assert_eq!((stats.handed_over.blocks, stats.reused.blocks), (1, 0), "{stats:?}");
        assert!(stats.lost_in_fork_bytes >= 50 * 256 * KIB as u64, "{stats:?}");
        wait_until("a drainer of its own", || drainers().len() == 1);
        GLOBAL.flush();
        assert_eq!(GLOBAL.stats().pending.blocks, 0);
        // A block of the parent's, freed with a drainer of the child's.
        drop(held);
        GLOBAL.flush();
        let stats = GLOBAL.stats();
        assert_eq!((stats.handed_over.blocks, stats.pending.blocks), (2, 0), "{stats:?}");
        use_it();
    }));
    // Nothing has changed for the parent.
    let stats = GLOBAL.stats();
    assert!(stats.drainer_running && stats.lost_in_fork_bytes == 0, "{stats:?}");
    assert!(stats.handed_over.blocks >= parent.handed_over.blocks);
    assert_eq!(drainers().len(), 1);
    GLOBAL.flush();
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
}

/// Runs `body` while four threads allocate and free large blocks.
///
/// They stay inside what mimalloc has mapped already: it has no fork handlers, and a fork while it
/// maps more, under a lock, would leave that lock to the child.
fn under_churn(body: impl FnOnce()) {
    fill(200);
    let work = |largest: usize| {
        for size in [256 * KIB, 300 * KIB, largest] {
            let blocks: Vec<_> = (0..4).map(|_| Vec::<u8>::with_capacity(size)).collect();
            drop(black_box(blocks));
        }
    };
    under_load(
        &[&|| work(500 * KIB), &|| work(600 * KIB), &|| work(700 * KIB), &|| work(800 * KIB)],
        body,
    );
}

fn while_others_push_child() {
    under_churn(|| {
        for _ in 0..10 {
            let children: Vec<_> = (0..20).map(|_| fork(CHILD_SECS, use_it)).collect();
            children.into_iter().for_each(wait_ok);
        }
    });
}

fn while_purging_child() {
    for n in rounds(24) {
        let blocks: Vec<_> = (0..32).map(|_| touched(4 * MIB)).collect();
        drop(blocks);
        // The drainer starts within a millisecond, and purges for some.
        sleep_ms(n as u64 % 8);
        wait_ok(fork(CHILD_SECS, || {
            // mimalloc's purge has a guard of its own, which must not have been left closed.
            let blocks: Vec<_> = (0..8).map(|_| touched(4 * MIB)).collect();
            let peak = rss();
            drop(blocks);
            GLOBAL.flush();
            // mimalloc 2 leaves a block that another thread frees to its own thread, and its memory until then.
            let is_returned = rss() + 24 * MIB < peak;
            assert!(is_returned || cfg!(feature = "_mimalloc_v2"), "{} from {peak}", rss());
            use_it_more();
        }));
    }
}

/// The system's, whose threads take long to end. mimalloc takes locks for that, which a child would find held.
#[derive(Clone, Copy)]
struct SlowToEnd;

static IS_ENDING: AtomicBool = AtomicBool::new(false);
static N_ENDED: AtomicUsize = AtomicUsize::new(0);

on_system!(SlowToEnd);

// SAFETY: as `System` is one.
unsafe impl Backing for SlowToEnd {
    fn drainer_done(&self) {
        IS_ENDING.store(true, Ordering::SeqCst);
        sleep_ms(20);
        IS_ENDING.store(false, Ordering::SeqCst);
        N_ENDED.fetch_add(1, Ordering::SeqCst);
    }
}

/// No fork is under way while a drainer ends.
fn drainers_that_end_child() {
    const ROUNDS: usize = 20;
    for n in 0..ROUNDS {
        let heap = DeferFree::with_backing(SlowToEnd).delay_ms(1);
        start(&heap);
        assert!(heap.stats().drainer_running);
        drop(heap);
        sleep_ms(n as u64 % 5);
        wait_ok(fork(CHILD_SECS, || {
            assert!(!IS_ENDING.load(Ordering::SeqCst));
            thread::spawn(|| ()).join().unwrap();
        }));
        wait_until("it has ended", || N_ENDED.load(Ordering::SeqCst) == n + 1);
    }
}

/// The system's, in the midst of which signals come whose handlers fork.
#[derive(Clone, Copy)]
struct Interrupted;

static N_FORKED: AtomicUsize = AtomicUsize::new(0);

on_system!(Interrupted);

fn forks() {
    wait_ok(fork(CHILD_SECS, use_it));
    N_FORKED.fetch_add(1, Ordering::SeqCst);
}

// SAFETY: as `System` is one.
unsafe impl Backing for Interrupted {
    fn thread_idle(&self) {
        forks();
    }

    fn purge(&self) {
        forks();
    }
}

/// A thread that is inside, where forks wait for it, forks itself: one of the program's, and the drainer.
fn from_inside_child() {
    let heap = DeferFree::with_backing(Interrupted);
    heap.flush();
    assert_eq!(N_FORKED.load(Ordering::SeqCst), 1);
    start(&heap);
    heap.flush();
    assert!(N_FORKED.load(Ordering::SeqCst) > 1);
    let n_forked = N_FORKED.load(Ordering::SeqCst);
    drop(black_box(Box::new(1)));
    heap.thread_idle();
    assert_eq!(N_FORKED.load(Ordering::SeqCst), n_forked + 1);
    // Nobody is left inside.
    wait_ok(fork(CHILD_SECS, use_it));
}

/// The program's own handlers come first with everything: a large block, a value, a burst.
fn handlers_that_allocate() {
    for delay in ["0ms", "4ms"] {
        clean("handlers_that_allocate", delay);
    }
}

unsafe extern "C" fn allocates() {
    fill(4);
    deferfree::later(vec![vec![1; 10]; 10]);
    let mut blocks: Vec<_> = (0..2000).map(|n| Box::new([n; 6])).collect();
    shuffle(&mut blocks);
    drop(black_box(blocks));
}

fn handlers_that_allocate_child() {
    let handler = Some(allocates as unsafe extern "C" fn());
    // SAFETY: functions that stay.
    assert_eq!(unsafe { libc::pthread_atfork(handler, handler, handler) }, 0);
    assert_eq!(drainers().len(), 0);
    for _ in 0..5 {
        wait_ok(fork(CHILD_SECS, use_it));
    }
    assert!(GLOBAL.stats().drainer_running);
    assert!(deferfree::flush_values());
    GLOBAL.flush();
    assert_eq!(GLOBAL.stats().pending.blocks, 0);
}

fn nested_child() {
    under_churn(|| {
        for _ in rounds(12) {
            wait_ok(fork(CHILD_SECS, || {
                fill(20);
                // As a daemon does: the child forks again and is gone.
                let grandchild = fork(CHILD_SECS, || {
                    assert!(!GLOBAL.stats().drainer_running);
                    drop(touched(MIB));
                    assert!(GLOBAL.stats().lost_in_fork_bytes > 0);
                    use_it();
                    wait_ok(fork(CHILD_SECS, use_it));
                });
                use_it_more();
                wait_ok(grandchild);
            }));
        }
    });
}

/// The drainer's thread allocates, and sets itself up in mimalloc, before it does anything else.
fn at_birth_child() {
    for n in rounds(150) {
        wait_ok(fork(CHILD_SECS, || {
            drop(black_box(Vec::<u8>::with_capacity(256 * KIB)));
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(n as u64 % 30 * 10) {}
            wait_ok(fork(CHILD_SECS, || {
                drop(touched(MIB));
                assert!(GLOBAL.stats().drainer_running);
                GLOBAL.flush();
                assert_eq!(GLOBAL.stats().pending.blocks, 0);
            }));
        }));
    }
}

/// As `use_it`, in a process that has used it before.
fn use_it_more() {
    let before = GLOBAL.stats().handed_over.blocks;
    fill(10);
    assert_eq!(GLOBAL.stats().handed_over.blocks, before + 10);
    wait_until("nothing is pending", || GLOBAL.stats().pending.blocks == 0);
}

fn from_two_threads_child() {
    under_churn(|| {
        // Neither forks while the other begins or ends, see `under_load`.
        let both = Barrier::new(2);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    drop(black_box(Box::new(1)));
                    both.wait();
                    for _ in 0..6 {
                        let children: Vec<_> = (0..10).map(|_| fork(CHILD_SECS, use_it)).collect();
                        children.into_iter().for_each(wait_ok);
                    }
                    both.wait();
                });
            }
        });
    });
    use_it_more();
}

fn commands_child() {
    under_churn(|| {
        for n in rounds(1000) {
            let mut command = Command::new("true");
            if n % 2 == 1 {
                // Makes the library fork and run this in the child, where it may use what it likes.
                // SAFETY: the closure does what this crate promises to work after a fork.
                unsafe {
                    command.pre_exec(|| {
                        drop(touched(MIB));
                        assert!(GLOBAL.stats().drainer_running);
                        Ok(())
                    });
                }
            }
            assert!(command.status().unwrap().success());
        }
    });
    use_it_more();
}

fn before_the_first_block_child() {
    assert!(!GLOBAL.stats().drainer_running);
    wait_ok(fork(CHILD_SECS, || {
        use_it();
        assert_eq!(GLOBAL.stats().lost_in_fork_bytes, 0);
    }));
    assert!(!GLOBAL.stats().drainer_running);
    use_it();
    // A drainer that sleeps.
    sleep_ms(100);
    wait_ok(fork(CHILD_SECS, || {
        use_it();
        assert_eq!(GLOBAL.stats().lost_in_fork_bytes, 0);
    }));
    // And a child that never uses it, nor ends in an orderly way.
    let pid = fork(CHILD_SECS, || common::kill(std::process::id() as i32, libc::SIGKILL));
    wait(pid);
    use_it_more();
}

fn of_a_parent_that_is_off() {
    run_child("off", &[("DEFERFREE", "off")], 20).expect_clean();
}

fn off_child() {
    fill(10);
    wait_ok(fork(CHILD_SECS, || {
        fill(10);
        assert_eq!(drainers().len(), 0);
        let stats = GLOBAL.stats();
        assert!(!stats.drainer_running && stats.handed_over.blocks == 0, "{stats:?}");
        assert!(!GLOBAL.config().enabled);
    }));
}

fn of_a_parent_that_failed() {
    let Some(library) = thread_refuser() else { return };
    let mut command = command("failed");
    command.env("LD_PRELOAD", &library).env("REFUSE_THREADS", "1").env("DEFERFREE_DELAY", "4ms");
    let output = finish(command, 20);
    output.expect_code(0);
    assert_eq!(output.stderr.lines().count(), 1, "{output:?}");
}

fn failed_child() {
    fill(10);
    assert!(!GLOBAL.stats().drainer_running);
    // A fresh process, which may start threads: it has a drainer.
    wait_ok(fork(CHILD_SECS, use_it));
    assert!(!GLOBAL.stats().drainer_running);
    assert_eq!(drainers().len(), 0);
}
