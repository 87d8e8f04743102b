//! What no drainer was there for. Apart from the rest because it outlives no process: a forked child
//! counts from zero, though the allocator that counts is the same.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::lifecycle;
use crate::stats::Tally;

/// Large blocks that were freed while no drainer ran.
#[derive(Debug)]
pub(crate) struct NotRunning {
    generation: AtomicU32,
    blocks: AtomicU64,
    bytes: AtomicU64,
}

impl NotRunning {
    pub(crate) const fn new() -> NotRunning {
        NotRunning {
            generation: AtomicU32::new(0),
            blocks: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn add(&self, bytes: usize) {
        // Acquire: what is added here comes after what the first one of this generation has read.
        let (counted, now) = (self.generation.load(Ordering::Acquire), lifecycle::generation());
        if counted != now {
            // What the parent counted is the parent's. Until the exchange nobody in this process adds to it.
            let [blocks, bytes] = [&self.blocks, &self.bytes].map(|it| it.load(Ordering::Relaxed));
            let first =
                self.generation.compare_exchange(counted, now, Ordering::AcqRel, Ordering::Acquire);
            if first.is_ok() {
                // For a moment, the parent's are counted too.
                self.blocks.fetch_sub(blocks, Ordering::Relaxed);
                self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
        self.blocks.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn tally(&self) -> Tally {
        if self.generation.load(Ordering::Relaxed) != lifecycle::generation() {
            return Tally::default();
        }
        Tally {
            blocks: self.blocks.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}
