//! An order to free blocks in.

/// Puts them into an order that is the same each time and in which hardly any two that lie side by side follow each other.
pub(crate) fn shuffle<T>(items: &mut [T]) {
    let n = items.len();
    // A stride that has no divisor in common with the length, but for multiples of it.
    (0..n).for_each(|i| items.swap(i, i * 7919 % n));
}
