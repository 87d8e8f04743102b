//! Everything at once for as long as one likes, then the counters have to add up.
//!
//! ```sh
//! cargo run --release --example soak -- 600    # seconds
//! ```

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use deferfree::DeferFree;

#[global_allocator]
static GLOBAL: DeferFree = DeferFree::new().max_pending(256 << 20);

fn main() {
    let secs = std::env::args().nth(1).map_or(10, |secs| secs.parse().expect("seconds"));
    run(secs);
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    /// From 64 KiB to 4 MiB, the small ones more often.
    fn large(&mut self) -> usize {
        (64 << 10 << self.below(6)) + self.below(64 << 10)
    }
}

/// Large buffers kept for a while, some of them grown.
fn buffers(random: &mut Random) {
    let mut kept: Vec<Vec<u8>> = Vec::new();
    for _ in 0..100 {
        if kept.len() > 8 || random.below(3) == 0 {
            if !kept.is_empty() {
                let buffer = kept.swap_remove(random.below(kept.len()));
                assert!(buffer.iter().step_by(4096).all(|&byte| byte == buffer[0]));
            }
        } else if random.below(2) == 0 {
            kept.push(vec![0; random.large()]);
        } else {
            let mark = random.below(256) as u8;
            let mut buffer = vec![mark; random.large()];
            buffer.resize(buffer.len() + random.large(), mark);
            kept.push(buffer);
        }
    }
}

/// Structures of small blocks, dropped in one go here or elsewhere.
fn structures(random: &mut Random) {
    let n = 1000 + random.below(20_000);
    let map: HashMap<usize, Vec<usize>> = (0..n).map(|key| (key, vec![key; 5])).collect();
    let tree: BTreeMap<usize, String> =
        (0..n).map(|n| (random.below(1 << 30), n.to_string())).collect();
    assert!(map.iter().all(|(key, values)| values[4] == *key));
    if random.below(2) == 0 {
        deferfree::later(map);
    }
    drop(black_box(tree));
}

/// Threads that come and go with something in their hands.
fn short_lived(random: &mut Random) {
    let words: Vec<String> = (0..3000).map(|n| n.to_string().repeat(3)).collect();
    let buffer = vec![1u8; random.large()];
    let other = thread::spawn(move || words.len() + buffer.len());
    assert!(other.join().expect("a thread") > 3000);
}

/// Runs for some seconds.
///
/// # Panics
/// If the counters do not add up, or something is left.
pub(crate) fn run(secs: u64) {
    let end = Instant::now() + Duration::from_secs(secs);
    let done = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(64);
    thread::scope(|scope| {
        for (seed, work) in
            [buffers, buffers, structures, structures, short_lived].into_iter().enumerate()
        {
            let (done, rounds) = (&done, &rounds);
            scope.spawn(move || {
                let mut random = Random(seed as u64 + 1);
                while !done.load(Ordering::Relaxed) {
                    work(&mut random);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let done_here = &done;
        scope.spawn(move || {
            let mut random = Random(99);
            while !done_here.load(Ordering::Relaxed) {
                sender.send(vec![7; random.large()]).expect("a receiver");
            }
        });
        scope.spawn(move || receiver.iter().for_each(|block| assert_eq!(block[0], 7)));
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(200).min(end - Instant::now().min(end)));
            GLOBAL.flush();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(deferfree::flush_values());
    // The scope has ended before its threads have: their last blocks may still come.
    for _ in 0..100 {
        GLOBAL.flush();
        if GLOBAL.stats().bursts.pending.blocks == 0 {
            break;
        }
    }
    let stats = GLOBAL.stats();
    println!("{} rounds, {stats:#?}", rounds.into_inner());
    let large = [
        stats.reused,
        stats.drained,
        stats.paid_back,
        stats.over_bound,
        stats.queue_full,
        stats.pending,
    ];
    assert_eq!(stats.handed_over.blocks, large.iter().map(|tally| tally.blocks).sum::<u64>());
    assert_eq!(stats.handed_over.bytes, large.iter().map(|tally| tally.bytes).sum::<u64>());
    let bursts = stats.bursts;
    let small = [bursts.drained, bursts.paid_back, bursts.pending];
    assert_eq!(bursts.deferred.blocks, small.iter().map(|tally| tally.blocks).sum::<u64>());
    assert_eq!((stats.pending.blocks, bursts.pending.blocks), (0, 0));
    assert!(stats.handed_over.blocks > 0 && stats.reused.blocks > 0 && stats.drained.blocks > 0);
    println!("the counters add up");
}
