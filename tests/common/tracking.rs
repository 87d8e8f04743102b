//! An allocator on top of the system's that knows all its blocks, and can be told to run out.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use deferfree::Backing;

use super::Mutex;

/// Ends the process when a block comes back that was not given out: a panic must not leave an
/// allocator.
#[derive(Debug)]
pub(crate) struct Tracking {
    /// Each block's layout by its address.
    live: Mutex<HashMap<usize, Layout>>,
    /// Allocations that would make the live bytes exceed this are refused.
    limit_bytes: AtomicUsize,
    /// Bytes that may still be allocated, whatever is freed meanwhile.
    budget_bytes: AtomicUsize,
    /// Allocations until one is refused; that is the one that finds 1.
    until_refusal: AtomicUsize,
    n_allocs: AtomicUsize,
    n_refused: AtomicUsize,
}

impl Tracking {
    /// One that lives as long as the process, as a `Backing` has to.
    pub(crate) fn leak() -> &'static Tracking {
        // Within reach of a leak detector.
        static ALL: Mutex<Vec<&Tracking>> = Mutex::new(Vec::new());
        let new: &Tracking = Box::leak(Box::new(Tracking {
            live: Mutex::new(HashMap::new()),
            limit_bytes: AtomicUsize::new(usize::MAX),
            budget_bytes: AtomicUsize::new(usize::MAX),
            until_refusal: AtomicUsize::new(0),
            n_allocs: AtomicUsize::new(0),
            n_refused: AtomicUsize::new(0),
        }));
        ALL.lock().push(new);
        new
    }

    pub(crate) fn live_blocks(&self) -> usize {
        self.live.lock().len()
    }

    /// Whether some thread is in here: for good, in a forked child.
    pub(crate) fn is_locked(&self) -> bool {
        self.live.is_locked()
    }

    pub(crate) fn live_bytes(&self) -> usize {
        sum(&self.live.lock())
    }

    pub(crate) fn is_live(&self, ptr: *mut u8) -> bool {
        self.live.lock().contains_key(&ptr.addr())
    }

    /// The size that a live block was asked for with.
    pub(crate) fn size_of(&self, ptr: *mut u8) -> usize {
        self.live.lock()[&ptr.addr()].size()
    }

    /// Allocations that were granted.
    pub(crate) fn n_allocs(&self) -> usize {
        self.n_allocs.load(Ordering::SeqCst)
    }

    pub(crate) fn n_refused(&self) -> usize {
        self.n_refused.load(Ordering::SeqCst)
    }

    pub(crate) fn limit(&self, bytes: usize) {
        self.limit_bytes.store(bytes, Ordering::SeqCst);
    }

    /// The `n`th allocation from now on is refused, and no other.
    pub(crate) fn refuse_nth(&self, n: usize) {
        self.until_refusal.store(n, Ordering::SeqCst);
    }

    /// From now on so many bytes are granted in all; `usize::MAX` for any number.
    pub(crate) fn budget(&self, bytes: usize) {
        self.budget_bytes.store(bytes, Ordering::SeqCst);
    }

    /// Called with the books locked.
    fn refuses(&self, bytes: usize) -> bool {
        let left = self.until_refusal.load(Ordering::SeqCst);
        if left > 0 {
            self.until_refusal.store(left - 1, Ordering::SeqCst);
        }
        let budget = self.budget_bytes.load(Ordering::SeqCst);
        if budget != usize::MAX {
            if bytes > budget {
                return true;
            }
            self.budget_bytes.store(budget - bytes, Ordering::SeqCst);
        }
        left == 1
    }

    fn track(&self, layout: Layout, alloc: impl FnOnce() -> *mut u8) -> *mut u8 {
        let bytes = layout.size();
        let mut live = self.live.lock();
        let limit = self.limit_bytes.load(Ordering::SeqCst);
        if self.refuses(bytes) || limit != usize::MAX && sum(&live).saturating_add(bytes) > limit {
            self.n_refused.fetch_add(1, Ordering::SeqCst);
            return ptr::null_mut();
        }
        let ptr = alloc();
        if !ptr.is_null() {
            self.n_allocs.fetch_add(1, Ordering::SeqCst);
            if live.insert(ptr.addr(), layout).is_some() {
                fault("a live block was given out again");
            }
        }
        ptr
    }
}

fn sum(live: &HashMap<usize, Layout>) -> usize {
    live.values().map(Layout::size).sum()
}

fn fault(what: &str) -> ! {
    eprintln!("tracking allocator: {what}");
    std::process::abort();
}

// SAFETY: the system's allocator, with books.
unsafe impl GlobalAlloc for &'static Tracking {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        self.track(layout, || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout.
        self.track(layout, || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, ptr: *mut u8, _: Layout) {
        let Some(layout) = self.live.lock().remove(&ptr.addr()) else {
            fault("a block was freed that is not its own, or freed twice");
        };
        // SAFETY: the block is one of `System`'s, with the layout that it was made with.
        unsafe { System.dealloc(ptr, layout) };
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract makes the new layout a valid one.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        // SAFETY: two distinct blocks of at least the bytes copied.
        unsafe {
            let new = self.alloc(new_layout);
            if !new.is_null() {
                ptr::copy_nonoverlapping(ptr, new, layout.size().min(new_size));
                self.dealloc(ptr, layout);
            }
            new
        }
    }
}

// SAFETY: it knows each block's layout.
unsafe impl Backing for &'static Tracking {}
