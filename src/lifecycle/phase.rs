//! Where something with a thread of its own is in its life.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::generation;
use crate::sync::IN_MODEL;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use crate::sys;

/// ```text
/// OFF => STARTING => RUNNING
///            ^ |
///            | v
///          FAILED
/// ```
///
/// A start that failed is tried again if it may work another time: a second later, then two, and so on up to
/// [`LONGEST_PAUSE_NS`].
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
    /// What ran in the process that this one was forked off from, or null.
    inherited: AtomicPtr<T>,
    /// FAILED: when the start may be tried again, by `sys::monotonic_ns`, and how long it waits for that.
    again_at_ns: AtomicU64,
    pause_ns: AtomicU64,
    /// The value is used by many threads, and dropped by any of them: it has to be what an `Arc` asks for.
    shares: PhantomData<Arc<T>>,
}

const SECOND_NS: u64 = 1_000_000_000;
const FIRST_PAUSE_NS: u64 = if IN_MODEL { 0 } else { SECOND_NS };
const LONGEST_PAUSE_NS: u64 = 64 * SECOND_NS;
const NEVER: u64 = 0;

/// Why there was no start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The system had no memory or no room for a thread.
    ForNow,
    ForGood,
}

impl Failure {
    /// The end of a line that says what failed.
    pub(crate) fn outlook(self) -> &'static str {
        match self {
            Failure::ForNow => "; it will be tried again",
            Failure::ForGood => "",
        }
    }
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Failure {
        match error.kind() {
            // As by a filter of system calls. Windows has several codes for want of memory, most of them without a kind.
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Unsupported => Failure::ForGood,
            _ => Failure::ForNow,
        }
    }
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
        PhaseCell {
            word: AtomicPtr::new(ptr::null_mut()),
            inherited: AtomicPtr::new(ptr::null_mut()),
            again_at_ns: AtomicU64::new(NEVER),
            pause_ns: AtomicU64::new(0),
            shares: PhantomData,
        }
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

    /// As `addr`; where a start is under way or has failed, what it had inherited.
    pub(crate) fn addr_to_inherit(&self) -> usize {
        let seen = self.word.load(Ordering::Relaxed).addr();
        let is_value = seen & (STARTING | FAILED) == 0;
        if is_value { seen } else { self.inherited.load(Ordering::Relaxed).addr() }
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

    /// FAILED: whether it is time to try again.
    #[cold]
    pub(crate) fn is_due(&self) -> bool {
        // Relaxed, as all that is said of times: who finds FAILED finds them, see `finish`.
        let again_at_ns = self.again_at_ns.load(Ordering::Relaxed);
        again_at_ns != NEVER && sys::monotonic_ns() >= again_at_ns
    }

    /// OFF => STARTING, or FAILED => STARTING when it is time, for one of those who try.
    ///
    /// The fork handlers must have been registered: without them a child would remain in STARTING.
    pub(crate) fn start(&self) -> Option<Start<'_, T>> {
        let seen = self.word.load(Ordering::Acquire);
        let is_first = match Self::phase(seen) {
            Phase::Off => true,
            Phase::Failed if self.is_due() => false,
            Phase::Starting | Phase::Running(_) | Phase::Failed => return None,
        };
        // Relaxed: nothing is published yet.
        self.word
            .compare_exchange(seen, tagged(STARTING), Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        if is_first {
            self.pause_ns.store(0, Ordering::Relaxed);
        }
        if !seen.is_null() && seen.addr() & (STARTING | FAILED) == 0 {
            self.inherited.store(seen, Ordering::Relaxed);
        }
        Some(Start { cell: self, is_first })
    }
}

/// The one attempt to get from STARTING to RUNNING.
pub(crate) struct Start<'a, T> {
    cell: &'a PhaseCell<T>,
    /// In this process.
    pub(crate) is_first: bool,
}

impl<'a, T> Start<'a, T> {
    /// What ran in the process that this one was forked off from. Any thread of it may have been in
    /// the middle of a change.
    pub(crate) fn inherited(&self) -> Option<&'a T> {
        // SAFETY: as in `PhaseCell::phase`.
        unsafe { self.cell.inherited.load(Ordering::Relaxed).as_ref() }
    }

    /// STARTING => RUNNING, or FAILED. The value must outlive the cell's use.
    pub(crate) fn finish(self, value: Result<NonNull<T>, Failure>) {
        let cell = self.cell;
        let phase = match value {
            Ok(value) => value.as_ptr(),
            Err(failure) => {
                let again_at_ns = match failure {
                    Failure::ForNow => {
                        let pause_ns = cell.pause_ns.load(Ordering::Relaxed) * 2;
                        let pause_ns = pause_ns.clamp(FIRST_PAUSE_NS, LONGEST_PAUSE_NS);
                        cell.pause_ns.store(pause_ns, Ordering::Relaxed);
                        sys::monotonic_ns().saturating_add(pause_ns)
                    }
                    Failure::ForGood => NEVER,
                };
                cell.again_at_ns.store(again_at_ns, Ordering::Relaxed);
                tagged(FAILED)
            }
        };
        // Release: see `get`.
        cell.word.store(phase, Ordering::Release);
    }
}

impl<T> fmt::Debug for PhaseCell<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PhaseCell").field(&self.word).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[repr(align(8))]
    struct Value;

    impl OfGeneration for Value {
        fn generation(&self) -> u32 {
            generation()
        }
    }

    /// Seen to fail with a pause that stays the same, and where a failure for good is not.
    #[test]
    fn a_failed_start_is_tried_again_ever_more_rarely() {
        let cell = PhaseCell::<Value>::new();
        for pause in [1, 2, 4, 8, 16, 32, 64, 64] {
            let start = cell.start().unwrap();
            assert_eq!(start.is_first, pause == 1);
            let before_ns = sys::monotonic_ns();
            start.finish(Err(Failure::ForNow));
            assert!(cell.start().is_none() && !cell.is_due());
            let waits_ns = cell.again_at_ns.load(Ordering::Relaxed) - before_ns;
            assert!((pause * SECOND_NS..(pause + 1) * SECOND_NS).contains(&waits_ns), "{waits_ns}");
            cell.again_at_ns.store(before_ns, Ordering::Relaxed);
        }
        cell.start().unwrap().finish(Err(Failure::ForGood));
        assert!(cell.start().is_none());
        assert_eq!(cell.again_at_ns.load(Ordering::Relaxed), NEVER);
    }

    /// Of the process that this one was forked off from.
    #[repr(align(8))]
    struct Old;

    impl OfGeneration for Old {
        fn generation(&self) -> u32 {
            generation().wrapping_sub(1)
        }
    }

    /// What was inherited is known in all phases, or nobody would go on with it.
    #[test]
    fn a_start_that_failed_keeps_what_it_inherited() {
        let cell = PhaseCell::<Old>::new();
        assert_eq!(cell.addr_to_inherit(), 0);
        let old = NonNull::from(&Old);
        cell.word.store(old.as_ptr(), Ordering::Relaxed);
        assert_eq!(cell.addr_to_inherit(), old.addr().get());
        let start = cell.start().unwrap();
        assert_eq!(cell.addr_to_inherit(), old.addr().get());
        start.finish(Err(Failure::ForNow));
        assert_eq!(cell.addr_to_inherit(), old.addr().get());
    }
}
