//! The example `soak` for some seconds.
//!
//! Seen to fail: without the count in `pay_back` of `pending`.
#![cfg(target_os = "linux")]

// Its `main` is not used.
#[allow(dead_code)]
#[path = "../examples/soak.rs"]
mod soak;

fn main() {
    soak::run(5);
}
