//! On the system's allocator instead of mimalloc: for programs that want to keep it, because they share
//! memory with C code that frees it, say, or use tools that watch `malloc`.
//!
//! ```text
//! cargo run --release --example system
//! DEFERFREE=off cargo run --release --example system
//! ```

// On Windows it does not know a block by its address alone.
#[cfg(unix)]
use std::alloc::System;
#[cfg(unix)]
use std::time::Instant;

#[cfg(unix)]
use deferfree::DeferFree;

/// From 64 KiB on: under glibc the frees that call the system begin at 128 KiB.
#[cfg(unix)]
#[global_allocator]
static GLOBAL: DeferFree<System> = DeferFree::with_backing(System).threshold(64 << 10);

#[cfg(not(unix))]
fn main() {
    println!("`System` is a backing on Unix alone");
}

#[cfg(unix)]
fn main() {
    let mut buffers: Vec<Vec<u8>> = (0..256).map(|n| vec![n as u8 | 1; 1 << 20]).collect();
    let start = Instant::now();
    buffers.clear();
    println!("256 buffers of 1 MiB freed in {:.1?}", start.elapsed());

    let start = Instant::now();
    buffers.extend((0..256).map(|n| vec![n as u8 | 1; 1 << 20]));
    println!("and as many allocated and written in {:.1?}", start.elapsed());
    let stats = GLOBAL.stats();
    println!("{} of them had been used before", stats.reused.blocks);
    assert!(!stats.drainer_running || stats.reused.blocks > 0, "{stats:?}");
}
