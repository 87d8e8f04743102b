//! A million values from eight threads, each dropped exactly once.
//!
//! A program without the test harness, so that it is clean under ThreadSanitizer: the standard library
//! that comes with the toolchain is not instrumented, and the harness passes its results through the
//! channel of that library, which looks like a race.
//!
//! ```text
//! RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
//!     cargo +nightly test --target x86_64-unknown-linux-gnu --test later_stress
//! ```
//!
//! Seen to fail: with `Value::drop` emptied; with one value in some thousands put into the queue twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use deferfree::{flush_values, later};

/// A million, or fewer where an instrumented program would take minutes.
const N_VALUES: usize = if cfg!(miri) { 800 } else { 1_000_000 };
const N_THREADS: usize = 8;

fn main() {
    struct Ticket {
        number: usize,
        drops: Arc<Vec<AtomicU32>>,
        /// Checked, so that a mangled value shows.
        inverted: usize,
    }
    impl Drop for Ticket {
        fn drop(&mut self) {
            assert_eq!(self.inverted, !self.number);
            self.drops[self.number].fetch_add(1, Ordering::Relaxed);
        }
    }
    /// Too large to be stored in place.
    struct Large(#[allow(dead_code)] Ticket, [usize; 20]);
    impl Drop for Large {
        fn drop(&mut self) {
            assert!(self.1.iter().all(|&word| word == self.0.number));
        }
    }

    let drops: Arc<Vec<AtomicU32>> = Arc::new((0..N_VALUES).map(|_| AtomicU32::new(0)).collect());
    let threads: Vec<_> = (0..N_THREADS)
        .map(|at| {
            let drops = Arc::clone(&drops);
            thread::spawn(move || {
                for number in (at..N_VALUES).step_by(N_THREADS) {
                    let drops = Arc::clone(&drops);
                    let ticket = Ticket { number, drops, inverted: !number };
                    if number % 5 == 0 {
                        later(Large(ticket, [number; 20]));
                    } else {
                        later(ticket);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert!(flush_values());
    let wrong = drops.iter().filter(|drops| drops.load(Ordering::Relaxed) != 1).count();
    assert_eq!(wrong, 0, "{wrong} values were not dropped exactly once");
    assert_eq!(Arc::strong_count(&drops), 1);
}
