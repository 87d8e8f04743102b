//! A bounded bag of blocks for any number of threads, in which nobody waits for anybody and nobody is in the way.
//!
//! Positions count up for ever; position `p` is slot `p % N`. A push claims the next position at the tail and then puts its
//! block into the slot; a pop claims the next one at the head and then takes out what the slot holds. So blocks leave in
//! the order in which they came, by and large. What is in a slot is one word:
//!
//! ```text
//!     a block                          an even address, not 0
//!     free for pushes from `p` on      2 * p + 1, or 0 for p = 0: zeros are an empty bag
//! ```
//!
//! # Threads that stop in the middle
//!
//! A thread may stop for any time between its claim and its slot: with many threads to a core that happens all the time,
//! and lasts for as long as all the others have their turns. In a queue whose pops wait for the slot at the head, or say that
//! it is empty, all that is behind that slot is then out of reach, and a program that passes buffers between 48 threads
//! on two cores had 2 GiB of them waiting where it used 300 MiB.
//!
//! A pop that comes to a slot with no block in it makes it free for pushes from the head on, which is beyond its own position,
//! and claims the next one. The push that had claimed the slot finds that out when it goes on, and claims another place
//! as well. A push that finds a block in its slot, another one's that was late, does the same: the pop of that position takes
//! whatever is there. A pop that is late itself may take a block that was put in for a later one; that one goes on.
//!
//! # What a pop finds
//!
//! A push at position `p` ends only when its block is in a slot that the pop of `p` has not left yet: that one would have
//! made the slot free from beyond `p` on. Then that pop comes there, if there is one, and finds the block, or that another
//! pop has taken it. So a pop says that the bag is empty only when each block whose push ended before it began has been taken,
//! or a pop has claimed the position and is going to take it.
//!
//! # Ordering
//!
//! Both exchanges of a slot are Acquire and Release. From push to pop: what is in the block. From a pop to the pops and
//! pushes of the same slot after it: its claim, so that the head that they write down is beyond all positions whose pops
//! have left the slot. (An older one may be written where a block has come and gone in between; then that block's position is
//! beyond both, and its pop, which is still to come, writes a newer one.) The claims themselves order nothing, hence Relaxed; that a
//! thread sees its own and those that happened before is coherence.

use std::ptr;

use crossbeam_utils::CachePadded;

use super::Block;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// All zero bytes are a valid value, an empty bag.
#[repr(C)]
pub(super) struct Bag<const N: usize> {
    /// The position of the next pop.
    head: CachePadded<AtomicU64>,
    /// The position of the next push. `head <= tail`.
    tail: CachePadded<AtomicU64>,
    slots: [AtomicPtr<u8>; N],
}

/// What a slot holds.
enum Held {
    Block,
    /// Nothing, and is free for pushes from that position on.
    FreeFrom(u64),
}

impl Held {
    #[inline]
    fn of(word: *mut u8) -> Held {
        let word = word.addr() as u64;
        if word & 1 != 0 {
            Held::FreeFrom(word >> 1)
        } else if word == 0 {
            Held::FreeFrom(0)
        } else {
            Held::Block
        }
    }
}

fn free_from(position: u64) -> *mut u8 {
    ptr::without_provenance_mut((position << 1 | 1) as usize)
}

impl<const N: usize> Bag<N> {
    /// Gives the block back when there is no room, or when its address is odd.
    #[inline]
    pub(super) fn push(&self, block: Block) -> Result<(), Block> {
        if block.0.addr() & 1 != 0 {
            return Err(block);
        }
        loop {
            let Some(position) = self.claim_to_push() else {
                return Err(block);
            };
            if self.put(position, block.0) {
                return Ok(());
            }
        }
    }

    /// The next position at the tail; `None` when its slot holds a block: there is no room, but for what others are just
    /// taking out.
    #[inline]
    pub(super) fn claim_to_push(&self) -> Option<u64> {
        const { assert!(N.is_power_of_two()) };
        let mut position = self.tail.load(Ordering::Relaxed);
        loop {
            let held = Held::of(self.slot(position).load(Ordering::Relaxed));
            if let Held::Block = held {
                let now = self.tail.load(Ordering::Relaxed);
                if now == position {
                    return None;
                }
                position = now;
                continue;
            }
            match claim(&self.tail, position) {
                Ok(()) => return Some(position),
                Err(now) => position = now,
            }
        }
    }

    /// Puts a block where it has been claimed for; false if it has to go elsewhere.
    #[inline]
    fn put(&self, position: u64, block: *mut u8) -> bool {
        let slot = self.slot(position);
        let mut seen = slot.load(Ordering::Relaxed);
        loop {
            match Held::of(seen) {
                Held::FreeFrom(first) if first <= position => {}
                Held::FreeFrom(_) | Held::Block => return false,
            }
            match exchange(slot, seen, block) {
                Ok(()) => return true,
                Err(now) => seen = now,
            }
        }
    }

    /// As `push`, for a position that has been claimed already.
    #[cfg(all(test, loom))]
    pub(super) fn push_at(&self, position: u64, block: Block) -> Result<(), Block> {
        if self.put(position, block.0) { Ok(()) } else { self.push(block) }
    }

    #[inline]
    pub(super) fn pop(&self) -> Option<Block> {
        self.pop_before(u64::MAX)
    }

    /// The position behind all pushes that have begun.
    pub(super) fn end(&self) -> u64 {
        self.tail.load(Ordering::Relaxed)
    }

    /// As `pop`, but for what was put in at `end` or behind.
    #[inline]
    pub(super) fn pop_before(&self, end: u64) -> Option<Block> {
        loop {
            let position = self.head.load(Ordering::Relaxed);
            if position >= end.min(self.tail.load(Ordering::Relaxed)) {
                return None;
            }
            if claim(&self.head, position).is_ok() {
                let block = self.take(position);
                if block.is_some() {
                    return block;
                }
            }
        }
    }

    /// Takes what is in the slot of a position that has been claimed.
    #[inline]
    fn take(&self, position: u64) -> Option<Block> {
        let slot = self.slot(position);
        let mut seen = slot.load(Ordering::Acquire);
        loop {
            let is_block = match Held::of(seen) {
                Held::Block => true,
                Held::FreeFrom(first) if first <= position => false,
                // Who made it so has passed this position, too.
                Held::FreeFrom(_) => return None,
            };
            // Read after the slot, by Acquire: beyond all pops that have left it.
            match exchange(slot, seen, free_from(self.head.load(Ordering::Relaxed))) {
                Ok(()) => return is_block.then_some(Block(seen)),
                Err(now) => seen = now,
            }
        }
    }

    #[inline]
    fn slot(&self, position: u64) -> &AtomicPtr<u8> {
        &self.slots[position as usize % N]
    }

    /// Blocks that are in or are just being put in, and positions that nothing was put in at; exact when nobody has been
    /// late since they were passed.
    pub(super) fn len(&self) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        self.tail.load(Ordering::Relaxed).saturating_sub(head) as usize
    }
}

#[inline]
fn claim(end: &AtomicU64, position: u64) -> Result<(), u64> {
    end.compare_exchange_weak(position, position + 1, Ordering::Relaxed, Ordering::Relaxed)
        .map(drop)
}

#[inline]
fn exchange(slot: &AtomicPtr<u8>, seen: *mut u8, word: *mut u8) -> Result<(), *mut u8> {
    slot.compare_exchange(seen, word, Ordering::AcqRel, Ordering::Acquire).map(drop)
}

#[cfg(test)]
impl<const N: usize> Bag<N> {
    fn new() -> Self {
        // SAFETY: zeros are a valid value.
        unsafe { std::mem::zeroed() }
    }

    /// A push and a pop of a number in place of a block; whether there was room.
    fn push_number(&self, n: usize) -> bool {
        // SAFETY: nobody looks at what is there.
        self.push(unsafe { Block::new(ptr::without_provenance_mut(2 * n + 2)) }).is_ok()
    }

    fn pop_number(&self) -> Option<usize> {
        self.pop().map(Self::number)
    }

    fn number(block: Block) -> usize {
        block.0.addr() / 2 - 1
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::thread;

    use super::*;

    /// Over several laps, also where each lap is one block.
    #[test]
    fn bounded_and_in_order() {
        fn check<const N: usize>() {
            let bag = Bag::<N>::new();
            for n in 0..10 {
                let mut numbers = n * N..(n + 1) * N;
                assert!(numbers.clone().all(|number| bag.push_number(number)));
                assert_eq!((bag.push_number(0), bag.len()), (false, N));
                assert!(numbers.all(|number| bag.pop_number() == Some(number)));
                assert_eq!((bag.pop_number(), bag.len()), (None, 0));
                // So that laps do not begin at slot 0.
                assert!(bag.push_number(1));
                assert_eq!(bag.pop_number(), Some(1));
            }
        }
        check::<1>();
        check::<2>();
        check::<64>();
    }

    #[test]
    fn no_room_for_odd_addresses() {
        // SAFETY: nobody looks at what is there.
        let block = unsafe { Block::new(ptr::without_provenance_mut(4097)) };
        assert_eq!(Bag::<4>::new().push(block).unwrap_err().0.addr(), 4097);
    }

    /// Seen to fail where a pop leaves the slot of a late push as it is, and where it makes it free for its own position.
    #[test]
    fn a_late_push_goes_elsewhere() {
        let bag = Bag::<4>::new();
        let late = bag.claim_to_push().unwrap();
        assert!([1, 2].into_iter().all(|n| bag.push_number(n)));
        assert_eq!([(); 3].map(|()| bag.pop_number()), [Some(1), Some(2), None]);
        assert!(!bag.put(late, ptr::without_provenance_mut(2)));
        assert_eq!((bag.len(), bag.pop_number()), (0, None));
        assert!(bag.push_number(3) && bag.pop_number() == Some(3));

        // As if its place were taken: by a push that came a lap later and was not late.
        let late = bag.claim_to_push().unwrap();
        assert!((4..8).all(|n| bag.push_number(n)) && !bag.push_number(8));
        assert!(!bag.put(late, ptr::without_provenance_mut(2)));
        assert_eq!([(); 5].map(|()| bag.pop_number()), [Some(7), Some(4), Some(5), Some(6), None]);
        assert_eq!(bag.len(), 0);
    }

    /// A pop that is a lap late takes what was put in for another, and a push that is as late finds no place behind the head.
    ///
    /// Seen to fail where a pop makes the slot free for pushes from the position after its own.
    #[test]
    fn a_late_pop_takes_what_is_there() {
        let bag = Bag::<2>::new();
        let [late_push, _] = [bag.claim_to_push().unwrap(), bag.claim_to_push().unwrap()];
        let later_push = bag.claim_to_push().unwrap();
        let late_pop = 0;
        claim(&bag.head, late_pop).unwrap();
        assert_eq!((bag.pop_number(), bag.len()), (None, 0));
        assert!(bag.push_number(3) && bag.push_number(4));
        assert_eq!(bag.take(late_pop).map(Bag::<2>::number), Some(4));
        for position in [late_push, later_push] {
            assert!(!bag.put(position, ptr::without_provenance_mut(2)));
        }
        assert_eq!([bag.pop_number(), bag.pop_number()], [Some(3), None]);
    }

    /// Those that came before a moment leave, whatever comes behind them and whoever is late.
    #[test]
    fn what_was_in_at_some_moment() {
        let bag = Bag::<4>::new();
        assert!(bag.push_number(0));
        let late = bag.claim_to_push().unwrap();
        assert!(bag.push_number(1));
        let end = bag.end();
        assert!(bag.push_number(2));
        let pop = || bag.pop_before(end).map(Bag::<4>::number);
        assert_eq!([pop(), pop(), pop()], [Some(0), Some(1), None]);
        assert!(!bag.put(late, ptr::without_provenance_mut(2)));
        assert_eq!((bag.pop_number(), bag.pop_number()), (Some(2), None));
    }

    /// Four threads for each processor put in, as many take out, and each of them is late now and then: each block once.
    ///
    /// Seen to fail where a claim, or an exchange of a slot, is a load and a store.
    #[test]
    fn each_block_once() {
        const EACH: usize = 20_000;
        let n_threads = 4 * thread::available_parallelism().map_or(2, usize::from);
        let bag = Bag::<8>::new();
        let n_left = AtomicUsize::new(n_threads * EACH);
        let seen: Vec<_> = (0..n_threads * EACH).map(|_| AtomicBool::new(false)).collect();
        let start = Barrier::new(2 * n_threads);
        thread::scope(|scope| {
            for thread in 0..n_threads {
                let (bag, start) = (&bag, &start);
                scope.spawn(move || {
                    start.wait();
                    for n in thread * EACH..(thread + 1) * EACH {
                        // SAFETY: nobody looks at what is there.
                        let block =
                            || unsafe { Block::new(ptr::without_provenance_mut(2 * n + 2)) };
                        if n % 64 == 0 {
                            if let Some(position) = bag.claim_to_push() {
                                thread::yield_now();
                                if bag.put(position, block().0) {
                                    continue;
                                }
                            }
                        }
                        while bag.push(block()).is_err() {
                            thread::yield_now();
                        }
                    }
                });
                let (n_left, seen) = (&n_left, &seen);
                scope.spawn(move || {
                    start.wait();
                    while n_left.load(Ordering::Relaxed) > 0 {
                        let Some(n) = bag.pop_number() else {
                            thread::yield_now();
                            continue;
                        };
                        assert!(!seen[n].swap(true, Ordering::Relaxed), "twice");
                        n_left.fetch_sub(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(bag.pop_number(), None);
        assert!(seen.iter().all(|seen| seen.load(Ordering::Relaxed)));
    }
}

#[cfg(all(test, loom))]
mod models {
    use std::rc::Rc;

    use super::*;
    use crate::sync::{Plain, check, thread};

    const N_ATOMICS: usize = 16;

    /// Two threads that put in and take out, and one that takes out: each block is in one hand or left.
    fn each_block_once<const N: usize>(preemptions: usize) {
        check(Some(preemptions), N_ATOMICS, || {
            let bag = Rc::new(Bag::<N>::new());
            let other = |numbers: [usize; 2]| {
                let bag = bag.clone();
                thread::spawn(move || {
                    let refused = numbers.map(|n| (!bag.push_number(n)).then_some(n));
                    [refused[0], refused[1], bag.pop_number()]
                })
            };
            let (first, second) = (other([1, 2]), other([3, 4]));
            let taken = [bag.pop_number(), bag.pop_number()];
            let mut all: Vec<usize> = taken.into_iter().flatten().collect();
            all.extend(first.join().into_iter().chain(second.join()).flatten());
            all.extend(std::iter::from_fn(|| bag.pop_number()));
            all.sort_unstable();
            assert_eq!(all, [1, 2, 3, 4]);
            assert_eq!(bag.len(), 0);
        });
    }

    // Seen to fail where a claim or an exchange is a load and a store, the second also where a pop leaves a slot without a
    // block as it is.

    #[test]
    fn one_slot() {
        each_block_once::<1>(2);
    }

    #[test]
    fn two_slots() {
        each_block_once::<2>(2);
    }

    /// Late threads of several laps in one slot.
    ///
    /// Seen to fail where a claim or an exchange is a load and a store.
    #[test]
    fn late_ones_meet() {
        check(Some(3), N_ATOMICS, || {
            let bag = Rc::new(Bag::<1>::new());
            let other = |n: usize| {
                let bag = bag.clone();
                thread::spawn(move || [(!bag.push_number(n)).then_some(n), bag.pop_number()])
            };
            let (first, second) = (other(1), other(2));
            let mut all: Vec<usize> = bag.pop_number().into_iter().collect();
            all.extend(first.join().into_iter().chain(second.join()).flatten());
            all.extend(bag.pop_number());
            all.sort_unstable();
            assert_eq!(all, [1, 2]);
            assert_eq!((bag.pop_number(), bag.len()), (None, 0));
        });
    }

    /// What a thread wrote to its block is seen by whoever takes that out, and so on.
    ///
    /// Seen to fail where an exchange is Relaxed, Acquire or Release alone.
    #[test]
    fn the_contents_go_along() {
        check(Some(3), N_ATOMICS, || {
            let shared = Rc::new((Bag::<1>::new(), Plain::new()));
            let write = |(bag, block): &(Bag<1>, Plain)| {
                block.write();
                assert!(bag.push_number(0));
            };
            write(&shared);
            let pass_on = || {
                let shared = shared.clone();
                thread::spawn(move || {
                    if shared.0.pop_number().is_some() {
                        shared.1.write();
                        assert!(shared.0.push_number(0));
                    }
                })
            };
            let threads = [pass_on(), pass_on()];
            if shared.0.pop_number().is_some() {
                shared.1.write();
            }
            threads.into_iter().for_each(|thread| thread.join());
        });
    }

    /// What a thread put in before it tells another is found by that one, whatever others do meanwhile.
    ///
    /// Seen to fail where a pop leaves a slot without a block as it is, and where it makes it free for its own position.
    #[test]
    fn what_happened_before_is_found() {
        use crate::sync::atomic::AtomicBool;
        check(Some(3), N_ATOMICS, || {
            let shared = Rc::new((Bag::<2>::new(), AtomicBool::new(false)));
            // Late for good: nobody waits for it.
            let _late = shared.0.claim_to_push().unwrap();
            let putter = thread::spawn({
                let shared = shared.clone();
                move || {
                    assert!(shared.0.push_number(1));
                    shared.1.store(true, Ordering::Release);
                }
            });
            let taker = thread::spawn({
                let shared = shared.clone();
                move || shared.0.pop_number()
            });
            let told = shared.1.load(Ordering::Acquire);
            let mine = shared.0.pop_number();
            putter.join();
            let theirs = taker.join();
            assert!(!(mine.is_some() && theirs.is_some()));
            assert!(!told || mine.or(theirs).is_some());
        });
    }
}
