//! Small alloc/free pairs, to be counted by `benches/callgrind.sh`.
//!
//! The two benches `pairs_mimalloc` and `pairs_deferfree` are this file and a global allocator
//! each: a switch at run time would add to the instructions that are counted.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::hint::black_box;
use std::{ptr, thread};

/// The pairs are made at so many places, for an allocator may look at some addresses more closely than
/// at others.
const N_PLACES: u64 = 64;
/// What mimalloc keeps blocks of these sizes in.
const PAGE_BYTES: usize = 64 << 10;

const LIVE_BLOCKS: usize = 16;
/// One after the other, in the mixed loop.
const MIXED_SIZES: [usize; 8] = [24, 512, 8, 96, 1536, 48, 200, 4096];

/// The block of the loops in which frees are counted, and how many of them live at a time.
const FREED: Layout = Layout::new::<[u64; 8]>();
const FREED_LIVE_BLOCKS: usize = 8192;
const OTHER: Layout = Layout::new::<[u64; 2]>();

/// `<size>|mixed|fixed|sized|passed <pairs>` runs that many pairs, a multiple of [`N_PLACES`].
pub(crate) fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let numbers = match arguments.as_slice() {
        [what, n_pairs] => n_pairs.parse().ok().map(|n_pairs: u64| (what.as_str(), n_pairs)),
        _ => None,
    };
    match numbers {
        Some(("mixed", n_pairs)) => mixed(n_pairs),
        Some(("fixed", n_pairs)) => frees(n_pairs, |ptr| {
            // SAFETY: a block of this layout, which is freed once.
            unsafe { free_fixed(ptr) }
        }),
        Some(("sized", n_pairs)) => {
            let size = black_box(FREED.size());
            frees(n_pairs, |ptr| {
                // SAFETY: as above.
                unsafe { free_sized(ptr, size) }
            });
        }
        Some(("passed", n_pairs)) => passed(n_pairs),
        Some((size, n_pairs)) => match size.parse().ok().and_then(layout) {
            Some(layout) => pairs(layout, n_pairs),
            None => usage(),
        },
        // `cargo bench` and `cargo test` come here.
        None => usage(),
    }
}

fn usage() {
    pairs(Layout::new::<u64>(), N_PLACES);
    mixed(N_PLACES);
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

/// Takes blocks and keeps them until the next one comes from the middle of another page. At the edge a
/// pair may take a page and give it back.
#[inline(never)]
fn move_on(layout: Layout) {
    let n_blocks = PAGE_BYTES / layout.size();
    for i in 0..2 * n_blocks {
        let at = black_box(allocate(layout)).addr() % PAGE_BYTES;
        if i >= n_blocks && (PAGE_BYTES / 4..PAGE_BYTES / 2).contains(&at) {
            break;
        }
    }
}

#[inline(never)]
fn pairs(layout: Layout, n_pairs: u64) {
    for _ in 0..N_PLACES {
        move_on(layout);
        for _ in 0..n_pairs / N_PLACES {
            let ptr = black_box(allocate(black_box(layout)));
            // SAFETY: the block was allocated with this layout and is freed once.
            unsafe { dealloc(ptr, layout) };
        }
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
    for _ in 0..N_PLACES {
        MIXED_SIZES.iter().copied().filter_map(layout).for_each(move_on);
        for i in 0..n_pairs / N_PLACES {
            let slot = &mut live[i as usize % LIVE_BLOCKS];
            // SAFETY: the slot's block was allocated with the slot's layout; it is replaced right
            // after.
            unsafe { dealloc(slot.0, slot.1) };
            *slot = next();
        }
    }
    for (ptr, layout) in live {
        // SAFETY: as above, and nothing uses the slots any more.
        unsafe { dealloc(ptr, layout) };
    }
}

/// Each round frees the oldest block and allocates another, so that no burst begins. There are enough
/// of them that an allocator which looks at some addresses more closely than at others is seen to do
/// both.
fn frees(n_pairs: u64, free: impl Fn(*mut u8)) {
    let mut live: [*mut u8; FREED_LIVE_BLOCKS] = std::array::from_fn(|_| allocate(FREED));
    for i in 0..n_pairs {
        let slot = &mut live[i as usize % FREED_LIVE_BLOCKS];
        free(*slot);
        *slot = black_box(allocate(FREED));
    }
    // To free the rest would be a burst.
}

/// All are freed by another thread than the one that has allocated them. It allocates a block beside each, so that no burst
/// begins.
fn passed(n_pairs: u64) {
    let blocks: Vec<usize> =
        (0..n_pairs).map(|_| black_box(allocate(FREED)).expose_provenance()).collect();
    let freeing = thread::spawn(move || {
        for block in blocks {
            // SAFETY: a block of this layout, which is freed once.
            unsafe { free_fixed(ptr::with_exposed_provenance_mut(block)) };
            black_box(allocate(OTHER));
        }
    });
    if let Err(panic) = freeing.join() {
        std::panic::resume_unwind(panic);
    }
}

// What these two execute, `mi_free` with it or without, is what a free costs. Each is a function of
// its own: inlined into a loop, the one could not be told from the other. What of the layout is known
// when a program is compiled is as it is in the drop of a `Box` and of a vector.

/// # Safety
///
/// As for `dealloc`, with the layout [`FREED`].
#[inline(never)]
unsafe fn free_fixed(ptr: *mut u8) {
    // SAFETY: the caller's block.
    unsafe { dealloc(ptr, FREED) };
}

/// # Safety
///
/// As for `dealloc`, with this size and the alignment of [`FREED`].
#[inline(never)]
unsafe fn free_sized(ptr: *mut u8, size: usize) {
    // SAFETY: the alignment is a power of two, and a block of this size has been allocated.
    let layout = unsafe { Layout::from_size_align_unchecked(size, FREED.align()) };
    // SAFETY: the caller's block.
    unsafe { dealloc(ptr, layout) };
}
