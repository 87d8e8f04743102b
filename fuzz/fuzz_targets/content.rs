//! The fuzzer's bytes decide what is asked of the allocator, on several threads; the checks are those of
//! `tests/content.rs`. The first byte chooses the settings; the rest is split between the threads.
#![no_main]

#[path = "../../tests/common"]
mod common {
    pub(crate) type Mutex<T> = spin::mutex::SpinMutex<T, spin::Yield>;
    // `content.rs` uses all of it.
    #[allow(dead_code)]
    pub(crate) mod content;
    mod shuffle;
    pub(crate) use shuffle::shuffle;
}

use std::alloc::System;
use std::thread;

use common::content::{Choices, Shadow, THREADS, Worker};
use deferfree::{Backing, DeferFree, Mimalloc};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&settings, input)) = input.split_first() else { return };
    let threshold = [4 << 10, 5003, 64 << 10, 256 << 10][usize::from(settings & 3)];
    let delay_ms = [0, 1, 3, 20][usize::from(settings >> 2 & 3)];
    let max_pending = if settings & 16 == 0 { 64 << 20 } else { 1 << 20 };
    if settings & 32 == 0 {
        run(System, threshold, delay_ms, max_pending, input);
    } else {
        run(Mimalloc, threshold, delay_ms, max_pending, input);
    }
});

fn run<B: Backing>(backing: B, threshold: usize, delay_ms: u64, max_pending: usize, input: &[u8]) {
    let heap = DeferFree::with_backing(backing)
        .threshold(threshold)
        .burst(Some(32))
        .delay_ms(delay_ms)
        .max_pending(max_pending);
    let (shadow, passed) = (Shadow::default(), common::Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for part in input.chunks(input.len().div_ceil(THREADS as usize).max(1)) {
            let mut worker = Worker::new(&heap, Choices::Bytes(part), &shadow, &passed);
            scope.spawn(move || {
                while !worker.is_done() {
                    worker.step();
                }
                worker.finish();
            });
        }
    });
    assert!(shadow.is_empty());
    heap.flush();
    let stats = heap.stats();
    assert_eq!((stats.pending.blocks, stats.bursts.pending.blocks), (0, 0), "{stats:?}");
}
