//! Small blocks freed in bursts: their addresses are written down, and freed by the drainer.
//!
//! A pair of allocation and free must go straight to the allocator, or every hot block turns cold. A burst, frees
//! in a row with no allocation between them, is a data structure that is being dropped. To free each of its blocks is to
//! touch it, a cache miss a piece, and to write its address down is not. `local` tells when a thread is in a
//! burst, and whether it pays; `record` what it has come to before. `log` is what a thread writes to, `pool` where
//! the memory for that comes from, `sort` what the drainer does with it.
//!
//! All of this is for the whole process: a thread has one log, the pool is one. It belongs to the allocator whose
//! drainer started first, the *owner*; others free small blocks at once.
//!
//! Nothing here frees a block or wakes a thread: what leaves is handed to the caller.

pub(crate) mod local;
mod log;
mod pool;
mod record;
mod sort;
#[cfg(all(test, loom))]
mod models;

use std::cell::Cell;
use std::ffi::c_void;
use std::ops::ControlFlow;
use std::ptr;

use self::local::Local;
use self::log::{Count, Log, NotWritten};
use self::pool::Pool;
use self::record::Ends;
use self::sort::Sorter;
use crate::stats::{BurstStats, Tally};
use crate::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
use crate::sync::{IN_MODEL, TINY};
use crate::sys;

/// Blocks from this size on do not go through a log: a few thousand of them would be half a gigabyte, and what their
/// free costs is little beside what it cost to fill them.
pub(crate) const SMALL_BYTES: usize = 16 << 10;

/// A log with so many addresses is taken even if its thread goes on writing.
const LONG_LOG: u64 = if TINY { 64 } else { 2 << 20 };

/// Where blocks of so many threads wait, those of yet another one would wait long; see docs/choices.md.
const MANY_LOGS: usize = 2;
/// Each is two cache lines that others write to: a thread that begins a burst must not look through hundreds.
const LOOK_AT_LOGS: usize = 16;

/// Chunks that are in use when the drainer is told of a burst that it may be too fast asleep to notice.
const CHUNKS_TO_TELL: usize = if TINY { 1 } else { 4 };

/// Chunks whose memory is made ready for those who are going to take them: 2 MiB, the log of a millisecond.
const CHUNKS_AHEAD: usize = 512;

pub(crate) struct Bursts {
    /// Address of the owner's runtime, or [`NOBODY`].
    owner: AtomicUsize,
    /// How many owners there have been: the number of the present one. Not used twice, as an address may be.
    n_owners: AtomicU32,
    /// The process has been forked off, and the owner's drainer is not here.
    orphaned: AtomicBool,
    /// A part of the owner, where threads may free what they wrote down when they end; else null.
    settler: AtomicPtr<Settler>,
    pool: Pool,
    logs: Logs,
    sorter: Sorter,
    /// Bytes of the blocks in chunks that are full.
    full_bytes: AtomicUsize,
    /// Chunks whose memory has been made ready. The drainer's.
    n_ready: AtomicUsize,
    /// The drainer has been told of a burst.
    told: AtomicBool,
    ends: Ends,
    counts: Counts,
}

/// Since the owner started. What threads do to their own logs is counted there.
struct Counts {
    drained_blocks: AtomicU64,
    drained_bytes: AtomicU64,
    /// What had been taken out of the logs, and by their own threads, before the owner started.
    taken_before: Count,
    taken_back_before: Count,
    no_chunk: AtomicU64,
    over_bound: AtomicU64,
    out_of_reach: AtomicU64,
    deferred_bursts: AtomicU64,
    hot_bursts: AtomicU64,
    wasted_bursts: AtomicU64,
    skipped_bursts: AtomicU64,
}

const NOBODY: usize = 0;
/// No owner has this number.
pub(crate) const NO_OWNER: u32 = u32::MAX;

pub(crate) static BURSTS: Bursts = Bursts {
    owner: AtomicUsize::new(NOBODY),
    n_owners: AtomicU32::new(0),
    orphaned: AtomicBool::new(false),
    settler: AtomicPtr::new(ptr::null_mut()),
    pool: Pool::new(),
    logs: Logs::new(),
    sorter: Sorter::new(),
    full_bytes: AtomicUsize::new(0),
    n_ready: AtomicUsize::new(0),
    told: AtomicBool::new(false),
    ends: Ends::new(),
    counts: Counts {
        drained_blocks: AtomicU64::new(0),
        drained_bytes: AtomicU64::new(0),
        taken_before: Count::new(),
        taken_back_before: Count::new(),
        no_chunk: AtomicU64::new(0),
        over_bound: AtomicU64::new(0),
        out_of_reach: AtomicU64::new(0),
        deferred_bursts: AtomicU64::new(0),
        hot_bursts: AtomicU64::new(0),
        wasted_bursts: AtomicU64::new(0),
        skipped_bursts: AtomicU64::new(0),
    },
};

/// What became of a burst, for the statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Deferred,
    Hot,
    Wasted,
    Skipped,
}

/// How much of its log a thread is to free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HowMuch {
    All,
    /// What is in one chunk: some ten microseconds, some hundred where nothing of it is in the cache.
    Chunk,
}

/// What became of a block that was to be written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It was.
    Yes,
    /// It was, in a place where the drainer may not have looked: it may have to be woken.
    Opened,
    /// The caller has to free it.
    No,
}

impl Bursts {
    /// Makes `owner`, an address, the owner if there is none; or if the owner was `inherited` by it in a fork.
    pub(crate) fn claim(&self, owner: usize, inherited: usize) -> bool {
        let before = if self.orphaned.load(Ordering::Relaxed) { inherited } else { NOBODY };
        // Acquire pairs with the Release in `release`: the last owner has left nothing.
        let claimed = self
            .owner
            .compare_exchange(before, owner, Ordering::Acquire, Ordering::Relaxed)
            .is_ok();
        if claimed {
            self.n_owners.fetch_add(1, Ordering::Relaxed);
            self.settler.store(ptr::null_mut(), Ordering::Relaxed);
            self.reset_counts();
        }
        claimed
    }

    /// Takes a `claim` back: the owner could not start.
    pub(crate) fn unclaim(&self, owner: usize, inherited: usize) {
        if self.is_owned_by(owner) {
            let before = if self.orphaned.load(Ordering::Relaxed) { inherited } else { NOBODY };
            self.owner.store(before, Ordering::Release);
        }
    }

    /// The owner's drainer runs.
    pub(crate) fn note_started(&self, owner: usize) {
        if self.is_owned_by(owner) {
            self.orphaned.store(false, Ordering::Relaxed);
        }
    }

    /// Threads may free what they wrote down when they end. `settler` is a part of the owner, and goes with it.
    pub(crate) fn allow_settling(&self, settler: &Settler) {
        // Release pairs with the Acquire in `settle`.
        self.settler.store(ptr::from_ref(settler).cast_mut(), Ordering::Release);
    }

    /// The owner gives up; nobody frees through it any more and its drainer has emptied all logs.
    pub(crate) fn release(&self, owner: usize) {
        if self.is_owned_by(owner) {
            self.owner.store(NOBODY, Ordering::Release);
        }
    }

    /// Whether an allocator that inherited `inherited` in a fork, or nothing, could become the owner.
    pub(crate) fn can_be_claimed(&self, inherited: usize) -> bool {
        self.is_owned_by(NOBODY)
            || self.orphaned.load(Ordering::Relaxed) && self.is_owned_by(inherited)
    }

    /// The number of the owner; 0 before there has been one, and never [`NO_OWNER`].
    pub(crate) fn owner_number(&self) -> u32 {
        self.n_owners.load(Ordering::Relaxed)
    }

    pub(crate) fn is_owned_by(&self, owner: usize) -> bool {
        self.owner.load(Ordering::Relaxed) == owner
    }

    /// Bytes that wait, but for those of the last thousand blocks of each thread.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.full_bytes.load(Ordering::Relaxed)
    }

    /// Writes down a block that the calling thread frees. `grant` is asked for so many bytes from time to time.
    pub(crate) fn write(
        &'static self,
        local: &Local,
        block: *mut u8,
        size: usize,
        grant: impl FnOnce(usize) -> bool,
    ) -> Written {
        let Some(log) = local.log().or_else(|| self.hold_log(local)) else {
            self.counts.no_chunk.fetch_add(1, Ordering::Relaxed);
            return Written::No;
        };
        let cursor = local.cursor();
        let grant = |bytes| {
            let granted = grant(bytes);
            if granted {
                self.full_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            granted
        };
        match log.write(&self.pool, cursor, block, size, grant) {
            Ok(entry) => {
                local.note_written(self.owner_number(), entry.cursor);
                if entry.opened { Written::Opened } else { Written::Yes }
            }
            Err(why) => {
                let count = match why {
                    NotWritten::NoChunk => &self.counts.no_chunk,
                    NotWritten::OverBound => &self.counts.over_bound,
                    NotWritten::OutOfReach => &self.counts.out_of_reach,
                };
                count.fetch_add(1, Ordering::Relaxed);
                Written::No
            }
        }
    }

    #[cold]
    fn hold_log(&'static self, local: &Local) -> Option<&'static Log> {
        if local.has_ended() {
            return None;
        }
        let _errno = sys::KeepsErrno::new();
        let log = self.logs.hold()?;
        // Its handler lets the log go; without it the log would be lost with the thread.
        if !local::hears_of_its_exit() {
            log.let_go();
            return None;
        }
        local.set_log(log);
        Some(log)
    }

    /// Whether the drainer, which is awake, should be told at once that a burst is under way.
    pub(crate) fn is_to_be_told(&self) -> bool {
        self.pool.n_used() >= CHUNKS_TO_TELL && !self.told.swap(true, Ordering::Relaxed)
    }

    /// Frees what the calling thread has written down, oldest first and as much as is said, unless the drainer is at it; how
    /// many blocks that were.
    pub(crate) fn take_back(
        &self,
        local: &Local,
        much: HowMuch,
        mut free: impl FnMut(*mut u8),
    ) -> usize {
        local.log().map_or(0, |log| self.empty(log, much, &mut free))
    }

    /// As `take_back`, for all threads, whose last writes may be missed.
    pub(crate) fn take_back_all(&self, mut free: impl FnMut(*mut u8)) {
        self.logs.iter().for_each(|log| _ = self.empty(log, HowMuch::All, &mut free));
    }

    fn empty(&self, log: &Log, much: HowMuch, free: &mut impl FnMut(*mut u8)) -> usize {
        let Some(mut emptying) = log.try_empty() else {
            return 0;
        };
        let mut n_blocks = 0;
        loop {
            let run = emptying.next(&self.pool);
            self.full_bytes.fetch_sub(emptying.give_up_grant(), Ordering::Relaxed);
            let Some(run) = run else {
                return n_blocks;
            };
            log.note_taken_back(run.n_blocks(), run.bytes);
            n_blocks += run.n_blocks();
            run.chunk.each_block(run.slots, |soon| sys::prefetch(soon), &mut *free);
            if much == HowMuch::Chunk {
                return n_blocks;
            }
        }
    }

    /// Shows the last `n` blocks that the thread has written down, as far as they are in one chunk and wait.
    pub(crate) fn last_written(&self, local: &Local, n: usize, f: impl FnMut(*mut u8)) {
        // Nobody frees them meanwhile.
        if let Some(emptying) = local.log().and_then(Log::try_empty) {
            emptying.last_written(&self.pool, local.cursor(), n, f);
        }
    }

    /// Whether the drainer has more to do than it keeps up with: blocks of [`MANY_LOGS`] threads, not counting the calling
    /// one, as far as [`LOOK_AT_LOGS`] show it.
    pub(crate) fn are_many(&self, local: &Local) -> bool {
        let own = local.log().map(ptr::from_ref);
        let waits = |log: &&Log| Some(ptr::from_ref(*log)) != own && !log.is_done(&self.pool);
        self.logs.iter().take(LOOK_AT_LOGS).filter(waits).nth(MANY_LOGS - 1).is_some()
    }

    /// Whether threads that build have come to end with their first burst, so that the next one's is better freed at once.
    pub(crate) fn skips_first(&self) -> bool {
        self.ends.skips()
    }

    /// A thread that builds has ended with a burst, which it had to free itself if it was `wasted`.
    fn note_end(&self, wasted: bool) {
        if wasted {
            self.note(Outcome::Wasted);
            self.ends.note_wasted();
        } else {
            self.ends.note_worth_it();
        }
    }

    pub(crate) fn note(&self, outcome: Outcome) {
        let count = match outcome {
            Outcome::Deferred => &self.counts.deferred_bursts,
            Outcome::Hot => &self.counts.hot_bursts,
            Outcome::Wasted => &self.counts.wasted_bursts,
            Outcome::Skipped => &self.counts.skipped_bursts,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// For the drainer, before it sleeps: has the next thread that writes wake it. False if anything waits.
    pub(crate) fn close(&self) -> bool {
        self.told.store(false, Ordering::Relaxed);
        self.logs.iter().all(|log| log.close(&self.pool))
    }

    /// Whether that still holds. Pairs with the fence in `fence_before_wake`.
    pub(crate) fn is_closed(&self) -> bool {
        fence(Ordering::SeqCst);
        self.logs.iter().all(|log| log.is_closed(&self.pool))
    }

    /// To be called between a write that `opened` and the look whether the drainer sleeps.
    pub(crate) fn fence_before_wake(&self) {
        fence(Ordering::SeqCst);
    }

    /// For the drainer: makes memory ready for what threads are writing.
    pub(crate) fn make_ready(&self) {
        let wanted = self.pool.n_used() + CHUNKS_AHEAD;
        let n_ready = self.n_ready.load(Ordering::Relaxed);
        if wanted > n_ready {
            self.n_ready.store(wanted, Ordering::Relaxed);
            self.pool.make_ready(n_ready, wanted);
        }
    }

    /// For the drainer, once a round: frees what threads wrote down that have gone quiet since the last round, or wrote
    /// very much; with `everything` that of all. Says whether anything was freed, and whether anything is left.
    ///
    /// It asks whether to `go_on` where a fork may come; `Break` comes from there.
    pub(crate) fn drain(
        &self,
        everything: bool,
        free: &mut dyn FnMut(*mut u8),
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> ControlFlow<(), Drained> {
        let n_freed = Cell::new(0u64);
        let mut is_left = false;
        let mut free = |block: *mut u8| {
            n_freed.set(n_freed.get() + 1);
            free(block);
        };
        self.sorter.free_all(&self.pool, &mut free, go_on)?;
        for log in self.logs.iter() {
            if log.is_empty(&self.pool) && !log.is_to_be_given_up() {
                continue;
            }
            let is_quiet = log.is_quiet(&self.pool);
            let n_waiting = log.n_waiting_about().max(1);
            if !everything && !is_quiet && log.is_held() && n_waiting < LONG_LOG {
                is_left = true;
                continue;
            }
            let Some(emptying) = log.try_empty() else {
                is_left = true;
                continue;
            };
            let mut emptying = Some(emptying);
            log.begin_drain(n_waiting);
            let mut taken = Tally::default();
            let runs = || {
                let taking = emptying.as_mut()?;
                let run = taking.next(&self.pool);
                // At once: a forked child finds it done.
                self.full_bytes.fetch_sub(taking.give_up_grant(), Ordering::Relaxed);
                let Some(run) = run else {
                    // The thread may go on in its log meanwhile, and take that back.
                    emptying = None;
                    return None;
                };
                taken += Tally { blocks: run.n_blocks() as u64, bytes: run.bytes as u64 };
                Some(run)
            };
            let n_before = n_freed.get();
            let mut go_on = || {
                log.set_in_hand(n_waiting.saturating_sub(n_freed.get() - n_before).max(1));
                go_on()
            };
            let drained = self.sorter.drain(&self.pool, runs, &mut free, &mut go_on);
            self.counts.drained_blocks.fetch_add(taken.blocks, Ordering::Relaxed);
            self.counts.drained_bytes.fetch_add(taken.bytes, Ordering::Relaxed);
            drained?;
            log.set_in_hand(0);
        }
        if !is_left {
            self.told.store(false, Ordering::Relaxed);
        }
        ControlFlow::Continue(Drained { any: n_freed.get() > 0, is_left })
    }

    /// Whether nothing waits, and nobody is freeing what was taken out of a log.
    pub(crate) fn are_all_freed(&self) -> bool {
        self.logs.iter().all(|log| log.are_all_freed(&self.pool))
    }

    /// A number that changes when a thread goes on in a burst.
    pub(crate) fn activity(&self) -> u64 {
        self.logs.iter().map(Log::n_left).fold(0, u64::wrapping_add)
    }

    /// Returns unused memory of its own to the system.
    pub(crate) fn purge(&self) {
        self.pool.purge();
        self.n_ready.store(0, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self) -> BurstStats {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.counts;
        let all = |of: fn(&Log, &Pool) -> Tally| {
            self.logs.iter().map(|log| of(log, &self.pool)).fold(Tally::default(), sum)
        };
        let deferred = minus(all(Log::written), counts.taken_before.tally());
        let paid_back = minus(all(|log, _| log.taken_back()), counts.taken_back_before.tally());
        let drained =
            Tally { blocks: load(&counts.drained_blocks), bytes: load(&counts.drained_bytes) };
        BurstStats {
            deferred,
            drained,
            paid_back,
            pending: minus(minus(deferred, drained), paid_back),
            no_chunk_blocks: load(&counts.no_chunk),
            over_bound_blocks: load(&counts.over_bound),
            out_of_reach_blocks: load(&counts.out_of_reach),
            deferred_bursts: load(&counts.deferred_bursts),
            hot_bursts: load(&counts.hot_bursts),
            wasted_bursts: load(&counts.wasted_bursts),
            skipped_bursts: load(&counts.skipped_bursts),
        }
    }

    fn reset_counts(&self) {
        let sum = |of: fn(&Log) -> Tally| self.logs.iter().map(of).fold(Tally::default(), sum);
        self.counts.taken_before.set(sum(Log::taken));
        self.counts.taken_back_before.set(sum(Log::taken_back));
        let counts = &self.counts;
        for count in [
            &counts.drained_blocks,
            &counts.drained_bytes,
            &counts.no_chunk,
            &counts.over_bound,
            &counts.out_of_reach,
            &counts.deferred_bursts,
            &counts.hot_bursts,
            &counts.wasted_bursts,
            &counts.skipped_bursts,
        ] {
            count.store(0, Ordering::Relaxed);
        }
    }

    /// In a forked child, on its only thread. What threads had written down stays, for the next drainer of the same
    /// allocator.
    pub(crate) fn forked_child(&self) {
        if self.owner_number() == 0 {
            return;
        }
        // Where there is none any more, threads that are not here hold logs all the same.
        self.orphaned.store(!self.is_owned_by(NOBODY), Ordering::Relaxed);
        self.settler.store(ptr::null_mut(), Ordering::Relaxed);
        self.told.store(false, Ordering::Relaxed);
        let granted_bytes = self.logs.iter().map(|log| log.forget_threads(&self.pool)).sum();
        self.full_bytes.store(granted_bytes, Ordering::Relaxed);
        if let Some(local) = local::here() {
            local.forked_child();
        }
    }
}

fn sum(a: Tally, b: Tally) -> Tally {
    Tally { blocks: a.blocks.wrapping_add(b.blocks), bytes: a.bytes.wrapping_add(b.bytes) }
}

/// What is left; none where operations under way have been counted on one side only.
fn minus(a: Tally, b: Tally) -> Tally {
    Tally { blocks: a.blocks.saturating_sub(b.blocks), bytes: a.bytes.saturating_sub(b.bytes) }
}

/// What a round of the drainer came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drained {
    pub(crate) any: bool,
    /// Something waits still.
    pub(crate) is_left: bool,
}

/// What frees an owner's blocks, its type forgotten.
pub(crate) struct Settler {
    owner: *const c_void,
    free: unsafe fn(*const c_void, *mut u8),
}

// SAFETY: the owner may be used by any thread.
unsafe impl Send for Settler {}
// SAFETY: as above.
unsafe impl Sync for Settler {}

impl Settler {
    /// `free` is to free a block of the owner's, which it is given.
    pub(crate) fn new(owner: *const c_void, free: unsafe fn(*const c_void, *mut u8)) -> Settler {
        Settler { owner, free }
    }
}

/// Frees what the calling thread has written down, as it ends, if the owner has said how.
pub(crate) fn settle() {
    let Some(local) = local::here() else {
        return;
    };
    let settler = BURSTS.settler.load(Ordering::Acquire);
    if !settler.is_null() && !crate::lifecycle::exiting() {
        // SAFETY: the block's owner, which stays until they `are_all_freed`. Where there is no block it may be gone by now;
        // this thread alone writes to its log.
        let free = |block| unsafe { ((*settler).free)((*settler).owner, block) };
        let n_blocks = BURSTS.take_back(local, HowMuch::All, free);
        if local.record().end() && local.has_built() {
            BURSTS.note_end(n_blocks > 0 || local.takes_back());
        }
    }
}

/// The last thing on a thread that has held a log, after its thread-local destructors.
fn give_up_log(local: &Local) {
    if let Some(log) = local.end() {
        log.let_go();
    }
}

/// All logs there are: a list that only grows.
struct Logs {
    first: AtomicPtr<Log>,
    /// So that few threads need no memory for theirs.
    own: [Log; OWN_LOGS],
}

const OWN_LOGS: usize = if IN_MODEL || TINY { 2 } else { 8 };
/// Logs are made in such pieces.
const SLAB_BYTES: usize = 16 << 10;

impl Logs {
    const fn new() -> Logs {
        Logs { first: AtomicPtr::new(ptr::null_mut()), own: [const { Log::new() }; OWN_LOGS] }
    }

    fn iter(&self) -> impl Iterator<Item = &Log> {
        // Acquire pairs with the Release in `grow`.
        let mut next = self.first.load(Ordering::Acquire);
        let more = std::iter::from_fn(move || {
            // SAFETY: null, or a log that stays for ever.
            let log = unsafe { next.as_ref() }?;
            next = log.next.load(Ordering::Relaxed);
            Some(log)
        });
        self.own.iter().chain(more)
    }

    fn hold(&self) -> Option<&Log> {
        self.iter().find(|log| log.try_hold()).or_else(|| self.grow())
    }

    /// More logs, one of which is held.
    fn grow(&self) -> Option<&Log> {
        let slab = sys::map_zeroed(SLAB_BYTES).cast::<Log>();
        if slab.is_null() {
            return None;
        }
        let n_logs = SLAB_BYTES / size_of::<Log>();
        // SAFETY: a mapping of that size, which stays; all zeros are valid logs.
        let logs = unsafe { std::slice::from_raw_parts(slab, n_logs) };
        let held = logs.first().filter(|log| log.try_hold())?;
        for (log, next) in logs.iter().zip(&logs[1..]) {
            log.next.store(ptr::from_ref(next).cast_mut(), Ordering::Relaxed);
        }
        let last = logs.last()?;
        let mut first = self.first.load(Ordering::Relaxed);
        loop {
            last.next.store(first, Ordering::Relaxed);
            match self.first.compare_exchange_weak(
                first,
                slab,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(held),
                Err(now) => first = now,
            }
        }
    }
}
