//! Where the mappings of huge blocks begin, and how long they are: told by the block's address alone, so that whoever
//! frees one, in whatever phase and whichever process, knows it from a block of the allocator underneath.
//!
//! ```text
//! address   | 12 bits: root | 15 bits: place in a leaf | 21 bits: within a unit |
//! root      4096 pointers to leaves; null: no huge block was ever in these 64 GiB
//! leaf      32 768 lengths in units of 2 MiB; 0: no huge block begins here. The uppermost bit: its pages tell
//! ```
//!
//! A leaf is made when the first block comes to lie in its 64 GiB, touched where there are blocks, and stays.

use std::ptr::{self, NonNull};

use super::UNIT_BYTES;
use crate::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::sys;

const LEAF_BITS: u32 = 15;
const ROOT_BITS: u32 = 12;
const UNIT_BITS: u32 = UNIT_BYTES.trailing_zeros();

#[repr(transparent)]
struct Leaf([AtomicU32; 1 << LEAF_BITS]);

/// See [`Table::set_telling`].
const TELLING: u32 = 1 << (u32::BITS - 1);

/// All zero bytes are an empty table.
pub(super) struct Table([AtomicPtr<Leaf>; 1 << ROOT_BITS]);

impl Table {
    pub(super) const fn new() -> Self {
        Table([const { AtomicPtr::new(ptr::null_mut()) }; 1 << ROOT_BITS])
    }

    /// The length of the mapping that begins at `block`; 0 when none does.
    #[inline]
    pub(super) fn len(&self, block: *mut u8) -> usize {
        (self.entry(block) & !TELLING) as usize * UNIT_BYTES
    }

    /// See [`Table::set_telling`].
    pub(super) fn is_telling(&self, block: *mut u8) -> bool {
        self.entry(block) & TELLING != 0
    }

    #[inline]
    fn entry(&self, block: *mut u8) -> u32 {
        if block.addr() % UNIT_BYTES != 0 {
            return 0;
        }
        let Some(root) = self.0.get(block.addr() >> (UNIT_BITS + LEAF_BITS)) else {
            return 0;
        };
        // Acquire pairs with the Release in `place`: a leaf is zero, or what was put there.
        let Some(leaf) = NonNull::new(root.load(Ordering::Acquire)) else {
            return 0;
        };
        // SAFETY: a leaf stays for good.
        let units = unsafe { &leaf.as_ref().0[index_in_leaf(block)] };
        // Relaxed: whoever has the block was given it after its length was put here, and only its holder changes that.
        units.load(Ordering::Relaxed)
    }

    /// Notes that a mapping of `len` bytes, whole units, begins at `block`; with 0 that none does any more. False when
    /// that cannot be noted: an address or a length beyond the table, or no memory for a leaf.
    ///
    /// To be called by the holder of the mapping: after it was made, and before it goes.
    pub(super) fn set(&self, block: *mut u8, len: usize) -> bool {
        debug_assert!(block.addr() % UNIT_BYTES == 0 && len % UNIT_BYTES == 0);
        let (Ok(units @ 0..TELLING), Some(leaf)) =
            (u32::try_from(len / UNIT_BYTES), self.leaf(block))
        else {
            return false;
        };
        leaf.0[index_in_leaf(block)].store(units, Ordering::Relaxed);
        true
    }

    /// Notes of a mapping that is known, until it is `set` anew, that what is resident of it is what its holders have written.
    /// To be called by the holder.
    pub(super) fn set_telling(&self, block: *mut u8) {
        if let Some(leaf) = self.leaf(block) {
            leaf.0[index_in_leaf(block)].fetch_or(TELLING, Ordering::Relaxed);
        }
    }

    fn leaf(&self, block: *mut u8) -> Option<&Leaf> {
        let root = self.0.get(block.addr() >> (UNIT_BITS + LEAF_BITS))?;
        let mut leaf = root.load(Ordering::Acquire);
        if leaf.is_null() {
            let new = sys::map_zeroed(size_of::<Leaf>()).cast::<Leaf>();
            if new.is_null() {
                return None;
            }
            // Release: the zeros are there for whoever finds the leaf. Acquire: as above.
            leaf = match root.compare_exchange(
                ptr::null_mut(),
                new,
                Ordering::Release,
                Ordering::Acquire,
            ) {
                Ok(_) => new,
                Err(other) => {
                    // SAFETY: nobody knows of it.
                    unsafe { sys::unmap(new.cast(), size_of::<Leaf>()) };
                    other
                }
            };
        }
        // SAFETY: a leaf stays for good.
        Some(unsafe { &*leaf })
    }
}

fn index_in_leaf(block: *mut u8) -> usize {
    (block.addr() >> UNIT_BITS) % (1 << LEAF_BITS)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_found_by_address() {
        let table = Table::new();
        let at = |unit: usize| ptr::without_provenance_mut::<u8>(unit * UNIT_BYTES);
        assert_eq!(table.len(at(5)), 0);
        for (unit, units) in [(1, 1), (5, 4096), (1 << LEAF_BITS, 7), ((1 << 27) - 1, 1)] {
            assert!(table.set(at(unit), units * UNIT_BYTES));
            assert_eq!(table.len(at(unit)), units * UNIT_BYTES);
            assert_eq!(table.len(at(unit).wrapping_add(4096)), 0);
            assert_eq!(table.len(at(unit + 1)), 0);
        }
        table.set_telling(at(5));
        assert!(table.is_telling(at(5)) && !table.is_telling(at(1)) && !table.is_telling(at(77)));
        assert_eq!(table.len(at(5)), 4096 * UNIT_BYTES);
        assert!(table.set(at(5), 0) && !table.is_telling(at(5)));
        assert_eq!((table.len(at(5)), table.len(at(1))), (0, UNIT_BYTES));
        // Beyond 48 bits of address, and lengths of which 32 bits do not hold the units.
        assert!(!table.set(at(1 << 27), UNIT_BYTES));
        assert_eq!(table.len(at(1 << 27)), 0);
        assert!(!table.set(at(9), (u32::MAX as usize + 1) * UNIT_BYTES));
        assert!(!table.set(at(9), TELLING as usize * UNIT_BYTES));
    }
}
