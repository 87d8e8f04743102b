//! A bounded lock-free queue that is built in tiers, as its class comes to have more blocks.
//!
//! `ArrayQueue` never allocates once it is built, but to build one is to write each slot. Room for
//! all the blocks that a class may ever have would be 256 KiB a class, on the first allocation of a
//! program that may have one buffer of each of a hundred sizes.

use std::ptr;

use super::Block;
use crate::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use crate::sync::{ArrayQueue, IN_MODEL};

/// Slots of each tier: 1 KiB, 16 KiB and 256 KiB.
const TIER_SLOTS: [usize; TIERS] = if IN_MODEL { [1, 1, 1] } else { [64, 1024, 16 << 10] };
const TIERS: usize = 3;

type Tier = ArrayQueue<Block>;

/// A slot of `ArrayQueue`: a stamp and the block.
const SLOT_BYTES: usize = 2 * size_of::<usize>();

/// All zero bytes are a valid value: no tier is built, and no block fits in.
///
/// Within a tier blocks leave in the order in which they came; an upper tier fills when those below
/// are full, so its blocks are the younger ones, by and large.
pub(super) struct Queue {
    /// Built from the first on: null until then, and the same tier from then on.
    tiers: [AtomicPtr<Tier>; TIERS],
    building: AtomicBool,
}

impl Queue {
    /// Whether there is room for any block at all.
    #[inline]
    pub(super) fn is_built(&self) -> bool {
        !self.tiers[0].load(Ordering::Acquire).is_null()
    }

    /// Whether room for `n_blocks` takes another tier.
    #[inline]
    pub(super) fn wants_tier(&self, n_blocks: usize) -> bool {
        let n_ready = self.ready().count();
        n_ready < TIERS && (n_ready == 0 || TIER_SLOTS[..n_ready].iter().sum::<usize>() < n_blocks)
    }

    /// Builds the next tier, unless another thread is at it. `afford` is asked first, with the bytes
    /// that it takes, because the tier's own allocation aborts the process when it fails.
    #[cold]
    pub(super) fn build_tier(&self, afford: impl FnOnce(usize) -> bool) {
        // Acquire pairs with the Release below: who builds sees the tiers that there are.
        if self.building.swap(true, Ordering::Acquire) {
            return;
        }
        let next = self.ready().count();
        if let (Some(tier), Some(&n_slots)) = (self.tiers.get(next), TIER_SLOTS.get(next)) {
            if afford(n_slots * SLOT_BYTES + 2 * size_of::<Tier>()) {
                let built = Box::into_raw(Box::new(Tier::new(n_slots)));
                // Release pairs with the Acquire in `ready`.
                tier.store(built, Ordering::Release);
            }
        }
        self.building.store(false, Ordering::Release);
    }

    #[inline]
    fn ready(&self) -> impl DoubleEndedIterator<Item = &Tier> {
        // SAFETY: a tier is null or a box that lives until `destroy`, complete since it was stored
        // with Release.
        self.tiers.iter().filter_map(|tier| unsafe { tier.load(Ordering::Acquire).as_ref() })
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
        self.ready().map(Tier::len).sum()
    }

    /// # Safety
    /// Nobody else uses `self`, now or later. Blocks that are left in it are leaked.
    pub(super) unsafe fn destroy(&self) {
        for tier in &self.tiers {
            let tier = tier.swap(ptr::null_mut(), Ordering::Acquire);
            if !tier.is_null() {
                // SAFETY: from `Box::into_raw`, and the caller is the only user.
                drop(unsafe { Box::from_raw(tier) });
            }
        }
    }
}

#[inline]
fn pop(tier: &Tier) -> Option<Block> {
    // An empty queue is seen more cheaply this way: `pop` runs a full fence before it says so.
    if tier.is_empty() { None } else { tier.pop() }
}
