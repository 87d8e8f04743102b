//! Small alloc/free pairs, to be counted by `benches/callgrind.sh`.
//!
//! The two benches `pairs_mimalloc` and `pairs_deferfree` are this file and a global allocator
//! each: a switch at run time would add to the instructions that are counted.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::hint::black_box;

const LIVE_BLOCKS: usize = 16;
/// One after the other, in the mixed loop.
const MIXED_SIZES: [usize; 8] = [24, 512, 8, 96, 1536, 48, 200, 4096];

/// Blocks of this size and so many of them, in the loop that counts frees.
const FREES_SIZE: usize = 64;
const FREES_LIVE_BLOCKS: usize = 1024;

/// `<size>|mixed|frees <pairs>` runs that many pairs.
pub(crate) fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers = match arguments.as_slice() {
        [what, n_pairs] => n_pairs.parse().ok().map(|n_pairs: u64| (what.as_str(), n_pairs)),
        _ => None,
    };
    match numbers {
        Some(("mixed", n_pairs)) => mixed(n_pairs),
        Some(("frees", n_pairs)) => frees(n_pairs),
        Some((size, n_pairs)) => match size.parse().ok().and_then(layout) {
            Some(layout) => pairs(layout, n_pairs),
            None => usage(),
        },
        // `cargo bench` and `cargo test` come here.
        None => usage(),
    }
}

fn usage() {
    pairs(Layout::new::<u64>(), 1);
    mixed(1);
    frees(1);
    println!("pairs is counted under valgrind: run benches/callgrind.sh");
}

/// Aligned as most small blocks are: to 8, or to less where the block itself is smaller.
fn layout(size: usize) -> Option<Layout> {
    if size == 0 {
        return None;
    }
    Layout::from_size_align(size, 8).ok()
}

fn allocate(layout: Layout) -> *mut u8 {
    // SAFETY: no layout here is of size 0.
    let ptr = unsafe { alloc(layout) };
    if ptr.is_null() {
        handle_alloc_error(layout);
    }
    ptr
}

#[inline(never)]
fn pairs(layout: Layout, n_pairs: u64) {
    for _ in 0..n_pairs {
        let ptr = black_box(allocate(black_box(layout)));
        // SAFETY: the block was allocated with this layout and is freed once.
        unsafe { dealloc(ptr, layout) };
    }
}

/// Sixteen live blocks; each round frees the oldest and allocates one of another size.
#[inline(never)]
fn mixed(n_pairs: u64) {
    let mut sizes = MIXED_SIZES.iter().copied().filter_map(layout).cycle();
    let mut next = || {
        let layout = sizes.next().unwrap_or(Layout::new::<u64>());
        (black_box(allocate(black_box(layout))), layout)
    };
    let mut live: [(*mut u8, Layout); LIVE_BLOCKS] = std::array::from_fn(|_| next());
    for i in 0..n_pairs {
        let slot = &mut live[i as usize % LIVE_BLOCKS];
        // SAFETY: the slot's block was allocated with the slot's layout; it is replaced right
        // after.
        unsafe { dealloc(slot.0, slot.1) };
        *slot = next();
    }
    for (ptr, layout) in live {
        // SAFETY: as above, and nothing uses the slots any more.
        unsafe { dealloc(ptr, layout) };
    }
}

/// Each round frees the oldest block and allocates another, so that no burst begins. There are enough
/// of them that an allocator which looks at some addresses more closely than at others is seen to do
/// both.
#[inline(never)]
fn frees(n_pairs: u64) {
    let Some(layout) = black_box(layout(FREES_SIZE)) else { return };
    let mut live: [*mut u8; FREES_LIVE_BLOCKS] = std::array::from_fn(|_| allocate(layout));
    for i in 0..n_pairs {
        let slot = &mut live[i as usize % FREES_LIVE_BLOCKS];
        // SAFETY: the slot's block was allocated with this layout; it is replaced right after.
        unsafe { free_block(*slot, layout) };
        *slot = allocate(layout);
    }
    // To free the rest would be a burst.
}

/// What this executes besides `mi_free` is what the allocator puts before it. A function of its own:
/// inlined into a loop, the one could not be told from the other.
///
/// # Safety
///
/// As for `dealloc`.
#[inline(never)]
unsafe fn free_block(ptr: *mut u8, layout: Layout) {
    // SAFETY: the caller's block.
    unsafe { dealloc(ptr, layout) };
}
