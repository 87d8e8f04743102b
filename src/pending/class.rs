//! Size classes: which blocks may take each other's place.

use std::alloc::Layout;

use crate::sync::IN_MODEL;

/// Classes per doubling of the size: a block is at most 1/16 larger than was asked for.
const STEPS_LOG2: u32 = 4;
const STEPS: usize = 1 << STEPS_LOG2;

const MIN_LOG2: u32 = 12;
const MAX_LOG2: u32 = if IN_MODEL { 13 } else { 47 };

/// The smallest block that can be deferred on its own.
pub(crate) const MIN_BYTES: usize = 1 << MIN_LOG2;
const MAX_BYTES: usize = 1 << MAX_LOG2;

/// Sizes of one kind of block. One more than whole doublings: the first class is `MIN_BYTES` alone.
const SIZES: usize = (MAX_LOG2 - MIN_LOG2) as usize * STEPS + 1;

/// All classes: those of ordinary blocks, then those of blocks that are unmapped when freed.
pub(crate) const COUNT: usize = 2 * SIZES;

/// A size class, as an index below [`COUNT`].
///
/// Every block of a class has room for at least `bytes()`, and whoever frees one finds the same
/// class from its layout as the one who allocated it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Class(u16);

impl Class {
    /// The class of blocks of `size` bytes; `None` beyond what an address space holds.
    #[inline]
    pub(crate) fn of(size: usize, unmapped_when_freed: bool) -> Option<Class> {
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
        Some(Class((index + if unmapped_when_freed { SIZES } else { 0 }) as u16))
    }

    pub(crate) fn from_index(index: usize) -> Class {
        debug_assert!(index < COUNT);
        Class(index as u16)
    }

    #[inline]
    pub(crate) fn index(self) -> usize {
        self.0.into()
    }

    /// Whether freeing a block of this class unmaps it.
    #[inline]
    pub(crate) fn unmapped_when_freed(self) -> bool {
        self.index() >= SIZES
    }

    /// The size that a block of this class is allocated with.
    #[inline]
    pub(crate) fn bytes(self) -> usize {
        let index = self.index() - if self.unmapped_when_freed() { SIZES } else { 0 };
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

    #[test]
    fn every_class_contains_its_own_size_and_starts_after_the_one_below() {
        for index in 0..COUNT {
            let class = Class::from_index(index);
            let unmapped = class.unmapped_when_freed();
            assert_eq!(Class::of(class.bytes(), unmapped), Some(class));
            if index % SIZES != 0 {
                let below = Class::from_index(index - 1).bytes();
                assert!(below < class.bytes());
                assert_eq!(Class::of(below + 1, unmapped), Some(class), "{}", below + 1);
            }
        }
    }

    #[test]
    fn rounding_wastes_at_most_a_sixteenth() {
        let mut size = MIN_BYTES;
        while size < MAX_BYTES / 2 {
            for asked in [size, size + 1, size + size / 3] {
                let given = Class::of(asked, false).unwrap().bytes();
                assert!(given >= asked && given - asked <= asked / 16, "{asked} -> {given}");
            }
            size += size / 7;
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!(Class::of(1, false).unwrap().bytes(), MIN_BYTES);
        assert_eq!(Class::of(MIN_BYTES, false).unwrap().index(), 0);
        assert_eq!(Class::of(MAX_BYTES, false).unwrap().index(), SIZES - 1);
        assert_eq!(Class::of(MAX_BYTES, true).unwrap().index(), COUNT - 1);
        assert_eq!(Class::of(MAX_BYTES + 1, false), None);
        assert_eq!(Class::of(usize::MAX, true), None);
    }
}
