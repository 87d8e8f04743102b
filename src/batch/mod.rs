//! Small blocks freed in bursts: their addresses are written to chunks, which the thread itself or the
//! drainer empties later.
//!
//! A pair of allocation and free must go straight to the allocator, or every hot block turns cold. A
//! burst, some hundred frees on one thread with no allocation between them, is a data structure that
//! is being dropped: to free each block is to touch it, a cache miss a piece, and writing its address
//! down is not. What is counted on the way of every call, and what follows from it, is in `thread`.
//!
//! Addresses are sorted by page while they are written (`chunk`). Freed in the order in which the program
//! freed them, each block would bring the allocator to another page: mimalloc gives a full page up and
//! claims it again when a block of it is freed, which costs several times the free itself.
//!
//! All of this is for the whole process: a thread has one lane, the pool is one. It belongs to the
//! allocator whose drainer started first, the *owner*; others free small blocks at once.
//!
//! Nothing here frees a block or wakes a thread, but for the owner, which is called when a thread ends
//! (`payer`).

mod chunk;
mod lane;
mod payer;
pub(crate) mod thread;
#[cfg(all(test, loom))]
mod models;

use std::ptr::NonNull;

use self::chunk::{ADDRESSES, BUCKETS, CHUNKS, List, Place, Pool};
use self::lane::{Inside, Lane, Written, share};
pub(crate) use self::payer::Pay;
use self::payer::Payer;
use crate::lifecycle;
use crate::stats::{BurstStats, Tally};
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::{sync, sys};

/// Threads that can defer at the same time; others free at once.
const LANES: usize = 128;

/// Blocks that the drainer puts into order together.
pub(crate) const LOAD: usize = 32 * ADDRESSES;

/// A thread that writes down and pays back fewer blocks than that in a round has gone quiet.
const QUIET_BLOCKS: u64 = 512;

pub(crate) struct Batches {
    /// Address of the owner's runtime, [`NOBODY`] or [`RETIRED`].
    owner: AtomicUsize,
    pool: Pool,
    lanes: [Lane; LANES],
    /// Lanes below this one have been held by some thread.
    n_lanes: AtomicUsize,
    taken: Taken,
    counts: Counts,
    payer: Payer,
}

/// What the drainer has taken out of a lane and not freed yet. The drainer's alone.
struct Taken {
    lists: [List; BUCKETS],
    n_blocks: AtomicUsize,
    bytes: AtomicUsize,
    granted_bytes: AtomicUsize,
}

/// Blocks and bytes since the owner started. What threads do to their own lanes is counted there.
struct Counts {
    /// What a forked child found taken by the parent's drainer.
    adopted_blocks: AtomicU64,
    adopted_bytes: AtomicU64,
    /// Some thousand blocks each, freed at once.
    near_bursts: AtomicU64,
    drained_blocks: AtomicU64,
    drained_bytes: AtomicU64,
    no_chunk: AtomicU64,
    over_bound: AtomicU64,
    contended: AtomicU64,
    out_of_reach: AtomicU64,
}

const NOBODY: usize = 0;
/// An owner has ended and could not take everything with it: there will be no other.
const RETIRED: usize = 1;

pub(crate) static BATCHES: Batches = Batches {
    owner: AtomicUsize::new(NOBODY),
    pool: Pool::new(),
    lanes: [const { Lane::new() }; LANES],
    n_lanes: AtomicUsize::new(0),
    taken: Taken {
        lists: [const { List::new() }; BUCKETS],
        n_blocks: AtomicUsize::new(0),
        bytes: AtomicUsize::new(0),
        granted_bytes: AtomicUsize::new(0),
    },
    counts: Counts {
        adopted_blocks: AtomicU64::new(0),
        adopted_bytes: AtomicU64::new(0),
        near_bursts: AtomicU64::new(0),
        drained_blocks: AtomicU64::new(0),
        drained_bytes: AtomicU64::new(0),
        no_chunk: AtomicU64::new(0),
        over_bound: AtomicU64::new(0),
        contended: AtomicU64::new(0),
        out_of_reach: AtomicU64::new(0),
    },
    payer: Payer::new(),
};

/// What became of a block that was to be deferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deferred {
    /// It was written down; `opened`: in a chunk that had to be taken from the pool first.
    Yes { opened: bool },
    /// The caller has to free it.
    No(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// No lane, or no chunk.
    NoChunk,
    /// As many bytes wait as may.
    OverBound,
    /// The drainer is at the thread's lane.
    Contended,
    /// The address is too far from the others.
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

    /// The owner's way to free what a thread that ends has deferred.
    ///
    /// # Safety
    /// `pay` may be called with `owner` on any thread until `withdraw` has returned.
    pub(crate) unsafe fn announce(&self, owner: NonNull<()>, pay: Pay) {
        debug_assert!(self.is_owned_by(owner.addr().get()));
        // SAFETY: the caller's.
        unsafe { self.payer.announce(owner, pay) };
    }

    /// The owner is going to give up: threads that end leave their blocks to its drainer. Waits for those that
    /// are just ending.
    pub(crate) fn withdraw(&self, owner: usize) {
        if self.is_owned_by(owner) {
            self.payer.withdraw();
        }
    }

    /// The owner gives up; nobody frees through it any more and its drainer has emptied what it could.
    pub(crate) fn release(&self, owner: usize) {
        if self.is_owned_by(owner) {
            let next = if self.in_use() { RETIRED } else { NOBODY };
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

    /// Whether any block waits.
    pub(crate) fn in_use(&self) -> bool {
        // A run is filled before its chunks are given back, so not both look empty meanwhile.
        self.pool.n_used() != 0 || self.lanes().iter().any(Lane::has_run)
    }

    fn lanes(&self) -> &[Lane] {
        // SeqCst: a lane that is new is seen before a chunk in it, see `in_use`.
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

    /// Writes down a block that the calling thread frees. `grant` is asked for the bytes from time to
    /// time.
    pub(crate) fn defer(
        &'static self,
        block: *mut u8,
        size: usize,
        grant: impl FnOnce(usize) -> bool,
    ) -> Deferred {
        let result = self.try_defer(block, size, grant);
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
        grant: impl FnOnce(usize) -> bool,
    ) -> Deferred {
        let Some(lane) = thread::lane(|| self.hold_lane()) else {
            return Deferred::No(Why::NoChunk);
        };
        let pool = &self.pool;
        let Some(inside) = lane.enter() else {
            return Deferred::No(Why::Contended);
        };
        thread::goes_on(lane);
        let mut written = inside.write(block, size);
        if written == Written::OutOfReach && inside.rebase(pool, block) {
            written = inside.write(block, size);
        }
        if let Written::Full(_) = written {
            if !inside.ask(grant) {
                return Deferred::No(Why::OverBound);
            }
            written = inside.write(block, size);
        }
        let bucket = match written {
            Written::Yes => return Deferred::Yes { opened: false },
            Written::OutOfReach => return Deferred::No(Why::OutOfReach),
            Written::Full(bucket) => bucket,
        };
        let Some(next) = pool.take() else {
            return Deferred::No(Why::NoChunk);
        };
        inside.open(pool, bucket, next);
        match inside.write(block, size) {
            Written::Yes => Deferred::Yes { opened: true },
            Written::Full(_) | Written::OutOfReach => Deferred::No(Why::OutOfReach),
        }
    }

    /// Takes up to `blocks.len()` of the blocks that the calling thread wrote down, to be freed by it.
    /// Fewer than that: there are no more, or the drainer is at them. `release` is told the bytes that
    /// had been granted.
    pub(crate) fn pay_back(&self, blocks: &mut [*mut u8], release: impl FnMut(usize)) -> usize {
        let Some(lane) = thread::lane(|| None) else {
            return 0;
        };
        let Some(inside) = lane.enter() else {
            return 0;
        };
        thread::note_payment(|| lane.deferred_blocks(&self.pool));
        inside.pay_back(&self.pool, blocks, release)
    }

    /// For the drainer: takes the blocks of a thread that is marked in `quiet`, and of any when chunks run
    /// short. Those which the thread was about to free are in `load` then; the result says how many. `None`
    /// if there is no such thread; those still marked were just writing.
    ///
    /// What was taken before must have been drained.
    pub(crate) fn take(&self, load: &mut [usize; LOAD], quiet: &mut Quiet) -> Option<usize> {
        debug_assert!(!self.has_taken());
        let any = self.pool.n_used() > CHUNKS / 2;
        quiet.lanes[self.lanes().len()..].fill(false);
        for (lane, marked) in self.lanes().iter().zip(&mut quiet.lanes) {
            if !lane.may_hold_blocks(&self.pool) {
                *marked = false;
            } else if any || *marked {
                let take =
                    |inside: &Inside<'_>| inside.take_all(&self.pool, &self.taken.lists, load);
                let Some(taken) = lane.steal(sync::heavy_fence, take) else {
                    continue;
                };
                *marked = false;
                self.taken.n_blocks.store(taken.blocks, Ordering::Relaxed);
                self.taken.bytes.store(taken.bytes, Ordering::Relaxed);
                self.taken.granted_bytes.store(taken.granted_bytes, Ordering::Relaxed);
                self.note_drained(taken.run_blocks, taken.run_bytes);
                return Some(taken.run_blocks);
            }
        }
        None
    }

    /// For the drainer, once per round: which threads have been quiet since the last one, with blocks
    /// that wait? Returns a number that changes when a thread goes on in a burst, of blocks near each other
    /// too, or pays back.
    pub(crate) fn note_round(&self, quiet: &mut Quiet) -> u64 {
        let mut activity = self.counts.near_bursts.load(Ordering::Relaxed);
        for (lane, quiet) in self.lanes().iter().zip(&mut quiet.lanes) {
            let (now, before) = lane.note_activity(&self.pool);
            let is_quiet = now.wrapping_sub(before) < QUIET_BLOCKS;
            *quiet = is_quiet && lane.may_hold_blocks(&self.pool);
            activity = activity.wrapping_add(now);
        }
        activity
    }

    /// Whether there is something for `drain`.
    pub(crate) fn has_taken(&self) -> bool {
        self.taken.n_blocks.load(Ordering::Relaxed) != 0
    }

    /// For the drainer: some of the blocks that it has taken, sorted by address, in `load`. 0: that was
    /// all. `release` is told the bytes that had been granted.
    pub(crate) fn drain(&self, load: &mut [usize; LOAD], release: impl FnOnce(usize)) -> usize {
        let taken = &self.taken;
        let mut n = 0;
        for (bucket, list) in taken.lists.iter().enumerate() {
            while n + ADDRESSES <= load.len() {
                let Some(index) = list.pop(&self.pool) else {
                    break;
                };
                let chunk = self.pool.get(index);
                let base = chunk.base();
                for (address, offset) in load[n..].iter_mut().zip(chunk.offsets()) {
                    *address = Place { bucket, offset }.address(base);
                    n += 1;
                }
                self.pool.give_back(index);
            }
        }
        let before = taken.n_blocks.load(Ordering::Relaxed);
        let bytes = taken.bytes.load(Ordering::Relaxed);
        let granted = taken.granted_bytes.load(Ordering::Relaxed);
        let (bytes_now, granted_now) = if n == 0 {
            (bytes, granted)
        } else {
            (share(bytes, n, before), share(granted, n, before))
        };
        taken.n_blocks.store(if n == 0 { 0 } else { before.saturating_sub(n) }, Ordering::Relaxed);
        taken.bytes.store(bytes - bytes_now, Ordering::Relaxed);
        taken.granted_bytes.store(granted - granted_now, Ordering::Relaxed);
        release(granted_now);
        self.note_drained(n, bytes_now);
        // In place: nothing is allocated.
        load[..n].sort_unstable();
        n
    }

    fn note_drained(&self, blocks: usize, bytes: usize) {
        self.counts.drained_blocks.fetch_add(blocks as u64, Ordering::Relaxed);
        self.counts.drained_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Returns unused memory of its own to the system.
    pub(crate) fn purge(&self) {
        self.pool.purge();
    }

    pub(crate) fn stats(&self) -> BurstStats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let tally = |blocks, bytes| Tally { blocks: load(blocks), bytes: load(bytes) };
        let counts = &self.counts;
        let mut deferred = tally(&counts.adopted_blocks, &counts.adopted_bytes);
        let drained = tally(&counts.drained_blocks, &counts.drained_bytes);
        let mut paid_back = Tally::default();
        for lane in self.lanes() {
            deferred +=
                Tally { blocks: lane.deferred_blocks(&self.pool), bytes: lane.deferred_bytes() };
            paid_back += tally(&lane.counts.paid_back_blocks, &lane.counts.paid_back_bytes);
        }
        let left = |deferred: u64, a: u64, b: u64| deferred.saturating_sub(a).saturating_sub(b);
        BurstStats {
            deferred,
            drained,
            paid_back,
            pending: Tally {
                blocks: left(deferred.blocks, drained.blocks, paid_back.blocks),
                bytes: left(deferred.bytes, drained.bytes, paid_back.bytes),
            },
            no_chunk_blocks: load(&counts.no_chunk),
            over_bound_blocks: load(&counts.over_bound),
            contended_blocks: load(&counts.contended),
            out_of_reach_blocks: load(&counts.out_of_reach),
        }
    }

    pub(crate) fn note_near_burst(&self) {
        self.counts.near_bursts.fetch_add(1, Ordering::Relaxed);
    }

    fn reset_counts(&self) {
        for lane in self.lanes() {
            lane.reset_counts(&self.pool);
        }
        let adopt = |count: &AtomicU64, adopted: &AtomicUsize| {
            count.store(adopted.load(Ordering::Relaxed) as u64, Ordering::Relaxed);
        };
        adopt(&self.counts.adopted_blocks, &self.taken.n_blocks);
        adopt(&self.counts.adopted_bytes, &self.taken.bytes);
        let counts = &self.counts;
        for count in [
            &counts.drained_blocks,
            &counts.drained_bytes,
            &counts.no_chunk,
            &counts.over_bound,
            &counts.contended,
            &counts.out_of_reach,
        ] {
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
        self.payer.forked_child();
        thread::forked_child();
        let pool = &self.pool;
        pool.forget_all();
        for lane in self.lanes() {
            // What was granted was so in the parent.
            lane.forget_threads(pool, |index| pool.keep(index));
        }
        self.taken.granted_bytes.store(0, Ordering::Relaxed);
        for list in &self.taken.lists {
            list.indices(pool).for_each(|index| pool.keep(index));
        }
    }
}

/// Whose blocks are to be taken, mostly threads that have gone quiet. For the drainer to keep between rounds.
pub(crate) struct Quiet {
    /// Marked or not.
    lanes: [bool; LANES],
}

impl Quiet {
    pub(crate) const fn new() -> Quiet {
        Quiet { lanes: [false; LANES] }
    }

    pub(crate) fn mark_all(&mut self) {
        self.lanes.fill(true);
    }

    pub(crate) fn is_any_marked(&self) -> bool {
        self.lanes.contains(&true)
    }
}

/// Frees what the calling thread has deferred, as it ends. Not where the process does.
pub(crate) fn settle() {
    if thread::lane(|| None).is_some() && !lifecycle::exiting() {
        BATCHES.payer.call();
    }
}

/// Runs as the last thing on a thread that has held a lane, after its thread-local destructors.
unsafe extern "C" fn thread_exits(_: *mut std::ffi::c_void) {
    if let Some(lane) = thread::end() {
        lane.let_go();
    }
}
