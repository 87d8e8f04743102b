//! What the allocator has done so far, as numbers.

use std::ops::AddAssign;

use crate::sys;

/// Counts since the drainer started, see [`DeferFree::stats`](crate::DeferFree::stats).
///
/// Once all other threads are quiet, `handed_over` is the sum of `reused`, `drained`, `paid_back`,
/// `over_bound`, `queue_full` and `pending`, in blocks and in bytes. The counts are read one after the
/// other: while threads allocate and free, the sum may be off by as many blocks as these threads and the
/// drainer move meanwhile.
///
/// Each allocator value has numbers of its own, but for `free_latency` and, from `resident_bytes` on, those of the
/// process. After a fork the child counts from zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Large blocks that the program freed while the drainer ran, but for those of `not_running`.
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
    /// Large allocations that found nothing waiting that they could use, and were made anew.
    pub missed: Tally,
    /// Small blocks freed in bursts.
    pub bursts: BurstStats,
    /// The most bytes that ever waited, or had their place kept as blocks that were taken back lately.
    pub peak_pending_bytes: u64,
    /// Large blocks freed at once because no drainer runs, or none ran yet when blocks of their size were
    /// allocated: it starts when they come to 16 MiB, or could not start (`start_failed`). Not part of
    /// `handed_over`. With `DEFERFREE=off` no block counts as large.
    pub not_running: Tally,
    /// Bytes that waited in the parent when this process was forked off: lost to this process.
    pub lost_in_fork_bytes: u64,
    /// How often the drainer had the allocator underneath return its unused memory to the system.
    pub purges: u64,
    /// Bytes that the drainer has given back to the system: by so much the resident set was smaller after each purge and
    /// each block that it unmapped than before. 0 where `resident_bytes` is `None`.
    ///
    /// Only the system knows which pages had memory behind them, and the resident set is that of the whole process: what
    /// other threads touch anew during a purge is missing here, and what they unmap meanwhile is in it. Nor is there what
    /// goes back by itself: by the allocator underneath while the drainer sleeps or, on Windows, as it frees, or by the
    /// program's own threads where nothing more may wait. So this is about as much or less, never the sum of what was
    /// freed. Where the system takes memory back only when it wants it (macOS, FreeBSD), it shows little.
    pub returned_bytes: u64,
    /// Bytes of blocks that their free unmaps, released by this crate before it, by system calls of 4 MiB
    /// at most: their whole length, whether they had been written or not.
    pub released_bytes: u64,
    /// Number of those system calls.
    pub release_calls: u64,
    /// CPU time of the drainer in nanoseconds, 0 where that is not known.
    pub drainer_cpu_ns: u64,
    /// Whether the drainer runs.
    pub drainer_running: bool,
    /// Whether the drainer could not be started: large blocks are freed at once.
    pub start_failed: bool,
    /// What large frees cost the threads that freed, all of the process together; `None` unless
    /// `DEFERFREE_STATS=latency`.
    pub free_latency: Option<FreeLatency>,
    /// Bytes of the process in the machine's memory now: what is called RSS on Unix, the working set on Windows. On macOS
    /// and FreeBSD with those that have been given back and that the system has not yet wanted. `None` where the system
    /// does not say.
    pub resident_bytes: Option<u64>,
    /// Bytes of address space that the process has mapped now, with memory behind them or not, libraries and stacks
    /// included; on Windows those that are committed to this process alone, without libraries. mimalloc reserves by the
    /// GiB: what is mapped and not resident costs next to nothing. `None` where the system does not say.
    pub mapped_bytes: Option<u64>,
    /// Page faults of the process so far, minor and major: accesses to pages that had no memory behind them, or not
    /// yet for this process. `None` where the system does not say. (Windows counts in 32 bits.)
    pub page_faults: Option<u64>,
    /// Those that waited for a disk. `None` where the system does not tell them from the others, as on Windows.
    pub major_page_faults: Option<u64>,
}

/// The large blocks of one size class, in blocks; see [`DeferFree::stats_by_size`] and [`Stats`].
///
/// [`DeferFree::stats_by_size`]: crate::DeferFree::stats_by_size
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SizeStats {
    /// Bytes of each block: the largest that belongs to the class, up to 1/16 more than was asked for; or the least, where it is
    /// a mapping of its own, which may be larger and comes in whole 2 MiB.
    pub block_bytes: u64,
    /// Whether such a block is a mapping of its own, which its free unmaps: one of 256 MiB and more, of 32 MiB and more if it
    /// was asked for zeroed, of 8 MiB and more if it grew to that, or aligned to more than 64 KiB.
    pub own_mapping: bool,
    /// Freed by the program while the drainer ran.
    pub handed_over: u64,
    /// Taken back by an allocation.
    pub reused: u64,
    /// Freed by the drainer.
    pub drained: u64,
    /// Freed by an allocation of another size.
    pub paid_back: u64,
    /// Freed at once because of the bound on bytes.
    pub over_bound: u64,
    /// Freed at once because of a full queue.
    pub queue_full: u64,
    /// Waiting now.
    pub pending: u64,
    /// Allocations that found nothing waiting that they could use.
    pub missed: u64,
}

/// What large frees cost the threads that freed, in nanoseconds. Each includes the reading of a clock.
///
/// Percentiles are at most 1/8 too high. One that fewer than two samples lie above is `None`: it would
/// be the maximum by another name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FreeLatency {
    /// Frees that were measured.
    pub samples: u64,
    /// The median.
    pub p50_ns: Option<u64>,
    /// Nine of ten were at most this.
    pub p90_ns: Option<u64>,
    /// 99 of 100.
    pub p99_ns: Option<u64>,
    /// 999 of 1000.
    pub p999_ns: Option<u64>,
    /// The longest.
    pub max_ns: u64,
}

/// What became of small blocks that were freed in bursts.
///
/// `deferred` is the sum of `drained`, `paid_back` and `pending`, but for operations under way. The blocks
/// freed inline come on top.
///
/// One allocator of a process at a time defers small blocks, the one whose drainer started first, until it is dropped; all
/// others show zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BurstStats {
    /// Written down to be freed later. Bytes are those that the program asked for.
    pub deferred: Tally,
    /// Freed by the drainer.
    pub drained: Tally,
    /// Freed by the thread that deferred them, when it allocated again or ended.
    pub paid_back: Tally,
    /// Waiting now.
    pub pending: Tally,
    /// Freed inline in a burst: there was nowhere to write.
    pub no_chunk_blocks: u64,
    /// Freed inline in a burst: as many bytes waited as may.
    pub over_bound_blocks: u64,
    /// Freed inline in a burst: the block is gigabytes away from all others.
    pub out_of_reach_blocks: u64,
    /// Bursts of blocks that were not in the cache: deferred.
    pub deferred_bursts: u64,
    /// Bursts of blocks that were in the cache anyway, as those are that the program's own `drop` code has
    /// touched: freed at once.
    pub hot_bursts: u64,
    /// Deferred bursts after which the thread wanted the memory before the drainer was done, or ended.
    pub wasted_bursts: u64,
    /// Bursts freed at once because such ones came before, because the blocks of two other threads waited, or because they
    /// were seen when the greater part was freed (Linux).
    pub skipped_bursts: u64,
}

/// A number of blocks and what they come to. Bytes are those of the size classes: up to 1/16 more
/// than the program asked for, or whole 2 MiB where a block is a mapping of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Number of blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Stats {
    /// Asks the system for the numbers of the process.
    pub(crate) fn add_process(&mut self) {
        let memory = sys::memory_in_use();
        self.resident_bytes = memory.map(|memory| memory.resident_bytes as u64);
        self.mapped_bytes = memory.map(|memory| memory.mapped_bytes as u64);
        let faults = sys::page_faults();
        self.page_faults = faults.map(|faults| faults.all);
        self.major_page_faults = faults.and_then(|faults| faults.major);
    }

    /// As if no large block had been freed since the start.
    pub(crate) fn forget_sizes(&mut self) {
        let none = Tally::default();
        (self.handed_over, self.reused, self.drained, self.paid_back) = (none, none, none, none);
        (self.over_bound, self.queue_full, self.pending, self.missed) = (none, none, none, none);
    }

    /// Adds the blocks of one size.
    pub(crate) fn add_size(&mut self, size: &SizeStats) {
        for (sum, blocks) in [
            (&mut self.handed_over, size.handed_over),
            (&mut self.reused, size.reused),
            (&mut self.drained, size.drained),
            (&mut self.paid_back, size.paid_back),
            (&mut self.over_bound, size.over_bound),
            (&mut self.queue_full, size.queue_full),
            (&mut self.pending, size.pending),
            (&mut self.missed, size.missed),
        ] {
            *sum += Tally { blocks, bytes: blocks.wrapping_mul(size.block_bytes) };
        }
    }
}

impl SizeStats {
    /// Adds the blocks of another size, which keeps this one's.
    pub(crate) fn add_blocks(&mut self, other: &SizeStats) {
        self.handed_over += other.handed_over;
        self.reused += other.reused;
        self.drained += other.drained;
        self.paid_back += other.paid_back;
        self.over_bound += other.over_bound;
        self.queue_full += other.queue_full;
        self.pending += other.pending;
        self.missed += other.missed;
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.blocks += other.blocks;
        self.bytes += other.bytes;
    }
}
