//! A bounded queue for any number of threads in which nobody waits for anybody.
//!
//! It is Dmitry Vyukov's bounded MPMC queue, with stamps that count laps instead of positions, so that memory full of
//! zeros is an empty ring. Positions count up for ever: position `p` is slot `p % N` in lap `p / N`. Four slots, of
//! which positions 6, 7 and 8 hold values:
//!
//! ```text
//!              slot 0    slot 1    slot 2    slot 3
//!     stamp    5 full    4 free    3 full    3 full
//!                          ^         ^
//!                 tail = 9 = 2*4+1   head = 6 = 1*4+2
//! ```
//!
//! The stamp of a slot says whose turn it is:
//!
//! ```text
//!     2*lap        free, for the push of that lap     a push claims it (tail + 1), writes, and makes it 2*lap + 1
//!     2*lap + 1    full, for the pop of that lap      a pop claims it (head + 1), reads, and makes it 2*(lap + 1)
//! ```
//!
//! A thread may stop for any time between its claim and its stamp. Others do not wait for that slot: a push that comes
//! to it says that the ring is full, a pop that it is empty, and what was put in behind it is found once the stamp is
//! there. Only a claim that another thread made first is tried again, at the next position.
//!
//! # Ordering
//!
//! Two pairs, each a stamp stored with Release and loaded with Acquire. Push stores, pop loads: the value is
//! complete. Pop stores, the push of the next lap loads: the value has been read before the slot is written again.
//! Head and tail order nothing, hence Relaxed: what they say is a guess until the compare-exchange, and a stamp that is
//! ahead of a position was stored after the claim of that position, so the claim is seen next time.
//!
//! A pop sees every push that happened before it: it says empty only if all of these have been claimed, or if it
//! came to a slot that a thread has claimed and not stamped.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::fmt;
use std::mem::MaybeUninit;

use crossbeam_utils::CachePadded;

use crate::sync::Contents;
use crate::sync::atomic::{AtomicU64, Ordering};

/// All zero bytes are a valid value, an empty ring.
#[repr(C)]
pub(super) struct Ring<T, const N: usize> {
    /// The position of the next pop.
    head: CachePadded<AtomicU64>,
    /// The position of the next push. `head <= tail <= head + N`.
    tail: CachePadded<AtomicU64>,
    slots: [Slot<T>; N],
}

#[repr(C)]
struct Slot<T> {
    stamp: AtomicU64,
    value: Contents<MaybeUninit<T>>,
}

// SAFETY: a value goes from the thread that puts it in to the one that takes it out, and nobody else looks at it.
unsafe impl<T: Send, const N: usize> Sync for Ring<T, N> {}

/// A slot that belongs to whoever holds this, until it is stamped.
#[must_use = "nobody gets past it before it is stamped"]
struct Claim<'a, T> {
    slot: &'a Slot<T>,
    next_stamp: u64,
}

impl<T, const N: usize> Ring<T, N> {
    pub(super) const fn new() -> Self {
        Ring {
            head: CachePadded::new(AtomicU64::new(0)),
            tail: CachePadded::new(AtomicU64::new(0)),
            slots: [const {
                Slot { stamp: AtomicU64::new(0), value: Contents::new(MaybeUninit::uninit()) }
            }; N],
        }
    }

    /// Gives the value back when the ring is full, or when the slot whose turn it is has not been left yet.
    #[inline]
    pub(super) fn push(&self, value: T) -> Result<(), T> {
        match self.claim(&self.tail, 0) {
            Some(claim) => {
                claim.fill(value);
                Ok(())
            }
            None => Err(value),
        }
    }

    /// `None` when the ring is empty, or when the slot whose turn it is has not been filled yet.
    #[inline]
    pub(super) fn pop(&self) -> Option<T> {
        // A look that takes nobody's cache line, nor touches a slot that may never have been used.
        if self.is_empty() {
            return None;
        }
        Some(self.claim(&self.head, 1)?.empty())
    }

    /// Claims the slot at the position that `end` says, if that slot is ready: free is 0, full is 1.
    #[inline]
    fn claim(&self, end: &AtomicU64, ready: u64) -> Option<Claim<'_, T>> {
        const { assert!(N.is_power_of_two()) };
        let mut position = end.load(Ordering::Relaxed);
        loop {
            let slot = &self.slots[position as usize % N];
            let stamp = 2 * (position / N as u64) + ready;
            // Acquire pairs with the Release in `fill` and `empty`.
            match slot.stamp.load(Ordering::Acquire).cmp(&stamp) {
                Equal => match end.compare_exchange_weak(
                    position,
                    position + 1,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => return Some(Claim { slot, next_stamp: stamp + 1 }),
                    Err(now) => position = now,
                },
                Less => return None,
                Greater => position = end.load(Ordering::Relaxed),
            }
        }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == self.tail.load(Ordering::Relaxed)
    }

    /// Values that are in, and those that are just being put in; exact when nobody else is at it.
    pub(super) fn len(&self) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        self.tail.load(Ordering::Relaxed).saturating_sub(head) as usize
    }
}

impl<T> Claim<'_, T> {
    #[inline]
    fn fill(self, value: T) {
        // SAFETY: the slot is free, and claimed by us.
        unsafe { self.slot.value.write(MaybeUninit::new(value)) };
        self.slot.stamp.store(self.next_stamp, Ordering::Release);
    }

    #[inline]
    fn empty(self) -> T {
        // SAFETY: the slot is full, and claimed by us; the value is not looked at again.
        let value = unsafe { self.slot.value.read().assume_init() };
        self.slot.stamp.store(self.next_stamp, Ordering::Release);
        value
    }
}

impl<T, const N: usize> Drop for Ring<T, N> {
    fn drop(&mut self) {
        for position in *self.head.get_mut()..*self.tail.get_mut() {
            let value = self.slots[position as usize % N].value.get_mut();
            // SAFETY: all claims have been stamped, or somebody would refer to `self`: the slots between are full.
            unsafe { value.assume_init_drop() };
        }
    }
}

impl<T, const N: usize> fmt::Debug for Ring<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring").field("len", &self.len()).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::{Arc, Barrier};
    use std::thread;

    use super::*;

    /// Over several laps, also where each lap is one value.
    #[test]
    fn bounded_and_in_order() {
        fn check<const N: usize>() {
            let ring = Ring::<usize, N>::new();
            for n in 0..10 {
                let mut values = n * N..(n + 1) * N;
                assert!(values.clone().all(|value| ring.push(value).is_ok()));
                assert_eq!((ring.push(0), ring.len()), (Err(0), N));
                assert!(values.all(|value| ring.pop() == Some(value)));
                assert_eq!((ring.pop(), ring.len()), (None, 0));
                // So that laps do not begin at slot 0.
                ring.push(1).unwrap();
                assert_eq!(ring.pop(), Some(1));
            }
        }
        check::<1>();
        check::<2>();
        check::<64>();
    }

    #[test]
    fn zeros_are_an_empty_ring() {
        // SAFETY: what the test is about.
        let ring = unsafe { std::mem::zeroed::<Ring<Box<u8>, 4>>() };
        assert!(ring.pop().is_none());
        ring.push(Box::new(7)).unwrap();
        assert_eq!((ring.len(), ring.pop()), (1, Some(Box::new(7))));
    }

    #[test]
    fn what_is_left_is_dropped() {
        let value = Arc::new(());
        let ring = Ring::<_, 8>::new();
        (0..5).for_each(|_| ring.push(value.clone()).unwrap());
        drop(ring.pop());
        drop(ring);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    /// Others go on at once while a push or a pop has stopped in the middle, and find everything afterwards.
    ///
    /// Seen to fail (to hang) where a claim waits for the slot.
    #[test]
    fn nobody_is_held_up() {
        let ring = Ring::<usize, 4>::new();
        let stopped = ring.claim(&ring.tail, 0).unwrap();
        assert!((1..4).all(|value| ring.push(value).is_ok()));
        assert_eq!((ring.push(4), ring.pop(), ring.len()), (Err(4), None, 4));
        stopped.fill(0);
        assert_eq!((ring.pop(), ring.pop()), (Some(0), Some(1)));

        let stopped = ring.claim(&ring.head, 1).unwrap();
        assert!([4, 5].map(|value| ring.push(value)) == [Ok(()); 2]);
        // The slot of the one who stopped has not been left.
        assert_eq!(ring.push(6), Err(6));
        assert_eq!([(); 3].map(|()| ring.pop()), [Some(3), Some(4), Some(5)]);
        assert_eq!((ring.push(6), ring.pop()), (Err(6), None));
        assert_eq!(stopped.empty(), 2);
        assert_eq!((ring.push(6), ring.pop()), (Ok(()), Some(6)));
    }

    /// Four threads for each processor put in, as many take out: each value once, and those of one thread in order for
    /// each that takes them.
    ///
    /// Seen to fail where a claim is a load and a store.
    #[test]
    fn each_value_once() {
        const EACH: usize = 20_000;
        const N_SLOTS: usize = 64;
        let n_threads = 4 * thread::available_parallelism().map_or(2, usize::from);
        let ring = Ring::<(usize, usize), N_SLOTS>::new();
        let n_left = AtomicUsize::new(n_threads * EACH);
        let sums: Vec<_> = (0..n_threads).map(|_| AtomicUsize::new(0)).collect();
        let start = Barrier::new(2 * n_threads);
        thread::scope(|scope| {
            for thread in 0..n_threads {
                let (ring, start) = (&ring, &start);
                scope.spawn(move || {
                    start.wait();
                    for i in 0..EACH {
                        while ring.push((thread, i)).is_err() {
                            thread::yield_now();
                        }
                    }
                });
                let (n_left, sums) = (&n_left, &sums);
                scope.spawn(move || {
                    let mut next = vec![0; n_threads];
                    start.wait();
                    while n_left.load(Ordering::Relaxed) > 0 {
                        let Some((from, i)) = ring.pop() else {
                            thread::yield_now();
                            continue;
                        };
                        assert!(i >= next[from], "not in order, or twice");
                        next[from] = i + 1;
                        sums[from].fetch_add(i, Ordering::Relaxed);
                        n_left.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!((ring.len(), ring.pop()), (0, None));
        assert!(sums.iter().all(|sum| sum.load(Ordering::Relaxed) == EACH * (EACH - 1) / 2));
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::rc::Rc;

    use super::*;
    use crate::sync::{check, thread};

    const N_ATOMICS: usize = 16;

    // Seen to fail where `fill` or `empty` store the stamp with Relaxed, where it is loaded with Relaxed, and where a
    // claim is a load and a store.

    /// Two threads that put in and take out, and one that takes out: each value is in one hand or left, and those that
    /// one thread put in come out in order.
    fn each_value_once<const N: usize>(preemptions: usize) {
        check(Some(preemptions), N_ATOMICS, || {
            let ring = Rc::new(Ring::<u64, N>::new());
            let other = |values: [u64; 2]| {
                let ring = ring.clone();
                thread::spawn(move || {
                    let refused = values.map(|value| ring.push(value).err());
                    [refused[0], refused[1], ring.pop()]
                })
            };
            let (first, second) = (other([1, 2]), other([3, 4]));
            let taken = [ring.pop(), ring.pop()];
            for (earlier, later) in [(1, 2), (3, 4)] {
                assert!(taken != [Some(later), Some(earlier)]);
            }
            let mut all: Vec<u64> = taken.into_iter().flatten().collect();
            all.extend(first.join().into_iter().chain(second.join()).flatten());
            let n_left = ring.len();
            all.extend(std::iter::from_fn(|| ring.pop()).take(n_left));
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3, 4]);
            assert_eq!((ring.len(), ring.pop()), (0, None));
        });
    }

    #[test]
    fn one_slot() {
        each_value_once::<1>(2);
    }

    #[test]
    fn two_slots() {
        each_value_once::<2>(2);
    }

    /// One thread stops in the middle for good: the others come to an end all the same.
    ///
    /// Seen to fail where a claim waits for the slot.
    #[test]
    fn others_end() {
        check(None, N_ATOMICS, || {
            let ring = Rc::new(Ring::<u64, 2>::new());
            let stopped = ring.claim(&ring.tail, 0).unwrap();
            let other = thread::spawn({
                let ring = ring.clone();
                move || (ring.push(1).is_ok(), ring.pop())
            });
            let mine = (ring.push(2).is_ok(), ring.pop());
            let theirs = other.join();
            assert!(mine.0 != theirs.0 && (mine.1, theirs.1) == (None, None));
            stopped.fill(0);
            assert_eq!((ring.pop(), ring.len()), (Some(0), 1));
        });
    }

    /// What a thread put in before it tells another is found by that one, whatever others do meanwhile.
    #[test]
    fn what_happened_before_is_found() {
        use crate::sync::atomic::AtomicBool;
        check(Some(3), N_ATOMICS, || {
            let shared = Rc::new((Ring::<u64, 2>::new(), AtomicBool::new(false)));
            let putter = thread::spawn({
                let shared = shared.clone();
                move || {
                    shared.0.push(1).unwrap();
                    shared.1.store(true, Ordering::Release);
                }
            });
            let taker = thread::spawn({
                let shared = shared.clone();
                move || shared.0.pop()
            });
            let told = shared.1.load(Ordering::Acquire);
            let mine = shared.0.pop();
            putter.join();
            let theirs = taker.join();
            assert!(!(mine.is_some() && theirs.is_some()));
            assert!(!told || mine.or(theirs).is_some());
        });
    }
}
