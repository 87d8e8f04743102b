//! Huge blocks: mappings of their own, which this crate makes and gives back itself.
//!
//! What the system can do with a mapping and an allocator cannot do with a block: it is zero without being cleared, it
//! grows by moving its pages instead of what is in them, it ends wherever its holder says, and it begins at a multiple
//! of anything. In return its memory serves nobody else while it waits, other than blocks of its kind. So a block comes
//! to be huge where one of the first counts: when it is asked for zeroed, when it grows, when its alignment is uncommon,
//! or when it is so large that nothing else is likely to use what it leaves.
//!
//! A mapping begins at a multiple of [`UNIT_BYTES`] and is whole units long, so that the system can put huge pages behind
//! it and moves it by the page table instead of page by page. [`table`] knows them by their address.

mod table;

use std::alloc::Layout;
use std::ptr;

use self::table::Table;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sys::{self, Released};

/// A huge page of x86-64, and of aarch64 with pages of 4 KiB.
pub(crate) const UNIT_BYTES: usize = 2 << 20;

/// From here on a block that grows beyond its place becomes huge, once: what is copied then is at most half of this, a
/// millisecond's work.
pub(crate) const GROWN_BYTES: usize = 8 << 20;

/// From here on a block that is to be zero is huge. To clear 32 MiB that are in use takes 3 ms.
pub(crate) const ZEROED_BYTES: usize = 32 << 20;

/// From here on the pages of a block that becomes huge are moved there. To copy 64 MiB takes 8 ms, and both are resident
/// meanwhile.
pub(crate) const MOVED_BYTES: usize = GROWN_BYTES;

/// Up to here a block that was written all over is cleared by hand for one that is to be zero. Its pages are warm: in a
/// loop over 64 MiB, every page written, a fresh mapping each time took 5.4 times as long. Beyond, mimalloc would not
/// have it ready either, and whoever asks waits 25 ms already.
pub(crate) const CLEARED_BYTES: usize = 256 << 20;

/// From here on any block is huge. Below, a program whose sizes change does better with memory that all sizes share.
pub(crate) const ALWAYS_BYTES: usize = 256 << 20;

/// Beyond this alignment a block is huge, whatever its size.
const MAX_ORDINARY_ALIGN: usize = 64 << 10;

/// Whether the system's huge pages are wanted.
const HUGE_PAGES: bool = cfg!(not(feature = "no_thp"));

/// How many there may be. Linux allows a process 65 530 mappings (`vm.max_map_count`), of which an ordinary program
/// has some hundreds.
const MAX_BLOCKS: usize = 4096;

static TABLE: Table = Table::new();
static N_BLOCKS: AtomicUsize = AtomicUsize::new(0);

/// In a forked child: so many blocks were waiting, and nobody is going to touch them. Each has been counted: one that was under
/// way in the fork is not among them, and stays counted.
pub(crate) fn forget(n_blocks: usize) {
    N_BLOCKS.fetch_sub(n_blocks, Ordering::Relaxed);
}

/// Whether there may be no more. Several threads may be one too many for a moment; there is room.
fn are_many() -> bool {
    // A few less than none, where a forked child forgot blocks that its thread was just taking.
    N_BLOCKS.load(Ordering::Relaxed) as isize >= MAX_BLOCKS as isize
}

/// Why a block is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is going to be written.
    Plain,
    /// It is to be zero, and maybe most of it stays so.
    Zeroed,
    /// It is to be zero, and the last one of its size was written all over.
    ZeroedAndWritten,
    /// To hold what a smaller block held.
    Grown,
}

impl Use {
    pub(crate) fn is_zeroed(self) -> bool {
        matches!(self, Use::Zeroed | Use::ZeroedAndWritten)
    }
}

/// Whether a block of that layout may be huge: all others need no look at their address when they are freed.
#[inline]
pub(crate) fn may_be(layout: Layout) -> bool {
    layout.size() >= GROWN_BYTES || layout.align() > MAX_ORDINARY_ALIGN
}

/// Whether a block of that layout should be huge.
#[inline]
pub(crate) fn should_be(layout: Layout, for_use: Use) -> bool {
    let from = match for_use {
        Use::Plain => ALWAYS_BYTES,
        Use::Zeroed | Use::ZeroedAndWritten => ZEROED_BYTES,
        Use::Grown => GROWN_BYTES,
    };
    layout.size() >= from || layout.align() > MAX_ORDINARY_ALIGN
}

/// The length of the mapping, of a block that [`may_be`] huge; 0 where the block is one of the allocator underneath.
#[inline]
pub(crate) fn len_of(block: *mut u8) -> usize {
    TABLE.len(block)
}

/// Makes a block of `len` bytes, whole units, all zero; null when refused.
pub(crate) fn map(len: usize, align: usize, for_use: Use) -> *mut u8 {
    debug_assert!(len % UNIT_BYTES == 0);
    if are_many() {
        return ptr::null_mut();
    }
    let block = sys::map_aligned(len, align.max(UNIT_BYTES));
    if block.is_null() {
        return block;
    }
    if !TABLE.set(block, len) {
        // SAFETY: nobody knows of it.
        unsafe { sys::unmap(block, len) };
        return ptr::null_mut();
    }
    N_BLOCKS.fetch_add(1, Ordering::Relaxed);
    // Of a zeroed block pages may be used here and there: a huge page for each would be resident. One that is here for its
    // alignment alone may be far smaller than a huge page.
    if for_use == Use::Zeroed || len < GROWN_BYTES || !HUGE_PAGES {
        TABLE.set_telling(block);
    } else {
        // SAFETY: whole pages of the mapping.
        unsafe { sys::want_huge_pages(block, len) };
    }
    block
}

/// Writes zeros to the first `len` bytes of a block.
///
/// # Safety
/// `block` is a huge block of at least that length, whose holder gives up what is in it.
pub(crate) unsafe fn clear(block: *mut u8, len: usize) {
    // SAFETY: the caller's block.
    unsafe { block.write_bytes(0, len) };
    TABLE.set(block, TABLE.len(block));
}

/// Makes a block zero by giving its memory back, in one call: for one that is [`Coverage::Sparse`]. False when refused.
///
/// # Safety
/// `block` is a huge block, whose holder gives up what is in it.
pub(crate) unsafe fn clear_sparse(block: *mut u8) -> bool {
    // SAFETY: the caller's mapping.
    unsafe { sys::make_zero(block, TABLE.len(block)) }
}

/// How much of a block its last holder has written, as far as some of its pages tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Coverage {
    Whole,
    Part,
    /// To give back what there is takes about 100 us.
    Sparse,
    /// It has huge pages, has changed its size, or was cleared.
    Unknown,
}

/// # Safety
/// `block` is a huge block of the caller's.
pub(crate) unsafe fn coverage(block: *mut u8) -> Coverage {
    // SAFETY: the caller's block.
    let samples = unsafe { samples(block, TABLE.len(block)) };
    coverage_by(block, samples)
}

/// The same, where its pages have been looked at.
fn coverage_by(block: *mut u8, (n_resident, n_samples): (usize, usize)) -> Coverage {
    match n_resident * (TABLE.len(block) / n_samples) {
        _ if !sys::KNOWS_RESIDENT || !TABLE.is_telling(block) => Coverage::Unknown,
        _ if n_resident == n_samples => Coverage::Whole,
        0..=SPARSE_BYTES => Coverage::Sparse,
        _ => Coverage::Part,
    }
}

/// Looks at some pages of a block, evenly spread: how many have memory behind them, and of how many.
///
/// # Safety
/// `block` is a huge block of that length, which stays meanwhile.
unsafe fn samples(block: *mut u8, len: usize) -> (usize, usize) {
    let page = sys::page_bytes();
    // Where pages are of 64 KiB, a block of one unit has 32.
    let n_samples = SAMPLES.min(len / page);
    let stride = len / n_samples / page * page;
    // The last page of each part: of a block that is filled from its beginning the last one is the last to come.
    let pages = (1..=n_samples).map(|i| block.wrapping_add(i * stride - page));
    // SAFETY: pages of the mapping, which has at least one for each sample.
    (pages.filter(|&page| unsafe { sys::is_resident(page) }).count(), n_samples)
}

/// Pages of a block that are looked at, evenly spread, to tell how much of it has memory behind it: 64 take some 10 us.
const SAMPLES: usize = 64;

/// A block of which so many bytes have memory behind them, or fewer, is written sparsely.
const SPARSE_BYTES: usize = 4 << 20;

/// What became of a block that was given back.
#[derive(Debug)]
pub(crate) struct Unmapped {
    pub(crate) released: Released,
    pub(crate) coverage: Coverage,
}

/// Gives a block back to the system. One that is mostly written goes piece by piece first, see `sys`; of one that is not,
/// each piece would cost more than the pages that are in it, and interrupt the other threads.
///
/// # Safety
/// `block` is a huge block that its holder gives up.
pub(crate) unsafe fn unmap(block: *mut u8) -> Unmapped {
    let len = TABLE.len(block);
    debug_assert!(len != 0);
    // SAFETY: the caller's mapping.
    let samples @ (n_resident, _) = unsafe { samples(block, len) };
    let coverage = coverage_by(block, samples);
    // First: once it is unmapped another thread's may come to lie there.
    TABLE.set(block, 0);
    let mut released = Released::default();
    // SAFETY: the caller's mapping.
    unsafe {
        if n_resident > 0 || !sys::KNOWS_RESIDENT {
            released = sys::release_in_pieces(block, len);
        }
        sys::unmap(block, len);
    }
    N_BLOCKS.fetch_sub(1, Ordering::Relaxed);
    Unmapped { released, coverage }
}

/// Makes a block `len` bytes long, whole units, in its place or another; what is added is zero. Null when refused, and
/// then it is as it was.
///
/// # Safety
/// `block` is a huge block shorter than that, and the caller's. Where this succeeds it is no more, but for the place that
/// is returned.
pub(crate) unsafe fn grow(block: *mut u8, len: usize, align: usize) -> *mut u8 {
    let old_len = TABLE.len(block);
    debug_assert!(old_len != 0 && old_len < len && len % UNIT_BYTES == 0);
    // SAFETY: the caller's mapping.
    if unsafe { sys::grow_in_place(block, old_len, len) } {
        TABLE.set(block, len);
        return block;
    }
    if !may_move() {
        return ptr::null_mut();
    }
    // A place that the table has room for: pages that have moved do not find their way back.
    let place = sys::map_aligned(len, align.max(UNIT_BYTES));
    if place.is_null() {
        return place;
    }
    if !TABLE.set(place, len) {
        // SAFETY: nobody knows of it.
        unsafe { sys::unmap(place, len) };
        return ptr::null_mut();
    }
    let is_telling = TABLE.is_telling(block);
    // As in `unmap`: either place may be another thread's before `move_mapping` returns.
    TABLE.set(block, 0);
    TABLE.set(place, 0);
    // SAFETY: two mappings of the caller's.
    if unsafe { sys::move_mapping(block, old_len, place, len) } {
        TABLE.set(place, len);
        return place;
    }
    MOVE_REFUSED.store(true, Ordering::Relaxed);
    TABLE.set(block, old_len);
    if is_telling {
        TABLE.set_telling(block);
    }
    ptr::null_mut()
}

/// A mapping could not be moved. What it was to replace may be there still, and may not be unmapped, as another thread's may be
/// there by now: it is not tried again, or each try would leave one behind.
static MOVE_REFUSED: AtomicBool = AtomicBool::new(false);

fn may_move() -> bool {
    sys::MOVES_MAPPINGS && !MOVE_REFUSED.load(Ordering::Relaxed)
}

/// Moves pages from the beginning of any block to that of a huge one: how many bytes of the `len` that are in the block, 0 when
/// that cannot be. Where they were is zero then. A huge block whose pages are there is left as it is: to write them costs
/// less than to fault others in. `None`: the huge block is no more, and what was to be moved is as it was.
///
/// # Safety
/// `from` has `len` bytes in pages of one private anonymous mapping; `to` is a huge block of at least that length, of
/// which nobody wants what is in it. Both are the caller's.
pub(crate) unsafe fn move_pages(from: *mut u8, len: usize, to: *mut u8) -> Option<usize> {
    let page = sys::page_bytes();
    let (len, to_len) = (len / page * page, TABLE.len(to));
    // SAFETY: the first page of the caller's block.
    let is_there = || unsafe { sys::is_resident(to) };
    if !may_move() || from.addr() % page != 0 || len == 0 || to_len == 0 || is_there() {
        return Some(0);
    }
    // By a mapping of their own, so that the block is one mapping in the end, which can grow.
    let hint = sys::map_aligned(len, UNIT_BYTES);
    if hint.is_null() {
        return Some(0);
    }
    // SAFETY: the caller's blocks, and a mapping that nobody knows of.
    unsafe {
        sys::unmap(hint, len);
        let between = sys::move_pages(from, len, hint);
        // Linux before 5.7 moves mappings alone, and none moves pages of several.
        if between.is_null() {
            return Some(0);
        }
        let is_telling = !HUGE_PAGES && TABLE.is_telling(to);
        // Where this fails, it may be another thread's before it returns.
        TABLE.set(to, 0);
        if sys::move_mapping(between, len, to, to_len) {
            TABLE.set(to, to_len);
            if HUGE_PAGES {
                sys::want_huge_pages(to, to_len);
            } else if is_telling {
                TABLE.set_telling(to);
            }
            return Some(len);
        }
        MOVE_REFUSED.store(true, Ordering::Relaxed);
        from.copy_from_nonoverlapping(between, len);
        sys::unmap(between, len);
    }
    // Nobody knows whether it is there.
    N_BLOCKS.fetch_sub(1, Ordering::Relaxed);
    None
}

/// Cuts off what is beyond `len` bytes, whole units, as a huge block of its own; null when that cannot be.
///
/// # Safety
/// `block` is a huge block longer than `len`, and the caller's.
pub(crate) unsafe fn split(block: *mut u8, len: usize) -> *mut u8 {
    let old_len = TABLE.len(block);
    debug_assert!(len != 0 && old_len > len && len % UNIT_BYTES == 0);
    if !sys::SPLITS_MAPPINGS {
        return ptr::null_mut();
    }
    // SAFETY: within the mapping.
    let rest = unsafe { block.add(len) };
    if are_many() || !TABLE.set(rest, old_len - len) {
        return ptr::null_mut();
    }
    TABLE.set(block, len);
    N_BLOCKS.fetch_add(1, Ordering::Relaxed);
    rest
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn coverage_is_told_by_pages() {
        if !sys::KNOWS_RESIDENT {
            return println!("!! nobody tells what is resident: SKIPPED");
        }
        const LEN: usize = 64 << 20;
        let fill = |block: *mut u8, len: usize| {
            // SAFETY: within the mapping.
            (0..len / 4096).for_each(|page| unsafe { block.add(page * 4096).write_volatile(1) });
        };
        let block = map(LEN, 1, Use::Zeroed);
        assert!(!block.is_null());
        // SAFETY: the mapping just made.
        unsafe {
            assert_eq!(coverage(block), Coverage::Sparse);
            fill(block, LEN / 2);
            assert_eq!(coverage(block), Coverage::Part);
            fill(block, LEN);
            assert_eq!(coverage(block), Coverage::Whole);
            assert!(clear_sparse(block));
            assert_eq!(
                (coverage(block), block.add(LEN / 3).read_volatile()),
                (Coverage::Sparse, 0)
            );
            fill(block, LEN);
            clear(block, LEN);
            assert_eq!((coverage(block), block.add(4096).read_volatile()), (Coverage::Unknown, 0));
            assert_eq!(unmap(block).coverage, Coverage::Unknown);
        }
        let plain = map(LEN, 1, Use::Plain);
        assert!(!plain.is_null());
        // SAFETY: the mapping just made.
        unsafe {
            assert_eq!(coverage(plain) == Coverage::Unknown, HUGE_PAGES);
            unmap(plain);
        }
    }

    #[test]
    fn pages_move_where_none_are() {
        const LEN: usize = 16 << 20;
        let [from, to] = [LEN, 2 * LEN].map(|len| map(len, 1, Use::Zeroed));
        assert!(!from.is_null() && !to.is_null());
        // SAFETY: within the mappings just made.
        unsafe {
            from.write_bytes(7, LEN);
            assert_eq!(move_pages(from.add(1), LEN / 2, to), Some(0));
            let moved = move_pages(from, LEN - 5, to).unwrap();
            assert!(moved == 0 || moved == LEN - sys::page_bytes(), "{moved}");
            assert_eq!(moved != 0, sys::MOVES_MAPPINGS);
            if moved != 0 {
                assert_eq!((to.read(), to.add(moved - 1).read(), to.add(moved).read()), (7, 7, 0));
                assert_eq!((from.add(moved - 1).read(), from.add(moved).read()), (0, 7));
                assert_eq!(move_pages(from, LEN, to), Some(0), "pages are there");
                assert_eq!(to.read(), 7);
                let grown = grow(to, 4 * LEN, 1);
                assert_eq!((grown.read(), grown.add(4 * LEN - 1).read()), (7, 0));
                unmap(grown);
            } else {
                unmap(to);
            }
            unmap(from);
        }
    }
}
