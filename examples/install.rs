//! All that it takes: the three lines below `use`. Say `DEFERFREE_STATS=1` to see what it did.
//!
//! ```text
//! DEFERFREE_STATS=1 cargo run --release --example install
//! ```

use std::time::Instant;

#[global_allocator]
static GLOBAL: deferfree::DeferFree = deferfree::DeferFree::new();

fn main() {
    for megabytes in [1, 16, 256] {
        let buffer = vec![1u8; megabytes << 20];
        let start = Instant::now();
        drop(buffer);
        println!("{megabytes:>4} MiB dropped in {:>9.1?}", start.elapsed());
    }
}
