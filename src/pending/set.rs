//! Sets of classes, one bit for each. Relaxed: what is in a class orders itself.

use super::class::{COUNT, Class};
use crate::sync::atomic::{AtomicU64, Ordering};

/// All zero bytes are a valid value: the empty set.
pub(super) struct Set([AtomicU64; COUNT.div_ceil(64)]);

impl Set {
    pub(super) fn contains(&self, class: Class) -> bool {
        let (word, bit) = self.place(class);
        word.load(Ordering::Relaxed) & bit != 0
    }

    /// Writes nothing where the class is in already.
    #[inline]
    pub(super) fn insert(&self, class: Class) {
        if !self.contains(class) {
            let (word, bit) = self.place(class);
            word.fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub(super) fn remove(&self, class: Class) {
        let (word, bit) = self.place(class);
        word.fetch_and(!bit, Ordering::Relaxed);
    }

    #[inline]
    fn place(&self, class: Class) -> (&AtomicU64, u64) {
        (&self.0[class.index() / 64], 1 << (class.index() % 64))
    }

    /// From that with index `start` on, from the smallest.
    pub(super) fn from(&self, start: usize) -> impl Iterator<Item = Class> + '_ {
        let mut next = start;
        std::iter::from_fn(move || {
            let class = self.at_or_above(next)?;
            next = class.index() + 1;
            Some(class)
        })
    }

    /// Below that with index `end`, from the largest.
    pub(super) fn below(&self, end: usize) -> impl Iterator<Item = Class> + '_ {
        let mut end = end;
        std::iter::from_fn(move || {
            let class = self.last_below(end)?;
            end = class.index();
            Some(class)
        })
    }

    fn at_or_above(&self, index: usize) -> Option<Class> {
        let mut word = index / 64;
        let mut mask = u64::MAX << (index % 64);
        while let Some(bits) = self.0.get(word) {
            let bits = bits.load(Ordering::Relaxed) & mask;
            if bits != 0 {
                return Some(Class::from_index(word * 64 + bits.trailing_zeros() as usize));
            }
            word += 1;
            mask = u64::MAX;
        }
        None
    }

    fn last_below(&self, end: usize) -> Option<Class> {
        let last = end.checked_sub(1)?;
        let mut word = last / 64;
        let mut mask = u64::MAX >> (63 - last % 64);
        loop {
            let bits = self.0.get(word)?.load(Ordering::Relaxed) & mask;
            if bits != 0 {
                return Some(Class::from_index(word * 64 + bits.ilog2() as usize));
            }
            word = word.checked_sub(1)?;
            mask = u64::MAX;
        }
    }
}
