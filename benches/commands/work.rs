//! The commands. Those of `commands_glibc`, `commands_mimalloc` and `commands_deferfree` are this file
//! and a global allocator each; the bench `commands` starts them.

use std::collections::HashMap;
use std::fmt::Write;
use std::hint::black_box;
use std::process;

const N_WORDS: usize = 60_000;
/// Most words occur once or twice.
const VOCABULARY: u64 = 100_000;
const N_LINES: usize = 400_000;

pub(crate) fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("print") => println!("a line"),
        Some("words") => drop(count_words()),
        Some("exit") => {
            black_box(count_words());
            process::exit(0);
        }
        Some("lines") => drop(black_box(lines())),
        // `cargo bench` and `cargo test` come here.
        _ => println!("a contender of the bench `commands`, which starts it"),
    }
}

/// Where each word of a text stands.
fn count_words() -> HashMap<String, Vec<usize>> {
    let text = text();
    let mut places: HashMap<String, Vec<usize>> = HashMap::new();
    for (place, word) in text.split(' ').enumerate() {
        places.entry(word.to_owned()).or_default().push(place);
    }
    black_box(places)
}

fn text() -> String {
    let mut text = String::new();
    let mut random: u64 = 1;
    for _ in 0..N_WORDS {
        // Knuth's MMIX generator; its high bits are the good ones.
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        _ = write!(text, "word{} ", (random >> 33) % VOCABULARY);
    }
    text
}

fn lines() -> Vec<String> {
    (0..N_LINES).map(|i| format!("line {i}")).collect()
}
