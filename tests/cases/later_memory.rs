//! The first value that is handed over where memory is short: it is dropped, there or by the dropper, and the process goes on.
//!
//! Seen to fail (the process is aborted): without `has_memory_for_a_thread`.

use crate::common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{fork, wait_ok};
use deferfree::{flush_values, later};

/// The system's, up to so many bytes more.
struct Limited;

static LEFT_BYTES: AtomicUsize = AtomicUsize::new(usize::MAX / 2);

// SAFETY: all blocks are the system's.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let takes = |left: usize| left.checked_sub(layout.size());
        if LEFT_BYTES.fetch_update(Ordering::SeqCst, Ordering::SeqCst, takes).is_err() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        LEFT_BYTES.fetch_add(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's.
        unsafe { System.dealloc(ptr, layout) };
    }
}

#[global_allocator]
static GLOBAL: Limited = Limited;

pub(crate) fn main() -> ExitCode {
    common::run(&[("first_value", first_value)])
}

struct Counted;

static N_DROPPED: AtomicUsize = AtomicUsize::new(0);

impl Drop for Counted {
    fn drop(&mut self) {
        N_DROPPED.fetch_add(1, Ordering::SeqCst);
    }
}

fn first_value() {
    // The dropper itself, the blocks that are tried, what a thread takes, the large queue.
    let steps = (0..160 << 10).step_by(512).chain([2 << 20]);
    for left in steps {
        wait_ok(fork(20, || {
            LEFT_BYTES.store(left, Ordering::SeqCst);
            (0..3).for_each(|_| later(Counted));
            later([0u64; 100].map(|_| Counted));
            flush_values();
            LEFT_BYTES.store(usize::MAX / 2, Ordering::SeqCst);
            assert_eq!(N_DROPPED.load(Ordering::SeqCst), 103, "with {left} bytes");
        }));
    }
}
