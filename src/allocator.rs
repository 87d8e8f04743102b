//! The allocator itself: which calls go straight through, and when the drainer starts.

mod small;

use std::alloc::{GlobalAlloc, Layout};
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Instant;

use crate::backing::{Backing, Mimalloc};
use crate::batch::thread;
use crate::config::{Burst, Config, ReportTo, Settings, say};
use crate::latency::FREES;
use crate::lifecycle::{self, Inside, Phase, PhaseCell};
use crate::pending::{Class, MIN_CLASS_BYTES};
use crate::report::{self, NotRunning};
use crate::runtime::{Runtime, StartError, alloc_rounded};
use crate::stats::{SizeStats, Stats};
use crate::sys;

/// A global allocator whose large frees cost the thread that frees next to nothing.
///
/// ```
/// #[global_allocator]
/// static GLOBAL: deferfree::DeferFree = deferfree::DeferFree::new();
/// # fn main() {
/// let frame = vec![0u8; 32 << 20];
/// drop(frame); // tens of nanoseconds; the memory is given back a quarter of a second later
/// # }
/// ```
///
/// # Drainer
///
/// The first allocation of at least [`Config::threshold_bytes`] starts a thread named `deferfree`, and so
/// does the first burst of small frees ([`Config::burst`]). A program that has neither never has it. If the thread cannot be started, every block is
/// freed at once, for good, and one line on standard error says so.
///
/// # Exit
///
/// Nothing is drained at exit and nothing is waited for: blocks that wait go with the process. With
/// `DEFERFREE_STATS` set, the allocator that a process used first, which is the global one, writes its
/// numbers from an exit handler.
///
/// # Fork
///
/// The child has no drainer until its first large allocation or burst, which starts one. The large
/// blocks that waited in the parent are lost to the child ([`Stats::lost_in_fork_bytes`]); they are shared pages
/// that cost it nothing until one side writes to them. `fork` waits for the drainer to come out of
/// the allocator, which takes as long as one purge at most: some tens of milliseconds per GiB.
/// A child made by the raw `clone` system call, past the C library, runs no handlers: it must not use
/// large blocks, and if other threads were running it may only execute another program or end, as with
/// any allocator.
///
/// # In a library that is loaded at run time
///
/// Once the drainer is to be started the library stays in memory: `dlclose` leaves it where it is, and
/// the next `dlopen` finds it as it was, with its drainer. Until then it can be unloaded.
///
/// # Without `static`
///
/// The value may live anywhere and be moved. Dropping it has its drainer free what waits and end.
/// Each value has queues and a drainer of its own.
pub struct DeferFree<B: Backing = Mimalloc> {
    /// Smaller blocks go straight to the backing. 0 until the settings have been read, so that the
    /// one comparison on the hot path covers that too; `usize::MAX` when switched off. It stays 0 where
    /// large frees are timed: all that this costs is paid there.
    threshold: AtomicUsize,
    phase: PhaseCell<Runtime<B>>,
    backing: B,
    defaults: Settings,
    /// Frees in a row that begin a burst, see `small`.
    burst: AtomicU32,
    delay_ms: AtomicU64,
    /// [`BY_MEMORY_LIMIT`] for the default.
    max_pending_bytes: AtomicUsize,
    /// What `threshold` is for all who find it 0; 0 itself until the settings have been read.
    settled: AtomicUsize,
    /// Frees of at least this many bytes are timed.
    timed_from: AtomicUsize,
    /// Whether this is the allocator that the report at exit is about.
    reports: AtomicBool,
    not_running: NotRunning,
}

/// What `max_pending_bytes` says as long as the memory limit has not been looked at.
const BY_MEMORY_LIMIT: usize = usize::MAX;
// What threads take for small without looking at the settings is so with all of them.
const _: () = assert!(thread::QUICK_BYTES <= MIN_CLASS_BYTES);
const SWITCHED_OFF: usize = usize::MAX;
/// No block is so large.
const NOT_TIMED: usize = usize::MAX;

impl DeferFree {
    /// The allocator with its default settings, on mimalloc.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_backing(Mimalloc)
    }
}

impl Default for DeferFree {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backing> DeferFree<B> {
    /// The allocator with its default settings, on another allocator.
    ///
    /// ```
    /// use std::alloc::System;
    /// use deferfree::DeferFree;
    ///
    /// #[global_allocator]
    /// static GLOBAL: DeferFree<System> = DeferFree::with_backing(System);
    /// # fn main() {}
    /// ```
    #[must_use]
    pub const fn with_backing(backing: B) -> Self {
        DeferFree {
            threshold: AtomicUsize::new(0),
            phase: PhaseCell::new(),
            backing,
            defaults: Settings::DEFAULT,
            burst: AtomicU32::new(small::BY_CPUS),
            delay_ms: AtomicU64::new(0),
            max_pending_bytes: AtomicUsize::new(BY_MEMORY_LIMIT),
            settled: AtomicUsize::new(0),
            timed_from: AtomicUsize::new(NOT_TIMED),
            reports: AtomicBool::new(false),
            not_running: NotRunning::new(),
        }
    }

    /// Default for `DEFERFREE_THRESHOLD`: blocks of at least `bytes` are deferred. At least 4096; 0
    /// defers every free, those below 4096 in batches.
    #[must_use]
    pub const fn threshold(mut self, bytes: usize) -> Self {
        self.defaults.threshold_bytes = bytes;
        self
    }

    /// Default for `DEFERFREE_BURST`: below the threshold, a thread that frees `n_frees` blocks in a row,
    /// with no allocation between them, has the next ones freed by the drainer until it allocates
    /// again. Fewer than 32 count as 32, but 0 defers every free; `None` none. If it is not set at all, a
    /// thread begins with 256 and learns, from bursts that end early, to wait for up to 4096.
    #[must_use]
    pub const fn burst(mut self, n_frees: Option<u32>) -> Self {
        self.defaults.burst = match n_frees {
            Some(n_frees) => Burst::After(n_frees),
            None => Burst::Never,
        };
        self
    }

    /// Default for `DEFERFREE_DELAY`: milliseconds that a block waits for reuse before it goes back
    /// to the allocator underneath.
    #[must_use]
    pub const fn delay_ms(mut self, ms: u64) -> Self {
        self.defaults.delay_ms = ms;
        self
    }

    /// Default for `DEFERFREE_MAX_PENDING`: bytes that wait at most. A free that would go over it is
    /// done at once, on the thread that frees.
    #[must_use]
    pub const fn max_pending(mut self, bytes: usize) -> Self {
        self.defaults.max_pending_bytes = Some(bytes);
        self
    }

    /// Waits until everything that is pending now has been freed and returned to the system.
    ///
    /// Takes some tens of milliseconds per GiB. Returns early when the process is exiting.
    pub fn flush(&self) {
        match self.phase.get() {
            Phase::Running(runtime) => runtime.flush(),
            Phase::Off | Phase::Starting | Phase::Failed => self.backing.purge(),
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let phase = self.phase.get();
        let mut stats = match phase {
            Phase::Running(runtime) => runtime.stats(),
            Phase::Off | Phase::Starting | Phase::Failed => Stats::default(),
        };
        stats.start_failed = matches!(phase, Phase::Failed);
        stats.not_running = self.not_running().tally();
        let is_timed = self.timed_from.load(Ordering::Relaxed) != NOT_TIMED;
        stats.free_latency = is_timed.then(|| FREES.summary());
        stats
    }

    /// What happened so far to the large blocks of each size class that the program has used, smaller
    /// ones first; those that have a mapping of their own come last. Does not allocate.
    ///
    /// ```
    /// # use deferfree::DeferFree;
    /// # #[global_allocator]
    /// # static GLOBAL: DeferFree = DeferFree::new();
    /// # fn main() {
    /// drop(vec![1u8; 1 << 20]);
    /// for size in GLOBAL.stats_by_size() {
    ///     println!("{} bytes: {} of {} taken back", size.block_bytes, size.reused, size.handed_over);
    /// }
    /// # }
    /// ```
    pub fn stats_by_size(&self) -> impl Iterator<Item = SizeStats> + '_ {
        let runtime = match self.phase.get() {
            Phase::Running(runtime) => Some(runtime),
            Phase::Off | Phase::Starting | Phase::Failed => None,
        };
        runtime.into_iter().flat_map(Runtime::sizes)
    }

    fn not_running(&self) -> &NotRunning {
        if self.reports.load(Ordering::Relaxed) { &report::NOT_RUNNING } else { &self.not_running }
    }

    /// The settings in force, after the environment.
    #[must_use]
    pub fn config(&self) -> Config {
        if let Phase::Running(runtime) = self.phase.get() {
            return runtime.config();
        }
        let threshold_bytes = self.read_settings();
        let max = self.max_pending_bytes.load(Ordering::Relaxed);
        Config {
            enabled: threshold_bytes != SWITCHED_OFF,
            threshold_bytes,
            burst: self.configured_burst(),
            delay_ms: self.delay_ms.load(Ordering::Relaxed),
            max_pending_bytes: if max == BY_MEMORY_LIMIT {
                // Where the limit cannot be told, 1 GiB waits at most.
                sys::memory_limit().unwrap_or(4 << 30) / 4
            } else {
                max
            },
        }
    }

    /// The threshold in force.
    #[inline]
    fn read_settings(&self) -> usize {
        // Acquire pairs with the Release in `read_settings_first`, for the settings besides.
        match self.threshold.load(Ordering::Acquire) {
            0 => self.settled_threshold(),
            known => known,
        }
    }

    #[cold]
    fn settled_threshold(&self) -> usize {
        // Acquire: as in `read_settings`.
        match self.settled.load(Ordering::Acquire) {
            0 => self.read_settings_first(),
            known => known,
        }
    }

    /// Nobody waits here: threads that come first at the same time all read, and all find the same.
    /// Which of them is taken matters for the threshold alone, because a block must be rounded by
    /// the same rule when it is allocated and when it is freed.
    #[cold]
    fn read_settings_first(&self) -> usize {
        let settings = self.defaults.with_environment(false);
        let burst = small::frees_of(settings.burst, settings.threshold_bytes);
        self.burst.store(burst, Ordering::Relaxed);
        self.delay_ms.store(settings.delay_ms, Ordering::Relaxed);
        let max = settings.max_pending_bytes.unwrap_or(BY_MEMORY_LIMIT);
        self.max_pending_bytes.store(max, Ordering::Relaxed);
        let configured = settings.threshold_bytes.max(MIN_CLASS_BYTES);
        let threshold = if settings.enabled { configured } else { SWITCHED_OFF };
        let is_timed = settings.reporting.latency;
        if is_timed {
            self.timed_from.store(configured, Ordering::Relaxed);
        }
        // Release: see `read_settings`. Acquire: the winner's stores are the ones to be used.
        match self.settled.compare_exchange(0, threshold, Ordering::Release, Ordering::Acquire) {
            Ok(_) => {
                // Once more, by the one thread that won, to say what could not be used.
                self.defaults.with_environment(true);
                if settings.enabled && sys::CAN_DEFER {
                    self.backing.reserve();
                }
                if settings.reporting.to != ReportTo::Nowhere
                    && report::claim::<Runtime<B>>(settings.reporting, || self.config())
                {
                    self.reports.store(true, Ordering::Relaxed);
                    self.tell_report();
                }
                if !is_timed {
                    // Release: as above.
                    self.threshold.store(threshold, Ordering::Release);
                }
                threshold
            }
            Err(known) => known,
        }
    }

    /// To be called after the phase, or whether this allocator reports, has changed.
    fn tell_report(&self) {
        // Two threads may come from the two changes at once: after this fence at least one of them sees
        // both.
        fence(Ordering::SeqCst);
        if self.reports.load(Ordering::Relaxed) {
            match self.phase.get() {
                Phase::Running(runtime) => report::started(runtime),
                Phase::Failed => report::start_failed(),
                Phase::Off | Phase::Starting => {}
            }
        }
    }

    /// Starts the drainer. Allocations in here go straight to the backing: the phase is STARTING.
    #[cold]
    fn start(&self) {
        // Before STARTING, see `PhaseCell::start`.
        let registered = lifecycle::register();
        // The drainer's, held from its birth on. A fork or the exit is under way: another time.
        let Ok(inside) = Inside::try_enter() else {
            return;
        };
        let Some(start) = self.phase.start() else {
            return;
        };
        let lost_in_fork_bytes = start.inherited().map_or(0, |runtime| runtime.pending_bytes());
        let started = if registered {
            Runtime::start(self.backing, self.config(), lost_in_fork_bytes as u64, inside)
        } else {
            Err(StartError::Register)
        };
        if let Err(error) = &started {
            say(format_args!("{error}; large blocks are freed at once"));
        }
        start.finish(started.ok());
        self.tell_report();
    }

    fn class_of(&self, layout: Layout) -> Option<Class> {
        Class::of(layout.size(), self.backing.unmaps_on_free(layout))
    }

    /// As `alloc` or `alloc_zeroed`, when the block is not known to be small.
    #[inline(never)]
    fn alloc_large(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        if layout.size() < self.read_settings() {
            return self.alloc_small(layout, zeroed);
        }
        let Some(class) = self.class_of(layout) else {
            // SAFETY: the layout is the caller's.
            return unsafe {
                if zeroed { self.backing.alloc_zeroed(layout) } else { self.backing.alloc(layout) }
            };
        };
        if let Phase::Off = self.phase.get() {
            self.start();
        }
        if let Phase::Running(runtime) = self.phase.get() {
            return runtime.alloc(class, layout, zeroed);
        }
        // Rounded in any case: the drainer may run by the time the block is freed.
        // SAFETY: the class is that of the layout.
        unsafe { alloc_rounded(self.backing, class, layout, zeroed) }
    }

    /// As `dealloc`, when the block is not known to be small.
    ///
    /// # Safety
    /// As for `dealloc`.
    #[inline(never)]
    unsafe fn dealloc_large(&self, ptr: *mut u8, layout: Layout) {
        // Acquire: as in `read_settings`.
        match self.threshold.load(Ordering::Acquire) {
            // SAFETY: the caller's block.
            0 => unsafe { self.dealloc_unsettled(ptr, layout) },
            // SAFETY: the caller's block.
            threshold => unsafe { self.dealloc_settled(ptr, layout, threshold) },
        }
    }

    /// As `dealloc`, where `threshold` is the threshold in force.
    ///
    /// # Safety
    /// As for `dealloc`.
    #[inline(always)]
    unsafe fn dealloc_settled(&self, ptr: *mut u8, layout: Layout, threshold: usize) {
        let large = layout.size() >= threshold;
        if let Some(class) = large.then(|| self.class_of(layout)).flatten() {
            if let Phase::Running(runtime) = self.phase.get() {
                // SAFETY: allocated with the size of this class, in whatever phase that was.
                return unsafe { runtime.dealloc(class, ptr) };
            }
            self.not_running().add(class.bytes());
        }
        // SAFETY: the caller's block; every block comes from the backing.
        unsafe { self.backing.dealloc(ptr, layout) };
    }

    /// As `dealloc`, before the settings have been read; and all the time where large frees are timed.
    ///
    /// # Safety
    /// As for `dealloc`.
    #[cold]
    unsafe fn dealloc_unsettled(&self, ptr: *mut u8, layout: Layout) {
        let threshold = self.read_settings();
        // Relaxed: it was stored before the settings were known to have been read.
        if layout.size() >= self.timed_from.load(Ordering::Relaxed) {
            let start = Instant::now();
            // SAFETY: the caller's block.
            unsafe { self.dealloc_settled(ptr, layout, threshold) };
            FREES.record(start.elapsed());
        } else if layout.size() >= threshold {
            // SAFETY: the caller's block.
            unsafe { self.dealloc_settled(ptr, layout, threshold) };
        } else {
            // SAFETY: the caller's block.
            unsafe { self.dealloc_small(ptr, layout) };
        }
    }

    /// As `realloc`, when one of the sizes is not known to be small.
    ///
    /// # Safety
    /// As for `realloc`.
    #[inline(never)]
    unsafe fn realloc_large(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let threshold = self.read_settings();
        if layout.size() < threshold && new_size < threshold {
            // SAFETY: the caller's block and layout.
            return unsafe { self.realloc_small(ptr, layout, new_size) };
        }
        // SAFETY: the caller's contract says that the new size is valid for this alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: the caller's block.
        if unsafe { self.fits_in_place(ptr, layout, new_layout, threshold) } {
            if let (Phase::Running(runtime), Some(class)) =
                (self.phase.get(), self.class_of(new_layout).filter(|_| new_size >= threshold))
            {
                // Nothing of this class may have been allocated so far.
                runtime.prepare(class);
            }
            return ptr;
        }
        // SAFETY: both sizes are the caller's; the blocks are distinct, and the old one is given up
        // only when the new one holds its contents.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                ptr::copy_nonoverlapping(ptr, new, layout.size().min(new_size));
                self.dealloc(ptr, layout);
            }
            new
        }
    }

    /// Whether the block has room for `new`, rounded as a block of that size is, without wasting
    /// more than half of itself (mimalloc's rule, `mi_realloc`).
    ///
    /// # Safety
    /// `ptr` is a live block of `layout`.
    unsafe fn fits_in_place(
        &self,
        ptr: *mut u8,
        layout: Layout,
        new: Layout,
        threshold: usize,
    ) -> bool {
        let class_of =
            |layout: Layout| (layout.size() >= threshold).then(|| self.class_of(layout)).flatten();
        let class = class_of(new);
        if class.is_some() && class == class_of(layout) {
            return true;
        }
        let bytes = class.map_or(new.size(), Class::bytes);
        // SAFETY: the caller's block.
        match unsafe { self.backing.usable_size(ptr, layout) } {
            Some(usable) => bytes <= usable && new.size() >= usable / 2,
            None => false,
        }
    }
}

// SAFETY: small blocks are the backing's own. A large block is the backing's as well, of at least the
// size of its layout's class; between its free and its next use it belongs to the pending queues
// alone. Nothing here unwinds: what could panic is checked, see the crate's front page.
unsafe impl<B: Backing> GlobalAlloc for DeferFree<B> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if thread::allocates_quickly(layout.size()) {
            // SAFETY: the caller's layout.
            return unsafe { self.backing.alloc(layout) };
        }
        // SAFETY: of one layout.
        unsafe { Self::alloc_counted(layout.size(), layout.align(), self, false) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if thread::allocates_quickly(layout.size()) {
            // SAFETY: the caller's layout.
            return unsafe { self.backing.alloc_zeroed(layout) };
        }
        // SAFETY: of one layout.
        unsafe { Self::alloc_counted(layout.size(), layout.align(), self, true) }
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        if thread::frees_quickly(layout.size()) {
            // SAFETY: the caller's block.
            return unsafe { self.backing.dealloc(ptr, layout) };
        }
        // SAFETY: the caller's block.
        unsafe { Self::dealloc_counted(ptr, layout.size(), layout.align(), self) };
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if thread::allocates_quickly(layout.size().max(new_size)) {
            // SAFETY: the caller's block.
            return unsafe { self.backing.realloc(ptr, layout, new_size) };
        }
        // SAFETY: the caller's block.
        unsafe { self.realloc_counted(ptr, layout, new_size) }
    }
}

impl<B: Backing> Drop for DeferFree<B> {
    fn drop(&mut self) {
        let stays = *self.reports.get_mut() && !report::withdraw();
        if let (Phase::Running(runtime), false) = (self.phase.get(), stays) {
            runtime.stop();
        }
    }
}

impl<B: Backing> fmt::Debug for DeferFree<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferFree")
            .field("config", &self.config())
            .field("stats", &self.stats())
            .finish()
    }
}
