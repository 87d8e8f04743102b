//! The places of a class's blocks that are the first to be taken back, one for each of a few threads.
//!
//! A place is reserved for a block when it is filled, as any other that waits is, and stays so when the block is
//! taken back: a thread that frees one and allocates one, over and over, touches nothing but its slot, and no other
//! thread's, nor the bytes that wait. The drainer gives up what is reserved for nothing with each part of a delay.

use std::ptr;

use super::{Block, NO_BLOCK, is_block, pop};
use crate::burst::local;
use crate::sync::IN_MODEL;
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

/// Slots of a class.
pub(super) const N_SLOTS: usize = if IN_MODEL { 1 } else { 4 };

/// All zero bytes are a valid value: no block, and nothing reserved for one.
pub(super) struct Slot {
    /// Null, [`RESERVED`], or a block.
    content: AtomicPtr<u8>,
    /// Frees of the slot's threads that reached `put`.
    pub(super) handed_over: AtomicU64,
    /// Taken back by an allocation of the slot's threads.
    pub(super) reused: AtomicU64,
}

/// No block, but the bytes of one count as waiting.
const RESERVED: *mut u8 = NO_BLOCK;

/// Which of them the calling thread uses; a matter of speed alone.
#[inline(always)]
pub(super) fn of_thread() -> usize {
    of_stack(local::near_stack())
}

/// Stacks that lie side by side have different ones, by and large, if they are of 2 MiB, as the standard library makes
/// them, or of some power of two above that.
#[inline(always)]
#[allow(clippy::modulo_one, reason = "the models have one")]
fn of_stack(address: usize) -> usize {
    let stack = address >> 21;
    let folded = stack ^ stack >> 4;
    (folded ^ folded >> 2) % N_SLOTS
}

impl Slot {
    /// Puts the block where one is reserved for. Gives it back where nothing is.
    #[inline]
    pub(super) fn refill(&self, block: Block) -> Result<(), Block> {
        self.replace(RESERVED, block)
    }

    /// Puts in a block that something has been reserved for. Gives it back where the slot is taken.
    #[inline]
    pub(super) fn fill(&self, block: Block) -> Result<(), Block> {
        self.replace(ptr::null_mut(), block)
    }

    #[inline]
    fn replace(&self, empty: *mut u8, block: Block) -> Result<(), Block> {
        // The cheap look first. Release pairs with the Acquire in `pop`: what was written to the block before it was freed.
        let is_empty = self.content.load(Ordering::Relaxed) == empty;
        let put =
            || self.content.compare_exchange(empty, block.0, Ordering::Release, Ordering::Relaxed);
        if is_empty && put().is_ok() { Ok(()) } else { Err(block) }
    }

    /// Takes the block, if there is one. What is reserved for it stays.
    #[inline]
    pub(super) fn take(&self) -> Option<Block> {
        pop(&self.content, RESERVED)
    }

    /// Takes the block, and what is reserved: that is now the caller's to give up.
    pub(super) fn clear(&self) -> Cleared {
        if self.content.load(Ordering::Relaxed).is_null() {
            return Cleared::Nothing;
        }
        // As in `pop`.
        let content = self.content.swap(ptr::null_mut(), Ordering::Acquire);
        if content.is_null() {
            Cleared::Nothing
        } else if content == RESERVED {
            Cleared::Reserved
        } else {
            Cleared::Block(Block(content))
        }
    }

    /// Whether nothing more is reserved without a block; that is the caller's to give up.
    pub(super) fn give_up(&self) -> bool {
        // Relaxed: no block changes hands.
        self.content.load(Ordering::Relaxed) == RESERVED
            && self
                .content
                .compare_exchange(RESERVED, ptr::null_mut(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// Whether something is reserved for a block that is not there.
    pub(super) fn is_reserved(&self) -> bool {
        self.content.load(Ordering::Relaxed) == RESERVED
    }

    #[inline]
    pub(super) fn has_block(&self) -> bool {
        is_block(self.content.load(Ordering::Relaxed))
    }
}

/// What there was in a slot.
pub(super) enum Cleared {
    Nothing,
    Reserved,
    Block(Block),
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{N_SLOTS, of_stack, of_thread};

    /// Seldom the same one; by chance it would be one pair in four.
    #[test]
    fn neighbours_have_different_slots() {
        const GUARD: usize = 4096;
        const N: usize = 10_000;
        for stack_bytes in [2 << 20, 4 << 20, 8 << 20, 16 << 20, 64 << 20] {
            let lowest = (0..N).map(|n| 0x7f12_3456_7000 + n * 0x12_3000);
            let next = stack_bytes + GUARD;
            let n_same = lowest.filter(|&at| of_stack(at) == of_stack(at + next)).count();
            assert!(n_same < N / 10, "{n_same} of {N}, {stack_bytes} bytes");
        }
        assert_eq!(of_thread(), of_thread());
        assert!(of_thread() < N_SLOTS);
    }
}
