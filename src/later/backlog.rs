//! The values that wait, in two bounded queues: a small one for every day, a large one for bursts.
//!
//! What a caller waits for when it has been busy with other things is memory: a slot of a queue that
//! has not been looked at for long costs it a cache miss and an address translation. The small queue
//! lies in one or two pages, and comes round to the same slots soon.
//!
//! Building a queue writes every slot of it. The large one would cost whoever hands over the first
//! value a millisecond of page faults, so that is done by the dropper before anything else.

use std::hint;
use std::sync::OnceLock;

use super::value::{SLOT_BYTES, Value};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{ArrayQueue, IN_MODEL};

/// 4 KiB.
const SMALL_SLOTS: usize = if IN_MODEL { 1 } else { 64 };
/// 1 MiB.
pub(super) const LARGE_SLOTS: usize = if IN_MODEL { 8 } else { 16 << 10 };

/// Values in no particular order. Any thread puts in, one takes out.
#[derive(Debug)]
pub(super) struct Backlog {
    small: ArrayQueue<Value>,
    /// Empty until it is built.
    large: OnceLock<ArrayQueue<Value>>,
    /// The small queue was full a moment ago, so do not try it. A hint: nothing depends on it.
    burst: AtomicBool,
}

impl Backlog {
    /// `None` when there is no memory for it.
    pub(super) fn new() -> Option<Self> {
        let small = queue(SMALL_SLOTS)?;
        Some(Backlog { small, large: OnceLock::new(), burst: AtomicBool::new(false) })
    }

    /// Builds the large queue; to be called once. Without memory for it the small one has to do.
    pub(super) fn widen(&self) {
        if let Some(queue) = queue(LARGE_SLOTS) {
            let set = self.large.set(queue);
            debug_assert!(set.is_ok(), "widened twice");
        }
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

    /// Takes out everything that is in when this begins, until `take` says stop; returns how many
    /// values that were.
    pub(super) fn drain(&self, mut take: impl FnMut(Value) -> Next) -> usize {
        let n_small = self.small.len();
        let n_large = self.large.get().map_or(0, ArrayQueue::len);
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
        n_taken
    }
}

pub(super) enum Next {
    Continue,
    Stop,
}

fn queue(n_slots: usize) -> Option<ArrayQueue<Value>> {
    let mut block = Vec::<u8>::new();
    block.try_reserve_exact(n_slots * SLOT_BYTES).ok()?;
    // Seen by somebody, or the compiler may leave the attempt out.
    drop(hint::black_box(block));
    Some(ArrayQueue::new(n_slots))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_complete() {
        let backlog = Backlog::new().unwrap();
        let put = || backlog.put(Value::new(Box::new(1))).is_ok();
        assert_eq!((0..2 * SMALL_SLOTS).filter(|_| put()).count(), SMALL_SLOTS);
        backlog.widen();
        assert_eq!((0..2 * LARGE_SLOTS).filter(|_| put()).count(), LARGE_SLOTS);
        const LEFT: usize = LARGE_SLOTS / 4;
        let mut n_left = SMALL_SLOTS + LARGE_SLOTS;
        let n_taken = backlog.drain(|_| {
            n_left -= 1;
            if n_left == LEFT { Next::Stop } else { Next::Continue }
        });
        assert_eq!(n_taken, SMALL_SLOTS + LARGE_SLOTS - LEFT);
        assert_eq!(backlog.drain(|_| Next::Continue), LEFT);
        assert_eq!(backlog.drain(|_| Next::Continue), 0);
        assert!(put() && backlog.large.get().unwrap().is_empty(), "the small queue is used again");
    }
}
