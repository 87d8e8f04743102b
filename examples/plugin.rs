//! A library that is loaded at run time, with an allocator of its own: what it allocates it frees
//! itself, and the program that loads it may use any other. `tests/cdylib.rs` loads and unloads it.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

/// Nothing that would start a drainer.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_small() -> usize {
    (0..100).map(|n| black_box(vec![n; 10]).len()).sum()
}

/// Frees large blocks, enough of them to start the drainer.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_large() -> usize {
    let blocks: Vec<_> = (0..20).map(|n| vec![n as u8; 1 << 20]).collect();
    black_box(blocks).len()
}

/// Frees many small blocks in a row, which lie here and there.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_burst() -> usize {
    let n = 20_000;
    let mut blocks: Vec<_> = (0..n).map(|n| Box::new([n; 8])).collect();
    for i in 0..n {
        blocks.swap(i, i * 7919 % n);
    }
    black_box(blocks).len()
}

static DROPS: AtomicUsize = AtomicUsize::new(0);

/// Hands values over whose drops take a while, and are code of this library.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_later() -> usize {
    struct Slow;
    impl Drop for Slow {
        fn drop(&mut self) {
            thread::sleep(Duration::from_millis(1));
            DROPS.fetch_add(1, Ordering::Relaxed);
        }
    }
    for _ in 0..4 {
        deferfree::later(Slow);
    }
    DROPS.load(Ordering::Relaxed)
}

/// How many small blocks have been deferred.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_deferred() -> usize {
    GLOBAL.stats().bursts.deferred.blocks as usize
}

/// Whether the drainer runs.
#[unsafe(no_mangle)]
pub extern "C" fn plugin_running() -> usize {
    usize::from(GLOBAL.stats().drainer_running)
}
