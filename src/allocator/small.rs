//! Blocks below the threshold: straight to the backing, but for one look now and then, and in bursts.
//!
//! The arguments are in the order in which Rust hands them to an allocator, and everything is out of line: the way that
//! leads to the backing has no registers to shuffle, and the program's own drop code stays as short as it is with the
//! backing alone.

use std::alloc::Layout;
use std::hint::assert_unchecked;
use std::ptr;
use std::sync::atomic::Ordering;

use super::{DeferFree, Phase, SWITCHED_OFF};
use crate::backing::{Backing, OwnFree};
use crate::burst::local::{self, JUDGED, LOOK_EVERY, Local, Mode, OnAlloc, OnFree, State};
use crate::burst::{BURSTS, HowMuch, Outcome, SMALL_BYTES, Written};
use crate::config::{Burst, DEFAULT_BURST};
use crate::drainer::work;
use crate::lifecycle::Inside;
use crate::pending::MIN_CLASS_BYTES;
use crate::runtime::Runtime;
use crate::sys;

/// What `burst` says until the number of CPUs has been looked at.
pub(super) const BY_CPUS: u32 = u32::MAX - 1;
/// No burst ever begins; a [`DeferScope`](crate::DeferScope) defers all the same.
const NEVER: u32 = u32::MAX;
/// Every free is deferred.
const ALWAYS: u32 = 0;

/// Blocks of at most this alignment may be small without another look at it: all blocks have it.
const SURE_ALIGN: usize = align_of::<u64>();

/// Blocks of at most this size are small whatever the settings are. mimalloc has a shorter way for them, which saves two
/// instructions where that is known.
const SURE_BYTES: usize = 128 * size_of::<usize>();
const _: () = assert!(SURE_BYTES < MIN_CLASS_BYTES && SURE_BYTES < SMALL_BYTES);

/// Whether the block is small whatever the settings are. Mostly known when the program is compiled.
#[inline(always)]
pub(super) fn is_surely_small(layout: Layout) -> bool {
    layout.size() <= SURE_BYTES && layout.align() <= SURE_ALIGN
}

/// Of the frees that come first in full memory one in so many looks. Of those that come in blocks in disorder most do at
/// first, and the earlier a burst begins the better, see `LOOK_EVERY`.
const FIRST_EVERY: u32 = 8;
/// About so many frees come with each of these, itself among them. With 1 the blocks of a `BTreeMap` were found to be in the
/// cache in some drops, which took 1.5 times as long then: by the time a burst began much had been brought in.
const FIRST_FREES: u32 = 2;

/// Touching a block that is about to be freed takes at least so long, on average, where it pays to write its address
/// down instead. Measured (Zen 4): 0.5 to 4 ns for lists, trees, JSON, `Rc<str>`, vectors of vectors that lie in a row, all of
/// which freeing at once is as good for; 13 to 60 for maps, sets, and strings and boxes out of order.
const COLD_NS: u64 = 10;
/// Blocks that are touched first, and not timed.
const WARM_UP: usize = 32;

impl<B: Backing> DeferFree<B> {
    /// As `dealloc`, for blocks that are neither large, nor medium, nor timed.
    ///
    /// # Safety
    /// As for `dealloc`; `size` is that of the layout, and less than [`SMALL_BYTES`] unless all is switched off.
    #[inline(never)]
    pub(super) unsafe fn free(ptr: *mut u8, size: usize, this: &Self) {
        let own_pages = local::own_pages();
        if !own_pages.is_null() {
            // SAFETY: the caller's block; every block comes from the backing.
            match unsafe { this.backing.dealloc_own(ptr, own_pages) } {
                OwnFree::Done => return,
                OwnFree::Last { blocks } => {
                    let n_frees = u32::from(blocks).min(LOOK_EVERY);
                    // SAFETY: the caller's block.
                    return unsafe { Self::look::<true>(ptr, size, this, n_frees) };
                }
                OwnFree::First if local::is_one_in(ptr, FIRST_EVERY) => {
                    // SAFETY: the caller's block.
                    return unsafe {
                        Self::look::<false>(ptr, size, this, FIRST_FREES * FIRST_EVERY)
                    };
                }
                OwnFree::First | OwnFree::Not => local::at_cache_line(),
            }
        }
        if local::hash(ptr) >= local::short_below() {
            // SAFETY: the caller's block.
            return unsafe { Self::write_down(ptr, size, this) };
        }
        // SAFETY: the caller's block; every block comes from the backing.
        unsafe { this.backing.dealloc_any(ptr) };
    }

    /// As `free`, where the thread looks what it is doing, as the free takes its time anyway. It stands for about `n_frees`.
    #[cold]
    #[inline(never)]
    unsafe fn look<const IS_LAST: bool>(ptr: *mut u8, size: usize, this: &Self, n_frees: u32) {
        // SAFETY: the caller's block; every block comes from the backing.
        unsafe {
            match local::here() {
                Some(local) if local.looks() => {
                    local.note_look(IS_LAST);
                    Self::decide(ptr, size, this, Some(n_frees));
                }
                _ => this.backing.dealloc_any(ptr),
            }
        }
    }

    /// As `free`, where the thread is in a burst, or looks whether it is.
    #[inline(never)]
    pub(super) unsafe fn write_down(ptr: *mut u8, size: usize, this: &Self) {
        let owner = this.owner.load(Ordering::Relaxed);
        if local::here().is_some_and(|local| local.writes(owner, ptr, size)) {
            return;
        }
        // SAFETY: the caller's block.
        unsafe { Self::decide(ptr, size, this, None) };
    }

    /// What becomes of a block at whose free the thread looks what it is doing. It stands for about `n_frees`; `None` where it is
    /// its address for which it looks.
    #[cold]
    #[inline(never)]
    unsafe fn decide(ptr: *mut u8, size: usize, this: &Self, n_frees: Option<u32>) {
        let local = local::here();
        if local.is_some_and(|local| this.defers(local, ptr, size, n_frees)) {
            return;
        }
        // SAFETY: the caller's block, which is the backing's.
        unsafe {
            if let (Some(local), None) = (local, n_frees) {
                local.note_whose(|own_pages| this.backing.is_own(ptr, own_pages));
            }
            this.backing.dealloc_any(ptr);
        }
    }

    /// The program is at work, maybe on nothing but small blocks.
    #[cold]
    #[inline(never)]
    fn hear_of_work(&self) {
        let _errno = sys::KeepsErrno::new();
        match self.phase.get() {
            Phase::Running(runtime) => runtime.note_work(),
            Phase::Off => self.start_if_resident(),
            Phase::Starting | Phase::Failed => {}
        }
    }

    /// Whether the block is taken care of. Else it is the caller's to free.
    fn defers(&self, local: &Local, ptr: *mut u8, size: usize, n_frees: Option<u32>) -> bool {
        if local.has_no_bursts() {
            local.end_rest();
            return false;
        }
        if work::is_new() {
            self.hear_of_work();
        }
        if local.has_allocated() {
            return false;
        }
        let n_frees = n_frees.unwrap_or_else(|| local.frees_per_look());
        if local.state() == State::New {
            self.set_up(local);
        }
        match local.on_free(n_frees, self.burst_frees()) {
            OnFree::FreeNow => false,
            OnFree::Begin => self.begin_burst(local) && self.defer(local, ptr, size),
            OnFree::Write => self.defer(local, ptr, size),
        }
    }

    /// Whether the burst that seems to begin is to be judged.
    fn begin_burst(&self, local: &Local) -> bool {
        let record = local.record();
        if local.state() == State::Blind {
            let n_frees = local.counts_all().then(|| local.far());
            if record.goes_on_skipping(sys::monotonic_ns, n_frees) {
                return false;
            }
        } else {
            let was_known = self.burst.load(Ordering::Relaxed) != BY_CPUS;
            let mode = self.mode_by_cpus();
            if matches!(mode, Mode::Disabled | Mode::Scopes) {
                if was_known {
                    // The thread's bursts may be another allocator's.
                    local.blind();
                } else {
                    local.set_up(mode, self.backing.own_pages());
                }
                return false;
            }
            if record.begin() && local.has_built() && BURSTS.skips_first() {
                record.note_wasted();
            }
            if record.skips() {
                BURSTS.note(Outcome::Skipped);
                local.blind();
                record.begin_skipping(sys::monotonic_ns, local.counts_all());
                return false;
            }
        }
        let is_early = matches!(self.phase.get(), Phase::Off) && local.is_early();
        if is_early || self.owner().is_none() {
            local.blind();
            return false;
        }
        if BURSTS.are_many(local) {
            if local.far() == 0 {
                BURSTS.note(Outcome::Skipped);
            }
            local.blind();
            return false;
        }
        local.judge();
        true
    }

    /// The runtime, if small blocks can be deferred in it; started if it is not.
    fn owner(&self) -> Option<&Runtime<B>> {
        let may_start = match self.phase.get() {
            Phase::Off => true,
            Phase::Failed => self.phase.is_due(),
            Phase::Starting | Phase::Running(_) => false,
        };
        if may_start && BURSTS.can_be_claimed(self.phase.addr_to_inherit()) {
            self.start();
        }
        match self.phase.get() {
            Phase::Running(runtime) if BURSTS.is_owned_by(self.phase.addr()) => Some(runtime),
            Phase::Running(_) | Phase::Off | Phase::Starting | Phase::Failed => None,
        }
    }

    /// Writes a block down; false if it has to be freed at once.
    fn defer(&self, local: &Local, ptr: *mut u8, size: usize) -> bool {
        let Some(runtime) = self.owner() else {
            local.blind();
            return false;
        };
        let written = runtime.defer_small(local, ptr, size);
        if written == Written::No {
            local.blind();
            return false;
        }
        if written == Written::Opened {
            // Before the drainer comes.
            if local.is_long_now() {
                self.give_up_pages(local);
            }
            runtime.note_opened();
        }
        if local.state() == State::Judging && local.has_judged(written == Written::Opened) {
            let record = local.record();
            match (self.price_ns(local), self.are_left_over(local)) {
                // Those that come next.
                (None, _) | (_, None) => local.judge(),
                (Some(COLD_NS..), Some(false)) => {
                    BURSTS.note(Outcome::Deferred);
                    record.note_deferred();
                    local.burst();
                }
                (Some(COLD_NS..), Some(true)) => {
                    if local.far() == 0 {
                        BURSTS.note(Outcome::Skipped);
                    }
                    runtime.take_back_small(local, HowMuch::All);
                    local.blind();
                }
                (Some(_), _) => {
                    if local.far() == 0 {
                        BURSTS.note(Outcome::Hot);
                    }
                    runtime.take_back_small(local, HowMuch::All);
                    record.note_hot();
                    local.blind();
                }
            }
        }
        true
    }

    #[cold]
    fn give_up_pages(&self, local: &Local) {
        let _errno = sys::KeepsErrno::new();
        // The backing takes locks that a forked child must not inherit.
        if let Ok(inside) = Inside::try_enter() {
            local.without_settling(|| self.backing.before_drain());
            drop(inside);
        }
    }

    /// What it takes to touch one of the blocks that have just been written down, in nanoseconds; `None` where the drainer
    /// has come already.
    fn price_ns(&self, local: &Local) -> Option<u64> {
        let mut start_ns = 0;
        let mut n = 0;
        BURSTS.last_written(local, JUDGED, |block| {
            // The first ones bring in what has nothing to do with the blocks: code, and tables of the allocator's.
            if n == WARM_UP {
                start_ns = sys::monotonic_ns();
            }
            n += 1;
            // SAFETY: a block that waits to be freed.
            unsafe { self.backing.touch(block) };
        });
        let taken_ns = sys::monotonic_ns().saturating_sub(start_ns);
        (n == JUDGED).then_some(taken_ns / (JUDGED - WARM_UP) as u64)
    }

    /// Whether most of the blocks that have just been written down are what is left in pages of the thread's of which the
    /// greater part has been freed; `None` where the drainer has come already.
    fn are_left_over(&self, local: &Local) -> Option<bool> {
        let pages = self.backing.own_pages();
        let (mut n, mut n_left_over) = (0, 0);
        BURSTS.last_written(local, JUDGED, |block| {
            n += 1;
            // SAFETY: a block that waits to be freed.
            n_left_over += usize::from(unsafe { self.backing.is_left_over(block, pages) });
        });
        (n == JUDGED).then_some(n_left_over > JUDGED / 2)
    }

    /// As `alloc`, or `alloc_zeroed`, for blocks that are [`is_surely_small`].
    ///
    /// # Safety
    /// `size` is not 0.
    #[inline(never)]
    pub(super) unsafe fn allocate<const ZEROED: bool>(size: usize, this: &Self) -> *mut u8 {
        if !local::is_fresh() {
            // SAFETY: the caller's.
            return unsafe { Self::allocate_noted::<ZEROED>(size, this) };
        }
        // SAFETY: the caller's.
        unsafe { this.allocate_small::<ZEROED>(size) }
    }

    /// As `allocate`, where the thread has not allocated since it looked.
    #[cold]
    #[inline(never)]
    unsafe fn allocate_noted<const ZEROED: bool>(size: usize, this: &Self) -> *mut u8 {
        this.note_alloc();
        // SAFETY: the caller's.
        unsafe { this.allocate_small::<ZEROED>(size) }
    }

    /// # Safety
    /// `size` is not 0, and that of a block that is [`is_surely_small`].
    #[inline(always)]
    unsafe fn allocate_small<const ZEROED: bool>(&self, size: usize) -> *mut u8 {
        // SAFETY: the caller's size, which is far from overflowing.
        unsafe {
            assert_unchecked(size <= SURE_BYTES);
            self.allocate_now::<ZEROED>(Layout::from_size_align_unchecked(size, SURE_ALIGN))
        }
    }

    /// A block of the backing's.
    ///
    /// # Safety
    /// As for `alloc`.
    #[inline(always)]
    pub(super) unsafe fn allocate_now<const ZEROED: bool>(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe {
            if B::SETTLES_WHEN_SHORT {
                if ZEROED { self.backing.alloc_zeroed(layout) } else { self.backing.alloc(layout) }
            } else {
                self.allocate_looked_at::<ZEROED>(layout)
            }
        }
    }

    /// As `allocate_now`, where the backing would not call before it fails.
    ///
    /// # Safety
    /// As for `alloc`.
    #[inline(always)]
    pub(super) unsafe fn allocate_looked_at<const ZEROED: bool>(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe {
            let block =
                if ZEROED { self.backing.alloc_zeroed(layout) } else { self.backing.alloc(layout) };
            if !block.is_null() {
                return block;
            }
            self.allocate_again::<ZEROED>(layout)
        }
    }

    /// The backing has failed: once more, when all that waits has been given back.
    ///
    /// # Safety
    /// As for `alloc`.
    #[cold]
    #[inline(never)]
    unsafe fn allocate_again<const ZEROED: bool>(&self, layout: Layout) -> *mut u8 {
        let Phase::Running(runtime) = self.phase.get() else {
            return ptr::null_mut();
        };
        runtime.give_back_everything();
        // SAFETY: the caller's.
        unsafe {
            if ZEROED { self.backing.alloc_zeroed(layout) } else { self.backing.alloc(layout) }
        }
    }

    /// As `realloc` of the backing, for a block that stays below the threshold. `settles`: the backing calls before it fails.
    ///
    /// # Safety
    /// As for `realloc`.
    #[inline(always)]
    unsafe fn reallocate_small(
        &self,
        ptr: *mut u8,
        layout: Layout,
        new_size: usize,
        settles: bool,
    ) -> *mut u8 {
        // SAFETY: the caller's block, which is still there where there is no new one.
        unsafe {
            let block = self.backing.realloc(ptr, layout, new_size);
            if settles || !block.is_null() {
                return block;
            }
            if let Phase::Running(runtime) = self.phase.get() {
                runtime.give_back_everything();
            }
            self.backing.realloc(ptr, layout, new_size)
        }
    }

    /// As `realloc`.
    ///
    /// # Safety
    /// As for `realloc`; `size` and `align` are those of the layout.
    #[inline(never)]
    pub(super) unsafe fn reallocate(
        ptr: *mut u8,
        size: usize,
        align: usize,
        new_size: usize,
        this: &Self,
    ) -> *mut u8 {
        // SAFETY: the caller's.
        let layout = unsafe { Layout::from_size_align_unchecked(size, align) };
        if size.max(new_size) >= this.plain_below.load(Ordering::Relaxed) || !local::is_fresh() {
            // SAFETY: the caller's block.
            return unsafe { this.reallocate_noted(ptr, layout, new_size) };
        }
        // SAFETY: the caller's block.
        unsafe { this.reallocate_small(ptr, layout, new_size, B::SETTLES_WHEN_SHORT) }
    }

    #[inline(never)]
    unsafe fn reallocate_noted(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if layout.size().max(new_size) >= self.read_settings() {
            // SAFETY: the caller's block.
            return unsafe { self.realloc_large(ptr, layout, new_size) };
        }
        if !local::is_fresh() {
            self.note_alloc();
        }
        let settles = B::SETTLES_WHEN_SHORT && new_size < SMALL_BYTES;
        // SAFETY: the caller's block.
        unsafe { self.reallocate_small(ptr, layout, new_size, settles) }
    }

    /// Before a small allocation that goes the long way.
    #[cold]
    pub(super) fn note_alloc(&self) {
        let Some(local) = local::here() else {
            return;
        };
        match local.on_alloc() {
            OnAlloc::Nothing => {}
            OnAlloc::Unknown => self.set_up(local),
            OnAlloc::TakeBack => self.take_back(local),
            OnAlloc::Over { worth_it } => {
                if worth_it {
                    local.record().note_worth_it();
                } else {
                    BURSTS.note(Outcome::Wasted);
                    local.record().note_wasted();
                }
                local.plain();
            }
        }
    }

    /// The thread wants the memory that waits in its log. In one piece that could take as long as the whole drop would have:
    /// each allocation frees a part, until nothing waits.
    fn take_back(&self, local: &Local) {
        let n_blocks =
            self.owner().map_or(0, |runtime| runtime.take_back_small(local, HowMuch::Chunk));
        if n_blocks > 0 && local.waits() {
            local.owe_the_rest();
        } else if local.state() == State::Judging {
            local.plain();
        } else if n_blocks > 0 {
            BURSTS.note(Outcome::Wasted);
            local.record().note_wasted();
            local.plain();
        }
        // Else the drainer is at it: it counts as in hand.
    }

    fn set_up(&self, local: &Local) {
        local.set_up(self.mode(), self.backing.own_pages());
    }

    /// What a thread has to know of the settings.
    fn mode(&self) -> Mode {
        if self.read_settings() == SWITCHED_OFF || !sys::CAN_DEFER {
            return Mode::Disabled;
        }
        match self.burst.load(Ordering::Relaxed) {
            NEVER => Mode::Scopes,
            ALWAYS => Mode::Always,
            _ => Mode::Bursts,
        }
    }

    /// As `mode`, where a burst begins: no thread has to find out the number of CPUs before.
    fn mode_by_cpus(&self) -> Mode {
        if self.burst.load(Ordering::Relaxed) == BY_CPUS {
            let _errno = sys::KeepsErrno::new();
            let burst = if sys::has_one_cpu() { NEVER } else { DEFAULT_BURST };
            self.burst.store(burst, Ordering::Relaxed);
        }
        self.mode()
    }

    fn burst_frees(&self) -> u32 {
        match self.burst.load(Ordering::Relaxed) {
            BY_CPUS => DEFAULT_BURST,
            n_frees => n_frees,
        }
    }

    /// As the configuration shows it.
    pub(super) fn configured_burst(&self) -> Option<u32> {
        match self.mode_by_cpus() {
            Mode::Disabled | Mode::Scopes => None,
            Mode::Bursts | Mode::Always => Some(self.burst.load(Ordering::Relaxed)),
        }
    }
}

/// The number that stands for a setting.
pub(super) fn frees_of(burst: Burst, threshold_bytes: usize) -> u32 {
    match burst {
        _ if threshold_bytes == 0 => ALWAYS,
        Burst::Default => BY_CPUS,
        Burst::After(n_frees) => n_frees.min(BY_CPUS - 1),
        Burst::Never => NEVER,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{DeferFree, local};
    use crate::Mimalloc;

    #[test]
    fn a_free_begins_at_a_cache_line() {
        if local::HAS_OWN_PAGES {
            let free = DeferFree::<Mimalloc>::free as *const ();
            assert_eq!(free.addr() % 64, 0);
        }
    }
}
