//! Size classes: which blocks may take each other's place.
//!
//! Huge blocks have classes of their own.

use std::alloc::Layout;

use crate::huge;
use crate::sync::IN_MODEL;

/// Classes per doubling of the size: a block that is not huge is at most 1/16 larger than was asked for.
const STEPS_LOG2: u32 = 4;
const STEPS: usize = 1 << STEPS_LOG2;

const MIN_LOG2: u32 = 12;
const MAX_LOG2: u32 = if IN_MODEL { 13 } else { 47 };

/// The smallest block that can be deferred on its own.
pub(crate) const MIN_BYTES: usize = 1 << MIN_LOG2;
const MAX_BYTES: usize = 1 << MAX_LOG2;

/// Sizes of one kind of block. One more than whole doublings: the first class is `MIN_BYTES` alone.
const SIZES: usize = (MAX_LOG2 - MIN_LOG2) as usize * STEPS + 1;

/// All classes: those of ordinary blocks, then those of huge ones.
pub(crate) const COUNT: usize = 2 * SIZES;

/// A size class, as an index below [`COUNT`].
///
/// Every block of a class has room for at least `bytes()`, and whoever frees one finds a class from its layout that
/// is not above the one that it was allocated for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class(u16);

impl Class {
    /// The class of ordinary blocks of `size` bytes; `None` beyond what an address space holds.
    #[inline]
    pub(crate) fn of(size: usize) -> Option<Class> {
        if size > MAX_BYTES {
            return None;
        }
        let last = size.max(MIN_BYTES) - 1;
        // The top bit of `last` gives the doubling, the STEPS_LOG2 bits below it the step.
        let log2 = usize::BITS - 1 - last.leading_zeros();
        let step = last >> (log2 - STEPS_LOG2);
        // `last` of the first class lies in the doubling below MIN_BYTES, at its very end.
        let index = (log2 + 1 - MIN_LOG2) as usize * STEPS + step + 1 - 2 * STEPS;
        debug_assert!(index < SIZES);
        Some(Class(index as u16))
    }

    /// The class of huge blocks that a block of `size` bytes is allocated in: whole units.
    pub(crate) fn of_huge(size: usize) -> Option<Class> {
        let class = Class::of(size.checked_next_multiple_of(huge::UNIT_BYTES)?)?;
        Some(class.as_huge())
    }

    /// The largest class of which a huge block of `len` bytes is, or the smallest of all.
    #[inline]
    pub(crate) fn of_mapping(len: usize) -> Class {
        let Some(class) = Class::of(len) else {
            return Class((COUNT - 1) as u16);
        };
        let at_most = if class.bytes() > len { class.0.saturating_sub(1) } else { class.0 };
        Class(at_most).as_huge()
    }

    fn as_huge(self) -> Class {
        Class(self.0 + SIZES as u16)
    }

    pub(crate) fn from_index(index: usize) -> Class {
        debug_assert!(index < COUNT);
        Class(index as u16)
    }

    #[inline]
    pub(crate) fn index(self) -> usize {
        self.0.into()
    }

    /// Whether the blocks of this class are huge.
    #[inline]
    pub(crate) fn is_huge(self) -> bool {
        self.index() >= SIZES
    }

    /// The size that a block of this class is allocated with.
    #[inline]
    pub(crate) fn bytes(self) -> usize {
        let index = self.index() - if self.is_huge() { SIZES } else { 0 };
        let position = index + STEPS - 1;
        let (doubling, step) = (position / STEPS, position % STEPS);
        (STEPS + step + 1) << (doubling as u32 + MIN_LOG2 - 1 - STEPS_LOG2)
    }

    /// How a block of this class is allocated with an alignment of `align`.
    #[inline]
    pub(crate) fn layout(self, align: usize) -> Option<Layout> {
        Layout::from_size_align(self.bytes(), align).ok()
    }

    /// The layout of a block of this class whose alignment is not known any more.
    pub(crate) fn layout_to_free(self) -> Layout {
        // SAFETY: 1 is a power of two, and no class is larger than MAX_BYTES.
        unsafe { Layout::from_size_align_unchecked(self.bytes(), 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::{COUNT, Class, MAX_BYTES, MIN_BYTES, SIZES};
    use crate::huge::UNIT_BYTES;

    #[test]
    fn every_class_contains_its_own_size_and_starts_after_the_one_below() {
        for index in 0..SIZES {
            let class = Class::from_index(index);
            assert!(!class.is_huge());
            assert_eq!(Class::of(class.bytes()), Some(class));
            if index > 0 {
                let below = Class::from_index(index - 1).bytes();
                assert!(below < class.bytes());
                assert_eq!(Class::of(below + 1), Some(class), "{}", below + 1);
            }
        }
    }

    #[test]
    fn a_huge_block_serves_the_class_that_it_is_found_in() {
        for units in (1..3000).chain((1..40).map(|n| n * 77_777)) {
            let len = units * UNIT_BYTES;
            let asked = Class::of_huge(len - 1).unwrap();
            assert!(asked.is_huge() && asked.bytes() >= len && asked.bytes() % UNIT_BYTES == 0);
            assert_eq!(Class::of_mapping(asked.bytes()), asked);
            let found = Class::of_mapping(len);
            assert!(found.is_huge() && found.bytes() <= len && found.bytes() > len - len / 8);
        }
        assert_eq!(Class::of_mapping(usize::MAX).index(), COUNT - 1);
        assert_eq!(Class::of_huge(MAX_BYTES).unwrap().index(), COUNT - 1);
        assert_eq!(Class::of_huge(usize::MAX), None);
    }

    #[test]
    fn rounding_wastes_at_most_a_sixteenth() {
        let mut size = MIN_BYTES;
        while size < MAX_BYTES / 2 {
            for asked in [size, size + 1, size + size / 3] {
                let given = Class::of(asked).unwrap().bytes();
                assert!(given >= asked && given - asked <= asked / 16, "{asked} -> {given}");
            }
            size += size / 7;
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!(Class::of(1).unwrap().bytes(), MIN_BYTES);
        assert_eq!(Class::of(MIN_BYTES).unwrap().index(), 0);
        assert_eq!(Class::of(MAX_BYTES).unwrap().index(), SIZES - 1);
        assert_eq!(Class::of(MAX_BYTES + 1), None);
        assert_eq!(Class::of(usize::MAX), None);
    }
}
