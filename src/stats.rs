//! What the allocator has done so far, as numbers.

use std::ops::AddAssign;

/// Counts since the drainer started, see [`DeferFree::stats`](crate::DeferFree::stats).
///
/// Once all other threads are quiet, `handed_over` is the sum of `reused`, `drained`, `paid_back`,
/// `over_bound`, `queue_full` and `pending`, in blocks and in bytes. While threads allocate and free,
/// the sum may be off by the operations that are under way.
///
/// After a fork the child counts from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Large blocks that the program freed while the drainer ran.
    pub handed_over: Tally,
    /// Taken back by an allocation before they had gone back to the allocator underneath.
    pub reused: Tally,
    /// Freed by the drainer, by [`flush`](crate::DeferFree::flush), or because memory had run out.
    pub drained: Tally,
    /// Freed by an allocation of another size, which found nothing of its own class waiting.
    pub paid_back: Tally,
    /// Freed at once by the thread that freed them, because as many bytes waited as may.
    pub over_bound: Tally,
    /// Freed at once by the thread that freed them, because the queue of their class was full.
    pub queue_full: Tally,
    /// Waiting now.
    pub pending: Tally,
    /// Small blocks freed in bursts.
    pub bursts: BurstStats,
    /// The most bytes that ever waited.
    pub peak_pending_bytes: u64,
    /// Large blocks freed at once because no drainer runs: it has not started, or could not.
    pub not_running_blocks: u64,
    /// Bytes that waited in the parent when this process was forked off: lost to this process.
    pub lost_in_fork_bytes: u64,
    /// How often the drainer returned memory to the system.
    pub purges: u64,
    /// Whether the drainer runs.
    pub drainer_running: bool,
}

/// What became of small blocks that were freed in bursts.
///
/// `deferred` is the sum of `drained`, `paid_back` and `pending`, but for operations under way. The blocks
/// freed inline come on top.
///
/// One allocator of a process defers small blocks, the first one; all others show zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BurstStats {
    /// Written down to be freed later. Bytes are those that the program asked for.
    pub deferred: Tally,
    /// Freed by the drainer.
    pub drained: Tally,
    /// Freed by the thread that deferred them, when it allocated again. Bytes are those of the mean
    /// block that the thread had deferred at that time.
    pub paid_back: Tally,
    /// Waiting now.
    pub pending: Tally,
    /// Freed inline in a burst: there was nowhere to write.
    pub no_chunk_blocks: u64,
    /// Freed inline in a burst: as many bytes waited as may.
    pub over_bound_blocks: u64,
    /// Freed inline in a burst: the drainer was collecting from this thread.
    pub contended_blocks: u64,
    /// Freed inline in a burst: the block is terabytes away from the others.
    pub out_of_reach_blocks: u64,
}

/// A number of blocks and what they come to. Bytes are those of the size classes: up to 1/16 more
/// than the program asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Number of blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Tally {
    pub(crate) fn of(blocks: u64, bytes_each: usize) -> Tally {
        Tally { blocks, bytes: blocks * bytes_each as u64 }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
    }
}
