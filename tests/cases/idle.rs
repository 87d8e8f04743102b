//! A program that has gone idle gives its memory back, on each system by that system's own count. So does
//! one that goes on with blocks which it has.
//!
//! Seen to fail with a drainer that does not purge, those of medium blocks without `note_medium_free`,
//! `disorder` where a thread keeps its pages when a burst begins, and `recycling` where all that a program does with large
//! blocks counts as a need for memory.

use crate::common;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use common::{KIB, MIB, rss, run_child, shuffle, sleep_ms, touched};
use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new();

pub(crate) fn main() -> ExitCode {
    match common::child_case().as_deref() {
        Some("large") => returns(|| (0..256).map(|_| touched(MIB)).collect::<Vec<_>>()),
        Some("huge") => returns(|| (0..4).map(|_| touched(64 * MIB)).collect::<Vec<_>>()),
        Some("small") => returns(|| (0..256 * KIB).map(|_| touched(KIB)).collect::<Vec<_>>()),
        Some("medium") => returns(|| (0..MIB / 200).map(|_| touched(50 * KIB)).collect::<Vec<_>>()),
        Some("medium_few") => returns(|| (0..1280).map(|_| touched(200 * KIB)).collect::<Vec<_>>()),
        // By the time that the burst is seen to be one, the thread has freed some in each of its pages, of half a MiB each.
        Some("disorder") => returns(|| {
            let mut made = (0..22 * KIB).map(|_| touched(12 * KIB)).collect::<Vec<_>>();
            shuffle(&mut made);
            // No longer a young thread.
            sleep_ms(200);
            made
        }),
        // The drainer has long been asleep.
        Some("medium_late") => {
            drop(touched(64 * MIB));
            sleep_ms(2000);
            returns(|| {
                let made = (0..MIB / 200).map(|_| touched(50 * KIB)).collect::<Vec<_>>();
                sleep_ms(3000);
                made
            });
        }
        Some("recycling") => returns_during(
            || (0..256).map(|_| touched(MIB)).collect::<Vec<_>>(),
            || drop((0..8).map(|_| touched(MIB)).collect::<Vec<_>>()),
            // After five seconds it would go back in any case.
            Duration::from_secs(4),
        ),
        Some(case) => panic!("{case}"),
        None => {
            return common::run(&[
                ("large", || run_child("large", &[], 60).expect_clean()),
                ("huge", || run_child("huge", &[], 60).expect_clean()),
                ("small", || run_child("small", &[], 60).expect_clean()),
                ("disorder", || run_child("disorder", &[], 60).expect_clean()),
                ("medium", || run_child("medium", &[], 60).expect_clean()),
                ("medium_few", || run_child("medium_few", &[], 60).expect_clean()),
                ("recycling", || run_child("recycling", &[], 60).expect_clean()),
                ("medium_late", || run_child("medium_late", &[], 60).expect_clean()),
            ]);
        }
    }
    ExitCode::SUCCESS
}

/// Makes 256 MiB, drops them, and does nothing.
fn returns<T>(make: impl FnOnce() -> T) {
    // Ten times what it takes where nobody else uses the CPUs.
    returns_during(make, || sleep_ms(2), Duration::from_secs(10));
}

fn returns_during<T>(make: impl FnOnce() -> T, go_on: impl Fn(), at_most: Duration) {
    let before = rss();
    let made = make();
    assert!(rss() >= before + 250 * MIB);
    drop(made);
    let start = Instant::now();
    while rss() > before + 50 * MIB {
        assert!(
            start.elapsed() < at_most,
            "{} MiB more than before, {:?}",
            (rss() - before) / MIB,
            GLOBAL.stats()
        );
        go_on();
    }
}
