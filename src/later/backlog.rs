//! The values that wait, in two bounded queues: a small one for every day, a large one for bursts.
//!
//! What a caller waits for when it has been busy with other things is memory: a slot of a queue that
//! has not been looked at for long costs it a cache miss and an address translation. The small queue
//! lies in one or two pages, and comes round to the same slots soon.
//!
//! The first touch of the large one's pages would cost whoever hands over the first values a page fault for
//! each 64 of them, so the dropper touches them before anything else.

use std::alloc::{Layout, alloc_zeroed};
use std::sync::OnceLock;

use super::ring::Ring;
use super::value::Value;
use crate::sync::IN_MODEL;
use crate::sync::atomic::{AtomicBool, Ordering};

/// 4 KiB.
const SMALL_SLOTS: usize = if IN_MODEL { 2 } else { 64 };
/// 1 MiB.
pub(super) const LARGE_SLOTS: usize = if IN_MODEL { 8 } else { 16 << 10 };

/// The smallest there are.
const PAGE_BYTES: usize = 4096;

type Large = Ring<Value, LARGE_SLOTS>;

/// Values in no particular order. Any thread puts in, one takes out.
// In this order, so that what each hand-off touches lies together, the slots last.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Backlog {
    /// Empty until it is there.
    large: OnceLock<Box<Large>>,
    /// The small queue was full a moment ago, so do not try it. A hint: nothing depends on it.
    burst: AtomicBool,
    small: Ring<Value, SMALL_SLOTS>,
}

impl Backlog {
    pub(super) const fn new() -> Self {
        Backlog { large: OnceLock::new(), burst: AtomicBool::new(false), small: Ring::new() }
    }

    /// Makes the large queue; to be called once. Without memory for it the small one has to do.
    pub(super) fn widen(&self) {
        // SAFETY: the layout is not empty.
        let block = unsafe { alloc_zeroed(Layout::new::<Large>()) };
        if block.is_null() {
            return;
        }
        for offset in (0..size_of::<Large>()).step_by(PAGE_BYTES) {
            // SAFETY: within the block.
            unsafe { block.add(offset).write_volatile(0) };
        }
        // SAFETY: allocated as a box is, and zeros are a valid ring.
        let set = self.large.set(unsafe { Box::from_raw(block.cast()) });
        debug_assert!(set.is_ok(), "widened twice");
    }

    /// Gives the value back when both queues are full.
    #[inline]
    pub(super) fn put(&self, value: Value) -> Result<(), Value> {
        if self.burst.load(Ordering::Relaxed) {
            return self.put_large(value);
        }
        match self.small.push(value) {
            Ok(()) => Ok(()),
            Err(value) => self.put_large(value),
        }
    }

    #[cold]
    #[inline(never)]
    fn put_large(&self, value: Value) -> Result<(), Value> {
        let Some(large) = self.large.get() else {
            return Err(value);
        };
        self.burst.store(true, Ordering::Relaxed);
        large.push(value)
    }

    /// Takes out everything that is in when this begins, until `take` says stop.
    pub(super) fn drain(&self, mut take: impl FnMut(Value) -> Next) -> Drained {
        let n_small = self.small.len();
        let n_large = self.large.get().map_or(0, |large| large.len());
        if n_large > 0 {
            self.burst.store(false, Ordering::Relaxed);
        }
        let small = (0..n_small).map_while(|_| self.small.pop());
        let large = (0..n_large).map_while(|_| self.large.get()?.pop());
        let mut n_taken = 0;
        for value in small.chain(large) {
            n_taken += 1;
            if let Next::Stop = take(value) {
                break;
            }
        }
        Drained { n_taken, is_all: n_taken == n_small + n_large }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drained {
    pub(super) n_taken: usize,
    /// False also where a thread is in the midst of putting a value in, with others behind it.
    pub(super) is_all: bool,
}

pub(super) enum Next {
    Continue,
    Stop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_complete() {
        let backlog = Backlog::new();
        let put = || backlog.put(Value::new(Box::new(1))).is_ok();
        assert_eq!((0..2 * SMALL_SLOTS).filter(|_| put()).count(), SMALL_SLOTS);
        backlog.widen();
        assert_eq!((0..2 * LARGE_SLOTS).filter(|_| put()).count(), LARGE_SLOTS);
        const LEFT: usize = LARGE_SLOTS / 4;
        let mut n_left = SMALL_SLOTS + LARGE_SLOTS;
        let drained = backlog.drain(|_| {
            n_left -= 1;
            if n_left == LEFT { Next::Stop } else { Next::Continue }
        });
        assert_eq!(drained, Drained { n_taken: SMALL_SLOTS + LARGE_SLOTS - LEFT, is_all: false });
        let drain = || backlog.drain(|_| Next::Continue);
        assert_eq!(drain(), Drained { n_taken: LEFT, is_all: true });
        assert_eq!(drain(), Drained { n_taken: 0, is_all: true });
        assert!(put() && backlog.large.get().unwrap().is_empty(), "the small queue is used again");
    }
}
