//! With `DeferFree` as the global allocator, the frees that a hand-off causes are the dropper's.
//!
//! Seen to fail with `later` replaced by `drop`.
#![cfg(not(deferfree_inline))]

mod common;

use std::alloc::Layout;
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::on_system;
use deferfree::{Backing, DeferFree, flush_values, later};

/// The system's allocator, counting the frees of one size by thread.
#[derive(Clone, Copy)]
struct Counting;

// A block below 16 KiB comes to the backing without its size.
const ODD_SIZE: usize = 23_456;
static FREED_BY_CALLER: AtomicUsize = AtomicUsize::new(0);
static FREED_BY_OTHERS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_CALLER: Cell<bool> = const { Cell::new(false) };
}

fn count(layout: Layout) {
    if layout.size() == ODD_SIZE {
        let by = if IS_CALLER.get() { &FREED_BY_CALLER } else { &FREED_BY_OTHERS };
        by.fetch_add(1, Ordering::Relaxed);
    }
}

on_system!(Counting, count);

// SAFETY: as `System` is one; the defaults are right for any allocator.
unsafe impl Backing for Counting {}

// Without bursts: what is freed in one comes to the backing without its size as well.
#[global_allocator]
static GLOBAL: DeferFree<Counting> = DeferFree::with_backing(Counting).burst(None);

#[test]
fn the_dropper_frees() {
    IS_CALLER.set(true);
    let freed =
        || [&FREED_BY_CALLER, &FREED_BY_OTHERS].map(|counter| counter.load(Ordering::Relaxed));
    let list = || -> Vec<Vec<u8>> { (0..1000).map(|_| Vec::with_capacity(ODD_SIZE)).collect() };
    drop(list());
    assert_eq!(freed(), [1000, 0], "or the test cannot tell");
    later(list());
    assert!(flush_values());
    assert_eq!(freed(), [1000, 1000]);
}
