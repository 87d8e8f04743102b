//! A program that has gone idle gives its memory back within a second, on each system by that system's own count.
//!
//! Seen to fail with a drainer that does not purge.

use crate::common;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{KIB, MIB, rss, run_child, sleep_ms, touched};
use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("large") => returns(|| (0..256).map(|_| touched(MIB)).collect::<Vec<_>>()),
        Some("huge") => returns(|| (0..4).map(|_| touched(64 * MIB)).collect::<Vec<_>>()),
        Some("small") => returns(|| (0..256 * KIB).map(|_| touched(KIB)).collect::<Vec<_>>()),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("large", || run_child("large", &[], 60).expect_clean()),
                ("huge", || run_child("huge", &[], 60).expect_clean()),
                ("small", || run_child("small", &[], 60).expect_clean()),
            ]);
        }
    }
    ExitCode::SUCCESS
}

/// Makes 256 MiB, drops them, and does nothing.
fn returns<T>(make: impl Fn() -> T) {
    let before = rss();
    let made = make();
    assert!(rss() >= before + 250 * MIB);
    drop(made);
    let start = Instant::now();
    while rss() > before + 50 * MIB {
        let late = start.elapsed() > Duration::from_secs(1);
        assert!(!late, "{} MiB more than before, {:?}", (rss() - before) / MIB, GLOBAL.stats());
        sleep_ms(10);
    }
}
