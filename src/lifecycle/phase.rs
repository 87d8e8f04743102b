//! Where something with a thread of its own is in its life.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::generation;
use crate::sync::atomic::{AtomicPtr, Ordering};

/// ```text
/// OFF => STARTING => RUNNING
///                 => FAILED
/// ```
///
/// Nobody waits for a start: who comes meanwhile, the starting thread's own allocations included,
/// finds STARTING. Whatever belongs to an earlier generation of the process was inherited in a fork and
/// counts as OFF.
pub(crate) enum Phase<'a, T> {
    Off,
    Starting,
    Running(&'a T),
    Failed,
}

/// What knows which generation of the process it was made by.
pub(crate) trait OfGeneration {
    fn generation(&self) -> u32;

    /// Whether that was this very process, not one that it was forked off from.
    #[inline]
    fn is_current(&self) -> bool {
        self.generation() == generation()
    }
}

/// A phase, and the value that runs.
///
/// OFF is a null pointer, RUNNING a pointer to the value. The other two are no pointers: the
/// generation, shifted, and a tag that no pointer to such a value has.
pub(crate) struct PhaseCell<T> {
    word: AtomicPtr<T>,
    /// The value is used by many threads, and dropped by any of them: it has to be what an `Arc` asks for.
    shares: PhantomData<Arc<T>>,
}

const STARTING: usize = 1;
const FAILED: usize = 2;
const TAG_BITS: u32 = 2;

#[inline]
fn tagged<T>(tag: usize) -> *mut T {
    ptr::without_provenance_mut((generation() as usize) << TAG_BITS | tag)
}

impl<T: OfGeneration> PhaseCell<T> {
    pub(crate) const fn new() -> Self {
        const { assert!(align_of::<T>() > STARTING | FAILED) };
        PhaseCell { word: AtomicPtr::new(ptr::null_mut()), shares: PhantomData }
    }

    #[inline]
    pub(crate) fn get(&self) -> Phase<'_, T> {
        // Acquire pairs with the Release store in `Start::finish`: the value is complete.
        Self::phase(self.word.load(Ordering::Acquire))
    }

    /// Where the value is if one runs, in this process or one that it was forked off from; something
    /// that is nobody's address otherwise.
    #[inline]
    pub(crate) fn addr(&self) -> usize {
        // Relaxed: only the address counts.
        self.word.load(Ordering::Relaxed).addr()
    }

    #[inline]
    fn phase<'a>(seen: *mut T) -> Phase<'a, T> {
        if seen.addr() & (STARTING | FAILED) == 0 {
            // SAFETY: null, or a value that its owner keeps for as long as the cell; in a forked child
            // the copy of it stays for ever.
            return match unsafe { seen.as_ref() } {
                Some(value) if value.is_current() => Phase::Running(value),
                _ => Phase::Off,
            };
        }
        if seen == tagged(STARTING) {
            Phase::Starting
        } else if seen == tagged(FAILED) {
            Phase::Failed
        } else {
            Phase::Off
        }
    }

    /// OFF => STARTING, for one of those who try.
    ///
    /// The fork handlers must have been registered: without them a child would remain in STARTING.
    pub(crate) fn start(&self) -> Option<Start<'_, T>> {
        let seen = self.word.load(Ordering::Acquire);
        if !matches!(Self::phase(seen), Phase::Off) {
            return None;
        }
        // Relaxed: nothing is published yet.
        self.word
            .compare_exchange(seen, tagged(STARTING), Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        let inherited = if seen.addr() & (STARTING | FAILED) == 0 { seen } else { ptr::null_mut() };
        Some(Start { cell: self, inherited })
    }
}

/// The one attempt to get from STARTING to RUNNING.
pub(crate) struct Start<'a, T> {
    cell: &'a PhaseCell<T>,
    inherited: *mut T,
}

impl<T> Start<'_, T> {
    /// What ran in the process that this one was forked off from. Any thread of it may have been in
    /// the middle of a change.
    pub(crate) fn inherited(&self) -> Option<&T> {
        // SAFETY: as in `PhaseCell::phase`.
        unsafe { self.inherited.as_ref() }
    }

    /// STARTING => RUNNING, or FAILED without a value. The value must outlive the cell's use.
    pub(crate) fn finish(self, value: Option<NonNull<T>>) {
        let phase = value.map_or_else(|| tagged(FAILED), NonNull::as_ptr);
        // Release: see `get`.
        self.cell.word.store(phase, Ordering::Release);
    }
}

impl<T> fmt::Debug for PhaseCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PhaseCell").field(&self.word).finish()
    }
}
