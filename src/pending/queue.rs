//! The blocks of one class, in three bags one above the other.
//!
//! A push goes to the first bag that has room, so a class with few blocks goes round and round in a few pages however
//! many it may come to have. The bags lie in a mapping of their own, whose pages cost nothing until they are touched.

use std::mem::offset_of;
use std::ptr;

use super::Block;
use super::bag::Bag;
use crate::sync::IN_MODEL;
use crate::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use crate::sys;

/// Slots of each tier: the first lies in one page, with head and tail; the others take 16 KiB and 128 KiB.
const TIER_SLOTS: [usize; 3] = if IN_MODEL { [2, 1, 1] } else { [128, 2048, 16 << 10] };

/// Within a tier blocks leave in the order in which they came; an upper tier fills when those below are full, so its
/// blocks are the younger ones, by and large. All zero bytes are a valid value: no block waits.
#[repr(C)]
struct Tiers {
    first: Bag<{ TIER_SLOTS[0] }>,
    second: Bag<{ TIER_SLOTS[1] }>,
    third: Bag<{ TIER_SLOTS[2] }>,
}

/// Where the tiers ended at some moment.
#[derive(Debug)]
pub(super) struct Ends([u64; 3]);

/// All zero bytes are a valid value: there are no tiers, and no block fits in.
pub(super) struct Queue {
    /// Null until they are mapped, and the same from then on.
    tiers: AtomicPtr<Tiers>,
    /// Bytes of them that have been made ready. The drainer's alone.
    n_ready: AtomicUsize,
}

impl Queue {
    /// Whether there is room for any block at all.
    #[inline]
    pub(super) fn is_mapped(&self) -> bool {
        self.tiers().is_some()
    }

    /// Maps the tiers. Where the system has no memory for that there are none, as before.
    #[cold]
    pub(super) fn map(&self) {
        let mapped = sys::map_zeroed(size_of::<Tiers>()).cast::<Tiers>();
        if mapped.is_null() {
            return;
        }
        // Release pairs with the Acquire in `tiers`: the mapping is there.
        let won = self.tiers.compare_exchange(
            ptr::null_mut(),
            mapped,
            Ordering::Release,
            Ordering::Relaxed,
        );
        if won.is_err() {
            // SAFETY: mapped above, and nobody else knows of it.
            unsafe { sys::unmap(mapped.cast(), size_of::<Tiers>()) };
        }
    }

    #[inline]
    fn tiers(&self) -> Option<&Tiers> {
        // SAFETY: null, or a mapping of zeros, which are valid tiers, that lasts until `unmap`.
        unsafe { self.tiers.load(Ordering::Acquire).as_ref() }
    }

    /// Gives the block back where there is no room.
    #[inline]
    pub(super) fn push(&self, block: Block) -> Result<(), Block> {
        let Some(tiers) = self.tiers() else {
            return Err(block);
        };
        tiers.first.push(block).or_else(|block| tiers.push_above(block))
    }

    /// A push that has stopped in the middle; it goes on with the block when it is called.
    #[cfg(all(test, loom))]
    pub(super) fn begin_to_push(&self) -> impl FnOnce(Block) {
        let bag = &self.tiers().unwrap().first;
        let position = bag.claim_to_push().unwrap();
        move |block| bag.push_at(position, block).or_else(|block| self.push(block)).unwrap()
    }

    /// Takes a block of the youngest tier that has any.
    #[inline]
    pub(super) fn pop_young(&self) -> Option<Block> {
        let tiers = self.tiers()?;
        tiers.third.pop().or_else(|| tiers.second.pop()).or_else(|| tiers.first.pop())
    }

    /// Takes a block of the oldest tier that has any.
    #[inline]
    pub(super) fn pop_old(&self) -> Option<Block> {
        let tiers = self.tiers()?;
        tiers.first.pop().or_else(|| tiers.second.pop()).or_else(|| tiers.third.pop())
    }

    /// What `pop_before` takes out: all blocks that are in, or are just being put in.
    pub(super) fn ends(&self) -> Ends {
        let ends = |tiers: &Tiers| [tiers.first.end(), tiers.second.end(), tiers.third.end()];
        Ends(self.tiers().map_or([0; 3], ends))
    }

    pub(super) fn pop_before(&self, &Ends([first, second, third]): &Ends) -> Option<Block> {
        let tiers = self.tiers()?;
        let above = || tiers.second.pop_before(second).or_else(|| tiers.third.pop_before(third));
        tiers.first.pop_before(first).or_else(above)
    }

    /// Has the system put memory behind what `n_blocks` come to, so that no free has to wait for a page. Only the drainer
    /// may call it.
    pub(super) fn make_ready(&self, n_blocks: usize) {
        let Some(tiers) = self.tiers() else {
            return;
        };
        let [first, second, _] = TIER_SLOTS;
        let wanted = match n_blocks {
            n if n <= first => 0,
            n if n <= first + second => offset_of!(Tiers, third),
            _ => size_of::<Tiers>(),
        };
        let wanted = wanted.next_multiple_of(sys::page_bytes());
        let n_ready = self.n_ready.load(Ordering::Relaxed);
        if n_ready < wanted {
            self.n_ready.store(wanted, Ordering::Relaxed);
            // SAFETY: whole pages of the mapping, which is made of such.
            unsafe {
                let from = ptr::from_ref(tiers).cast_mut().cast::<u8>().add(n_ready);
                sys::make_ready(from, wanted - n_ready);
            }
        }
    }

    /// See `Bag::len`.
    pub(super) fn len(&self) -> usize {
        self.tiers().map_or(0, |tiers| tiers.first.len() + tiers.second.len() + tiers.third.len())
    }

    /// # Safety
    /// Nobody else uses `self`, now or later. Blocks that are left in it are leaked.
    pub(super) unsafe fn unmap(&self) {
        let tiers = self.tiers.swap(ptr::null_mut(), Ordering::Acquire);
        if !tiers.is_null() {
            // SAFETY: mapped by `map`, and the caller is the only user.
            unsafe { sys::unmap(tiers.cast(), size_of::<Tiers>()) };
        }
    }
}

impl Tiers {
    #[inline(never)]
    fn push_above(&self, block: Block) -> Result<(), Block> {
        self.second.push(block).or_else(|block| self.third.push(block))
    }
}

// Emulators of other processors may take the wish and do nothing.
#[cfg(all(test, not(loom), target_os = "linux", target_arch = "x86_64", not(deferfree_posix)))]
mod tests {
    use super::*;

    /// Seen to fail without `sys::make_ready`. (From Linux 5.14 on; before that the first push to a page waits for it.)
    #[test]
    fn memory_is_there_before_the_blocks() {
        let queue = Queue { tiers: AtomicPtr::default(), n_ready: AtomicUsize::new(0) };
        queue.make_ready(1000);
        queue.map();
        let n_resident = || {
            let tiers = queue.tiers.load(Ordering::Relaxed).cast::<u8>();
            let pages = (0..size_of::<Tiers>()).step_by(sys::page_bytes());
            // SAFETY: a page of the mapping.
            pages.filter(|&offset| unsafe { sys::is_resident(tiers.add(offset)) }).count()
        };
        let pages = |bytes: usize| bytes.div_ceil(sys::page_bytes());
        let [first, second, _] = TIER_SLOTS;
        queue.make_ready(first);
        assert_eq!(n_resident(), 0);
        for n_blocks in [first + 1, first + second] {
            queue.make_ready(n_blocks);
            assert_eq!(n_resident(), pages(offset_of!(Tiers, third)));
        }
        queue.make_ready(first + second + 1);
        assert_eq!(n_resident(), pages(size_of::<Tiers>()));
        // SAFETY: nobody else knows of it.
        unsafe { queue.unmap() };
    }
}
