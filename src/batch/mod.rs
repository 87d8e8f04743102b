//! Small blocks freed in bursts: their addresses are written to chunks, which the drainer empties.
//!
//! A pair of allocation and free must go straight to the allocator, or every hot block turns cold. A
//! burst, some hundred frees on one thread with no allocation between them, is a data structure that
//! is being dropped: to free each block is to touch it, a cache miss a piece, and writing its address
//! down is not. What is counted on the way of every call, and what follows from it, is in `thread`.
//!
//! All of this is for the whole process: a thread has one lane, the pool is one. It belongs to the
//! allocator whose drainer started first, the *owner*; others free small blocks at once.
//!
//! Nothing here frees a block or wakes a thread.

mod chunk;
mod lane;
pub(crate) mod thread;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use self::chunk::{ADDRESSES, CHUNKS, Pool};
use self::lane::{Lane, Written};
use crate::stats::{BurstStats, Tally};
use crate::sys;

/// Threads that can defer at the same time; others free at once.
const LANES: usize = 128;

/// Chunks that the drainer empties together: the more there are, the more blocks of one page of the
/// allocator are freed one after the other.
pub(crate) const CHUNKS_PER_LOAD: usize = 8;

/// Addresses in that many chunks.
pub(crate) const LOAD: usize = CHUNKS_PER_LOAD * ADDRESSES;

pub(crate) struct Batches {
    /// Address of the owner's runtime, [`NOBODY`] or [`RETIRED`].
    owner: AtomicUsize,
    pool: Pool,
    lanes: [Lane; LANES],
    /// Lanes below this one have been held by some thread.
    n_lanes: AtomicUsize,
    counts: Counts,
}

/// Blocks and bytes since the owner started. What threads do to their own lanes is counted there.
struct Counts {
    drained_blocks: AtomicU64,
    drained_bytes: AtomicU64,
    no_chunk: AtomicU64,
    over_bound: AtomicU64,
    contended: AtomicU64,
    out_of_reach: AtomicU64,
}

/// What all threads together have done.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    deferred_blocks: u64,
    deferred_bytes: u64,
    paid_back_blocks: u64,
    paid_back_bytes: u64,
}

const NOBODY: usize = 0;
/// An owner has ended and could not take everything with it: there will be no other.
const RETIRED: usize = 1;

pub(crate) static BATCHES: Batches = Batches {
    owner: AtomicUsize::new(NOBODY),
    pool: Pool::new(),
    lanes: [const { Lane::new() }; LANES],
    n_lanes: AtomicUsize::new(0),
    counts: Counts {
        drained_blocks: AtomicU64::new(0),
        drained_bytes: AtomicU64::new(0),
        no_chunk: AtomicU64::new(0),
        over_bound: AtomicU64::new(0),
        contended: AtomicU64::new(0),
        out_of_reach: AtomicU64::new(0),
    },
};

/// What became of a block that was to be deferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deferred {
    /// It was written down; `opened`: in a chunk that had to be taken from the pool first; `near`: those
    /// before it lie near each other.
    Yes { opened: bool, near: bool },
    /// The caller has to free it.
    No(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// No lane, or no chunk.
    NoChunk,
    /// As many bytes wait as may.
    OverBound,
    /// The drainer is at the thread's chunk.
    Contended,
    /// The address cannot be written in 32 bits.
    OutOfReach,
}

impl Batches {
    /// Makes `owner`, an address, the owner if there is none.
    pub(crate) fn claim(&self, owner: usize) -> bool {
        // Acquire pairs with the Release in `release`: the last owner has left nothing.
        let claimed = self
            .owner
            .compare_exchange(NOBODY, owner, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        if claimed {
            self.reset_counts();
        }
        claimed
    }

    /// The owner gives up; nobody frees through it any more and its drainer has emptied what it could.
    pub(crate) fn release(&self, owner: usize) {
        if self.is_owned_by(owner) {
            let next = if self.pool.n_used() == 0 { NOBODY } else { RETIRED };
            self.owner.store(next, Ordering::Release);
        }
    }

    pub(crate) fn has_no_owner(&self) -> bool {
        self.is_owned_by(NOBODY)
    }

    #[inline(always)]
    pub(crate) fn is_owned_by(&self, owner: usize) -> bool {
        self.owner.load(Ordering::Relaxed) == owner
    }

    /// Whether every second chunk has just come into use: the drainer should not wait any longer.
    pub(crate) fn is_half_used(&self) -> bool {
        self.pool.n_used() == CHUNKS / 2
    }

    /// Whether a chunk is in use anywhere.
    pub(crate) fn in_use(&self) -> bool {
        self.pool.n_used() != 0
    }

    /// Whether there is a full chunk for the drainer.
    pub(crate) fn has_full(&self) -> bool {
        self.lanes().iter().any(|lane| lane.has_full() && lane.may_drain())
    }

    fn lanes(&self) -> &[Lane] {
        // SeqCst: a lane that is new is seen before a chunk in it, see `has_full`.
        &self.lanes[..self.n_lanes.load(Ordering::SeqCst)]
    }

    fn hold_lane(&self) -> Option<&Lane> {
        let index = self.lanes.iter().position(Lane::try_hold)?;
        let lane = &self.lanes[index];
        // Its destructor lets the lane go; without it the lane would be lost with the thread.
        if !sys::at_thread_exit(thread_exits) {
            lane.let_go();
            return None;
        }
        self.n_lanes.fetch_max(index + 1, Ordering::SeqCst);
        Some(lane)
    }

    /// As `defer`, when there is an open chunk with room for the block; false otherwise.
    #[inline(always)]
    pub(crate) fn defer_quickly(&self, owner: usize, block: *mut u8, size: usize) -> bool {
        let Some(lane) = thread::writing() else {
            return false;
        };
        if !self.is_owned_by(owner) {
            return false;
        }
        lane.enter().is_some_and(|inside| inside.write(block, size) == Written::Yes)
    }

    /// Writes down a block that the calling thread frees. `reserve` is asked for the bytes of a chunk
    /// that is full before it is handed over.
    pub(crate) fn defer(
        &'static self,
        block: *mut u8,
        size: usize,
        reserve: impl FnOnce(usize) -> bool,
    ) -> Deferred {
        let result = self.try_defer(block, size, reserve);
        if let Deferred::No(why) = result {
            let count = match why {
                Why::NoChunk => &self.counts.no_chunk,
                Why::OverBound => &self.counts.over_bound,
                Why::Contended => &self.counts.contended,
                Why::OutOfReach => &self.counts.out_of_reach,
            };
            count.fetch_add(1, Ordering::Relaxed);
        }
        result
    }

    fn try_defer(
        &'static self,
        block: *mut u8,
        size: usize,
        reserve: impl FnOnce(usize) -> bool,
    ) -> Deferred {
        let Some(lane) = thread::lane(|| self.hold_lane()) else {
            return Deferred::No(Why::NoChunk);
        };
        let pool = &self.pool;
        let Some(inside) = lane.enter() else {
            return Deferred::No(Why::Contended);
        };
        thread::next_chunk(lane);
        lane.set_owing(false);
        match inside.write(block, size) {
            Written::Yes => return Deferred::Yes { opened: false, near: false },
            Written::OutOfReach => return Deferred::No(Why::OutOfReach),
            Written::Full => {}
        }
        let Some(next) = pool.take() else {
            return Deferred::No(Why::NoChunk);
        };
        let mut near = false;
        if let Some(len_bytes) = inside.open_bytes(pool) {
            near = inside.is_near(pool, thread::PROBES as usize, thread::NEAR_BYTES);
            if !reserve(len_bytes) {
                pool.give_back(next);
                return Deferred::No(Why::OverBound);
            }
            if let Some(full) = inside.close(pool) {
                pool.get(full).set_reserved(len_bytes);
                lane.push_full(pool, full);
            }
        }
        inside.set_open(pool, next, block);
        match inside.write(block, size) {
            Written::Yes => Deferred::Yes { opened: true, near },
            // Only an address that is not aligned as every block is.
            Written::Full | Written::OutOfReach => Deferred::No(Why::OutOfReach),
        }
    }

    /// Takes up to `blocks.len()` of the blocks that the calling thread wrote down, last ones first,
    /// to be freed by it. Fewer than that: there are no more. `release` is told the bytes of a chunk
    /// that had been reserved.
    pub(crate) fn pay_back(&self, blocks: &mut [*mut u8], mut release: impl FnMut(usize)) -> usize {
        let Some(lane) = thread::lane(|| None) else {
            return 0;
        };
        let Some(inside) = lane.enter() else {
            return 0;
        };
        inside.count(&self.pool);
        lane.set_owing(true);
        let mut n = 0;
        while n < blocks.len() {
            if let Some(block) = inside.pay_back() {
                blocks[n] = block;
                n += 1;
                continue;
            }
            let Some(full) = lane.pop_full(&self.pool) else {
                lane.set_owing(false);
                break;
            };
            release(self.pool.get(full).take_reserved());
            if let Some(empty) = inside.close(&self.pool) {
                self.pool.give_back(empty);
            }
            inside.set_open(&self.pool, full, std::ptr::null_mut());
        }
        n
    }

    /// Hands over what the calling thread has written down.
    pub(crate) fn close_own(&self) {
        if let Some(lane) = thread::lane(|| None) {
            self.close(lane);
        }
    }

    fn close(&self, lane: &Lane) {
        // Otherwise the drainer is taking the chunk, or tries again when nobody holds the lane.
        if let Some(inside) = lane.enter() {
            if let Some(open) = inside.close(&self.pool) {
                lane.push_full(&self.pool, open);
            }
        }
    }

    /// For the drainer, once per round: `all` says that no thread keeps its chunks.
    pub(crate) fn note_round(&self, all: bool) {
        for lane in self.lanes() {
            lane.note_round(all);
        }
    }

    /// For the drainer: makes the open chunks of threads that have gone quiet full ones, of all threads
    /// with `all`. False if there are some left that could not be had.
    pub(crate) fn collect_open(&self, all: bool) -> bool {
        let mut had_all = true;
        for lane in self.lanes() {
            if let Some(open) = lane.steal_open(&self.pool, all, sys::membarrier) {
                lane.push_full(&self.pool, open);
            } else if all && lane.has_open() {
                had_all = false;
            }
        }
        had_all
    }

    /// For the drainer: empties some full chunks into `load`, sorted by address, and says how many
    /// blocks there were. `None` when there is no full chunk.
    pub(crate) fn drain(
        &self,
        load: &mut [usize; LOAD],
        mut release: impl FnMut(usize),
    ) -> Option<usize> {
        let (mut n, mut n_chunks, mut bytes) = (0, 0, 0);
        for lane in self.lanes() {
            if !lane.may_drain() {
                continue;
            }
            while n + ADDRESSES <= load.len() {
                let Some(index) = lane.pop_full(&self.pool) else {
                    break;
                };
                let chunk = self.pool.get(index);
                release(chunk.take_reserved());
                bytes += chunk.bytes();
                n += chunk.empty_into(&mut load[n..]);
                self.pool.give_back(index);
                n_chunks += 1;
            }
        }
        if n_chunks == 0 {
            return None;
        }
        // In place: nothing is allocated.
        load[..n].sort_unstable();
        self.counts.drained_blocks.fetch_add(n as u64, Ordering::Relaxed);
        self.counts.drained_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Some(n)
    }

    /// Returns unused memory of its own to the system.
    pub(crate) fn purge(&self) {
        self.pool.purge();
    }

    /// What threads have written down since they were last in their slow path is not in it yet.
    pub(crate) fn stats(&self) -> BurstStats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let sums = self.sums();
        let drained_blocks = load(&self.counts.drained_blocks);
        let drained_bytes = load(&self.counts.drained_bytes);
        let left = |deferred: u64, a: u64, b: u64| deferred.saturating_sub(a).saturating_sub(b);
        BurstStats {
            deferred: Tally { blocks: sums.deferred_blocks, bytes: sums.deferred_bytes },
            drained: Tally { blocks: drained_blocks, bytes: drained_bytes },
            paid_back: Tally { blocks: sums.paid_back_blocks, bytes: sums.paid_back_bytes },
            pending: Tally {
                blocks: left(sums.deferred_blocks, drained_blocks, sums.paid_back_blocks),
                bytes: left(sums.deferred_bytes, drained_bytes, sums.paid_back_bytes),
            },
            no_chunk_blocks: load(&self.counts.no_chunk),
            over_bound_blocks: load(&self.counts.over_bound),
            contended_blocks: load(&self.counts.contended),
            out_of_reach_blocks: load(&self.counts.out_of_reach),
        }
    }

    fn sums(&self) -> Sums {
        let mut sums = Sums::default();
        for lane in self.lanes() {
            let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
            sums.deferred_blocks += load(&lane.counts.deferred_blocks);
            sums.deferred_bytes += load(&lane.counts.deferred_bytes);
            sums.paid_back_blocks += load(&lane.counts.paid_back_blocks);
            sums.paid_back_bytes += load(&lane.counts.paid_back_bytes);
        }
        sums
    }

    /// A number that changes when a thread goes on in a burst, or pays back.
    pub(crate) fn activity(&self) -> u64 {
        let sums = self.sums();
        sums.deferred_blocks.wrapping_add(sums.paid_back_blocks)
    }

    fn reset_counts(&self) {
        for lane in self.lanes() {
            lane.reset_counts();
        }
        let Counts { drained_blocks, drained_bytes, no_chunk, over_bound, contended, out_of_reach } =
            &self.counts;
        for count in [drained_blocks, drained_bytes, no_chunk, over_bound, contended, out_of_reach]
        {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// In a forked child, on its only thread. All chunks that are in a lane stay there, for the next
    /// owner's drainer; those that a thread of the parent had in hand are lost with it.
    pub(crate) fn forked_child(&self) {
        if self.owner.load(Ordering::Relaxed) == NOBODY {
            return;
        }
        self.owner.store(NOBODY, Ordering::Relaxed);
        thread::forked_child();
        let pool = &self.pool;
        let was_used: [u64; CHUNKS / 64] = pool.used();
        pool.forget_all();
        for lane in self.lanes() {
            lane.forget_threads(pool, |index| {
                // What was reserved was so in the parent.
                pool.get(index).set_reserved(0);
                pool.keep(index);
            });
        }
        pool.empty_unused(&was_used);
    }
}

/// Runs as the last thing on a thread that has held a lane, after its thread-local destructors.
unsafe extern "C" fn thread_exits(_: *mut std::ffi::c_void) {
    if let Some(lane) = thread::end() {
        BATCHES.close(lane);
        lane.let_go();
    }
}
