//! Each thread's own state: is it in a burst, and does it owe frees?
//!
//! ```text
//!         a burst's worth of frees in a row         blocks here and there
//! PLAIN ────────────────────────────────────▶ PROBE ────────────────────▶ BURST
//!   ▲                                          │ ▲                          │
//!   ├────────── an allocation, or ─────────────┘ └──── from time to time ───┤
//!   │           blocks near each other           ▲                          │
//!   │                                            │ a burst's worth of       │ an allocation
//!   │      nothing left                          │ frees in a row           │
//!   └─────────────────────────────────────────── OWING ◀────────────────────┘
//! ```
//!
//! PLAIN: frees are done at once. PROBE: so they are, but a few addresses are looked at: blocks that
//! lie near each other, as those of a list or a tree that was built in one go, are freed faster than
//! they are written down, and frees are done at once for a while. BURST: frees are written down.
//! OWING: frees are done at once, and allocations take back what the thread wrote down, some at a time,
//! and free it. A thread that allocates would make the heap grow while its own freed blocks wait in
//! line; and to free them is cheapest where they were allocated. The drainer frees those of threads that
//! have gone quiet. A thread that ends pays everything back, see `payer`.
//!
//! # How many frees are a burst
//!
//! Unless it is set, that is for each thread to learn. Blocks that are still in the cache are freed in the
//! time that it takes to write them down, and to pay them back comes on top: a request that frees its working
//! set of a thousand blocks, to allocate the next one at once, is better left alone. Each burst that ends
//! with fewer than [`LONG_BURST`] blocks written down doubles what the thread's next one takes, up to
//! `DEFAULT_BURST << MOST_SHORT`; a longer one takes all that back. It begins low because what a thread frees
//! itself leaves its pages with that thread, and an idle one never looks at what the drainer adds to them.
//!
//! # The hot path
//!
//! The common case is a small block in PLAIN. `quick_below` is 0 in all other states, so that the one
//! comparison of the block's size with it sees both. PLAIN itself is a counter, `left`. A free
//! subtracts 2; below zero it is a matter for the slow path. An allocation sets the low bits to ones,
//! which makes a number that is not negative [`FIRST`]. So the counter goes through odd numbers until
//! the slow path takes over, which sets even ones and counts on: by this it tells whether there was an
//! allocation in between. No limit has to be loaded from anywhere.

use std::cell::Cell;

use super::lane::Lane;
use crate::config::DEFAULT_BURST;

/// `left` after an allocation.
const FIRST: i32 = 2 * FIRST_FREES as i32 - 1;
/// Frees in a row before the slow path counts on. No burst is shorter.
pub(crate) const FIRST_FREES: u32 = 32;

/// In PLAIN, blocks below this size are small whatever the settings are, so that these need not be
/// looked at.
pub(crate) const QUICK_BYTES: usize = 4096;

/// `left` outside PLAIN: low enough not to wrap before the next chunk is wanted.
const NOT_PLAIN: i32 = i32::MIN / 2;
/// `left` where nothing is ever deferred.
const NEVER: i32 = i32::MAX - 1;

/// Frees that PROBE looks at.
const PROBES: u32 = 32;
/// Two blocks that follow each other this closely are in one page of the allocator, and the processor
/// has most likely fetched the second already.
const NEAR_BYTES: usize = 1024;
/// So many of them, before the next look.
const NEAR_FREES: u32 = 4096;
/// A thread in a burst looks at its addresses again after so many chunks.
const CHUNKS_PER_PROBE: u32 = 512;
/// A thread that owes pays with each so many-th allocation.
pub(crate) const ALLOCS_PER_PAYMENT: u32 = 16;
/// A burst of so many blocks was worth it.
const LONG_BURST: u64 = 16 << 10;
/// How often short ones double what a burst takes.
const MOST_SHORT: u32 = 4;
/// Frees that are done at once when there was no chunk to write to.
const BACK_OFF_FREES: u32 = 256;

/// Instead of a number of frees in a row: every free is deferred.
pub(crate) const ALWAYS: u32 = 0;
/// Instead of a number: the thread learns it.
pub(crate) const ADAPTIVE: u32 = OFF - 1;
/// No burst ever begins; a [`DeferScope`](crate::DeferScope) defers all the same.
pub(crate) const OFF: u32 = u32::MAX - 1;
/// Nothing is deferred at all.
pub(crate) const DISABLED: u32 = u32::MAX;

thread_local! {
    // Constant and without `Drop`: reading it neither allocates nor registers anything, and it works
    // until the thread is gone.
    static THREAD: Thread = const { Thread::new() };
}

/// See the diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Plain,
    Probe,
    Burst,
    Owing,
}

struct Thread {
    left: Cell<i32>,
    /// Blocks below this size need no other look than at these two fields; 0 outside PLAIN.
    quick_below: Cell<usize>,
    state: Cell<State>,
    /// PLAIN: frees in a row before `left` was set last. PROBE: frees looked at. OWING: frees in a row.
    n_frees: Cell<u32>,
    /// PLAIN: the frees that `left` was set for. OWING: frees in a row that begin a burst.
    n_set: Cell<u32>,
    last_address: Cell<usize>,
    n_near: Cell<u32>,
    /// BURST: where to write.
    writing: Cell<Option<&'static Lane>>,
    /// Something of what it has written down may still be there.
    owes: Cell<bool>,
    /// Where this thread writes in a burst, once it has had one.
    lane: Cell<Option<&'static Lane>>,
    /// Chunks begun so far.
    n_chunks: Cell<u32>,
    /// OWING: allocations before the next payment.
    allocs_left: Cell<u32>,
    /// A burst has just ended.
    burst_ended: Cell<bool>,
    /// Short bursts since the last long one, up to `MOST_SHORT`.
    n_short: Cell<u32>,
    /// Blocks that its lane had been given when its last burst ended.
    n_deferred: Cell<u64>,
    /// How many `DeferScope`s live.
    n_scopes: Cell<u32>,
    /// The thread has given its lane up because it ends.
    ended: Cell<bool>,
}

impl Thread {
    /// False when the slow path is to look.
    #[inline(always)]
    fn count_free(&self) -> bool {
        let left = self.left.get().wrapping_sub(2);
        self.left.set(left);
        left >= 0
    }

    const fn new() -> Thread {
        Thread {
            // The first call of a thread finds out whether all its frees are to be deferred.
            left: Cell::new(-1),
            quick_below: Cell::new(0),
            state: Cell::new(State::Plain),
            n_frees: Cell::new(0),
            n_set: Cell::new(0),
            last_address: Cell::new(0),
            n_near: Cell::new(0),
            writing: Cell::new(None),
            lane: Cell::new(None),
            owes: Cell::new(false),
            n_chunks: Cell::new(0),
            allocs_left: Cell::new(0),
            burst_ended: Cell::new(false),
            n_short: Cell::new(0),
            n_deferred: Cell::new(0),
            n_scopes: Cell::new(0),
            ended: Cell::new(false),
        }
    }

    /// => PLAIN, with the slow path again after that many frees.
    fn plain(&self, n_frees: u32) {
        self.state.set(State::Plain);
        self.quick_below.set(QUICK_BYTES);
        self.writing.set(None);
        self.n_set.set(n_frees);
        // Even, and below zero at the last of them.
        self.left.set(2 * (n_frees.max(1) as i32 - 1));
    }

    /// => PROBE, BURST or OWING.
    fn leave_plain(&self, state: State) {
        self.state.set(state);
        self.n_frees.set(0);
        self.left.set(NOT_PLAIN);
        self.quick_below.set(0);
        self.allocs_left.set(0);
        self.writing.set(if state == State::Burst { self.lane.get() } else { None });
    }

    /// => PROBE.
    fn begin_probe(&self) {
        self.leave_plain(State::Probe);
        self.n_near.set(0);
    }

    /// The next frees are done at once. => PLAIN, or OWING if there is something to pay back.
    fn free_now(&self, n_frees: u32) {
        if self.owes.get() {
            self.leave_plain(State::Owing);
            self.n_set.set(n_frees);
        } else {
            self.plain(n_frees);
            // A burst it is already, however many are needed.
            self.n_frees.set(OFF);
        }
    }

    /// Frees in a row that begin a burst of this thread.
    fn burst_frees(&self, burst: u32) -> u32 {
        if burst == ADAPTIVE { DEFAULT_BURST << self.n_short.get() } else { burst }
    }

    /// => OWING, at an allocation.
    fn pay(&self, burst: u32) -> OnAlloc {
        self.burst_ended.set(self.state.get() == State::Burst);
        self.leave_plain(State::Owing);
        self.n_set.set(self.burst_frees(burst));
        self.allocs_left.set(ALLOCS_PER_PAYMENT - 1);
        OnAlloc::PayBack
    }

    fn is_always(&self, burst: u32) -> bool {
        burst == ALWAYS || (self.n_scopes.get() > 0 && burst != DISABLED)
    }

    /// Looks at one more address; true when all of them have been, and they are here and there.
    fn probe(&self, address: usize) -> bool {
        let distance = address.wrapping_sub(self.last_address.replace(address));
        if (distance as isize).unsigned_abs() <= NEAR_BYTES {
            self.n_near.set(self.n_near.get() + 1);
        }
        self.n_frees.set(self.n_frees.get() + 1);
        if self.n_frees.get() < PROBES {
            return false;
        }
        if self.n_near.get() >= PROBES / 2 {
            self.free_now(NEAR_FREES);
            return false;
        }
        true
    }
}

/// Before an allocation of `size` bytes: true if there is nothing to be done but to allocate.
#[inline(always)]
pub(crate) fn allocates_quickly(size: usize) -> bool {
    THREAD.with(|thread| {
        let quickly = size < thread.quick_below.get();
        if quickly {
            thread.left.set(FIRST);
        }
        quickly
    })
}

/// Before a free of `size` bytes: true if there is nothing to be done but to free.
#[inline(always)]
pub(crate) fn frees_quickly(size: usize) -> bool {
    THREAD.with(|thread| size < thread.quick_below.get() && thread.count_free())
}

/// As `allocates_quickly`, when it said no, for a block that is small.
pub(crate) fn note_alloc() -> bool {
    THREAD.with(|thread| {
        if thread.left.get() >= 0 {
            thread.left.set(FIRST);
            return true;
        }
        let allocs_left = thread.allocs_left.get();
        if allocs_left == 0 {
            return false;
        }
        thread.allocs_left.set(allocs_left - 1);
        thread.n_frees.set(0);
        true
    })
}

/// As `frees_quickly`, when it said no, for a block that is small.
pub(crate) fn note_free(size: usize) -> bool {
    // Below the limit it has been counted.
    THREAD.with(|thread| size >= thread.quick_below.get() && thread.count_free())
}

/// Where the thread writes, if it is in a burst.
#[inline(always)]
pub(super) fn writing() -> Option<&'static Lane> {
    THREAD.with(|thread| thread.writing.get())
}

/// What to do with a freed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFree {
    FreeNow,
    /// A burst of blocks near each other begins, or goes on.
    FreeNowNear,
    Defer,
}

/// After `note_free` said no. `burst` is how many frees in a row begin a burst.
pub(crate) fn on_free(address: usize, burst: u32) -> OnFree {
    THREAD.with(|thread| {
        if thread.is_always(burst) {
            if thread.state.get() != State::Burst {
                thread.leave_plain(State::Burst);
            }
            return OnFree::Defer;
        }
        match thread.state.get() {
            State::Plain if burst >= OFF => {
                thread.n_frees.set(0);
                thread.plain(FIRST_FREES);
                thread.left.set(NEVER);
            }
            State::Plain => {
                let burst = thread.burst_frees(burst);
                let left = thread.left.get();
                let n_frees = if left & 1 != 0 {
                    FIRST_FREES
                } else {
                    thread.n_frees.get().saturating_add(thread.n_set.get())
                };
                thread.n_frees.set(n_frees);
                if n_frees >= burst {
                    thread.begin_probe();
                    thread.last_address.set(address);
                } else {
                    thread.plain((burst - n_frees).min(FIRST_FREES));
                }
            }
            State::Probe => {
                if thread.probe(address) {
                    thread.leave_plain(State::Burst);
                } else if thread.state.get() != State::Probe {
                    return OnFree::FreeNowNear;
                }
            }
            State::Burst => return OnFree::Defer,
            State::Owing => {
                let n_frees = thread.n_frees.get() + 1;
                thread.n_frees.set(n_frees);
                if n_frees >= thread.n_set.get() {
                    thread.begin_probe();
                    thread.last_address.set(address);
                }
            }
        }
        OnFree::FreeNow
    })
}

/// What to do before an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnAlloc {
    Nothing,
    PayBack,
}

/// After `note_alloc` said no.
pub(crate) fn on_alloc(burst: u32) -> OnAlloc {
    THREAD.with(|thread| {
        if thread.is_always(burst) {
            if thread.state.get() != State::Burst {
                thread.leave_plain(State::Burst);
            }
            return OnAlloc::Nothing;
        }
        match thread.state.get() {
            State::Plain | State::Probe if !thread.owes.get() => {
                thread.plain(1);
                thread.left.set(FIRST);
                OnAlloc::Nothing
            }
            State::Plain | State::Probe | State::Burst | State::Owing => thread.pay(burst),
        }
    })
}

/// The thread pays back. After a burst it learns how long that was: `n_deferred` tells how many blocks its lane
/// has been given so far.
pub(super) fn note_payment(n_deferred: impl FnOnce() -> u64) {
    THREAD.with(|thread| {
        if !thread.burst_ended.replace(false) {
            return;
        }
        let now = n_deferred();
        // The first burst of a lane's next holder may look longer than it was.
        let n_blocks = now.wrapping_sub(thread.n_deferred.replace(now));
        let n_short = if n_blocks >= LONG_BURST { 0 } else { thread.n_short.get() + 1 };
        thread.n_short.set(n_short.min(MOST_SHORT));
    });
}

/// OWING => PLAIN: everything is paid back, or the drainer has it.
pub(crate) fn owes_nothing() {
    THREAD.with(|thread| {
        thread.owes.set(false);
        thread.plain(1);
        thread.left.set(FIRST);
    });
}

/// BURST => OWING, or PLAIN: there is nothing to write to.
pub(crate) fn back_off(burst: u32) {
    THREAD.with(|thread| {
        if !thread.is_always(burst) {
            thread.free_now(BACK_OFF_FREES);
        }
    });
}

/// The thread is in a burst that goes on.
pub(super) fn goes_on(lane: &'static Lane) {
    THREAD.with(|thread| {
        if thread.state.get() == State::Burst {
            thread.left.set(NOT_PLAIN);
            thread.writing.set(Some(lane));
            thread.owes.set(true);
        }
    });
}

/// The thread has begun another chunk: BURST => PROBE from time to time.
pub(crate) fn next_chunk(burst: u32) {
    THREAD.with(|thread| {
        let n_chunks = thread.n_chunks.get().wrapping_add(1);
        thread.n_chunks.set(n_chunks);
        if n_chunks % CHUNKS_PER_PROBE == 0 && !thread.is_always(burst) {
            thread.begin_probe();
        }
    });
}

/// The thread's lane; `hold` finds one if it has none yet. `None` for good once the thread has ended.
pub(super) fn lane(hold: impl FnOnce() -> Option<&'static Lane>) -> Option<&'static Lane> {
    THREAD.with(|thread| {
        if thread.lane.get().is_none() && !thread.ended.get() {
            thread.lane.set(hold());
        }
        thread.lane.get()
    })
}

/// The thread ends: what it frees from now on is freed at once.
pub(super) fn end() -> Option<&'static Lane> {
    THREAD.with(|thread| {
        thread.ended.set(true);
        thread.n_frees.set(0);
        thread.owes.set(false);
        thread.plain(BACK_OFF_FREES);
        thread.lane.take()
    })
}

/// In a forked child, on its only thread: the lane is not its own any more.
pub(crate) fn forked_child() {
    THREAD.with(|thread| {
        thread.lane.set(None);
        thread.owes.set(false);
        thread.n_frees.set(0);
        thread.plain(1);
        thread.left.set(-1);
        thread.quick_below.set(0);
    });
}

/// Every free of the thread is deferred until `leave_scope` has been called as often.
pub(crate) fn enter_scope() {
    THREAD.with(|thread| {
        thread.n_scopes.set(thread.n_scopes.get().saturating_add(1));
        // The next call looks.
        thread.left.set(NOT_PLAIN);
        thread.quick_below.set(0);
    });
}

pub(crate) fn leave_scope() {
    THREAD.with(|thread| {
        thread.n_scopes.set(thread.n_scopes.get().saturating_sub(1));
        if thread.n_scopes.get() == 0 && thread.state.get() == State::Burst {
            thread.free_now(BACK_OFF_FREES);
        }
    });
}
