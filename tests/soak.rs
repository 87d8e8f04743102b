//! The example `soak` for some seconds.
//!
//! Seen to fail: with an odd number of bytes reserved for small blocks.

// Its `main` is not used.
#[allow(dead_code)]
#[path = "../examples/soak.rs"]
mod soak;

fn main() {
    soak::run(5);
}
