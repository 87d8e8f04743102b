//! A bounded lock-free queue that is built in tiers, as its class comes to have more blocks.
//!
//! `ArrayQueue` never allocates once it is built, but to build one is to write each slot. Room for
//! all the blocks that a class may ever have would be 256 KiB a class, on the first allocation of a
//! program that may have one buffer of each of a hundred sizes.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU8, Ordering};

use crossbeam_queue::ArrayQueue;

use super::Block;

/// Slots of each tier: 1 KiB, 16 KiB and 256 KiB.
const TIER_SLOTS: [usize; TIERS] = [64, 1024, 16 << 10];
const TIERS: usize = 3;

/// A slot of `ArrayQueue`: a stamp and the block.
const SLOT_BYTES: usize = 2 * size_of::<usize>();

/// All zero bytes are a valid value: no tier is built, and no block fits in.
///
/// Within a tier blocks leave in the order in which they came; an upper tier fills when those below
/// are full, so its blocks are the younger ones, by and large.
pub(super) struct Queue {
    /// How many tiers are ready; with [`BUILDING`] added while a thread builds the next one.
    state: AtomicU8,
    /// Each is initialised once `state` counts it as ready, and until the end.
    tiers: [UnsafeCell<MaybeUninit<ArrayQueue<Block>>>; TIERS],
}

const BUILDING: u8 = 0x80;

// SAFETY: a tier is written once, by the thread that set BUILDING, before `state` counts it, which is
// stored with Release; it is read only after `state` was loaded with Acquire.
unsafe impl Sync for Queue {}

impl Queue {
    /// Whether room for `n_blocks` takes another tier.
    #[inline]
    pub(super) fn wants_tier(&self, n_blocks: usize) -> bool {
        let n_ready = usize::from(self.state.load(Ordering::Relaxed) & !BUILDING);
        n_ready < TIERS && (n_ready == 0 || TIER_SLOTS[..n_ready].iter().sum::<usize>() < n_blocks)
    }

    /// Builds the next tier, unless another thread is at it. `afford` is asked first, with the bytes
    /// that it takes, because the tier's own allocation aborts the process when it fails.
    #[cold]
    pub(super) fn build_tier(&self, afford: impl FnOnce(usize) -> bool) {
        let state = self.state.load(Ordering::Relaxed);
        let Some(&n_slots) = TIER_SLOTS.get(usize::from(state)) else {
            return;
        };
        if self
            .state
            .compare_exchange(state, state | BUILDING, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            return;
        }
        if !afford(n_slots * SLOT_BYTES) {
            self.state.store(state, Ordering::Release);
            return;
        }
        // SAFETY: this thread alone set BUILDING, and the tier is not counted as ready.
        unsafe { (*self.tiers[usize::from(state)].get()).write(ArrayQueue::new(n_slots)) };
        self.state.store(state + 1, Ordering::Release);
    }

    /// Whether there is room for any block at all.
    #[inline]
    pub(super) fn is_built(&self) -> bool {
        self.state.load(Ordering::Acquire) & !BUILDING != 0
    }

    #[inline]
    fn ready(&self) -> impl DoubleEndedIterator<Item = &ArrayQueue<Block>> {
        // Acquire pairs with the Release stores in `build_tier`.
        let n_ready = usize::from(self.state.load(Ordering::Acquire) & !BUILDING);
        // SAFETY: these tiers are ready, and not written again while `self` is in use.
        self.tiers[..n_ready.min(TIERS)]
            .iter()
            .map(|tier| unsafe { (*tier.get()).assume_init_ref() })
    }

    /// Adds a block where there is room; gives it back where there is none.
    #[inline]
    pub(super) fn push(&self, block: Block) -> Result<(), Block> {
        let mut block = block;
        for tier in self.ready() {
            match tier.push(block) {
                Ok(()) => return Ok(()),
                Err(refused) => block = refused,
            }
        }
        Err(block)
    }

    /// Takes a block of the youngest tier that has any.
    #[inline]
    pub(super) fn pop_young(&self) -> Option<Block> {
        self.ready().rev().find_map(pop)
    }

    /// Takes a block of the oldest tier that has any.
    #[inline]
    pub(super) fn pop_old(&self) -> Option<Block> {
        self.ready().find_map(pop)
    }

    /// Exact when nobody else is at it.
    pub(super) fn len(&self) -> usize {
        self.ready().map(ArrayQueue::len).sum()
    }

    /// # Safety
    /// Nobody else uses `self`, now or later. Blocks that are left in it are leaked.
    pub(super) unsafe fn destroy(&self) {
        let n_ready = self.state.swap(0, Ordering::Acquire);
        for tier in self.tiers.iter().take(usize::from(n_ready)) {
            // SAFETY: ready, so initialised, and the caller is the only user.
            unsafe { (*tier.get()).assume_init_drop() };
        }
    }
}

#[inline]
fn pop(tier: &ArrayQueue<Block>) -> Option<Block> {
    // An empty queue is seen more cheaply this way: `pop` runs a full fence before it says so.
    if tier.is_empty() { None } else { tier.pop() }
}
