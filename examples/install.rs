//! All that it takes: the two lines below `use`. What it did, and what it would have cost without:
//!
//! ```text
//! DEFERFREE_STATS=latency cargo run --release --example install
//! DEFERFREE_STATS=latency DEFERFREE=off cargo run --release --example install
//! ```

use std::collections::HashMap;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

#[global_allocator]
static GLOBAL: deferfree::DeferFree = deferfree::DeferFree::new();

fn main() {
    let map: HashMap<usize, Vec<usize>> = (0..1_000_000).map(|v| (v, vec![v])).collect();
    dropped("a map of a million vectors", map);
    for n in 0..100 {
        // The same memory each time.
        black_box(vec![n | 1u8; 8 << 20]);
    }
    let frames: Vec<Vec<u8>> = (0..24).map(|n| vec![n | 1u8; 3840 * 2160 * 4]).collect();
    dropped("24 frames of 4K film", frames);
    // What waits goes back to the system meanwhile.
    thread::sleep(Duration::from_millis(500));
}

fn dropped<T>(what: &str, value: T) {
    let start = Instant::now();
    drop(value);
    println!("{what} dropped in {:.1?}", start.elapsed());
}
