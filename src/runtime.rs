//! Everything that an allocator owns once its drainer runs, and what its large blocks go through.

mod shortage;
#[cfg(all(test, loom))]
mod models;

use std::alloc::Layout;
use std::ffi::c_void;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::time::Duration;

use self::shortage::Giver;
use crate::backing::Backing;
use crate::burst::local::{self, Local};
use crate::burst::{BURSTS, HowMuch, Settler, Written};
use crate::config::Config;
use crate::drainer::{self, Control, free_for_good, work};
use crate::huge::{self, Coverage, Use};
use crate::lifecycle::{self, Failure, Inside, OfGeneration};
use crate::pending::{Block, Class, Kept, Pending, Refused, Taken};
use crate::report;
use crate::stats::{SizeStats, Stats};
use crate::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use crate::sys;

/// Shared by the allocator and its drainer; lives in a mapping of its own.
pub(crate) struct Runtime<B> {
    pending: Pending,
    backing: B,
    config: Config,
    lost_in_fork_bytes: u64,
    control: Control,
    /// The clock of the drainer's CPU time; 0 as long as that is not known.
    cpu_clock: AtomicI32,
    giver: Giver,
    settler: Settler,
}

/// Why there is no drainer.
#[derive(Debug)]
pub(crate) enum StartError {
    Platform,
    Memory,
    Register,
    Thread(io::Error),
}

impl From<&StartError> for Failure {
    fn from(error: &StartError) -> Failure {
        match error {
            StartError::Platform => Failure::ForGood,
            StartError::Memory | StartError::Register => Failure::ForNow,
            StartError::Thread(error) => error.into(),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Platform => f.write_str("nothing is deferred on this platform"),
            StartError::Memory => f.write_str("no memory to start with"),
            StartError::Register => f.write_str("cannot register for fork and exit"),
            StartError::Thread(error) => {
                write!(f, "cannot start the drainer ({})", sys::Errno::from(error))
            }
        }
    }
}

/// Whether no memory that is given back would make room for so many bytes, as where a program has read a length that it did
/// not check: sixteen times what there is, as there may be swap beside it.
#[cold]
fn is_out_of_question(bytes: usize) -> bool {
    sys::memory_limit().is_some_and(|limit| bytes / 16 > limit)
}

/// Blocks that one allocation pays back at most: some 30 us. Beyond that it is for the drainer.
const PAY_BACK_BLOCKS: usize = 64;

impl<B: Backing> Runtime<B> {
    /// Builds a runtime and starts its drainer, which begins its life `inside` the gate. `inherited` is what the allocator
    /// had in the process that this one was forked off from. To be called with signals blocked, as the drainer inherits that.
    pub(crate) fn start(
        backing: B,
        config: Config,
        inherited: Option<&Self>,
        inside: Inside,
    ) -> Result<NonNull<Self>, StartError> {
        if !sys::CAN_DEFER {
            return Err(StartError::Platform);
        }
        let lost_in_fork_bytes =
            inherited.map_or(0, |runtime| runtime.pending.waiting_bytes() as u64);
        let giver_before = inherited.map(|runtime| &runtime.giver);
        let huge_before = inherited.map_or(0, |runtime| {
            let pending = &runtime.pending;
            pending.known_huge_classes().map(|class| pending.len(class)).sum()
        });
        let inherited = inherited.map_or(0, |runtime| ptr::from_ref(runtime).addr());
        let runtime = Self::build(backing, config, lost_in_fork_bytes).ok_or(StartError::Memory)?;
        // SAFETY: nobody else knows of it.
        let this = unsafe { runtime.as_ref() };
        backing.drainer_awake(true);
        let is_owner = BURSTS.claim(runtime.addr().get(), inherited);

        // SAFETY: the new thread may use the runtime: all that two threads do with it goes through atomics and
        // locks.
        let started = unsafe {
            sys::start_thread(drainer::STACK_BYTES, Self::drainer_main, runtime.as_ptr().cast())
        };
        match started {
            Ok(()) => {
                inside.hand_over();
                BURSTS.note_started(runtime.addr().get());
                huge::forget(huge_before);
                if backing.at_thread_end(shortage::settle) {
                    this.giver.come(giver_before);
                    if is_owner {
                        BURSTS.allow_settling(&this.settler);
                    }
                }
                Ok(runtime)
            }
            Err(error) => {
                backing.drainer_awake(false);
                BURSTS.unclaim(runtime.addr().get(), inherited);
                // SAFETY: there is no drainer, and nobody else knows of it.
                unsafe { Self::destroy(runtime) };
                Err(StartError::Thread(error))
            }
        }
    }

    /// The drainer's life, which begins inside the gate. `runtime` is a `NonNull<Self>`, given over to it.
    extern "C" fn drainer_main(runtime: *mut c_void) -> *mut c_void {
        // SAFETY: `start` made it of one.
        let runtime = unsafe { NonNull::new_unchecked(runtime.cast::<Self>()) };
        // SAFETY: the mapping stays until this thread unmaps it, below.
        let this = unsafe { runtime.as_ref() };
        if let Some(local) = local::here() {
            // For as long as it lives: what it purges is no shortage.
            local.rest();
        }
        let inside = Inside::taken_over();
        sys::be_ordinary();
        sys::name_thread(drainer::THREAD_NAME);
        this.cpu_clock.store(sys::thread_cpu_clock().unwrap_or(0), Ordering::Relaxed);
        this.backing.drainer_init();
        drop(inside);
        let delay = Duration::from_millis(this.config.delay_ms);
        let owner = runtime.addr().get();
        drainer::run(this.backing, &this.pending, &this.control, delay, owner);
        this.giver.withdraw();
        // Only now: nobody is about to free what the next owner's threads write down.
        BURSTS.release(owner);
        // Inside the gate, as at birth. At exit nobody forks any more who could go on.
        if let Some(_inside) = Inside::enter() {
            this.backing.drainer_done();
        }
        // SAFETY: `run` returns after `stop`, by which the allocator gave up its part.
        unsafe { Self::destroy(runtime) };
        ptr::null_mut()
    }

    fn build(backing: B, config: Config, lost_in_fork_bytes: u64) -> Option<NonNull<Self>> {
        let runtime = NonNull::new(sys::map_zeroed(size_of::<Self>()).cast::<MaybeUninit<Self>>())?;
        let runtime = runtime.cast::<Self>();
        let this = runtime.as_ptr();
        // SAFETY: a fresh mapping of the right size, aligned to a page. `pending` stays as it is:
        // zeros are a valid `Pending`, and its thousands of classes are not to be touched one by one.
        unsafe {
            (&raw mut (*this).backing).write(backing);
            (&raw mut (*this).config).write(config);
            (&raw mut (*this).lost_in_fork_bytes).write(lost_in_fork_bytes);
            (&raw mut (*this).control).write(Control::default());
            (&raw mut (*this).giver).write(Giver::new(this));
            (&raw mut (*this).settler).write(Settler::new(this.cast(), Self::free_small));
            (*this).pending.set_up(config.max_pending_bytes, lifecycle::generation());
        }
        Some(runtime)
    }

    /// # Safety
    /// Nobody else uses the runtime, now or later, and its pending blocks have been taken out.
    unsafe fn destroy(runtime: NonNull<Self>) {
        // SAFETY: the caller is the last user; the fields were initialised by `build`.
        unsafe {
            runtime.as_ref().pending.destroy();
            ptr::drop_in_place(&raw mut (*runtime.as_ptr()).control);
            sys::unmap(runtime.as_ptr().cast(), size_of::<Self>());
        }
    }

    /// See [`Settler`].
    ///
    /// # Safety
    /// A runtime of this type that stays meanwhile, and a block of its backing's that nobody uses.
    unsafe fn free_small(runtime: *const c_void, block: *mut u8) {
        // SAFETY: the caller's.
        unsafe { (*runtime.cast::<Self>()).backing.dealloc_any(block) };
    }

    /// Has the drainer free everything and end; the runtime is gone some time after.
    pub(crate) fn stop(&self) {
        self.control.stop();
    }

    pub(crate) fn config(&self) -> Config {
        self.config
    }

    /// A block for `layout`, whose class is `class`; null when there is no memory.
    #[inline]
    pub(crate) fn alloc(&self, class: Class, layout: Layout, for_use: Use) -> *mut u8 {
        if class.is_huge() {
            return self.alloc_huge(class, layout, for_use);
        }
        if for_use.is_zeroed() {
            return self.alloc_zeroed(class, layout, for_use);
        }
        match self.fitting(class, self.pending.take(class, layout.align())) {
            Some(block) => block.as_ptr(),
            None => self.alloc_missed(class, layout, for_use),
        }
    }

    /// What was taken out of `class`; one that is not aligned is freed.
    #[inline]
    fn fitting(&self, class: Class, taken: Taken) -> Option<Block> {
        match taken {
            Taken::Fitting(block) => Some(block),
            Taken::Misaligned(block) => {
                self.free_now(class, block);
                None
            }
            Taken::Nothing => None,
        }
    }

    /// As `alloc`, for a zeroed block: one that the drainer has cleared, or one that is cleared here.
    fn alloc_zeroed(&self, class: Class, layout: Layout, for_use: Use) -> *mut u8 {
        let cleared = self.pending.take_cleared(class, layout.align());
        if let Some(block) = self.fitting(class, cleared) {
            return block.as_ptr();
        }
        let Some(block) = self.fitting(class, self.pending.take(class, layout.align())) else {
            return self.alloc_missed(class, layout, for_use);
        };
        // SAFETY: the block is ours and has at least `class.bytes() >= size` bytes.
        unsafe { block.as_ptr().write_bytes(0, layout.size()) };
        block.as_ptr()
    }

    /// As `alloc`, for a huge class.
    #[cold]
    fn alloc_huge(&self, class: Class, layout: Layout, for_use: Use) -> *mut u8 {
        let mut for_use = for_use;
        if for_use.is_zeroed() {
            let expects_written = self.pending.expects_written(class);
            if let Some(block) = self.take_and_clear(class, layout, expects_written) {
                return block.as_ptr();
            }
            if expects_written {
                for_use = Use::ZeroedAndWritten;
            }
        } else if let Some(block) =
            self.take_huge(class, layout, for_use).or_else(|| self.take_smaller(class, layout))
        {
            return block.as_ptr();
        }
        self.alloc_missed(class, layout, for_use)
    }

    /// A waiting huge block, made zero: one that was written sparsely, or one all of whose pages are there and are going to
    /// be wanted.
    fn take_and_clear(&self, class: Class, layout: Layout, expects_written: bool) -> Option<Block> {
        if layout.align() > huge::UNIT_BYTES {
            return None;
        }
        let block = self.fitting(class, self.pending.take(class, layout.align()))?;
        // SAFETY: a huge block, which is ours.
        let coverage = unsafe { huge::coverage(block.as_ptr()) };
        self.pending.note_written(class, coverage);
        let is_whole = match coverage {
            Coverage::Whole => true,
            Coverage::Unknown => expects_written,
            Coverage::Part | Coverage::Sparse => false,
        };
        // SAFETY: the same block, which is as long as those of its class are.
        unsafe {
            if is_whole && class.bytes() <= huge::CLEARED_BYTES {
                huge::clear(block.as_ptr(), layout.size());
                return Some(block);
            }
            if coverage == Coverage::Sparse && huge::clear_sparse(block.as_ptr()) {
                return Some(block);
            }
        }
        self.kept(class, self.pending.put_back(class, block));
        None
    }

    /// A waiting huge block that is not much larger than `class`, which is a huge one: half as large again, or twice as large
    /// for a block that grows, which is going to grow on. More would stay resident with it.
    fn take_huge(&self, class: Class, layout: Layout, for_use: Use) -> Option<Block> {
        if layout.align() > huge::UNIT_BYTES {
            return None;
        }
        let larger = if for_use == Use::Grown { class.bytes() } else { class.bytes() / 2 };
        let classes = self.pending.known_classes_from(class.index());
        classes
            .take_while(|near| near.bytes() - class.bytes() <= larger)
            .find_map(|near| self.fitting(near, self.pending.take(near, layout.align())))
    }

    /// A waiting huge block of at least half the size of `class`, lengthened: only what is added has to be faulted in.
    /// A program that goes to and fro between blocks of 256 and 384 MiB took 36 times as long as with mimalloc alone when each
    /// of them was made anew.
    fn take_smaller(&self, class: Class, layout: Layout) -> Option<Block> {
        if layout.align() > huge::UNIT_BYTES || !sys::MOVES_MAPPINGS {
            return None;
        }
        let classes = self.pending.known_classes_below(class.index());
        let (near, block) = classes
            .take_while(|near| near.is_huge() && 2 * near.bytes() >= class.bytes())
            .find_map(|near| {
                let taken = self.pending.take(near, layout.align());
                Some((near, self.fitting(near, taken)?))
            })?;
        // SAFETY: a huge block, which is ours.
        let grown = unsafe { huge::grow(block.as_ptr(), class.bytes(), layout.align()) };
        if grown.is_null() {
            self.kept(near, self.pending.put_back(near, block));
            return None;
        }
        self.prepare(class);
        // SAFETY: the same block, which has become one of `class`.
        Some(unsafe { Block::new(grown) })
    }

    /// As `alloc`, when nothing of the class waits.
    #[cold]
    fn alloc_missed(&self, class: Class, layout: Layout, for_use: Use) -> *mut u8 {
        local::end_rest();
        self.prepare(class);
        let misses = self.pending.note_miss(class);
        if !class.is_huge() {
            self.note_anew(class.bytes());
        }
        self.pay_back(class, misses);
        // SAFETY: the class was made from this layout.
        let block = unsafe { alloc_fresh(self.backing, class, layout, for_use) };
        if !block.is_null() || is_out_of_question(layout.size()) {
            return block;
        }
        self.give_back_everything();
        // SAFETY: as above.
        unsafe { alloc_fresh(self.backing, class, layout, for_use) }
    }

    /// So many bytes are allocated that nothing which waits can serve.
    pub(crate) fn note_anew(&self, bytes: usize) {
        if self.pending.note_anew(bytes) {
            self.control.make_room(&self.pending);
        }
    }

    /// The program is at work, and the drainer may be asleep.
    pub(crate) fn note_work(&self) {
        self.wake_drainer();
        self.note_anew(work::NOTED_BYTES);
    }

    /// Wakes the drainer if it is asleep.
    pub(crate) fn wake_drainer(&self) {
        self.control.wake_if_asleep(&self.pending);
    }

    /// Sees to it that blocks of `class` can wait.
    pub(crate) fn prepare(&self, class: Class) {
        self.pending.prepare(class);
    }

    /// Gives waiting blocks of other sizes back to the allocator, so that a program whose sizes
    /// change does not hold the old ones beside the new ones.
    ///
    /// The first time it is twice what the caller is going to allocate, and with each further miss in
    /// a row as much more: by then the program has left the old sizes behind, and only what is given
    /// back together makes room in one piece. Blocks just above the wanted size come first, because
    /// one of them is such a piece.
    fn pay_back(&self, wanted: Class, misses: u32) {
        if self.pending.bytes() == 0 {
            return;
        }
        if wanted.is_huge() {
            // A mapping of its own cannot use what the others leave, and to unmap its like takes longer than a thread
            // may be made to wait. Where what waits of its class is not zero, the system makes it so meanwhile.
            if self.pending.known_huge_classes().any(|class| self.pending.len(class) > 0) {
                self.control.hurry_huge(&self.pending);
            }
            return;
        }
        let mut owed = wanted.bytes().saturating_mul(misses.saturating_mul(2) as usize);
        let mut left = PAY_BACK_BLOCKS;
        for class in self.pending.classes_near(wanted) {
            while let Some(block) = self.pending.pay_back(class) {
                self.free_now(class, block);
                owed = owed.saturating_sub(class.bytes());
                left -= 1;
                if owed == 0 || left == 0 {
                    return;
                }
            }
        }
    }

    /// An allocation has failed, or is about to.
    #[cold]
    pub(crate) fn give_back_everything(&self) {
        for class in self.pending.known_classes() {
            while let Some(block) = self.pending.drain(class) {
                self.free_now(class, block);
            }
        }
        if self.owns_bursts() {
            // SAFETY: blocks that threads gave up, taken out of the one log that they were in.
            BURSTS.take_back_all(|block| unsafe { self.backing.dealloc_any(block) });
        }
        // A child forked off in the midst of it would never purge. Where a fork is under way already, this comes first.
        let _inside = Inside::try_enter();
        self.backing.purge();
    }

    fn owns_bursts(&self) -> bool {
        BURSTS.is_owned_by(ptr::from_ref(self).addr())
    }

    fn anything_waits(&self) -> bool {
        self.pending.bytes() > 0 || self.owns_bursts() && BURSTS.bytes() > 0
    }

    /// Frees on the calling thread a block that has left `pending`, or never got in.
    fn free_now(&self, class: Class, block: Block) {
        let _errno = sys::KeepsErrno::new();
        // SAFETY: the block belongs to `class` and is ours.
        unsafe { free_for_good(self.backing, &self.pending, class, block) };
        self.control.note_given_back(&self.pending);
    }

    /// Frees a block of `class`: it waits for reuse, or for the drainer. False if it was freed at once because it is
    /// from before the start, and is not counted here.
    ///
    /// # Safety
    /// `ptr` is a live block that was allocated for `class`.
    #[inline]
    pub(crate) unsafe fn dealloc(&self, class: Class, ptr: *mut u8) -> bool {
        // SAFETY: the caller gives up a block of the class.
        self.kept(class, self.pending.put(class, unsafe { Block::new(ptr) }))
    }

    /// What follows from a block's being put where it waits, or not. False if it was freed at once and is not counted.
    #[inline]
    fn kept(&self, class: Class, kept: Result<Kept, Refused>) -> bool {
        match kept {
            Ok(Kept::Normal) => true,
            Ok(Kept::WasAsleep | Kept::OverHighWater) => {
                self.control.wake();
                true
            }
            Err(refused) => self.refused(class, refused),
        }
    }

    /// Frees what may not wait; whether it is counted.
    #[cold]
    fn refused(&self, class: Class, refused: Refused) -> bool {
        let counted = !matches!(refused, Refused::Unknown(_));
        let block = match refused {
            Refused::Unknown(block) | Refused::Bound(block) | Refused::Queue(block) => block,
            Refused::WasAsleep(block) => {
                self.control.wake();
                block
            }
        };
        self.free_now(class, block);
        counted
    }

    /// Writes down a small block of `size` bytes that the calling thread frees, if it can be. Only for the owner of the
    /// bursts.
    pub(crate) fn defer_small(&self, local: &Local, block: *mut u8, size: usize) -> Written {
        BURSTS.write(local, block, size, |bytes| self.pending.has_room(bytes))
    }

    /// A block has been written where the drainer may not have looked.
    pub(crate) fn note_opened(&self) {
        BURSTS.fence_before_wake();
        self.control.wake_if_asleep(&self.pending);
        if BURSTS.is_to_be_told() {
            self.control.wake();
        }
    }

    /// Frees what the calling thread has written down, as much as is said; how many blocks that was.
    pub(crate) fn take_back_small(&self, local: &Local, much: HowMuch) -> usize {
        // SAFETY: blocks that this thread gave up, taken out of the one log that they were in.
        let free = |block| unsafe { self.backing.dealloc_any(block) };
        let n_blocks = BURSTS.take_back(local, much, free);
        if n_blocks > 0 {
            self.control.note_given_back(&self.pending);
        }
        n_blocks
    }

    /// See [`DeferFree::flush`](crate::DeferFree::flush).
    pub(crate) fn flush(&self) {
        self.control.flush(&self.pending);
    }

    pub(crate) fn stats(&self) -> Stats {
        let (released_bytes, release_calls) = self.pending.released();
        let cpu_clock = self.cpu_clock.load(Ordering::Relaxed);
        let mut stats = Stats {
            peak_pending_bytes: self.pending.peak_bytes() as u64,
            lost_in_fork_bytes: self.lost_in_fork_bytes,
            purges: self.control.purges(),
            returned_bytes: self.control.returned_bytes(),
            released_bytes,
            release_calls,
            drainer_cpu_ns: if cpu_clock == 0 { None } else { sys::thread_cpu_ns(cpu_clock) }
                .unwrap_or(0),
            drainer_running: true,
            ..Stats::default()
        };
        self.sizes().for_each(|size| stats.add_size(&size));
        if self.owns_bursts() {
            stats.bursts = BURSTS.stats();
        }
        stats
    }

    /// The classes that are known, those of blocks with a mapping of their own last, smaller ones first.
    pub(crate) fn sizes(&self) -> impl Iterator<Item = SizeStats> + '_ {
        self.pending.known_classes().map(|class| {
            let counts = self.pending.counts(class);
            let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
            SizeStats {
                block_bytes: class.bytes() as u64,
                own_mapping: class.is_huge(),
                handed_over: self.pending.handed_over(class),
                reused: self.pending.reused(class),
                drained: load(&counts.drained),
                paid_back: load(&counts.paid_back),
                over_bound: load(&counts.over_bound),
                queue_full: load(&counts.queue_full),
                pending: self.pending.len(class) as u64,
                missed: load(&counts.missed),
            }
        })
    }
}

impl<B> OfGeneration for Runtime<B> {
    #[inline]
    fn generation(&self) -> u32 {
        self.pending.generation()
    }
}

impl<B: Backing> report::Source for Runtime<B> {
    fn is_current(&self) -> bool {
        OfGeneration::is_current(self)
    }

    fn stats(&self) -> Stats {
        self.stats()
    }

    fn for_each_size(&self, f: &mut dyn FnMut(&SizeStats)) {
        self.sizes().filter(|size| size.handed_over + size.missed > 0).for_each(|size| f(&size));
    }
}

/// Allocates with the size of `class`, so that any block of the class can take its place. Where a huge block cannot be had
/// it is one of the backing's.
///
/// # Safety
/// `class` is the class of `layout`.
pub(crate) unsafe fn alloc_fresh<B: Backing>(
    backing: B,
    class: Class,
    layout: Layout,
    for_use: Use,
) -> *mut u8 {
    if class.is_huge() {
        let block = huge::map(class.bytes(), layout.align(), for_use);
        if !block.is_null() {
            return block;
        }
    }
    let Some(layout) = class.layout(layout.align()) else {
        return ptr::null_mut();
    };
    // SAFETY: a class's size is not 0.
    unsafe {
        if for_use.is_zeroed() { backing.alloc_zeroed(layout) } else { backing.alloc(layout) }
    }
}
