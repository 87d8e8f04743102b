//! mimalloc's pages, as far as the free of a block in one of the thread's own has to know them.
//!
//! Such a free puts the block on a list of its page, and that is all (`mi_free_block_local`, free.c). Here it is done
//! once more, so that what has to be looked at before a free does not come on top of it: called by way of this crate
//! `mi_free` is one jump further off, and that alone made dropping lists 1.12 times as slow. All other frees are left to
//! `mi_free`: in another thread's page, or a full one (both have another number in `thread_id` than the thread's), and
//! that of a page's last block, unless that has been seen to.
//!
//! What is known here is what 3.3.2 does where it is built without its features `secure` and `debug`, on Linux. So before
//! it is relied on the version is looked at, and two blocks are freed by `mi_free` to see whether it does the same
//! (`is_as_known`). If not, `mi_free` frees all blocks. What cannot be seen like that is whether mimalloc was compiled, by
//! way of `CFLAGS`, with another `MI_PAGE_MAP_FLAT` or `MI_STAT` than its own.
//!
//! Source: `mi_page_t` (types.h), `_mi_unchecked_ptr_page` (internal.h), `mi_free_ex` (free.c).

use std::cell::Cell;
use std::ffi::c_void;
use std::mem::offset_of;
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use libmimalloc_sys as ffi;

use crate::backing::OwnFree;

/// The part of mimalloc's address space that one entry of a table stands for (`MI_ARENA_SLICE_SHIFT`, bits.h).
const SLICE_SHIFT: u32 = 16;
/// Entries of a table (`MI_PAGE_MAP_SUB_SHIFT`, internal.h).
const TABLE_SHIFT: u32 = 13;

/// The flags in a page's thread number (`MI_PAGE_FLAG_MASK`, types.h).
const FLAGS: usize = 3;
/// Numbers below this are of pages that belong to no thread (`MI_THREADID_ABANDONED_MAPPED` with its flags, types.h).
const NOBODYS_END: usize = 2 * (FLAGS + 1);

/// `_mi_page_map`: tables of pages by address, on 64-bit systems.
pub(super) type Map = *const *const *const Page;

/// The beginning of `mi_page_t`. What is not an atomic here or there belongs to the thread that has the page.
#[repr(C)]
pub(super) struct Page {
    /// The thread that has the page. In the low bits whether it is full, or has blocks that begin elsewhere than
    /// where their pointers lead.
    thread_id: AtomicUsize,
    free: Cell<*mut u8>,
    used: Cell<u16>,
    capacity: Cell<u16>,
    reserved: u16,
    /// Not 0: that the page is empty has been seen to.
    retire_expire: Cell<u8>,
    free_is_zero: Cell<bool>,
    /// Freed blocks, each of which begins with the address of the next.
    local_free: Cell<*mut u8>,
    thread_free: AtomicUsize,
    block_size: usize,
    page_start: *mut u8,
}

const _: () = assert!(offset_of!(Page, used) == 16 && offset_of!(Page, block_size) == 40);

/// What leads to the pages; null where they are not as known, or where that could not be tried this time.
pub(super) fn map() -> Map {
    const UNKNOWN: u8 = 0;
    const AS_KNOWN: u8 = 1;
    const OTHERWISE: u8 = 2;
    static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);

    // Relaxed: nothing is handed over with it, and the map has been there since the first allocation.
    let state = match STATE.load(Ordering::Relaxed) {
        UNKNOWN => match is_as_known() {
            Some(is_as_known) => {
                let state = if is_as_known { AS_KNOWN } else { OTHERWISE };
                STATE.store(state, Ordering::Relaxed);
                state
            }
            None => UNKNOWN,
        },
        state => state,
    };
    if state == AS_KNOWN { load_map() } else { ptr::null() }
}

fn load_map() -> Map {
    let variable: *const Map = weak!("_mi_page_map").cast();
    if variable.is_null() {
        return ptr::null();
    }
    // SAFETY: mimalloc's variable, which it has set with its first allocation and does not change after.
    unsafe { *variable }
}

/// Whether a free by mimalloc leaves behind what one by [`free`] does; `None` if it could not be tried. It is on two blocks of
/// one page, in which there is a third: it is seen where they are listed and what is written in them. With its checks on
/// mimalloc encodes that, and makes blocks larger.
fn is_as_known() -> Option<bool> {
    const BYTES: usize = 64;
    // SAFETY: only what this very version has at these places is read; the page is this thread's, and stays while it has
    // a block. The others are mimalloc's when they have been freed, to be looked at by nobody else than this thread.
    unsafe {
        if ffi::mi_version() != super::VERSION_3 || is_thread_sanitized() {
            return Some(false);
        }
        let blocks = [(); 3].map(|()| ffi::mi_malloc_small(BYTES).cast::<u8>());
        let map = load_map();
        let is_tried = !map.is_null() && blocks.iter().all(|block| !block.is_null()) && {
            let pages = blocks.map(|block| ptr::from_ref(page_of(block, map)));
            pages[0] == pages[1] && pages[1] == pages[2]
        };
        // Aligned blocks have made it one whose frees take the long way.
        let is_flagged = |page: &Page| {
            let difference = page.thread_id.load(Ordering::Relaxed) ^ thread_id();
            difference != 0 && difference <= FLAGS
        };
        let is_tried = is_tried && !is_flagged(page_of(blocks[2], map));
        let is_as_known = is_tried.then(|| {
            let page = page_of(blocks[2], map);
            let is_own = || page.thread_id.load(Ordering::Relaxed) == thread_id();
            let mut is_as_known = is_own()
                && page.block_size == BYTES
                && page.used.get() > 2
                && page.used.get() <= page.capacity.get()
                && page.capacity.get() <= page.reserved;
            for block in &blocks[..2] {
                let (used, list) = (page.used.get(), page.local_free.get());
                ffi::mi_free(block.cast::<c_void>());
                is_as_known = is_as_known
                    && page.used.get() == used.wrapping_sub(1)
                    && page.local_free.get() == *block
                    && block.cast::<*mut u8>().read() == list;
            }
            is_as_known && is_own()
        });
        for block in &blocks[if is_tried { 2 } else { 0 }..] {
            ffi::mi_free(block.cast::<c_void>());
        }
        is_as_known
    }
}

/// ThreadSanitizer does not see how mimalloc's threads hand pages to each other, and would call each such page a race.
fn is_thread_sanitized() -> bool {
    let init: *const () = weak!("__tsan_init");
    !init.is_null()
}

/// # Safety
/// `block` is one of mimalloc's.
#[inline(always)]
unsafe fn page_of(block: *mut u8, map: Map) -> &'static Page {
    let slice = block.addr() >> SLICE_SHIFT;
    // SAFETY: by the caller's word both tables have an entry for it, and the page is there while it has a block.
    unsafe {
        let table = *map.add(slice >> TABLE_SHIFT);
        &**table.add(slice & ((1 << TABLE_SHIFT) - 1))
    }
}

/// # Safety
/// `block` is a live block of mimalloc's; `map` is what [`map`] gave, and not null.
#[inline(always)]
pub(super) unsafe fn free(block: *mut u8, map: Map) -> OwnFree {
    // SAFETY: the caller's block.
    let page = unsafe { page_of(block, map) };
    let id = page.thread_id.load(Ordering::Relaxed);
    if id != thread_id() {
        return if id < NOBODYS_END { OwnFree::First } else { OwnFree::Not };
    }
    let next = page.local_free.get();
    // SAFETY: each block has room for an address, and is aligned for one.
    unsafe { block.cast::<*mut u8>().write(next) };
    page.local_free.set(block);
    let used = page.used.get().wrapping_sub(1);
    page.used.set(used);
    if used == 0 { page.last_freed(next) } else { OwnFree::Done }
}

impl Page {
    /// Its last block has been freed, before which `next` was the first in its list.
    #[cold]
    fn last_freed(&self, next: *mut u8) -> OwnFree {
        if self.retire_expire.get() != 0 {
            return OwnFree::Done;
        }
        // All is as before.
        self.used.set(1);
        self.local_free.set(next);
        let has_been_full = self.capacity.get() == self.reserved;
        if has_been_full { OwnFree::Last { blocks: self.reserved } } else { OwnFree::Not }
    }
}

/// Whether the block is in a page of the calling thread's; `None` in a page that is nobody's, as most full ones are.
///
/// # Safety
/// As for [`free`].
pub(super) unsafe fn is_own(block: *mut u8, map: Map) -> Option<bool> {
    // SAFETY: the caller's block.
    let id = unsafe { page_of(block, map) }.thread_id.load(Ordering::Relaxed);
    (id >= NOBODYS_END).then(|| id & !FLAGS == thread_id())
}

/// Whether the block is in a page of the calling thread's of which the greater part has been freed.
///
/// # Safety
/// `block` is a live block of mimalloc's; `map` is what [`map`] gave.
pub(super) unsafe fn is_left_over(block: *mut u8, map: Map) -> bool {
    // SAFETY: the caller's block.
    if map.is_null() || unsafe { is_own(block, map) } != Some(true) {
        return false;
    }
    // SAFETY: as above.
    let page = unsafe { page_of(block, map) };
    page.used.get() < page.capacity.get() / 2
}

/// How mimalloc tells threads apart (`_mi_prim_thread_id`, prim.h).
#[inline(always)]
fn thread_id() -> usize {
    let id: usize;
    // SAFETY: reads the thread's base.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {id}, qword ptr fs:[0]", id = out(reg) id, options(nostack, preserves_flags, pure, readonly));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mrs {id}, tpidr_el0", id = out(reg) id, options(nostack, preserves_flags, pure, nomem));
    }
    id
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;
    use std::{ptr, thread};

    use super::{Map, OwnFree, ffi, free, is_left_over, is_own, map, page_of};
    use crate::{Backing, Mimalloc};

    const BYTES: usize = 1000;

    fn malloc(bytes: usize) -> *mut u8 {
        // SAFETY: any size will do.
        unsafe { ffi::mi_malloc(bytes).cast() }
    }

    /// Frees a block in the one way or the other.
    fn free_anyhow(block: *mut u8, map: Map) -> OwnFree {
        // SAFETY: a live block, of which nothing is used any more.
        unsafe {
            let done = free(block, map);
            if done != OwnFree::Done {
                ffi::mi_free(block.cast());
            }
            done
        }
    }

    /// With mimalloc's checks turned on, or another version, all frees are left to it.
    #[test]
    fn pages_are_as_known_where_nothing_is_checked() {
        let otherwise = cfg!(any(
            feature = "secure",
            feature = "debug",
            feature = "_mimalloc_v2",
            all(feature = "debug_in_debug", debug_assertions)
        ));
        assert_eq!(map().is_null(), otherwise);
    }

    #[test]
    fn blocks_are_there_again() {
        let map = map();
        if map.is_null() {
            return;
        }
        for round in 0..20 {
            let blocks: Vec<_> = (0..1000).map(|_| malloc(BYTES)).collect();
            assert_eq!(blocks.iter().collect::<HashSet<_>>().len(), blocks.len());
            for &block in &blocks {
                // SAFETY: the block has so many bytes.
                unsafe { block.write_bytes(round, BYTES) };
            }
            let mut count = [0; 4];
            for &block in &blocks {
                count[match free_anyhow(block, map) {
                    OwnFree::Done => 0,
                    OwnFree::Not => 1,
                    OwnFree::First => 2,
                    OwnFree::Last { .. } => 3,
                }] += 1;
            }
            // Sixteen pages of 64 blocks: each begins full, and is empty in the end.
            let [done, not, first, last] = count;
            assert!(done > 900 && not < 5 && (5..50).contains(&first) && last > 5, "{count:?}");
        }
    }

    #[test]
    fn a_block_that_comes_and_goes() {
        let map = map();
        if map.is_null() {
            return;
        }
        let n_done = (0..1000).filter(|_| free_anyhow(malloc(BYTES), map) == OwnFree::Done).count();
        // Now and then mimalloc looks after an empty page.
        assert!(n_done > 500, "{n_done}");
    }

    #[test]
    fn another_threads_are_left_to_mimalloc() {
        let map = map();
        if map.is_null() {
            return;
        }
        let blocks = [(); 2].map(|()| malloc(BYTES).expose_provenance());
        let map = map.expose_provenance();
        thread::spawn(move || {
            let map: Map = ptr::with_exposed_provenance(map);
            for block in blocks.map(ptr::with_exposed_provenance_mut) {
                // SAFETY: a live block.
                assert_ne!(unsafe { is_own(block, map) }, Some(true));
                assert_ne!(free_anyhow(block, map), OwnFree::Done);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn what_is_left_over_is_seen() {
        let map = map();
        if map.is_null() {
            return;
        }
        let blocks: Vec<_> = (0..1000).map(|_| malloc(BYTES)).collect();
        // SAFETY: live blocks, each freed once.
        let share_left_over = |blocks: &[*mut u8]| unsafe {
            blocks.iter().filter(|&&block| is_left_over(block, map)).count() * 100 / blocks.len()
        };
        // The last page may not be full yet.
        assert!(share_left_over(&blocks) < 10);
        let mut stay = Vec::new();
        for (n, &block) in blocks.iter().enumerate() {
            if n % 3 == 0 {
                stay.push(block);
            } else {
                free_anyhow(block, map);
            }
        }
        assert!(share_left_over(&stay) > 90);
        for block in stay {
            free_anyhow(block, map);
        }
    }

    /// Pages are given up where that takes no long walk.
    #[test]
    fn pages_with_many_gaps_are_kept() {
        let map = map();
        if map.is_null() {
            return;
        }
        for (n_blocks, is_kept) in [(1000, false), (100_000, true)] {
            // On a thread of its own, with nothing else on it.
            thread::scope(|scope| {
                scope.spawn(|| {
                    let map = super::map();
                    let blocks: Vec<_> = (0..n_blocks).map(|_| malloc(64)).collect();
                    let (odd, even): (Vec<_>, Vec<_>) =
                        blocks.iter().enumerate().partition(|(n, _)| n % 2 == 1);
                    for (_, &block) in odd {
                        free_anyhow(block, map);
                    }
                    Mimalloc.before_drain();
                    let stay: Vec<_> = even.into_iter().map(|(_, &block)| block).collect();
                    // SAFETY: live blocks.
                    let is_own = |&block: &*mut u8| unsafe { is_own(block, map) == Some(true) };
                    let n_own = stay.iter().filter(|block| is_own(block)).count();
                    assert_eq!(n_own, if is_kept { stay.len() } else { 0 });
                    for block in stay {
                        free_anyhow(block, map);
                    }
                });
            });
        }
    }

    /// A block of high alignment may lie inside another.
    #[test]
    fn a_pointer_into_a_block_is_left_to_mimalloc() {
        let map = map();
        if map.is_null() {
            return;
        }
        for align in [32, 64, 256, 4096, 1 << 16] {
            for size in (1..5000).step_by(37) {
                // SAFETY: a valid size and alignment; the block is freed once.
                unsafe {
                    let block: *mut u8 = ffi::mi_malloc_aligned(size, align).cast();
                    assert_ne!(is_own(block, map), Some(false));
                    let page = page_of(block, map);
                    let (bytes, start) = (page.block_size, page.page_start.addr());
                    if free_anyhow(block, map) == OwnFree::Done {
                        assert_eq!((block.addr() - start) % bytes, 0, "{size} {align}");
                    }
                }
            }
        }
    }
}
