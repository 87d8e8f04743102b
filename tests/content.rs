//! Random sequences of everything, over several threads: no block overlaps another, and what was
//! written stays until it is freed. `FUZZ_SEED` and `FUZZ_OPS` choose another sequence or length.
//!
//! Seen to fail: with blocks allocated unrounded, with `take` blind to alignment, without the zeroing
//! of what is taken back, with `realloc` copying one byte too few, with a block that is both in the
//! queue and in the slot.
#![cfg(any(target_os = "linux", windows))]

mod common;

#[cfg(unix)]
use std::alloc::System;
use std::thread;

use common::content::{Choices, Shadow, THREADS, Worker};
use common::{KIB, MIB, Mutex, drainers, join_all, nearly_started, wait_until};
use deferfree::{Backing, DeferFree, Mimalloc};

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

fn run<B: Backing>(backing: B, threshold: usize, delay_ms: u64, max_pending: usize) {
    let seed = from_environment("FUZZ_SEED", 0x00de_fe12_f4ee);
    let n_ops = from_environment("FUZZ_OPS", 4000);
    // One allocator of a process defers small blocks.
    static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE_AT_A_TIME.lock();
    wait_until("the drainer has ended", || drainers().is_empty());
    let heap = nearly_started(
        DeferFree::with_backing(backing)
            .threshold(threshold)
            .burst(Some(32))
            .delay_ms(delay_ms)
            .max_pending(max_pending),
    );
    let (shadow, passed) = (Shadow::default(), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        let start = |n| {
            let choices = Choices::Seeded(seed ^ (n << 56) ^ delay_ms);
            let mut worker = Worker::new(&heap, choices, &shadow, &passed);
            scope.spawn(move || {
                for op in 0..n_ops {
                    let step = std::panic::AssertUnwindSafe(|| worker.step());
                    if let Err(panic) = std::panic::catch_unwind(step) {
                        eprintln!(
                            "FUZZ_SEED={seed} FUZZ_OPS={n_ops}: thread {n}, operation {op}, \
                             threshold {threshold}, delay {delay_ms} ms"
                        );
                        std::panic::resume_unwind(panic);
                    }
                }
                worker.finish();
            })
        };
        join_all((0..THREADS).map(start).collect::<Vec<_>>());
    });
    assert!(shadow.is_empty());
    heap.flush();
    let stats = heap.stats();
    assert_eq!((stats.pending.blocks, stats.bursts.pending.blocks), (0, 0), "{stats:?}");
    assert!(stats.reused.blocks > 0 && stats.drained.blocks > 0, "{stats:?}");
    assert!(stats.bursts.deferred.blocks > 1000, "{stats:?}");
    drop(heap);
}

#[test]
fn mimalloc_small_threshold() {
    run(Mimalloc, 4 * KIB, 1, 64 * MIB);
}

#[test]
fn mimalloc_usual_threshold() {
    run(Mimalloc, 256 * KIB, 20, 256 * MIB);
}

#[test]
fn mimalloc_little_may_wait() {
    run(Mimalloc, 16 * KIB, 3, MIB);
}

#[test]
fn mimalloc_no_delay() {
    run(Mimalloc, 64 * KIB, 0, 64 * MIB);
}

// `System` is a backing on Unix alone.
#[cfg(unix)]
#[test]
fn system_small_threshold() {
    run(System, 4 * KIB, 1, 64 * MIB);
}

// `System` is a backing on Unix alone.
#[cfg(unix)]
#[test]
fn system_usual_threshold() {
    run(System, 128 * KIB, 20, 256 * MIB);
}

// `System` is a backing on Unix alone.
#[cfg(unix)]
#[test]
fn system_odd_threshold() {
    run(System, 5003, 5, 16 * MIB);
}
