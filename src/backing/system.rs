//! The C library's allocator, for programs that want to keep it and for sanitizers, which see through it.

use std::alloc::{Layout, System};

use super::Backing;

/// From this size on the C library certainly gives a block a mapping of its own (its threshold
/// adapts up to 32 MiB: `DEFAULT_MMAP_THRESHOLD_MAX` in mallopt(3)).
const MAPPED_BYTES: usize = 32 << 20;

// SAFETY: the C library's functions know a block by its address, on any thread. Where `System` stands on others it is no
// `Backing`: on Windows it looks for the block's beginning in different places by the alignment.
//
// There is no `purge`: `malloc_trim` holds the lock of each arena while it works, which would stall
// the threads that this crate is to keep free.
unsafe impl Backing for System {
    fn unmaps_on_free(&self, layout: Layout) -> bool {
        layout.size() >= MAPPED_BYTES
    }
}
