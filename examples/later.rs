//! Drops the same map here and on the dropper thread, and says what each cost.
//!
//! ```text
//! cargo run --release --example later
//! ```

use std::collections::HashMap;
use std::time::Instant;

use deferfree::{Later, flush_values, later};

fn map() -> HashMap<usize, Vec<usize>> {
    (1..=1_000_000).map(|v| (v, vec![v])).collect()
}

fn timed(what: &str, f: impl FnOnce()) {
    let start = Instant::now();
    f();
    println!("{what:<42} {:>12.3} us", start.elapsed().as_secs_f64() * 1e6);
}

fn main() {
    let value = map();
    timed("dropped here", || drop(value));

    let value = map();
    timed("handed over, and a thread started for it", || later(value));
    flush_values();

    let value = map();
    timed("handed over", || later(value));
    flush_values();

    let value = Later::new(map());
    timed("in a Later, which does that by itself", || drop(value));

    // Without this the last map would go with the process, undropped. For memory that is just as well.
    timed("waiting until it is dropped", || assert!(flush_values()));
}
