//! A thread that draws sixty frames a second. It shows what it has prepared, which frees what was shown
//! before: a few dozen small blocks, an allocation, the next few dozen. These are no bursts, so the frees
//! are done at once, unless it says [`defer_scope`](deferfree::defer_scope) for as long as the user waits.
//! Then it prepares the next frame.
//!
//! ```text
//! cargo run --release --example frames
//! ```

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

#[global_allocator]
static GLOBAL: deferfree::DeferFree = deferfree::DeferFree::new();

const FRAMES: usize = 150;
const FRAME: Duration = Duration::from_nanos(16_666_667);
const PARTS: usize = 4_000;
const PARTS_PER_FRAME: usize = 200;
const BLOCKS_PER_PART: usize = 48;
/// Frames that count for neither: they bring memory and caches to where they stay.
const WARM_UP: usize = 20;

type Part = Vec<Box<[u8; 200]>>;

fn part(frame: usize) -> Part {
    (0..BLOCKS_PER_PART).map(|n| Box::new([(frame + n) as u8; 200])).collect()
}

/// Draws at sixty frames a second; gives what it took to show each frame, and all the work for it.
fn run(scope: bool) -> (Vec<Duration>, Vec<Duration>) {
    let mut screen: Vec<Part> = (0..PARTS).map(part).collect();
    let mut next: Vec<Part> = (0..PARTS_PER_FRAME).map(part).collect();
    let (mut shown, mut frames) = (Vec::new(), Vec::new());
    for frame in 0..WARM_UP + FRAMES {
        let start = Instant::now();
        {
            // The user waits for this.
            let _scope = scope.then(deferfree::defer_scope);
            for (n, new) in next.drain(..).enumerate() {
                // Here and there on the screen.
                let place = (frame * PARTS_PER_FRAME + n) * 2_099 % PARTS;
                // What was there is freed.
                screen[place] = new;
                black_box(format!("part {place}"));
            }
        }
        let until_shown = start.elapsed();
        // And for this nobody does.
        next.extend((0..PARTS_PER_FRAME).map(|n| part(frame + n)));
        if frame >= WARM_UP {
            shown.push(until_shown);
            frames.push(start.elapsed());
        }
        thread::sleep(FRAME.saturating_sub(start.elapsed()));
    }
    (shown, frames)
}

fn main() {
    println!(
        "{FRAMES} frames, each with {PARTS_PER_FRAME} parts of {BLOCKS_PER_PART} blocks, in us:\n"
    );
    println!("{:16}{:>27}{:>25}", "", "until shown, median / p90", "all work, median / p90");
    for (name, scope) in [("without", false), ("defer_scope", true)] {
        let (mut shown, mut frames) = run(scope);
        let show = |times: &mut Vec<Duration>| {
            times.sort_unstable();
            let us = |time: Duration| time.as_micros();
            format!("{} / {}", us(times[FRAMES / 2]), us(times[FRAMES * 9 / 10]))
        };
        println!("{name:16}{:>27}{:>25}", show(&mut shown), show(&mut frames));
    }
}
