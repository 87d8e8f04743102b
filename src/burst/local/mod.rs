//! Each thread's own state: is it in a burst?
//!
//! ```text
//!          looks without an allocation between     cold
//! PLAIN ─────────────────────────────▶ JUDGING ─────────▶ BURST ◀─────────────┐
//!   ▲ ▲                                 │   ▲              │  │ allocations    │ frees again
//!   │ │ allocation       BLIND ◀────────┘   │ far look     │  ▼                │
//!   │ └──────────────────  ▲      hot       │              │ OWING ────────────┘
//!   │                      └────────────────┴── BLIND      │  │
//!   └──────────────────────────────────────────────────────┴──┘
//!       the log is empty, or the thread allocates in earnest and has freed what is in it
//! ```
//!
//! PLAIN: frees are done at once. Some, see below, look whether the thread has allocated since the last one that looked;
//! when it has not for as many frees as the settings say, a data structure is being dropped.
//! Where it turns out that it was a small one, the next has to be larger.
//! JUDGING: the next few addresses are written down, and then it is measured what they would cost, see `price_ns` in
//! `allocator/small.rs`.
//! Blocks that are in the cache anyway, as those are that the program's own `drop` code has touched, are freed at once:
//! BLIND, until the thread allocates, where a burst goes as well that is not tried (`record`, `are_many`) or cannot be
//! written down. Others begin a BURST: frees are written down and nothing else.
//! OWING: the thread allocates now and then; its frees are done at once again, but what it wrote down may wait
//! for the drainer. When it allocates in earnest (one allocation for [`BLOCKS_PER_ALLOC`] blocks that wait) the memory
//! that waits is wanted: the thread takes it back, a part with each allocation, and frees it as it would have done without
//! this crate.
//!
//! What became of bursts decides on the next ones, see `record`.
//!
//! # The hot path
//!
//! Three fields are looked at. While frees are done at once, and most of the blocks are the thread's own, `own_pages` is
//! what the backing needs to free a block in memory of the thread's own without a look at anything else. Two kinds of
//! such frees take longer anyway, and look: the first in memory that is full, and the last. Any other free goes the short
//! way if a hash of its address is below `short_below`: the whole range but one part in [`LOOK_EVERY`] in PLAIN, and in
//! fewer in BLIND and where nothing is deferred; none of it in JUDGING and BURST. An allocation goes the short way if
//! `fresh` is set, which a look takes back: so the first allocation after a look goes the long way, and sets it again. So
//! do a thread's first [`BUILT_ALLOCS`].
//!
//! All zero bytes are a valid value, NEW: the first call of a thread goes the long way and finds out what the settings
//! are.

#[cfg_attr(
    all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(any(deferfree_inline, deferfree_posix, feature = "local_dynamic_tls"))
    ),
    path = "elf.rs"
)]
#[cfg_attr(
    not(all(
        target_os = "linux",
        any(target_arch = "x86_64", target_arch = "aarch64"),
        not(any(deferfree_inline, deferfree_posix, feature = "local_dynamic_tls"))
    )),
    path = "word.rs"
)]
mod place;

use std::cell::Cell;
use std::ops::Range;
use std::ptr;

use super::log::Log;
use super::pool::Cursor;
use super::record::Record;
use crate::sync::TINY;
use crate::sys;

#[cfg(all(test, not(loom)))]
pub(crate) use place::HAS_OWN_PAGES;
pub(super) use place::hears_of_its_exit;
pub(crate) use place::{
    already_here, at_cache_line, here, is_fresh, near_stack, own_pages, short_below,
};

/// One free in so many looks whether the thread has allocated, where it is the address that decides. A look at the last free
/// of a page counts for so many at most.
///
/// A look costs a mispredicted branch. The more frees come before a burst begins, the more pages does the thread
/// own when the drainer frees the rest, and blocks in owned pages are dear to allocate again.
pub(crate) const LOOK_EVERY: u32 = 64;
/// Where nothing is deferred: one free in so many looks whose block it is.
const WHOSE_EVERY: u32 = 256;
/// Where a block's address falls in the range of `u32`: evenly, whatever its low bits are.
#[inline(always)]
pub(crate) fn hash(block: *mut u8) -> u32 {
    // Knuth's multiplicative hashing by the golden ratio: the high bits of the product depend on all bits below.
    (block.addr() as u32).wrapping_mul(0x9e37_79b1)
}

/// Whether the block's address makes it one in `every`: others than those by `short_below`.
#[inline(always)]
pub(crate) fn is_one_in(block: *mut u8, every: u32) -> bool {
    hash(block) < u32::MAX / every
}

/// `short_below` when one free in `every` goes the long way.
const fn all_but_one_in(every: u32) -> u32 {
    u32::MAX - u32::MAX / every
}

const ALL: u32 = u32::MAX;
const NONE: u32 = 0;

/// A thread whose burst is not deferred looks again after so many, and from then on after so many more each
/// time. Only a thread that does not allocate in all that time gets there. Of frees in its own pages most are not counted.
const FAR_LOOK: u32 = 4096;
const FARTHEST_LOOK: u32 = 64 << 10;

/// A burst of so many chunks is a long one, which is worth the price of giving up pages.
const LONG_CHUNKS: u32 = if TINY { 1 } else { 8 };
/// A younger thread may be one that was started for one task and ends with it, upon which it frees itself what still
/// waits: the peak of two that drop strings was up to a third higher where they had given up the pages.
const OLD_NS: u64 = if TINY { 0 } else { 100_000_000 };
/// No drainer is started for the burst of a younger thread: it may be a command that is over in a moment. One of 10 ms took
/// 1.04 times as long where one was started for what it dropped at its end.
const EARLY_NS: u64 = if TINY { 0 } else { 40_000_000 };

/// Bursts in a row that end before they have been judged, each of which doubles the looks that the next one takes: no
/// more than so many. A thread that frees a hundred blocks and allocates as many, over and over, took 1.09 times as long as
/// with mimalloc alone, and with three 1.03 times.
const MOST_SHORT: u32 = 3;
/// Addresses that are judged.
pub(crate) const JUDGED: usize = 128;

/// A thread that allocates once for so many blocks that wait does so in earnest. What it allocates before is new memory, for
/// which mimalloc may open one more of its chunks of 32 MiB, and stay in it: two million strings that were built and dropped
/// in a row had a peak of 1.26 of mimalloc's with 64, and 1.07 with 256. With more a thread that is just at work takes back
/// what the drainer would have freed.
const BLOCKS_PER_ALLOC: u64 = 256;
/// The drainer hears of so many bytes of blocks between small and large: four blocks or more.
const MEDIUM_STEP_BYTES: u64 = 1 << 20;
/// A thread that has allocated so often may have built a data structure: what it takes to start one is some ten.
const BUILT_ALLOCS: u32 = 256;
/// Fewer allocations than these are never in earnest.
const FEW_ALLOCS: u32 = 16;
/// So many allocations with fewer frees than these between them end a burst.
const DENSE_ALLOCS: u32 = 16;
const SPARSE_FREES: u64 = 16;

/// See the diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    New = 0,
    Plain,
    Blind,
    Judging,
    Burst,
    Owing,
}

/// What a thread knows of itself.
#[repr(C, align(64))]
pub(crate) struct Local {
    /// See "The hot path". These three are read by `place` from outside.
    short_below: Cell<u32>,
    fresh: Cell<bool>,
    own_pages: Cell<*const ()>,
    state: Cell<State>,
    /// Every free is written down until further notice: in a scope, or by the settings.
    forced: Cell<bool>,
    /// The thread has given up its log because it ends.
    ended: Cell<bool>,
    /// The thread has said that it rests, and has neither allocated nor freed anything since.
    rests: Cell<bool>,
    /// BURST: the number of the owner, whose blocks may be written where the cursor is; 0 otherwise.
    writes_for: Cell<u32>,
    /// Where to write.
    cursor: Cell<Cursor>,
    /// What it writes to, once it has had a burst.
    log: Cell<Option<&'static Log>>,
    /// PLAIN, BLIND and OWING: about so many frees without an allocation. JUDGING: addresses written down. BURST: allocations with
    /// few frees between them.
    n: Cell<u32>,
    /// BURST and OWING: allocations since the burst began.
    n_allocs: Cell<u32>,
    /// BURST: chunks begun since the thread allocated last.
    n_chunks: Cell<u32>,
    /// BURST and OWING: a part of what was written down has been taken back.
    takes_back: Cell<bool>,
    /// BURST: blocks that waited at the last allocation. OWING: allocations at the last look.
    before: Cell<u64>,
    record: Record,
    n_scopes: Cell<u32>,
    /// How often it is inside the gate, see `lifecycle`.
    stays: Cell<u32>,
    mode: Cell<Mode>,
    /// What the backing has for `own_pages`, and whether that is not used because most of what the thread frees is others'.
    backing_pages: Cell<*const ()>,
    frees_others: Cell<bool>,
    /// BLIND: frees between two looks.
    far: Cell<u32>,
    /// Before that time it need not give up again what is held for it.
    next_rest_ns: Cell<u64>,
    /// When it was set up.
    born_ns: Cell<u64>,
    /// Bytes of the blocks between small and large that the thread has freed.
    medium_bytes: Cell<u64>,
    /// PLAIN: allocations since it was set up, counted as far as [`BUILT_ALLOCS`].
    n_built: Cell<u32>,
    /// Bursts in a row that ended before they had been judged, counted as far as [`MOST_SHORT`].
    n_short: Cell<u32>,
}

/// What the settings say of small blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mode {
    /// Nothing is ever deferred.
    Disabled = 0,
    /// Only in a scope.
    Scopes,
    /// In bursts.
    Bursts,
    /// Every free is deferred.
    Always,
}

/// What to do with a freed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFree {
    FreeNow,
    /// A burst may begin: `judge` when there is something to write to.
    Begin,
    /// Write it down.
    Write,
}

/// What to do before an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnAlloc {
    Nothing,
    /// The settings are to be looked at.
    Unknown,
    /// Free what waits in the log, or a part of it.
    TakeBack,
    /// The burst is over and was worth it, or not.
    Over {
        worth_it: bool,
    },
}

impl Local {
    #[inline(always)]
    pub(crate) fn state(&self) -> State {
        self.state.get()
    }

    /// In a burst: writes down a block of the owner with the number `owner`, where that takes no more than to
    /// write it.
    #[inline(always)]
    pub(crate) fn writes(&self, owner: u32, block: *mut u8, size: usize) -> bool {
        let cursor = self.cursor.get();
        if self.writes_for.get() != owner || cursor.is_at_end() {
            return false;
        }
        // SAFETY: a slot in the tail of the thread's log.
        let Some(cursor) = (unsafe { cursor.write(block, size) }) else {
            return false;
        };
        self.cursor.set(cursor);
        true
    }

    /// A block of the owner with that number has been written.
    pub(super) fn note_written(&self, owner: u32, cursor: Cursor) {
        self.cursor.set(cursor);
        if self.state.get() == State::Burst {
            self.writes_for.set(owner);
        }
    }

    pub(super) fn cursor(&self) -> Cursor {
        self.cursor.get()
    }

    pub(super) fn log(&self) -> Option<&'static Log> {
        self.log.get()
    }

    pub(super) fn set_log(&self, log: &'static Log) {
        self.log.set(Some(log));
        self.cursor.set(Cursor::NOWHERE);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.get()
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }

    fn go(&self, state: State, short_below: u32) {
        self.state.set(state);
        self.short_below.set(short_below);
        self.set_own_pages();
        self.writes_for.set(0);
        self.n.set(0);
        self.fresh.set(false);
    }

    fn set_own_pages(&self) {
        let used = self.short_below.get() != NONE && !self.frees_others.get();
        self.own_pages.set(if used { self.backing_pages.get() } else { ptr::null() });
    }

    /// A block that is freed at once, and is one in so many by its address: `is_own` tells whether it is in one of those pages,
    /// or in nobody's. Where it is not, most others that the thread frees may not be either, and to find that out before
    /// each free takes longer than is won: strings that another thread had built took 1.2 times as long to drop. A full
    /// page is nobody's, whoever has filled it; its first free makes it the thread's that has.
    pub(crate) fn note_whose(&self, is_own: impl FnOnce(*const ()) -> Option<bool>) {
        let pages = self.backing_pages.get();
        if pages.is_null() || self.short_below.get() == NONE {
            return;
        }
        match is_own(pages) {
            Some(is_own) => self.frees_others.set(!is_own),
            None if !self.own_pages.get().is_null() => self.frees_others.set(true),
            None => {}
        }
        self.set_own_pages();
    }

    /// Whether it looks, outside of bursts.
    pub(crate) fn looks(&self) -> bool {
        self.mode.get() == Mode::Bursts && !self.ended.get()
    }

    /// `short_below` outside of bursts.
    fn all_but_looks(&self) -> u32 {
        match self.looks() {
            true => all_but_one_in(LOOK_EVERY),
            // To see whose blocks it frees.
            false if !self.backing_pages.get().is_null() => all_but_one_in(WHOSE_EVERY),
            false => ALL,
        }
    }

    /// => PLAIN, at an allocation.
    pub(crate) fn plain(&self) {
        self.go(State::Plain, self.all_but_looks());
        self.fresh.set(self.has_built());
        self.rests.set(false);
        self.far.set(0);
    }

    /// Whether it may have built what it drops, and has not been started to drop what others have built. Its first
    /// allocations go the long way for that.
    pub(crate) fn has_built(&self) -> bool {
        self.n_built.get() >= BUILT_ALLOCS
    }

    /// => BLIND until an allocation, but that a longer burst is looked at again: a thread may do nothing but free. Not
    /// where every free is to be deferred.
    pub(crate) fn blind(&self) {
        if self.forced.get() {
            return;
        }
        let every = if self.far.get() == 0 { FAR_LOOK } else { FARTHEST_LOOK };
        self.far.set(every);
        self.go(State::Blind, all_but_one_in(every));
    }

    /// => JUDGING.
    pub(crate) fn judge(&self) {
        self.go(State::Judging, NONE);
    }

    /// => BURST.
    pub(crate) fn burst(&self) {
        self.go(State::Burst, NONE);
        self.takes_back.set(false);
        self.n_allocs.set(0);
        self.n_chunks.set(0);
        self.before.set(0);
    }

    /// NEW => PLAIN, or BURST where every free is deferred: the settings are known now.
    pub(crate) fn set_up(&self, mode: Mode, backing_pages: *const ()) {
        self.backing_pages.set(if place::HAS_OWN_PAGES { backing_pages } else { ptr::null() });
        self.born_ns.set(sys::monotonic_ns());
        self.mode.set(mode);
        if mode != Mode::Bursts {
            // Nobody is going to ask.
            self.n_built.set(BUILT_ALLOCS);
        }
        self.plain();
        self.update_forced();
    }

    fn update_forced(&self) {
        let forced = match self.mode.get() {
            Mode::Disabled => false,
            Mode::Scopes | Mode::Bursts => self.n_scopes.get() > 0,
            Mode::Always => true,
        };
        self.forced.set(forced && !self.ended.get());
        if self.forced.get() && self.state.get() != State::New {
            self.burst();
        }
    }

    pub(crate) fn enter_scope(&self) {
        self.n_scopes.set(self.n_scopes.get().saturating_add(1));
        self.update_forced();
    }

    pub(crate) fn leave_scope(&self) {
        self.n_scopes.set(self.n_scopes.get().saturating_sub(1));
        self.update_forced();
        if self.state.get() == State::Burst && !self.forced.get() {
            self.owe();
        }
    }

    /// Whether anything waits in its log.
    pub(crate) fn waits(&self) -> bool {
        self.log.get().is_some_and(|log| log.n_waiting(self.cursor.get()) > 0)
    }

    /// BURST => OWING.
    fn owe(&self) {
        self.go(State::Owing, self.all_but_looks());
        self.before.set(0);
    }

    /// => OWING: what waits is taken back, and this was a part of it.
    pub(crate) fn owe_the_rest(&self) {
        self.owe();
        self.takes_back.set(true);
    }

    /// Whether a part of what it wrote down in its last burst has been taken back.
    pub(super) fn takes_back(&self) -> bool {
        self.takes_back.get()
    }

    /// BURST: a chunk is begun. True once, when it has become clear that the burst is a long one, of a thread that is
    /// going to allocate again.
    pub(crate) fn is_long_now(&self) -> bool {
        self.n_chunks.set(self.n_chunks.get().saturating_add(1));
        self.state.get() == State::Burst
            && self.n_chunks.get() == LONG_CHUNKS
            && self.age_ns() >= OLD_NS
    }

    /// Whether it has used the allocator for so short a time that no drainer is to be started for it.
    pub(crate) fn is_early(&self) -> bool {
        self.age_ns() < EARLY_NS
    }

    fn age_ns(&self) -> u64 {
        sys::monotonic_ns().saturating_sub(self.born_ns.get())
    }

    /// Does something by which the backing is not to be taken for short of memory, nor the thread for one that ends.
    pub(crate) fn without_settling(&self, f: impl FnOnce()) {
        let rested = self.rests.replace(true);
        f();
        self.rests.set(rested);
    }

    pub(crate) fn stays(&self) -> &Cell<u32> {
        &self.stays
    }

    pub(crate) fn rests(&self) -> bool {
        self.rests.get()
    }

    /// The thread rests: its next allocation goes the long way, and so does a free that would be done at once, but for a
    /// thread that owes frees.
    pub(crate) fn rest(&self) {
        if matches!(self.state.get(), State::Plain | State::Blind) {
            self.go(State::Plain, NONE);
        }
        self.fresh.set(false);
        self.rests.set(true);
    }

    /// The thread allocates or frees. PLAIN once more, if that is what it was.
    #[inline]
    pub(crate) fn end_rest(&self) {
        if self.rests.get() {
            self.go_on();
        }
    }

    #[cold]
    fn go_on(&self) {
        self.rests.set(false);
        if self.state.get() == State::Plain {
            // It may have been BLIND before it said that it rests.
            self.record.note_rest(sys::monotonic_ns);
            self.plain();
        }
    }

    pub(crate) fn next_rest_ns(&self) -> u64 {
        self.next_rest_ns.get()
    }

    pub(crate) fn set_next_rest_ns(&self, ns: u64) {
        self.next_rest_ns.set(ns);
    }

    /// The thread frees a block between small and large. Once for each [`MEDIUM_STEP_BYTES`]: to how many bytes they had come
    /// before, and to how many they have now, in whole ones.
    #[inline(always)]
    pub(crate) fn note_medium_free(&self, bytes: usize) -> Option<Range<u64>> {
        let before = self.medium_bytes.get();
        let after = before.wrapping_add(bytes as u64);
        self.medium_bytes.set(after);
        let whole = after & !(MEDIUM_STEP_BYTES - 1);
        (before < whole).then_some(before..whole)
    }

    /// A look: whether the thread has allocated since the last one. Always false outside of PLAIN.
    #[inline(always)]
    pub(crate) fn has_allocated(&self) -> bool {
        let has_allocated = self.fresh.replace(false);
        if has_allocated {
            self.n.set(0);
        }
        has_allocated
    }

    /// A free that goes the long way, on a thread that has been set up, and stands for about `n_frees`. `burst_frees`: how
    /// many without an allocation between them begin a burst.
    pub(crate) fn on_free(&self, n_frees: u32, burst_frees: u32) -> OnFree {
        if self.rests.get() {
            self.end_rest();
            if self.state.get() == State::Plain {
                return OnFree::FreeNow;
            }
        }
        let state = self.state.get();
        match state {
            State::New => OnFree::FreeNow,
            State::Plain | State::Blind => {
                self.n.set(self.n.get().saturating_add(n_frees));
                let enough = match state {
                    State::Blind => self.far.get(),
                    _ => burst_frees.saturating_mul(1 << self.n_short.get()),
                };
                if self.n.get() < enough {
                    return OnFree::FreeNow;
                }
                self.n.set(0);
                OnFree::Begin
            }
            State::Owing => {
                let n_allocs = u64::from(self.n_allocs.get());
                if self.before.replace(n_allocs) != n_allocs {
                    self.n.set(0);
                    return OnFree::FreeNow;
                }
                self.n.set(self.n.get().saturating_add(n_frees));
                if self.n.get() >= LOOK_EVERY {
                    // The drop goes on.
                    self.go(State::Burst, NONE);
                    self.n_chunks.set(0);
                    return OnFree::Write;
                }
                OnFree::FreeNow
            }
            State::Judging | State::Burst => OnFree::Write,
        }
    }

    /// Outside of bursts, on a thread that has none.
    pub(crate) fn has_no_bursts(&self) -> bool {
        !self.looks() && matches!(self.state.get(), State::Plain | State::Owing)
    }

    /// Of so many frees, chosen by their addresses, one looks.
    #[inline(always)]
    pub(crate) fn frees_per_look(&self) -> u32 {
        if self.state.get() == State::Blind { self.far.get() } else { LOOK_EVERY }
    }

    /// Whether one of its frees in so many looks, whatever they are of: it has no pages of its own, or few.
    pub(crate) fn counts_all(&self) -> bool {
        self.backing_pages.get().is_null() || self.frees_others.get() || !self.has_built()
    }

    /// A look at the first free, or the last, in one of the thread's own pages. First ones come early in a drop, whenever it
    /// ends.
    pub(crate) fn note_look(&self, is_last: bool) {
        if self.state.get() == State::Blind {
            self.record.note_goes_on(sys::monotonic_ns, if is_last { FAR_LOOK } else { 0 });
        }
    }

    /// BLIND: frees between two looks.
    pub(crate) fn far(&self) -> u32 {
        self.far.get()
    }

    /// JUDGING: one more address has been written; true if they are enough, which must be in one chunk.
    pub(crate) fn has_judged(&self, in_new_chunk: bool) -> bool {
        self.n.set(if in_new_chunk { 1 } else { self.n.get() + 1 });
        let has_judged = self.n.get() as usize >= JUDGED;
        if has_judged {
            self.n_short.set(0);
        }
        has_judged
    }

    /// An allocation that goes the long way.
    pub(crate) fn on_alloc(&self) -> OnAlloc {
        self.end_rest();
        match self.state.get() {
            State::New => OnAlloc::Unknown,
            State::Plain => {
                self.n.set(0);
                if !self.has_built() {
                    self.n_built.set(self.n_built.get() + 1);
                }
                self.fresh.set(self.has_built());
                OnAlloc::Nothing
            }
            State::Blind => {
                self.record.note_rest(sys::monotonic_ns);
                self.plain();
                OnAlloc::Nothing
            }
            State::Judging => {
                self.n_short.set((self.n_short.get() + 1).min(MOST_SHORT));
                OnAlloc::TakeBack
            }
            State::Burst | State::Owing if self.forced.get() => OnAlloc::Nothing,
            State::Burst | State::Owing => self.on_alloc_in_burst(),
        }
    }

    fn on_alloc_in_burst(&self) -> OnAlloc {
        let Some(log) = self.log.get() else {
            self.plain();
            return OnAlloc::Nothing;
        };
        log.note_alloc();
        let n_allocs = self.n_allocs.get().saturating_add(1);
        self.n_allocs.set(n_allocs);
        let in_earnest = |n_blocks: u64| {
            n_allocs >= FEW_ALLOCS && u64::from(n_allocs) * BLOCKS_PER_ALLOC >= n_blocks
        };
        let n_waiting = log.n_waiting(self.cursor.get());
        if n_waiting > 0 {
            if in_earnest(n_waiting) {
                return OnAlloc::TakeBack;
            }
        } else {
            let (drained, in_hand) = log.in_hand();
            if in_hand == 0 || in_earnest(drained) {
                // A drainer that is mostly done is hardly in the way any more.
                let worth_it = !self.takes_back.get() && in_hand <= drained / 2;
                return OnAlloc::Over { worth_it };
            }
        }
        if self.state.get() == State::Burst {
            let n_frees = n_waiting.wrapping_sub(self.before.replace(n_waiting));
            self.n.set(if n_frees < SPARSE_FREES { self.n.get() + 1 } else { 0 });
            if self.n.get() >= DENSE_ALLOCS {
                self.owe();
            }
        }
        OnAlloc::Nothing
    }

    /// The thread ends: what it frees from now on is freed at once.
    pub(super) fn end(&self) -> Option<&'static Log> {
        self.ended.set(true);
        self.forced.set(false);
        self.plain();
        self.cursor.set(Cursor::NOWHERE);
        self.log.take()
    }

    /// In a forked child, on its only thread: the log is not its own any more.
    pub(crate) fn forked_child(&self) {
        self.log.set(None);
        self.cursor.set(Cursor::NOWHERE);
        if self.state.get() != State::New {
            self.plain();
            self.update_forced();
        }
    }
}

/// The calling thread allocates something that is not small.
pub(crate) fn end_rest() {
    if let Some(local) = here() {
        local.end_rest();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::ptr;

    use super::{Local, Mode, here, own_pages};

    /// Blocks in the thread's own pages are freed there only where it frees at once, and mostly its own.
    #[test]
    fn own_pages_where_they_are_of_use() {
        let local = here().unwrap();
        assert!(own_pages().is_null());
        local.set_up(Mode::Bursts, ptr::without_provenance(64));
        let pages = own_pages();
        // None where the state takes a call to reach.
        if pages.is_null() {
            return;
        }
        let is_used = || own_pages() == pages;
        for is_own in [Some(false), None] {
            local.note_whose(|_| is_own);
            assert!(own_pages().is_null());
            local.blind();
            assert!(own_pages().is_null());
            local.note_whose(|_| Some(true));
            assert!(is_used());
        }
        for not_at_once in [Local::judge, Local::burst] {
            not_at_once(local);
            local.note_whose(|_| panic!("not its turn"));
            assert!(own_pages().is_null());
        }
        local.set_up(Mode::Disabled, pages);
        assert!(is_used());
        local.set_up(Mode::Bursts, ptr::null());
        local.note_whose(|_| panic!("nothing to ask of"));
        assert!(own_pages().is_null());
    }
}
