//! mimalloc 3: the one file that names it. Facts are those of 3.3.2, as bundled with
//! `libmimalloc-sys` 0.1.49; files named below are mimalloc's. That crate's feature `v2`, which any crate of a program may
//! turn on, makes it 2.3.2: all of this is correct then, too, but tuned to 3.

use std::alloc::{GlobalAlloc, Layout};
use std::ffi::{c_int, c_long, c_ulonglong, c_void};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicPtr, AtomicUsize, Ordering};

use libmimalloc_sys::{
    self as ffi, mi_option_show_stats as SHOW_STATS, mi_option_verbose as VERBOSE,
};

use super::Backing;

/// The address of a symbol that may be missing, on ELF systems; null elsewhere.
macro_rules! weak {
    ($symbol:literal) => {{
        let address: *const ();
        #[cfg(all(unix, not(target_vendor = "apple"), target_arch = "x86_64"))]
        // SAFETY: reads what the linker wrote.
        unsafe {
            std::arch::asm!(
                concat!(".weak ", $symbol),
                concat!("mov {address}, qword ptr [rip + ", $symbol, "@GOTPCREL]"),
                address = out(reg) address,
                options(nostack, preserves_flags, pure, readonly),
            );
        }
        #[cfg(all(unix, not(target_vendor = "apple"), target_arch = "aarch64"))]
        // SAFETY: as above.
        unsafe {
            std::arch::asm!(
                concat!(".weak ", $symbol),
                concat!("adrp {address}, :got:", $symbol),
                concat!("ldr {address}, [{address}, :got_lo12:", $symbol, "]"),
                address = out(reg) address,
                options(nostack, preserves_flags, pure, readonly),
            );
        }
        #[cfg(not(all(
            unix,
            not(target_vendor = "apple"),
            any(target_arch = "x86_64", target_arch = "aarch64")
        )))]
        {
            address = std::ptr::null();
        }
        address
    }};
}

#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod page;

/// mimalloc, called directly.
///
/// Also usable as a plain global allocator. It differs from the `mimalloc` crate in that blocks of
/// ordinary alignment come from `mi_malloc`: `mi_malloc_aligned`, which that crate always calls,
/// takes up to a quarter more memory for blocks above 4 KiB.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mimalloc;

/// `mi_malloc` aligns blocks to their size, up to this (`MI_MAX_ALIGN_SIZE`, types.h).
const NATURAL_ALIGN: usize = 16;
/// The sizes of blocks are multiples of this, so all blocks are aligned to it (`mi_bin`,
/// page-queue.c).
const WORD: usize = 8;

/// What the functions for small blocks take (`MI_SMALL_SIZE_MAX`, mimalloc.h).
const MALLOC_SMALL_BYTES: usize = 128 * size_of::<usize>();

#[inline(always)]
fn naturally_aligned(size: usize, align: usize) -> bool {
    align <= WORD || (align <= NATURAL_ALIGN && align <= size)
}

// SAFETY: mimalloc's functions fulfil the contract for any size and any power of two as alignment;
// `naturally_aligned` tells when `mi_malloc` alone gives the alignment.
unsafe impl GlobalAlloc for Mimalloc {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: callable with any size; the alignment is a power of two.
        unsafe {
            if naturally_aligned(layout.size(), layout.align()) {
                if layout.size() <= MALLOC_SMALL_BYTES {
                    return ffi::mi_malloc_small(layout.size()).cast();
                }
                ffi::mi_malloc(layout.size()).cast()
            } else {
                ffi::mi_malloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        unsafe {
            if naturally_aligned(layout.size(), layout.align()) {
                if layout.size() <= MALLOC_SMALL_BYTES {
                    return ffi::mi_zalloc_small(layout.size()).cast();
                }
                ffi::mi_zalloc(layout.size()).cast()
            } else {
                ffi::mi_zalloc_aligned(layout.size(), layout.align()).cast()
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, ptr: *mut u8, _layout: Layout) {
        // SAFETY: the caller gives a live block of this allocator.
        unsafe { ffi::mi_free(ptr.cast()) };
    }

    #[inline]
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller gives a live block; the alignment is a power of two.
        unsafe {
            if naturally_aligned(new_size, layout.align()) {
                ffi::mi_realloc(ptr.cast(), new_size).cast()
            } else {
                ffi::mi_realloc_aligned(ptr.cast(), new_size, layout.align()).cast()
            }
        }
    }
}

/// Largest block that comes out of an arena; a larger one has a mapping of its own, which its free
/// unmaps (`arena_max_object_size`, 2 GiB, options.c).
const ARENA_MAX_BYTES: usize = 2 << 30;

// SAFETY: `mi_free` takes blocks of any thread; `mi_usable_size` is the size to be used.
unsafe impl Backing for Mimalloc {
    /// `_mi_malloc_generic` (page.c) collects with `force`, which calls the `deferred_free` function, and tries again.
    const SETTLES_WHEN_SHORT: bool = true;

    unsafe fn usable_size(&self, ptr: *mut u8, _layout: Layout) -> Option<usize> {
        // SAFETY: the caller gives a live block.
        Some(unsafe { ffi::mi_usable_size(ptr.cast()) })
    }

    #[inline]
    fn unmaps_on_free(&self, layout: Layout) -> bool {
        layout.size() > ARENA_MAX_BYTES
    }

    /// It keeps nothing in a live block, and takes what was in a freed one for dirty.
    fn pages_may_move(&self) -> bool {
        true
    }

    /// While a drainer is awake, mimalloc's own purge is so far off that the drainer comes first.
    /// While all sleep, mimalloc purges as it does without this crate. A delay that the user set in
    /// the environment (`MIMALLOC_PURGE_DELAY`) stands.
    fn drainer_awake(&self, awake: bool) {
        if awake {
            DRAINED.store(true, Ordering::Relaxed);
            if N_AWAKE.fetch_add(1, Ordering::Relaxed) == 0 {
                put_purge_off();
            }
        } else if N_AWAKE.fetch_sub(1, Ordering::Relaxed) == 1 {
            restore_purge();
            // Another drainer may have woken meanwhile, and found it put off still.
            if N_AWAKE.load(Ordering::Relaxed) > 0 {
                put_purge_off();
            }
        }
    }

    /// mimalloc keeps what it knows of its threads in a page of 64 KiB, which is never freed and which the
    /// second thread brings about (`arena-meta.c`). Wherever that page is, mimalloc fills the chunk of 32 MiB
    /// around it first from then on. This has it at the beginning of the first chunk; some 10 us.
    fn reserve(&self) {
        // SAFETY: a heap that nobody else knows.
        unsafe {
            let heap = ffi::mi_heap_new();
            if !heap.is_null() {
                // Makes this thread's part of the heap, which is what goes to that page.
                ffi::mi_heap_collect(heap, false);
                ffi::mi_heap_delete(heap);
            }
        }
    }

    fn drainer_init(&self) {
        // A thread without a heap of its own neither purges nor makes abandoned pages usable again.
        // SAFETY: may be called on any thread, any number of times.
        unsafe { ffi::mi_thread_init() };
    }

    /// Most of what a thread's end does. The rest, some instructions under two locks, comes with the thread's end itself: a
    /// thread that has called `mi_thread_done` must not end, as its key still has the heap that was freed
    /// (`_mi_theap_default_set`, init.c: the address sanitizer saw it read).
    fn drainer_done(&self) {
        abandon_pages();
    }

    /// See `deferred_free`.
    fn at_thread_end(&self, settle: fn()) -> bool {
        // Release pairs with the Acquire there.
        SETTLE.store(settle as *mut (), Ordering::Release);
        register_deferred_free();
        true
    }

    fn thread_idle(&self) {
        abandon_pages();
    }

    /// The first frees of a burst, made before it was seen to be one, have made full pages the thread's own again. What the
    /// drainer frees in such a page the thread walks before it allocates from it (`_mi_page_free_collect`, page.c), out of
    /// another processor's cache; a page that nobody owns the drainer empties and gives back. Measured: `docs/choices.md`.
    fn before_drain(&self) {
        if has_few_gaps() {
            abandon_pages();
        }
    }

    /// See `deferred_free`.
    fn on_allocations(&self, note: fn()) {
        NOTE.store(note as *mut (), Ordering::Release);
        register_deferred_free();
    }

    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn own_pages(&self) -> *const () {
        page::map().cast()
    }

    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    #[inline(always)]
    unsafe fn dealloc_own(&self, ptr: *mut u8, own_pages: *const ()) -> super::OwnFree {
        // SAFETY: the caller's block; what `own_pages` gave.
        unsafe { page::free(ptr, own_pages.cast()) }
    }

    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    unsafe fn is_own(&self, ptr: *mut u8, own_pages: *const ()) -> Option<bool> {
        // SAFETY: as above.
        unsafe { page::is_own(ptr, own_pages.cast()) }
    }

    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    unsafe fn is_left_over(&self, ptr: *mut u8, own_pages: *const ()) -> bool {
        // SAFETY: as above.
        unsafe { page::is_left_over(ptr, own_pages.cast()) }
    }

    fn purge(&self) {
        // SAFETY: may be called on any thread.
        unsafe { ffi::mi_collect(true) };
    }
}

/// Gives up all pages of the calling thread, whose next allocations get others. 20 us for some hundred pages.
///
/// Of mimalloc's public functions only `mi_thread_done` does that, and it takes the thread's heap along, which the first
/// thread cannot do without (`theap_main`, init.c). `mi_collect(false)` gives back empty pages and keeps the rest. So
/// this is the function that `mi_thread_done` uses, where it is there and the version is the one that it was read in.
fn abandon_pages() {
    // SAFETY: the thread's heap, with which the thread is not under way: no function of mimalloc's calls this.
    unsafe {
        if ffi::mi_version() == VERSION_3 {
            if let (Some(heap), Some(abandon)) = (theap::get_default(), theap::collect_abandon()) {
                abandon(heap());
            }
        }
    }
}

/// A thread that is under way keeps its pages where there may be more gaps to be walked: 0.1 to 0.5 us each.
const MOST_GAPS: usize = 32 << 10;

/// Whether the calling thread can give up its pages without a long walk: of a page with gaps mimalloc may look at all of
/// them, each a line that is in no cache (`_mi_page_free_collect`, page.c). A thread that dropped two million strings of
/// which a fifth had gone before, one by one, was held up for 200 ms, of which the drop took 20. What others have freed
/// is walked as well, and is no gap yet.
fn has_few_gaps() -> bool {
    let mut gaps_left = MOST_GAPS;
    // SAFETY: as in `abandon_pages`; the visitor takes the number that it is given.
    unsafe {
        if ffi::mi_version() == VERSION_3 {
            if let (Some(heap), Some(visit)) = (theap::get_default(), theap::visit_blocks()) {
                return visit(heap(), false, Some(take_gaps), (&raw mut gaps_left).cast());
            }
        }
    }
    false
}

/// Takes a page's gaps off those that are left, as long as there are enough.
unsafe extern "C" fn take_gaps(
    _: *const ffi::mi_heap_t,
    page: *const ffi::mi_heap_area_t,
    _: *mut c_void,
    _: usize,
    gaps_left: *mut c_void,
) -> bool {
    // SAFETY: what mimalloc shows of a page; the number that `has_few_gaps` gives.
    let (page, gaps_left) = unsafe { (&*page, &mut *gaps_left.cast::<usize>()) };
    // `used` is a number of blocks, not of bytes.
    let gaps = (page.committed / page.full_block_size).saturating_sub(page.used);
    match gaps_left.checked_sub(gaps) {
        Some(left) => {
            *gaps_left = left;
            true
        }
        None => false,
    }
}

/// Functions of mimalloc 3 that the bindings do not have. Weak: a program that is linked with mimalloc 2 does without.
mod theap {
    use std::ffi::c_void;

    use libmimalloc_sys::mi_block_visit_fun;

    /// `mi_theap_get_default` (mimalloc.h).
    pub(super) fn get_default() -> Option<unsafe extern "C" fn() -> *mut c_void> {
        let address = weak!("mi_theap_get_default");
        // SAFETY: null, or the function.
        unsafe { std::mem::transmute(address) }
    }

    type Visit = unsafe extern "C" fn(*mut c_void, bool, mi_block_visit_fun, *mut c_void) -> bool;

    /// `mi_theap_visit_blocks` (mimalloc.h): false where the visitor has said so, or there is nothing to visit.
    pub(super) fn visit_blocks() -> Option<Visit> {
        let address = weak!("mi_theap_visit_blocks");
        // SAFETY: null, or the function.
        unsafe { std::mem::transmute(address) }
    }

    /// `_mi_theap_collect_abandon` (internal.h).
    pub(super) fn collect_abandon() -> Option<unsafe extern "C" fn(*mut c_void)> {
        let address = weak!("_mi_theap_collect_abandon");
        // SAFETY: null, or the function.
        unsafe { std::mem::transmute(address) }
    }
}

/// What `deferred_free` calls; null until they are known.
static SETTLE: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
static NOTE: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// mimalloc calls this with `force` when it gives up a thread's pages (`mi_thread_theaps_done`, init.c) and on a
/// thread that calls `mi_collect(true)`; without it on a thread that has a thousandth time found no block ready
/// (`_mi_malloc_generic`, page.c). It is not called again before it returns.
unsafe extern "C" fn deferred_free(force: bool, _: c_ulonglong, _: *mut c_void) {
    let function = if force { &SETTLE } else { &NOTE }.load(Ordering::Acquire);
    if function.is_null() {
        return;
    }
    // SAFETY: stored as such.
    let function = unsafe { mem::transmute::<*mut (), fn()>(function) };
    function();
}

/// There is one such function: a program that registers its own (`mi_register_deferred_free`) leaves what its threads
/// have written down to the drainer, and the memory of its small blocks to mimalloc.
fn register_deferred_free() {
    // SAFETY: a function that stays: a library without a drainer may be unloaded, and its mimalloc with it.
    unsafe { ffi::mi_register_deferred_free(Some(deferred_free), ptr::null_mut()) };
}

// Numbers in `mi_option_e` (include/mimalloc.h), counted from 0; the bindings have no constants for
// them. `tests/mimalloc_options.rs` checks them against the names.
const PURGE_DELAY: c_int = 15;
const DESTROY_ON_EXIT: c_int = 22;
/// A value of that (`_mi_auto_process_done`, init.c).
const DO_NOTHING_ON_EXIT: c_long = 2;

/// Three times as long as the drainer ever leaves it at: a thread that gives up pages purges what is due, and that is not
/// to be its work. Finite, so that mimalloc takes over should the drainer be held up.
const PURGE_DELAY_MS: c_long = 30_000;

/// Whether any drainer of this process has worked on mimalloc.
static DRAINED: AtomicBool = AtomicBool::new(false);

static N_AWAKE: AtomicUsize = AtomicUsize::new(0);

/// The purge delay before `put_purge_off`; -1 while that is not in force.
static DELAY_BEFORE_MS: AtomicIsize = AtomicIsize::new(-1);

fn put_purge_off() {
    if may_set_options() {
        // SAFETY: options are plain numbers; they may be read and set once mimalloc is loaded.
        unsafe {
            let before = ffi::mi_option_get(PURGE_DELAY);
            // It never purges where that is negative.
            if (0..PURGE_DELAY_MS).contains(&before) {
                DELAY_BEFORE_MS.store(before as isize, Ordering::Relaxed);
                ffi::mi_option_set_default(PURGE_DELAY, PURGE_DELAY_MS);
            }
        }
    }
}

fn restore_purge() {
    let before = DELAY_BEFORE_MS.swap(-1, Ordering::Relaxed);
    if before >= 0 && may_set_options() {
        // SAFETY: as in `put_purge_off`.
        unsafe { ffi::mi_option_set_default(PURGE_DELAY, before as c_long) };
    }
}

/// Set by the exit handler, whose settings are the last ones.
static EXITING: AtomicBool = AtomicBool::new(false);

fn may_set_options() -> bool {
    known_version() && !EXITING.load(Ordering::Relaxed)
}

/// Versions whose numbers of options `tests/mimalloc_options.rs` has been run on: the ones of `libmimalloc-sys` 0.1.49, with
/// and without its feature `v2`. Any other one keeps its own settings.
const KNOWN_VERSIONS: [c_int; 2] = [VERSION_3, 20_302];
const VERSION_3: c_int = 30_302;

fn known_version() -> bool {
    // SAFETY: a constant.
    KNOWN_VERSIONS.contains(&unsafe { ffi::mi_version() })
}

/// In a forked child: the drainer is gone, mimalloc purges for itself again.
pub(crate) fn forked_child() {
    N_AWAKE.store(0, Ordering::Relaxed);
    restore_purge();
}

/// At exit: mimalloc's own exit handler is still to come. It need not purge memory that goes with the
/// process, and it must not unmap everything (`destroy_on_exit`) under the threads that still run, of
/// which this crate has added one. Nor has it to collect free blocks, page by page: a command of 10 ms whose last drop was
/// deferred spent 0.2 to 0.4 ms on that. So it does nothing, unless it is to print something.
pub(crate) fn exiting() {
    if DRAINED.load(Ordering::Relaxed) && known_version() {
        EXITING.store(true, Ordering::Relaxed);
        // SAFETY: as in `put_purge_off`.
        unsafe {
            ffi::mi_option_set_default(PURGE_DELAY, -1);
            let prints =
                [SHOW_STATS, VERBOSE].iter().any(|&option| ffi::mi_option_is_enabled(option));
            ffi::mi_option_set(DESTROY_ON_EXIT, if prints { 0 } else { DO_NOTHING_ON_EXIT });
        }
    }
}
