//! An allocator that gives out addresses, each once, with no memory behind them: what waits to be freed must not
//! be looked at. It keeps books, can hold the drainer up in a free, and says what a block costs to touch.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use deferfree::{Backing, DeferFree};

use super::{map, wait_until};

/// All that is ever given out, in each of two halves that lie far apart.
const HALF_BYTES: usize = 8 << 30;
/// Further than 32 bits of an address, in steps of 8 bytes, reach.
const APART_BYTES: usize = 64 << 30;
/// What addresses are multiples of.
const STEP: usize = 16;

const LIVE: u8 = 1;
const FREED: u8 = 2;

/// Ends the process when a block comes back that is not live: a panic must not leave an allocator.
#[derive(Debug)]
pub(crate) struct Addresses {
    base: usize,
    /// One for each address: 0 before it is given out.
    states: &'static [AtomicU8],
    /// Bytes given out of each half.
    given: [AtomicUsize; 2],
    n_allocs: AtomicUsize,
    n_live: AtomicUsize,
    n_freed_by_drainer: AtomicUsize,
    n_touched: AtomicUsize,
    touch_ns: AtomicU64,
    left_over: AtomicBool,
    alternates: AtomicBool,
    holds: AtomicBool,
    is_held: AtomicBool,
    settles: AtomicBool,
    settle: OnceLock<fn()>,
}

thread_local! {
    static IS_DRAINER: Cell<bool> = const { Cell::new(false) };
}

impl Addresses {
    /// Some that stay as long as the process, as a `Backing` has to.
    pub(crate) fn leak() -> &'static Addresses {
        let n_states = 2 * HALF_BYTES / STEP;
        let states = map(n_states, true);
        // SAFETY: a mapping of that length that stays; zeros are valid.
        let states = unsafe {
            std::slice::from_raw_parts(ptr::with_exposed_provenance::<AtomicU8>(states), n_states)
        };
        Box::leak(Box::new(Addresses {
            base: map(APART_BYTES + HALF_BYTES, false),
            states,
            given: [AtomicUsize::new(0), AtomicUsize::new(0)],
            n_allocs: AtomicUsize::new(0),
            n_live: AtomicUsize::new(0),
            n_freed_by_drainer: AtomicUsize::new(0),
            n_touched: AtomicUsize::new(0),
            touch_ns: AtomicU64::new(0),
            left_over: AtomicBool::new(false),
            alternates: AtomicBool::new(false),
            holds: AtomicBool::new(false),
            is_held: AtomicBool::new(false),
            settles: AtomicBool::new(false),
            settle: OnceLock::new(),
        }))
    }

    pub(crate) fn n_allocs(&self) -> usize {
        self.n_allocs.load(Ordering::SeqCst)
    }

    pub(crate) fn n_live(&self) -> usize {
        self.n_live.load(Ordering::SeqCst)
    }

    pub(crate) fn is_live(&self, block: usize) -> bool {
        self.state(block).load(Ordering::SeqCst) == LIVE
    }

    pub(crate) fn n_freed_by_drainer(&self) -> usize {
        self.n_freed_by_drainer.load(Ordering::SeqCst)
    }

    /// Blocks that were touched to learn what that costs.
    pub(crate) fn n_touched(&self) -> usize {
        self.n_touched.load(Ordering::SeqCst)
    }

    /// What it costs from now on. Far from what decides, on either side.
    pub(crate) fn are_cold(&self, cold: bool) {
        self.touch_ns.store(if cold { 500 } else { 0 }, Ordering::SeqCst);
    }

    /// From now on a thread's blocks are what is left in memory of its own.
    pub(crate) fn are_left_over(&self, left_over: bool) {
        self.left_over.store(left_over, Ordering::SeqCst);
    }

    /// From now on each block is far away from the one before.
    pub(crate) fn alternate(&self) {
        self.alternates.store(true, Ordering::SeqCst);
    }

    /// Has the drainer stay in its next free until `let_go`.
    pub(crate) fn hold_next(&self) {
        self.holds.store(true, Ordering::SeqCst);
    }

    pub(crate) fn wait_until_held(&self) {
        wait_until("the drainer is held up", || self.is_held.load(Ordering::SeqCst));
    }

    /// Holds the drainer up with a block of `layout` that another thread has freed, which stays until `let_go`.
    pub(crate) fn hold_drainer(
        &'static self,
        heap: &'static DeferFree<&'static Addresses>,
        layout: Layout,
    ) {
        self.hold_next();
        thread::spawn(move || {
            let _scope = deferfree::defer_scope();
            // SAFETY: a valid layout, freed once.
            unsafe { heap.dealloc(heap.alloc(layout), layout) };
            // With its log, which nobody else is to have meanwhile.
            while self.holds.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        });
        self.wait_until_held();
    }

    pub(crate) fn let_go(&self) {
        self.holds.store(false, Ordering::SeqCst);
    }

    /// To be called before the drainer starts: threads free what they deferred in `end_thread`.
    pub(crate) fn tells_of_ends(&self) {
        self.settles.store(true, Ordering::SeqCst);
    }

    /// As the last thing on a thread.
    pub(crate) fn end_thread(&'static self) {
        self.settle.get().expect("the drainer has started")();
    }

    fn state(&self, address: usize) -> &AtomicU8 {
        let offset = address.wrapping_sub(self.base);
        let half = usize::from(offset >= APART_BYTES);
        let state = self.states.get((offset - half * APART_BYTES + half * HALF_BYTES) / STEP);
        state.unwrap_or_else(|| fault("a block was freed that is not its own"))
    }
}

fn fault(what: &str) -> ! {
    eprintln!("addresses: {what}");
    std::process::abort();
}

// SAFETY: each address is given out once. Nothing may be done with it but to free it.
unsafe impl GlobalAlloc for &'static Addresses {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let n = self.n_allocs.fetch_add(1, Ordering::SeqCst);
        let half = if self.alternates.load(Ordering::Relaxed) { n % 2 } else { 0 };
        // With room to align it.
        let bytes = layout.size().next_multiple_of(STEP)
            + if layout.align() > STEP { layout.align() } else { 0 };
        let given = self.given[half].fetch_add(bytes, Ordering::SeqCst);
        if given + bytes > HALF_BYTES {
            fault("used up");
        }
        let address = (self.base + half * APART_BYTES + given).next_multiple_of(layout.align());
        self.state(address).store(LIVE, Ordering::SeqCst);
        self.n_live.fetch_add(1, Ordering::SeqCst);
        ptr::with_exposed_provenance_mut(address)
    }

    unsafe fn dealloc(&self, ptr: *mut u8, _: Layout) {
        if IS_DRAINER.get() {
            self.n_freed_by_drainer.fetch_add(1, Ordering::SeqCst);
            self.is_held.store(true, Ordering::SeqCst);
            while self.holds.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
            self.is_held.store(false, Ordering::SeqCst);
        }
        if self.state(ptr.addr()).swap(FREED, Ordering::SeqCst) != LIVE {
            fault("a block was freed that is not live");
        }
        self.n_live.fetch_sub(1, Ordering::SeqCst);
    }
}

// SAFETY: as above.
unsafe impl Backing for &'static Addresses {
    fn drainer_init(&self) {
        IS_DRAINER.set(true);
    }

    fn at_thread_end(&self, settle: fn()) -> bool {
        self.settles.load(Ordering::SeqCst) && self.settle.set(settle).is_ok()
    }

    unsafe fn touch(&self, _: *mut u8) {
        // Cheap: one thread is judging.
        self.n_touched.store(self.n_touched.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let nanos = self.touch_ns.load(Ordering::Relaxed);
        if nanos > 0 {
            let start = Instant::now();
            while start.elapsed().as_nanos() < u128::from(nanos) {}
        }
    }

    unsafe fn is_left_over(&self, _: *mut u8, _: *const ()) -> bool {
        self.left_over.load(Ordering::SeqCst)
    }
}
