//! The allocator itself: which calls go straight through, and when the drainer starts.

mod small;

use std::alloc::{GlobalAlloc, Layout};
use std::fmt;
use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Instant;

use self::small::is_surely_small;
use crate::backing::{Backing, Mimalloc};
use crate::burst::local::{self, Local, State};
use crate::burst::{BURSTS, NO_OWNER, SMALL_BYTES};
use crate::config::{Burst, Config, ReportTo, Settings, say};
use crate::drainer::work;
use crate::huge::{self, Use};
use crate::latency::FREES;
use crate::lifecycle::{self, Failure, Inside, Phase, PhaseCell};
use crate::pending::{Class, MIN_CLASS_BYTES};
use crate::report::{self, NotRunning};
use crate::runtime::{Runtime, StartError, alloc_fresh};
use crate::stats::{SizeStats, Stats};
use crate::sync::TINY;
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
/// A thread named `deferfree` starts when the large blocks allocated so far, those of at least
/// [`Config::threshold_bytes`], come to 16 MiB, or with the first burst of small frees ([`Config::burst`]) of a thread
/// that has used the allocator for 40 ms, or the first free in a [`DeferScope`](crate::DeferScope), or where 64 MiB are
/// resident and the program goes on allocating and freeing smaller blocks. Until then
/// large blocks are freed at once: a short command that has a few of them is better off so. If the thread cannot be
/// started, every block is freed at once, and one line on standard error says so. Where the system was short of memory
/// or threads, it is tried again with a large allocation or a burst a second later, then two, up to a minute.
///
/// # Exit
///
/// Nothing is drained at exit and nothing is waited for: blocks that wait go with the process. With
/// `DEFERFREE_STATS` set, the allocator that a process used first, which is the global one, writes its
/// numbers from an exit handler.
///
/// # Fork
///
/// The child has no drainer until its first burst or large allocation; if its parent had none either, the large blocks
/// of both together count up to its start. The large blocks that waited in the parent are lost to the child
/// ([`Stats::lost_in_fork_bytes`]); they are shared pages that cost it nothing until one side writes to them. `fork`
/// waits for the drainer to come out of the allocator, which takes as long as one purge at most: some tens of
/// milliseconds per GiB.
/// A child made by the raw `clone` system call, past the C library, runs no handlers: it must not use
/// large blocks, and if other threads were running it may only execute another program or end, as with
/// any allocator.
///
/// # In a library that is loaded at run time
///
/// Once the drainer, or the thread of [`later`](crate::later), is to be started, the library stays in memory (on macOS and
/// FreeBSD once it allocates): `dlclose` leaves it where it is, and the next `dlopen` finds it as it was, with its drainer.
/// Until then it can be unloaded.
///
/// # Without `static`
///
/// The value may live anywhere and be moved. Dropping it has its drainer free what waits and end, and does not wait for that.
/// Each value has queues and a drainer of its own; of several only the one whose drainer started first defers small blocks.
pub struct DeferFree<B: Backing = Mimalloc> {
    /// Smaller blocks go straight to the backing, but for bursts. 0 until the settings have been read, so that no other
    /// comparison has to be made for that; `usize::MAX` when switched off.
    threshold: AtomicUsize,
    /// Frees of fewer bytes have nothing to do but to look at the thread's state: neither large, nor medium, nor timed.
    /// 0 until the settings have been read.
    plain_below: AtomicUsize,
    phase: PhaseCell<Runtime<B>>,
    /// Bytes of the large blocks that were allocated while no drainer ran, here or in a process that this one was
    /// forked off from.
    allocated_bytes: AtomicUsize,
    backing: B,
    defaults: Settings,
    /// Frees in a row that begin a burst, see `small`.
    burst: AtomicU32,
    delay_ms: AtomicU64,
    /// [`BY_MEMORY_LIMIT`] for the default.
    max_pending_bytes: AtomicUsize,
    /// Its number as the owner of the bursts, or [`NO_OWNER`].
    owner: AtomicU32,
    /// Frees of at least this many bytes are timed.
    timed_from: AtomicUsize,
    /// Whether this is the allocator that the report at exit is about.
    reports: AtomicBool,
    not_running: NotRunning,
}

/// The drainer starts when large blocks of so many bytes have been allocated. Blocks that wait make room for no others, so
/// whoever needs only a few has memory faulted in for nothing. Commands of 15 ms whose table and text grow to 3 MiB
/// (12 MiB in all): 1.06 x of plain mimalloc's time with a start at the first large block or at 8 MiB, 1.00 x at 16 MiB.
const START_BYTES: usize = if TINY { 0 } else { 16 << 20 };
/// What `max_pending_bytes` says as long as the memory limit has not been looked at.
const BY_MEMORY_LIMIT: usize = usize::MAX;
const SWITCHED_OFF: usize = usize::MAX;
/// A thread gives up what is held for it at most so seldom that this takes one part in so many of its time. (Tens of
/// thousands of requests a second with a rest after each would take a quarter otherwise.)
const REST_SHARE: u64 = 50;
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
    /// The allocator with its default settings, on another allocator. (`System` is one on Unix alone.)
    ///
    /// ```
    /// # #[cfg(not(unix))]
    /// # fn main() {}
    /// # #[cfg(unix)]
    /// # mod unix {
    /// use std::alloc::System;
    /// use deferfree::DeferFree;
    ///
    /// #[global_allocator]
    /// static GLOBAL: DeferFree<System> = DeferFree::with_backing(System);
    /// # }
    /// # #[cfg(unix)]
    /// # fn main() {}
    /// ```
    #[must_use]
    pub const fn with_backing(backing: B) -> Self {
        DeferFree {
            threshold: AtomicUsize::new(0),
            plain_below: AtomicUsize::new(0),
            phase: PhaseCell::new(),
            allocated_bytes: AtomicUsize::new(0),
            backing,
            defaults: Settings::DEFAULT,
            burst: AtomicU32::new(small::BY_CPUS),
            delay_ms: AtomicU64::new(0),
            max_pending_bytes: AtomicUsize::new(BY_MEMORY_LIMIT),
            owner: AtomicU32::new(NO_OWNER),
            timed_from: AtomicUsize::new(NOT_TIMED),
            reports: AtomicBool::new(false),
            not_running: NotRunning::new(),
        }
    }

    /// Default for `DEFERFREE_THRESHOLD`: blocks of at least `bytes` are deferred, without this call 256 KiB. At least 4096; 0
    /// defers every free, those below 4096 by way of the log.
    #[must_use]
    pub const fn threshold(mut self, bytes: usize) -> Self {
        self.defaults.threshold_bytes = bytes;
        self
    }

    /// Default for `DEFERFREE_BURST`, without this call 128: a thread that frees about `n_frees` blocks below 16 KiB in a row,
    /// with no allocation between them, is dropping a data structure. If its blocks are not in the processor's cache, the
    /// next ones are freed by the drainer until the thread allocates again. A page that the thread has emptied counts for 64
    /// at most. 0 defers every free of less than 16 KiB, `None` none.
    #[must_use]
    pub const fn burst(mut self, n_frees: Option<u32>) -> Self {
        self.defaults.burst = match n_frees {
            Some(n_frees) => Burst::After(n_frees),
            None => Burst::Never,
        };
        self
    }

    /// Default for `DEFERFREE_DELAY`: milliseconds that a large block waits for reuse before it goes back to the allocator
    /// underneath, without this call 250. With 0 it goes back as soon as the drainer comes to it.
    #[must_use]
    pub const fn delay_ms(mut self, ms: u64) -> Self {
        self.defaults.delay_ms = ms;
        self
    }

    /// Default for `DEFERFREE_MAX_PENDING`: bytes that wait at most, without this call a quarter of the memory that the
    /// process may use. A free that would go over it is done at once, on the thread that frees; with 0 each is.
    #[must_use]
    pub const fn max_pending(mut self, bytes: usize) -> Self {
        self.defaults.max_pending_bytes = Some(bytes);
        self
    }

    /// Waits until everything that is pending now has been freed and returned to the system: each block whose free returned
    /// before this call began, on this thread or on another that this one has heard of it from. Frees that are under way
    /// meanwhile may be missed, and so may a block of 8 MiB or more that an allocation is just looking at. Small blocks that
    /// a thread is just taking back it frees itself.
    ///
    /// Takes some tens of milliseconds per GiB. Returns early when the process is exiting. Where no drainer runs, the calling
    /// thread returns what is unused, unless another one is just forking or the process exits.
    pub fn flush(&self) {
        match self.phase.get() {
            Phase::Running(runtime) => runtime.flush(),
            Phase::Off | Phase::Starting | Phase::Failed => {
                // Which registers for fork: a child forked off in the midst of a purge would never purge.
                self.read_settings();
                if let Ok(_inside) = Inside::try_enter() {
                    self.backing.purge();
                }
            }
        }
    }

    /// Gives up what the allocator holds for the calling thread, which is about to rest for a while.
    ///
    /// A thread keeps the pages that it allocates from. What other threads free of its blocks stays in these pages until
    /// the thread itself comes to look, and a thread that rests never does: 256 resting threads whose buffers have all been
    /// freed by another were seen to hold 8 GiB (jemalloc: 0.8). With this call before they rested it was 30 MiB
    /// (`cargo bench --bench large_free -- parked`).
    ///
    /// For a runtime or a pool of threads, where a thread finds nothing to do; [`tokio`'s `on_thread_park`][park] is such
    /// a place:
    ///
    /// ```
    /// use std::sync::mpsc;
    /// use std::thread;
    ///
    /// # use deferfree::DeferFree;
    /// #[global_allocator]
    /// static GLOBAL: DeferFree = DeferFree::new();
    ///
    /// # fn main() {
    /// let (sender, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
    /// let worker = thread::spawn(move || {
    ///     loop {
    ///         let job = match jobs.try_recv() {
    ///             Ok(job) => job,
    ///             Err(_) => {
    ///                 GLOBAL.thread_idle();
    ///                 let Ok(job) = jobs.recv() else { break };
    ///                 job
    ///             }
    ///         };
    ///         job();
    ///     }
    /// });
    /// # sender.send(Box::new(|| drop(vec![String::new(); 100]))).unwrap();
    /// # drop(sender);
    /// # worker.join().unwrap();
    /// # }
    /// ```
    ///
    /// Costs a few nanoseconds on a thread that has not used the allocator since the last call. Otherwise some ten
    /// microseconds, up to half a one for each block that has been freed among others in the thread's pages, and about ten
    /// for the thread's next allocations, which find new pages; so it does nothing if it would take more than a fiftieth of
    /// the thread's time: what has gathered in such a short time is little. What the thread has written down in a burst is
    /// left to the drainer. Of frees alone, those of 16 KiB and more do not count as use.
    ///
    /// May be called on any thread, any number of times. It does nothing where it cannot be done: outside of Linux, Android
    /// and FreeBSD on x86-64 and aarch64, with mimalloc 2, while a fork is under way, at exit, and where nothing is deferred
    /// (`DEFERFREE=off`).
    ///
    /// [park]: https://docs.rs/tokio/latest/tokio/runtime/struct.Builder.html#method.on_thread_park
    #[inline]
    pub fn thread_idle(&self) {
        if let Some(local) = local::here() {
            if !local.rests() {
                self.rest(local);
            }
        }
    }

    #[cold]
    fn rest(&self, local: &Local) {
        // New: it has not allocated anything.
        let has_nothing = local.state() == State::New || local.has_ended();
        if has_nothing || self.read_settings() == SWITCHED_OFF {
            return;
        }
        let start_ns = sys::monotonic_ns();
        if start_ns < local.next_rest_ns() {
            return;
        }
        // The backing takes locks that a forked child must not inherit.
        let Ok(inside) = Inside::try_enter() else {
            return;
        };
        local.rest();
        self.backing.thread_idle();
        drop(inside);
        let end_ns = sys::monotonic_ns();
        local.set_next_rest_ns(end_ns + REST_SHARE * (end_ns - start_ns));
    }

    /// What happened so far.
    ///
    /// May be called anywhere: it neither allocates nor locks. It takes some ten microseconds, nearly all of them in system
    /// calls for the numbers of the process: on Linux a file of the kernel's is read, and faults are summed over all threads.
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
        stats.add_process();
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
        let max_pending_bytes = match self.max_pending_bytes.load(Ordering::Relaxed) {
            BY_MEMORY_LIMIT if TINY => 4 << 20,
            // Where the limit cannot be told, 1 GiB waits at most.
            BY_MEMORY_LIMIT => sys::memory_limit().unwrap_or(4 << 30) / 4,
            set => set,
        };
        Config {
            enabled: threshold_bytes != SWITCHED_OFF,
            threshold_bytes,
            burst: self.configured_burst(),
            delay_ms: self.delay_ms.load(Ordering::Relaxed),
            max_pending_bytes,
        }
    }

    /// The threshold in force.
    #[inline]
    fn read_settings(&self) -> usize {
        // Acquire pairs with the Release in `read_settings_first`, for the settings besides.
        match self.threshold.load(Ordering::Acquire) {
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
        let max =
            settings.max_pending_bytes.map_or(BY_MEMORY_LIMIT, |n| n.min(BY_MEMORY_LIMIT - 1));
        self.max_pending_bytes.store(max, Ordering::Relaxed);
        let configured = settings.threshold_bytes.clamp(MIN_CLASS_BYTES, SWITCHED_OFF - 1);
        if settings.reporting.latency {
            self.timed_from.store(configured, Ordering::Relaxed);
        }
        let threshold = if settings.enabled { configured } else { SWITCHED_OFF };
        // Release: see `read_settings`. Acquire: the winner's stores are the ones to be used.
        match self.threshold.compare_exchange(0, threshold, Ordering::Release, Ordering::Acquire) {
            Ok(_) => {
                let plain_below = match threshold {
                    SWITCHED_OFF => SWITCHED_OFF,
                    _ => threshold.min(SMALL_BYTES),
                };
                let timed_from = self.timed_from.load(Ordering::Relaxed);
                self.plain_below.store(plain_below.min(timed_from), Ordering::Relaxed);
                // Once more, by the one thread that won, to say what could not be used.
                self.defaults.with_environment(true);
                if settings.enabled && sys::CAN_DEFER {
                    // Where it is refused, the start says so.
                    lifecycle::register();
                    // It takes locks, which a forked child must not inherit. Of no use but for speed.
                    if let Ok(_inside) = Inside::try_enter() {
                        self.backing.reserve();
                    }
                    self.backing.on_allocations(work::note);
                }
                if settings.reporting.to != ReportTo::Nowhere
                    && report::claim::<Runtime<B>>(settings.reporting, || self.config())
                {
                    self.reports.store(true, Ordering::Relaxed);
                    self.tell_report();
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

    /// A large block of `bytes` is being allocated and no drainer runs: starts one if that makes enough of them.
    #[cold]
    fn count_up_to_start(&self, bytes: usize) {
        // Relaxed: the sum alone counts.
        let before = self.allocated_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) >= START_BYTES {
            self.start();
        }
    }

    /// Starts the drainer. Allocations in here go straight to the backing: the phase is STARTING.
    #[cold]
    fn start(&self) {
        let _errno = sys::KeepsErrno::new();
        // Before STARTING, see `PhaseCell::start`.
        let registered = lifecycle::stay();
        // Not inside: the first time it takes locks. The rest of the configuration, which asks the system, waits until it is needed.
        let _ = self.read_settings();
        // A handler that forks would wait for this very thread.
        let signals = sys::SignalsBlocked::new();
        // The drainer's, held from its birth on. A fork or the exit is under way: another time.
        let Ok(inside) = Inside::try_enter() else {
            return;
        };
        let Some(start) = self.phase.start() else {
            return;
        };
        let (is_first, inherited) = (start.is_first, start.inherited());
        // This thread's, until others see what has come of it.
        let inside_too = inside.another();
        let started = if registered {
            Runtime::start(self.backing, self.config(), inherited, inside)
        } else {
            drop(inside);
            Err(StartError::Register)
        };
        let runtime = started.as_ref().ok().copied();
        let is_owner = runtime.is_some_and(|runtime| BURSTS.is_owned_by(runtime.addr().get()));
        let owner = if is_owner { BURSTS.owner_number() } else { NO_OWNER };
        self.owner.store(owner, Ordering::Relaxed);
        start.finish(started.as_ref().copied().map_err(Failure::from));
        drop(inside_too);
        drop(signals);
        if let (Err(error), true) = (started, is_first) {
            let outlook = Failure::from(&error).outlook();
            say(format_args!("{error}; large blocks are freed at once{outlook}"));
        }
        self.tell_report();
    }

    /// The class that a block of that layout is allocated for.
    fn class_for(&self, layout: Layout, for_use: Use) -> Option<Class> {
        let is_huge = huge::may_be(layout)
            && (huge::should_be(layout, for_use) || self.backing.unmaps_on_free(layout));
        if is_huge { Class::of_huge(layout.size()) } else { Class::of(layout.size()) }
    }

    /// The class of a block that is freed. It may have come to another one than it was allocated for.
    #[inline]
    fn class_of(ptr: *mut u8, layout: Layout) -> Option<Class> {
        if huge::may_be(layout) {
            let len = huge::len_of(ptr);
            if len != 0 {
                return Some(Class::of_mapping(len));
            }
        }
        Class::of(layout.size())
    }

    /// As `alloc` or `alloc_zeroed`, for any block.
    ///
    /// # Safety
    /// `size` and `align` are those of a layout that may be allocated.
    #[inline(never)]
    unsafe fn allocate_any<const ZEROED: bool>(size: usize, align: usize, this: &Self) -> *mut u8 {
        // SAFETY: the caller's.
        let layout = unsafe { Layout::from_size_align_unchecked(size, align) };
        if size >= this.read_settings() {
            return this.alloc_large(layout, if ZEROED { Use::Zeroed } else { Use::Plain });
        }
        if !local::is_fresh() {
            this.note_alloc();
        }
        if size.max(align) >= SMALL_BYTES {
            if let Phase::Running(runtime) = this.phase.get() {
                runtime.note_anew(size);
            }
            // SAFETY: the caller's.
            return unsafe { this.allocate_looked_at::<ZEROED>(layout) };
        }
        // SAFETY: the caller's.
        unsafe { this.allocate_now::<ZEROED>(layout) }
    }

    /// As `alloc` or `alloc_zeroed`, from the threshold on.
    fn alloc_large(&self, layout: Layout, for_use: Use) -> *mut u8 {
        let Some(class) = self.class_for(layout, for_use) else {
            // SAFETY: the layout is the caller's.
            return unsafe {
                if for_use.is_zeroed() {
                    self.backing.alloc_zeroed(layout)
                } else {
                    self.backing.alloc(layout)
                }
            };
        };
        match self.phase.get() {
            Phase::Off => self.count_up_to_start(layout.size()),
            Phase::Failed if self.phase.is_due() => self.start(),
            Phase::Starting | Phase::Running(_) | Phase::Failed => {}
        }
        if let Phase::Running(runtime) = self.phase.get() {
            return runtime.alloc(class, layout, for_use);
        }
        local::end_rest();
        // Rounded in any case: the drainer may run by the time the block is freed.
        // SAFETY: the class is that of the layout.
        unsafe { alloc_fresh(self.backing, class, layout, for_use) }
    }

    /// As `dealloc`, for any block.
    ///
    /// # Safety
    /// As for `dealloc`; `size` and `align` are those of the layout.
    #[inline(never)]
    unsafe fn free_any(ptr: *mut u8, size: usize, align: usize, this: &Self) {
        // SAFETY: the caller's block and layout; every block comes from the backing.
        unsafe {
            if size >= this.plain_below.load(Ordering::Relaxed) {
                return Self::free_long(ptr, size, align, this);
            }
            Self::free(ptr, size, this);
        }
    }

    /// As `free_any`, from `plain_below` on.
    #[inline(never)]
    unsafe fn free_long(ptr: *mut u8, size: usize, align: usize, this: &Self) {
        // SAFETY: the caller's block and layout; every block comes from the backing.
        unsafe {
            if size >= this.timed_from.load(Ordering::Relaxed) {
                return Self::free_timed(ptr, size, align, this);
            }
            // Not yet known: 0.
            if size >= this.threshold.load(Ordering::Relaxed) {
                return Self::free_large(ptr, size, align, this);
            }
            // The drainer sees nothing of such a block, but what it leaves is to go back to the system as well.
            let freed = local::here().and_then(|local| local.note_medium_free(size));
            if let Some(freed) = freed {
                this.hear_of_medium_frees(freed);
            }
            this.backing.dealloc(ptr, Layout::from_size_align_unchecked(size, align));
        }
    }

    #[cold]
    #[inline(never)]
    unsafe fn free_timed(ptr: *mut u8, size: usize, align: usize, this: &Self) {
        let start = Instant::now();
        // SAFETY: the caller's block.
        unsafe { Self::free_large(ptr, size, align, this) };
        FREES.record(start.elapsed());
    }

    /// As `free_any`, where the block may be large, or the settings have not been read.
    #[inline(never)]
    unsafe fn free_large(ptr: *mut u8, size: usize, align: usize, this: &Self) {
        // SAFETY: the caller's block and layout; every block comes from the backing.
        unsafe {
            let layout = Layout::from_size_align_unchecked(size, align);
            if size >= this.read_settings() {
                if let Some(class) = Self::class_of(ptr, layout) {
                    return this.give_up(class, ptr, layout);
                }
            }
            this.backing.dealloc(ptr, layout);
        }
    }

    #[cold]
    #[inline(never)]
    fn hear_of_medium_frees(&self, freed: Range<u64>) {
        let _errno = sys::KeepsErrno::new();
        match self.phase.get() {
            Phase::Running(runtime) => {
                work::note_frees();
                runtime.wake_drainer();
            }
            // To ask for the resident set takes a system call or two: with twice the bytes each time.
            Phase::Off if freed.start < 1 << freed.end.ilog2() => self.start_if_resident(),
            Phase::Off | Phase::Starting | Phase::Failed => {}
        }
    }

    /// Starts the drainer where there is something that it can give back.
    fn start_if_resident(&self) {
        let is_on = self.threshold.load(Ordering::Relaxed) != SWITCHED_OFF;
        if is_on && sys::resident_bytes().is_some_and(|bytes| bytes >= work::WORTH_BYTES) {
            self.start();
        }
    }

    /// # Safety
    /// `ptr` is the caller's block, of that class, and freed as that layout.
    #[inline(always)]
    unsafe fn give_up(&self, class: Class, ptr: *mut u8, layout: Layout) {
        if let Phase::Running(runtime) = self.phase.get() {
            // SAFETY: the caller's block.
            if !unsafe { runtime.dealloc(class, ptr) } {
                self.not_running().add(class.bytes());
            }
            return;
        }
        self.not_running().add(class.bytes());
        // SAFETY: the caller's block.
        unsafe {
            if class.is_huge() {
                let _errno = sys::KeepsErrno::new();
                huge::unmap(ptr);
            } else {
                self.backing.dealloc(ptr, layout);
            }
        }
    }

    /// As `realloc`, when one of the sizes is at least the threshold.
    ///
    /// # Safety
    /// As for `realloc`.
    unsafe fn realloc_large(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let threshold = self.read_settings();
        // SAFETY: the caller's contract says that the new size is valid for this alignment.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let len = if huge::may_be(layout) { huge::len_of(ptr) } else { 0 };
        // SAFETY: the caller's block.
        let resized = unsafe {
            if len != 0 {
                self.resize_huge(ptr, len, layout, new_layout)
            } else if self.fits_in_place(ptr, layout, new_layout, threshold) {
                ptr
            } else {
                ptr::null_mut()
            }
        };
        if !resized.is_null() {
            if let (Phase::Running(runtime), true) = (self.phase.get(), new_size >= threshold) {
                // Nothing of its class may have been allocated so far.
                if let Some(class) = Self::class_of(resized, new_layout) {
                    runtime.prepare(class);
                }
            }
            return resized;
        }
        // SAFETY: both sizes are the caller's; the blocks are distinct, and the old one is given up
        // only when the new one holds its contents.
        unsafe {
            let size = layout.size().min(new_size);
            let allocate = || {
                if new_size > layout.size() && new_size >= threshold {
                    self.alloc_large(new_layout, Use::Grown)
                } else {
                    self.alloc(new_layout)
                }
            };
            let (mut new, mut moved) = (allocate(), 0);
            if !new.is_null() && size >= huge::MOVED_BYTES && self.backing.pages_may_move() {
                match huge::move_pages(ptr, size, new) {
                    Some(bytes) => moved = bytes,
                    // It has been lost over that.
                    None => new = allocate(),
                }
            }
            if !new.is_null() {
                ptr::copy_nonoverlapping(ptr.add(moved), new.add(moved), size - moved);
                self.dealloc(ptr, layout);
            }
            new
        }
    }

    /// Gives a huge block the size of `new` without copying what is in it: its place from now on, or null when that
    /// cannot be.
    ///
    /// # Safety
    /// `ptr` is a live huge block of `layout`, whose mapping is `len` long.
    unsafe fn resize_huge(&self, ptr: *mut u8, len: usize, layout: Layout, new: Layout) -> *mut u8 {
        // Else whoever frees it would not know it for what it is.
        if new.size() < self.read_settings() || !huge::may_be(new) {
            return ptr::null_mut();
        }
        let Some(wanted) = Class::of_huge(new.size()).map(Class::bytes) else {
            return ptr::null_mut();
        };
        if wanted > len {
            // SAFETY: the caller's block.
            return unsafe { huge::grow(ptr, wanted, new.align()) };
        }
        if new.size() < layout.size() && wanted < len {
            // SAFETY: the caller's block, of which nobody uses what is cut off.
            unsafe {
                let rest = huge::split(ptr, wanted);
                if !rest.is_null() {
                    let class = Class::of_mapping(len - wanted);
                    if let Phase::Running(runtime) = self.phase.get() {
                        runtime.prepare(class);
                    }
                    self.give_up(class, rest, new);
                }
            }
        }
        ptr
    }

    /// Whether the block has room for `new`, rounded as a block of that size is, without wasting
    /// more than half of itself (mimalloc's rule, `mi_realloc`).
    ///
    /// # Safety
    /// `ptr` is a live block of `layout`, of the backing.
    unsafe fn fits_in_place(
        &self,
        ptr: *mut u8,
        layout: Layout,
        new: Layout,
        threshold: usize,
    ) -> bool {
        let class_of = |layout: Layout| {
            (layout.size() >= threshold).then(|| Class::of(layout.size())).flatten()
        };
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

// SAFETY: small blocks are the backing's own. A large block is the backing's as well, or a mapping of its own, of at
// least the size of its layout's class; between its free and its next use it belongs to the pending queues
// alone. Nothing here unwinds: what could panic is checked, see the crate's front page.
unsafe impl<B: Backing> GlobalAlloc for DeferFree<B> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: of one layout, the caller's.
        unsafe {
            if is_surely_small(layout) {
                Self::allocate::<false>(layout.size(), self)
            } else {
                Self::allocate_any::<false>(layout.size(), layout.align(), self)
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: of one layout, the caller's.
        unsafe {
            if is_surely_small(layout) {
                Self::allocate::<true>(layout.size(), self)
            } else {
                Self::allocate_any::<true>(layout.size(), layout.align(), self)
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's block.
        unsafe {
            if layout.size() < MIN_CLASS_BYTES {
                Self::free(ptr, layout.size(), self);
            } else {
                Self::free_any(ptr, layout.size(), layout.align(), self);
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's block.
        unsafe { Self::reallocate(ptr, layout.size(), layout.align(), new_size, self) }
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
