//! Blocks below the threshold, when they are more than a matter for the backing: in a burst, and while a
//! thread pays back what it deferred in one.

use std::alloc::Layout;
use std::sync::atomic::Ordering;

use super::{DeferFree, Phase, SWITCHED_OFF};
use crate::backing::Backing;
use crate::batch::BATCHES;
use crate::batch::thread::{self, ADAPTIVE, ALWAYS, DISABLED, OFF, OnAlloc, OnFree};
use crate::config::{Burst, DEFAULT_BURST};
use crate::sys;

/// What `burst` says until the number of CPUs has been looked at.
pub(super) const BY_CPUS: u32 = ADAPTIVE - 1;

impl<B: Backing> DeferFree<B> {
    /// As `dealloc`, in the same cases, and when the thread's frees in a row may begin a burst.
    ///
    /// Its arguments are in the order in which Rust hands them to an allocator, so that the way that does
    /// not lead here has no registers to shuffle.
    ///
    /// # Safety
    /// As for `dealloc`.
    #[inline(never)]
    pub(super) unsafe fn dealloc_counted(ptr: *mut u8, size: usize, align: usize, this: &Self) {
        // SAFETY: those of the caller's layout.
        let layout = unsafe { Layout::from_size_align_unchecked(size, align) };
        if size >= this.threshold.load(Ordering::Relaxed) {
            // SAFETY: the caller's block.
            return unsafe { this.dealloc_large(ptr, layout) };
        }
        // SAFETY: the caller's block.
        unsafe { this.dealloc_small(ptr, layout) };
    }

    /// As `dealloc_counted`, for a block below the threshold.
    ///
    /// # Safety
    /// As for `dealloc`.
    #[inline(always)]
    pub(super) unsafe fn dealloc_small(&self, ptr: *mut u8, layout: Layout) {
        // A runtime that is the owner is of this generation.
        if BATCHES.defer_quickly(self.phase.addr(), ptr, layout.size()) {
            return;
        }
        // SAFETY: the caller's block.
        unsafe { self.dealloc_noted(ptr, layout) };
    }

    /// Out of line, so that the way above has no registers to save.
    #[inline(never)]
    unsafe fn dealloc_noted(&self, ptr: *mut u8, layout: Layout) {
        if thread::note_free(layout.size()) {
            // SAFETY: the caller's block.
            return unsafe { self.backing.dealloc(ptr, layout) };
        }
        // SAFETY: the caller's block.
        unsafe { self.dealloc_slow(ptr, layout) };
    }

    #[cold]
    unsafe fn dealloc_slow(&self, ptr: *mut u8, layout: Layout) {
        let burst = self.burst_frees();
        let on_free = thread::on_free(ptr.addr(), burst);
        if on_free != OnFree::FreeNow {
            if matches!(self.phase.get(), Phase::Off) && BATCHES.has_no_owner() {
                self.start();
            }
            match (self.phase.get(), on_free) {
                (Phase::Running(runtime), OnFree::Defer)
                    if runtime.defer_small(ptr, layout.size(), burst) =>
                {
                    return;
                }
                (Phase::Running(runtime), OnFree::FreeNowNear) => runtime.note_near_burst(),
                (Phase::Off | Phase::Starting | Phase::Failed, OnFree::Defer) => {
                    thread::back_off(burst);
                }
                _ => (),
            }
        }
        // SAFETY: the caller's block; every block comes from the backing.
        unsafe { self.backing.dealloc(ptr, layout) };
    }

    /// As `alloc` or `alloc_zeroed`, when the block is not known to be small or the thread is not known
    /// to be neither in a burst nor to owe frees. For the order of arguments see `dealloc_counted`.
    ///
    /// # Safety
    /// `size` and `align` are those of a layout.
    #[inline(never)]
    pub(super) unsafe fn alloc_counted(
        size: usize,
        align: usize,
        this: &Self,
        zeroed: bool,
    ) -> *mut u8 {
        // SAFETY: the caller's.
        let layout = unsafe { Layout::from_size_align_unchecked(size, align) };
        // Relaxed, here and below: the value alone decides; 0 leads to the reading with Acquire.
        if size >= this.threshold.load(Ordering::Relaxed) {
            return this.alloc_large(layout, zeroed);
        }
        this.alloc_small(layout, zeroed)
    }

    /// As `alloc_counted`, for a block below the threshold.
    #[inline(always)]
    pub(super) fn alloc_small(&self, layout: Layout, zeroed: bool) -> *mut u8 {
        if !thread::note_alloc() {
            self.note_alloc_slow();
        }
        // SAFETY: the caller's layout.
        unsafe {
            if zeroed { self.backing.alloc_zeroed(layout) } else { self.backing.alloc(layout) }
        }
    }

    /// As `realloc`, in the same cases.
    ///
    /// # Safety
    /// As for `realloc`.
    #[inline(never)]
    pub(super) unsafe fn realloc_counted(
        &self,
        ptr: *mut u8,
        layout: Layout,
        new_size: usize,
    ) -> *mut u8 {
        if layout.size().max(new_size) >= self.threshold.load(Ordering::Relaxed) {
            // SAFETY: the caller's block.
            return unsafe { self.realloc_large(ptr, layout, new_size) };
        }
        // SAFETY: the caller's block.
        unsafe { self.realloc_small(ptr, layout, new_size) }
    }

    /// As `realloc_counted`, for sizes below the threshold.
    ///
    /// # Safety
    /// As for `realloc`.
    #[inline(always)]
    pub(super) unsafe fn realloc_small(
        &self,
        ptr: *mut u8,
        layout: Layout,
        new_size: usize,
    ) -> *mut u8 {
        if !thread::note_alloc() {
            self.note_alloc_slow();
        }
        // SAFETY: the caller's block.
        unsafe { self.backing.realloc(ptr, layout, new_size) }
    }

    /// Before a small allocation, when the thread may be in a burst or owe frees.
    #[cold]
    pub(super) fn note_alloc_slow(&self) {
        if thread::on_alloc(self.burst_frees()) == OnAlloc::PayBack {
            let owes = match self.phase.get() {
                Phase::Running(runtime) => runtime.pay_back_small(),
                Phase::Off | Phase::Starting | Phase::Failed => false,
            };
            if !owes {
                thread::owes_nothing();
            }
        }
    }

    /// Frees in a row that begin a burst; may be `ALWAYS`, `ADAPTIVE`, `OFF` or `DISABLED`.
    fn burst_frees(&self) -> u32 {
        if self.read_settings() == SWITCHED_OFF || !sys::CAN_DEFER {
            return DISABLED;
        }
        let burst = self.burst.load(Ordering::Relaxed);
        if burst != BY_CPUS {
            return burst;
        }
        let burst = if sys::has_one_cpu() { OFF } else { ADAPTIVE };
        self.burst.store(burst, Ordering::Relaxed);
        burst
    }

    /// As the configuration shows it.
    pub(super) fn configured_burst(&self) -> Option<u32> {
        match self.burst_frees() {
            ADAPTIVE => Some(DEFAULT_BURST),
            burst => Some(burst).filter(|&burst| burst < OFF),
        }
    }
}

/// The number that stands for a setting.
pub(super) fn frees_of(burst: Burst, threshold_bytes: usize) -> u32 {
    match burst {
        _ if threshold_bytes == 0 => ALWAYS,
        Burst::Default => BY_CPUS,
        Burst::After(n_frees) => n_frees.min(BY_CPUS - 1),
        Burst::Never => OFF,
    }
}
