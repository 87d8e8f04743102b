//! Random programs: threads, scopes, bursts, forks, ends of threads, allocators that are made and dropped, blocks handed
//! across, all at the same time. No block overlaps another, what was written stays until it is freed, and nothing hangs.
//!
//! Each program is a child process of half a second under a watchdog. `RANDOM_SECS` says for how long programs are run on
//! each allocator underneath, `RANDOM_SEED` runs one again; which one failed is printed.
//!
//! Seen to fail: with the parent's gate kept in a forked child, and with chunks given back whose last slot is not cleared.

use crate::common;

use std::alloc::System;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::{Barrier, RwLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::content::{Block, Choices, Shadow, Worker};
use common::{KIB, MIB, Mutex, fork, run_child, sleep_ms, start, wait_ok, wait_until};
use deferfree::{Backing, DeferFree, Mimalloc, defer_scope};

/// The first allocator, which defers small blocks, too. Not the global one: the tests' own books are not part of it.
static ON_MIMALLOC: DeferFree = settings(DeferFree::new());
static ON_SYSTEM: DeferFree<System> = settings(DeferFree::with_backing(System));

const fn settings<B: Backing>(heap: DeferFree<B>) -> DeferFree<B> {
    heap.threshold(16 * KIB).burst(Some(32)).delay_ms(2).max_pending(64 * MIB)
}

const THREADS: usize = 4;

/// Forks write, whoever has threads begin or end reads: mimalloc has locks of its own for that (`theaps_lock`), which a
/// forked child would find locked.
static COMING_AND_GOING: RwLock<()> = RwLock::new(());

const PROGRAM: Duration = Duration::from_millis(500);
/// What a forked child may take on a busy machine.
const CHILD_SECS: u32 = 20;

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("mimalloc") => program(&ON_MIMALLOC, Mimalloc, false),
        Some("system") => program(&ON_SYSTEM, System, true),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("mimalloc", || programs("mimalloc")),
                ("system", || programs("system")),
            ]);
        }
    }
    ExitCode::SUCCESS
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

fn programs(case: &str) {
    let deadline = Instant::now() + Duration::from_secs(variable("RANDOM_SECS").unwrap_or(3));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let mut seeds = Choices::Seeded(now);
    let (mut n_programs, mut n_large, mut n_small) = (0, 0, 0);
    loop {
        let given = variable("RANDOM_SEED");
        let seed = given.unwrap_or_else(|| seeds.next());
        let run = || {
            let output = run_child(case, &[("SEED", &seed.to_string())], 60);
            output.expect_clean();
            let (large, small) = output.stdout.trim().split_once(' ').unwrap();
            (large.parse::<u64>().unwrap(), small.parse::<u64>().unwrap())
        };
        match std::panic::catch_unwind(run) {
            Ok((large, small)) => (n_large, n_small) = (n_large + large, n_small + small),
            Err(panic) => {
                eprintln!("RANDOM_SEED={seed} cargo test --test random_program -- {case}");
                std::panic::resume_unwind(panic);
            }
        }
        n_programs += 1;
        if given.is_some() || Instant::now() > deadline {
            break;
        }
    }
    println!(
        "{n_programs} programs handed over {n_large} large and wrote down {n_small} small blocks"
    );
    assert!(n_large > 0 && (n_small > 0 || n_programs < 5));
}

/// What a thread of the program needs.
#[derive(Clone, Copy)]
struct Place<'a, B: Backing> {
    heap: &'a DeferFree<B>,
    backing: B,
    shadow: &'a Shadow,
    passed: &'a Mutex<Vec<Block>>,
    deadline: Instant,
    /// Whether a forked child goes on with the blocks that it was forked with. Not on mimalloc: the free of a block in a page
    /// that another thread of the parent was just looking at, for blocks to allocate, waits for that thread for ever
    /// (`mi_bfield_atomic_clear_once_set`, bitmap.c).
    inherits: bool,
    /// Threads that started threads, or forked, before this one.
    depth: u32,
}

fn program<B: Backing>(heap: &DeferFree<B>, backing: B, inherits: bool) {
    let mut choices = Choices::Seeded(variable("SEED").unwrap());
    // It is the one that defers small blocks, and not an allocator that comes and goes.
    start(heap);
    assert!(heap.stats().drainer_running);
    let (shadow, passed) = (Shadow::default(), Mutex::new(Vec::new()));
    let deadline = Instant::now() + PROGRAM;
    let place =
        Place { heap, backing, shadow: &shadow, passed: &passed, deadline, inherits, depth: 0 };
    let all_are_here = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let (seed, all_are_here) = (choices.next(), &all_are_here);
            scope.spawn(move || {
                let mut first = new_worker(place, seed);
                first.step();
                first.finish();
                all_are_here.wait();
                live(place, seed);
                all_are_here.wait();
            });
        }
    });
    assert!(shadow.is_empty());
    settled(heap);
    let stats = heap.stats();
    let left = stats.reused.blocks
        + stats.drained.blocks
        + stats.paid_back.blocks
        + stats.over_bound.blocks
        + stats.queue_full.blocks;
    assert_eq!(stats.handed_over.blocks, left, "{stats:?}");
    let bursts = stats.bursts;
    assert_eq!(bursts.deferred.blocks, bursts.drained.blocks + bursts.paid_back.blocks);
    println!("{} {}", stats.handed_over.blocks, bursts.deferred.blocks);
}

fn settled<B: Backing>(heap: &DeferFree<B>) {
    wait_until("nothing waits", || {
        heap.flush();
        let stats = heap.stats();
        stats.pending.blocks == 0 && stats.bursts.pending.blocks == 0
    });
}

/// A thread, from its beginning to its end.
fn live<B: Backing>(place: Place<'_, B>, seed: u64) {
    let mut choices = Choices::Seeded(seed);
    let mut worker = new_worker(place, choices.next());
    while Instant::now() < place.deadline {
        (0..choices.below(60)).for_each(|_| worker.step());
        match choices.below(24) {
            0 if place.depth == 0 => fork_off(place, &mut worker),
            1..4 if place.depth < 2 => {
                // They hand their blocks on, or free them as they end.
                let deadline = soon(place.deadline, choices.below(20));
                let inner = Place { deadline, depth: place.depth + 1, ..place };
                two_threads(inner, choices.next());
            }
            4 if place.depth < 2 => local_heap(place, &mut choices),
            5..8 => {
                let _scope = defer_scope();
                (0..choices.below(100)).for_each(|_| worker.step());
            }
            8 => place.heap.flush(),
            9 => _ = place.heap.stats(),
            10 => sleep_ms(choices.below(8) as u64),
            _ => {}
        }
    }
    worker.finish();
}

fn two_threads<B: Backing>(place: Place<'_, B>, seed: u64) {
    let _guard = COMING_AND_GOING.read().unwrap();
    thread::scope(|scope| {
        let threads = [seed, seed ^ 1].map(|seed| scope.spawn(move || live(place, seed)));
        // Until they are gone; the scope itself waits for their closures.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

fn new_worker<B: Backing>(place: Place<'_, B>, seed: u64) -> Worker<'_, B> {
    Worker::new(place.heap, Choices::Seeded(seed), place.shadow, place.passed)
}

fn soon(deadline: Instant, ms: usize) -> Instant {
    deadline.min(Instant::now() + Duration::from_millis(ms as u64))
}

/// The child goes on with the blocks of the thread that forked, if it may, and with threads of its own.
fn fork_off<B: Backing>(place: Place<'_, B>, worker: &mut Worker<'_, B>) {
    let Ok(_nobody_begins_or_ends) = COMING_AND_GOING.try_write() else { return };
    let body = AssertUnwindSafe(|| {
        let (shadow, passed) = (Shadow::default(), Mutex::new(Vec::new()));
        let mut worker = if place.inherits {
            worker.forked(&shadow, &passed)
        } else {
            Worker::new(place.heap, Choices::Seeded(1), &shadow, &passed)
        };
        (0..100).for_each(|_| worker.step());
        let deadline = Instant::now() + Duration::from_millis(5);
        let place = Place { shadow: &shadow, passed: &passed, deadline, depth: 2, ..place };
        thread::scope(|scope| {
            scope.spawn(move || live(place, 1));
            (0..100).for_each(|_| worker.step());
        });
        worker.finish();
        new_worker(place, 1).finish();
        assert!(shadow.is_empty());
        start(place.heap);
        assert!(place.heap.stats().drainer_running);
        settled(place.heap);
    });
    wait_ok(fork(CHILD_SECS, body));
}

/// An allocator that two threads use, and that is dropped with blocks waiting.
fn local_heap<B: Backing>(place: Place<'_, B>, choices: &mut Choices<'_>) {
    let heap = settings(DeferFree::with_backing(place.backing)).delay_ms(choices.below(3) as u64);
    // Blocks of one allocator are not another's to free.
    let passed = Mutex::new(Vec::new());
    let deadline = soon(place.deadline, choices.below(10));
    let place = Place { heap: &heap, passed: &passed, deadline, depth: 2, ..place };
    let seed = choices.next();
    two_threads(place, seed);
    // Both may have missed what the other one passed on last.
    new_worker(place, seed).finish();
}
