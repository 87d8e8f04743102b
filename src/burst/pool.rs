//! Chunks: arrays of block addresses, from a pool of fixed size that recycles the lowest ones first.

use std::ptr;

use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{IN_MODEL, TINY};
use crate::sys;

/// Bytes of a chunk, and its alignment: an address that is a multiple of it is no slot.
pub(super) const CHUNK_BYTES: usize = if IN_MODEL { 32 } else { 4 << 10 };
const HEAD_BYTES: usize = 24;
/// `Chunk::reach` of a chunk that is open.
const OPEN: u32 = u32::MAX;
const CLOSED: u32 = 0;
/// Addresses that a chunk holds.
pub(super) const SLOTS: usize = (CHUNK_BYTES - HEAD_BYTES) / size_of::<u32>();

/// Chunks in all: room for eight million addresses in 32 MiB.
pub(super) const CHUNKS: usize = if IN_MODEL { 128 } else { 8 << 10 };

/// Of which so many may be in use. The tests in here use up a whole pool.
pub(super) const CHUNKS_IN_USE: usize = if TINY && !cfg!(test) { 8 } else { CHUNKS };

/// Blocks are aligned to 8 bytes, so that 32 bits reach 32 GiB far, and a million blocks take 4 MB
/// rather than 8.
const ALIGN_BITS: u32 = 3;
const REACH_BYTES: usize = 1 << (u32::BITS + ALIGN_BITS);

/// The allocators' pages are of 64 KiB or multiples of it, and aligned so.
const PAGE_BITS: u32 = 16;

/// Where a block is, as it is written down: its distance from the chunk's base in steps of 8 bytes,
/// plus one. 0 says that nothing has been written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place(pub(super) u32);

impl Place {
    /// `None` if `block` is below the base, too far above, or not aligned as blocks are.
    #[inline(always)]
    pub(super) fn of(base: usize, block: *mut u8) -> Option<Place> {
        Place::within(base, OPEN, block)
    }

    #[inline(always)]
    fn within(base: usize, reach: u32, block: *mut u8) -> Option<Place> {
        // Turned right, an odd distance has its low bits at the top.
        let distance = block.addr().wrapping_sub(base).rotate_right(ALIGN_BITS);
        if distance >= reach as usize {
            return None;
        }
        Some(Place(distance as u32 + 1))
    }

    /// The address. Its provenance was exposed when it was written down.
    #[inline]
    pub(super) fn block(self, base: usize) -> *mut u8 {
        ptr::with_exposed_provenance_mut(base + ((self.0 as usize - 1) << ALIGN_BITS))
    }

    /// The number of the allocator's page that the block is in, counted from the base.
    #[inline]
    pub(super) fn page(self) -> usize {
        ((self.0 - 1) >> (PAGE_BITS - ALIGN_BITS)) as usize
    }

    /// A base from which the blocks on both sides of `block` can be reached. Blocks near each other mostly
    /// have the same.
    pub(super) fn base_near(block: *mut u8) -> usize {
        block.addr().saturating_sub(REACH_BYTES / 2) & !(REACH_BYTES / 8 - 1)
    }
}

/// Addresses of freed blocks, in the order in which they were written. The slots in use come first, those behind
/// them are zero.
///
/// One writes and another may read at the same time: a slot that is not zero says by itself that it has
/// been written, and by its Release that all before it have.
#[cfg_attr(not(all(test, loom)), repr(C, align(4096)))]
#[cfg_attr(all(test, loom), repr(C, align(32)))]
pub(super) struct Chunk {
    /// What the places count from.
    base: AtomicUsize,
    /// Sum of the blocks' sizes.
    bytes: AtomicUsize,
    /// The next chunk, as its index + 1; 0 at the end.
    next: AtomicU32,
    /// Distances from here on cannot be written: [`OPEN`], or [`CLOSED`].
    reach: AtomicU32,
    slots: [AtomicU32; SLOTS],
}

const _: () = assert!(size_of::<Chunk>() == CHUNK_BYTES && align_of::<Chunk>() == CHUNK_BYTES);

/// Where to write next: a slot, or the end of a chunk, or null.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor(*const AtomicU32);

impl Cursor {
    pub(super) const NOWHERE: Cursor = Cursor(ptr::null());

    /// Whether there is no slot.
    #[inline(always)]
    pub(super) fn is_at_end(self) -> bool {
        self.0.addr() % CHUNK_BYTES == 0
    }

    /// Writes down a block of `size` bytes; the cursor behind it, or `None` if that place cannot be written.
    ///
    /// # Safety
    /// The cursor is a slot in a chunk that the caller alone writes to, and where it wrote last.
    #[inline(always)]
    pub(super) unsafe fn write(self, block: *mut u8, size: usize) -> Option<Cursor> {
        // SAFETY: a slot is inside a chunk, which is aligned to its size.
        let chunk = unsafe { &*self.0.map_addr(|slot| slot & !(CHUNK_BYTES - 1)).cast::<Chunk>() };
        let reach = chunk.reach.load(Ordering::Relaxed);
        let place = Place::within(chunk.base.load(Ordering::Relaxed), reach, block)?;
        // One writer: no need for a read-modify-write. It comes first, so that a reader of the slot finds it.
        chunk.bytes.store(chunk.bytes.load(Ordering::Relaxed) + size, Ordering::Relaxed);
        // SAFETY: the caller's.
        Some(unsafe { self.put(place) })
    }

    /// Writes a place that counts from the base of the cursor's chunk.
    ///
    /// # Safety
    /// As for `write`.
    #[inline(always)]
    pub(super) unsafe fn put(self, place: Place) -> Cursor {
        // SAFETY: the caller's; behind the last slot is the end of the chunk.
        unsafe {
            // Release pairs with the Acquire in `Chunk::n_written`: what the program did to the block is done.
            (*self.0).store(place.0, Ordering::Release);
            Cursor(self.0.add(1))
        }
    }

    /// How many slots of its chunk lie before it.
    pub(super) fn n_before(self) -> usize {
        match self.0.addr() % CHUNK_BYTES {
            0 if self.0.is_null() => 0,
            0 => SLOTS,
            offset => (offset - HEAD_BYTES) / size_of::<u32>(),
        }
    }
}

impl Chunk {
    pub(super) fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The chunk that was linked behind this one, which is full then.
    pub(super) fn next(&self) -> Option<u32> {
        // Acquire pairs with the Release in `link`: all slots have been written, and the next one's base.
        self.next.load(Ordering::Acquire).checked_sub(1)
    }

    /// Links a chunk behind this one, which gets no more addresses.
    pub(super) fn link(&self, next: u32) {
        self.next.store(next + 1, Ordering::Release);
    }

    /// Makes an empty chunk ready for blocks near `block`.
    pub(super) fn begin(&self, base: usize) -> Cursor {
        debug_assert!(self.slots[0].load(Ordering::Relaxed) == 0);
        self.base.store(base, Ordering::Relaxed);
        self.open();
        Cursor(self.slots.as_ptr())
    }

    /// As `begin`, with a first block of `size` bytes.
    pub(super) fn begin_with(&self, base: usize, place: Place, size: usize) -> Cursor {
        let first = self.begin(base);
        self.bytes.store(size, Ordering::Relaxed);
        // SAFETY: a slot in a chunk that nobody else knows.
        unsafe { first.put(place) }
    }

    /// Has the next write into this chunk fail. One that is just under way may still be done.
    pub(super) fn close(&self) {
        self.reach.store(CLOSED, Ordering::Relaxed);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.reach.load(Ordering::Relaxed) == CLOSED
    }

    pub(super) fn open(&self) {
        self.reach.store(OPEN, Ordering::Relaxed);
    }

    /// How many slots have been written, `from` of which are known to be.
    pub(super) fn n_written(&self, from: usize) -> usize {
        let is_written = |slot: &&AtomicU32| slot.load(Ordering::Acquire) != 0;
        from + self.slots[from..].iter().take_while(is_written).count()
    }

    /// What has been written between two slots.
    pub(super) fn places(&self, (from, to): (usize, usize)) -> impl Iterator<Item = Place> {
        self.slots[from..to].iter().map(|slot| Place(slot.load(Ordering::Relaxed)))
    }

    /// The blocks that have been written between two slots, each shown to `soon` some time before.
    #[inline]
    pub(super) fn each_block(
        &self,
        (from, to): (usize, usize),
        soon: impl Fn(*mut u8),
        mut f: impl FnMut(*mut u8),
    ) {
        let base = self.base();
        let slots = &self.slots[from..to];
        for (i, slot) in slots.iter().enumerate() {
            if let Some(ahead) = slots.get(i + AHEAD) {
                soon(Place(ahead.load(Ordering::Relaxed)).block(base));
            }
            f(Place(slot.load(Ordering::Relaxed)).block(base));
        }
    }
}

/// A block is brought into the cache so many blocks before its turn.
const AHEAD: usize = 32;

/// All chunks there are.
pub(super) struct Pool {
    /// Null until the first chunk is wanted; then room for `CHUNKS` chunks, for ever.
    chunks: AtomicPtr<Chunk>,
    /// One bit for each chunk that is in use.
    used: [AtomicU64; CHUNKS / 64],
    n_used: AtomicUsize,
    /// The last word of `used` with a chunk in it that may have been written since the last purge.
    last_word: AtomicUsize,
}

impl Pool {
    pub(super) const fn new() -> Pool {
        Pool {
            chunks: AtomicPtr::new(ptr::null_mut()),
            used: [const { AtomicU64::new(0) }; CHUNKS / 64],
            n_used: AtomicUsize::new(0),
            last_word: AtomicUsize::new(0),
        }
    }

    /// Chunks that have been taken and not given back.
    pub(super) fn n_used(&self) -> usize {
        self.n_used.load(Ordering::Relaxed)
    }

    fn chunks(&self) -> Option<*mut Chunk> {
        // Acquire pairs with the Release below. The mapping is zero, which needs no ordering, but
        // its address must have been mapped before.
        let chunks = self.chunks.load(Ordering::Acquire);
        if !chunks.is_null() {
            return Some(chunks);
        }
        let _errno = sys::KeepsErrno::new();
        let mapped = sys::map_zeroed(CHUNKS * CHUNK_BYTES);
        if mapped.is_null() {
            return None;
        }
        match self.chunks.compare_exchange(
            ptr::null_mut(),
            mapped.cast(),
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => Some(mapped.cast()),
            Err(theirs) => {
                // SAFETY: nobody has seen this mapping.
                unsafe { sys::unmap(mapped, CHUNKS * CHUNK_BYTES) };
                Some(theirs)
            }
        }
    }

    /// The chunk with this index, which must have been taken.
    pub(super) fn get(&self, index: u32) -> &Chunk {
        debug_assert!((index as usize) < CHUNKS);
        // SAFETY: an index below CHUNKS, in a mapping that exists because a chunk has been taken
        // from it, stays for ever, and is valid when zero.
        unsafe { &*self.chunks.load(Ordering::Acquire).add(index as usize) }
    }

    /// Takes an empty chunk, the one with the lowest index: it has been used most recently, or at
    /// least most often. `None` when all are in use.
    pub(super) fn take(&self) -> Option<u32> {
        if self.n_used.load(Ordering::Relaxed) >= CHUNKS_IN_USE {
            return None;
        }
        self.chunks()?;
        for (word, bits) in self.used.iter().enumerate() {
            let mut used = bits.load(Ordering::Relaxed);
            while used != u64::MAX {
                let bit = used.trailing_ones();
                // Acquire pairs with the Release in `give_back`: the last owner has cleared it.
                match bits.compare_exchange_weak(
                    used,
                    used | 1 << bit,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        self.n_used.fetch_add(1, Ordering::Relaxed);
                        self.note_word(word);
                        return Some(word as u32 * 64 + bit);
                    }
                    Err(now) => used = now,
                }
            }
        }
        None
    }

    fn note_word(&self, word: usize) {
        if word > self.last_word.load(Ordering::Relaxed) {
            self.last_word.fetch_max(word, Ordering::Relaxed);
        }
    }

    /// Gives back a chunk of which `n_written` slots have been written, and whose contents are no longer wanted.
    pub(super) fn give_back(&self, index: u32, n_written: usize) {
        let chunk = self.get(index);
        for slot in &chunk.slots[..n_written] {
            slot.store(0, Ordering::Relaxed);
        }
        chunk.bytes.store(0, Ordering::Relaxed);
        chunk.next.store(0, Ordering::Relaxed);
        let (word, bit) = (index as usize / 64, index % 64);
        self.used[word].fetch_and(!(1 << bit), Ordering::Release);
        self.n_used.fetch_sub(1, Ordering::Relaxed);
    }

    /// Has the system make the memory of some chunks ready, so that those who take them do not wait for that.
    pub(super) fn make_ready(&self, from: usize, to: usize) {
        let n = to.min(CHUNKS).saturating_sub(from);
        if let Some(chunks) = self.chunks().filter(|_| n > 0) {
            self.note_word((from + n - 1) / 64);
            // SAFETY: inside the mapping; what has been written there stays.
            unsafe { sys::make_ready(chunks.add(from).cast(), n * CHUNK_BYTES) };
        }
    }

    /// Returns the memory of unused chunks to the system, all but that of the first few.
    pub(super) fn purge(&self) {
        let chunks = self.chunks.load(Ordering::Acquire);
        if chunks.is_null() {
            return;
        }
        let last_word = self.last_word.swap(0, Ordering::Relaxed);
        for (word, bits) in self.used.iter().enumerate().take(last_word + 1).skip(1) {
            // All 64 are claimed meanwhile, so that nobody writes to what is about to go.
            if bits.compare_exchange(0, u64::MAX, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                // SAFETY: 64 chunks inside the mapping, which are ours; what is in them is not wanted.
                unsafe { sys::release_in_pieces(chunks.add(word * 64).cast(), 64 * CHUNK_BYTES) };
                bits.store(0, Ordering::Release);
            } else {
                self.note_word(word);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{CHUNKS, Cursor, Place, Pool, REACH_BYTES, SLOTS};
    use std::ptr;

    fn block(address: usize) -> *mut u8 {
        ptr::without_provenance_mut(address)
    }

    #[test]
    fn an_address_is_its_place() {
        const NEAR: usize = 0x7f12_3456_7890;
        let base = Place::base_near(block(NEAR));
        for address in [base, NEAR, NEAR + 8, NEAR - (12 << 30), NEAR + (12 << 30)] {
            let place = Place::of(base, block(address)).unwrap();
            assert_eq!(place.block(base).addr(), address);
        }
        let last = base + REACH_BYTES - 16;
        assert_eq!(Place::of(base, block(last)).unwrap().block(base).addr(), last);
        for far in [base - 8, base + REACH_BYTES - 8, NEAR + 4, NEAR + 1, 0x5555_0000_1000] {
            assert_eq!(Place::of(base, block(far)), None, "{far:x}");
        }
        // Blocks at the lower end of the address space.
        assert_eq!(Place::base_near(block(4096)), 0);
    }

    #[test]
    fn a_page_has_one_number() {
        let base = Place::base_near(block(0x7f12_3456_0000));
        let page = |address| Place::of(base, block(address)).unwrap().page();
        let first = page(0x7f12_3456_0000);
        assert_eq!(page(0x7f12_3456_fff8), first);
        assert_eq!(page(0x7f12_3457_0000), first + 1);
        assert_eq!(page(0x7f12_3455_fff8), first - 1);
    }

    #[test]
    fn a_chunk_holds_what_is_written_until_it_is_closed() {
        let pool = Pool::new();
        let chunk = pool.get(pool.take().unwrap());
        assert!(Cursor::NOWHERE.is_at_end() && Cursor::NOWHERE.n_before() == 0);
        let mut cursor = chunk.begin(1 << 40);
        for n in 0..SLOTS {
            assert_eq!((cursor.n_before(), cursor.is_at_end()), (n, false));
            if n == 10 {
                chunk.close();
                // SAFETY: a slot of this chunk, where the last one was written.
                assert!(unsafe { cursor.write(block(1 << 40), 5) }.is_none());
                assert!(chunk.is_closed());
                chunk.open();
            }
            // SAFETY: as above.
            cursor = unsafe { cursor.write(block((1 << 40) + 8 * n), 3) }.unwrap();
        }
        assert_eq!((cursor.n_before(), cursor.is_at_end()), (SLOTS, true));
        assert_eq!((chunk.n_written(0), chunk.n_written(7)), (SLOTS, SLOTS));
        assert_eq!(chunk.bytes(), 3 * SLOTS);
        let mut shown = Vec::new();
        chunk.each_block((1, SLOTS), |_| (), |block| shown.push(block.addr() - (1 << 40)));
        assert_eq!(shown, (1..SLOTS).map(|n| 8 * n).collect::<Vec<_>>());
    }

    #[test]
    fn the_pool_ends_and_recycles_the_lowest_first() {
        let pool = Pool::new();
        let taken: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, (0..CHUNKS as u32).collect::<Vec<_>>());
        for index in [4000, 17, 3] {
            pool.give_back(index, 0);
        }
        assert_eq!(pool.n_used(), CHUNKS - 3);
        assert_eq!(
            [pool.take(), pool.take(), pool.take(), pool.take()],
            [Some(3), Some(17), Some(4000), None]
        );
    }

    #[test]
    fn a_chunk_is_empty_when_it_is_taken_again() {
        let pool = Pool::new();
        let index = pool.take().unwrap();
        let chunk = pool.get(index);
        // SAFETY: slots of this chunk, one after the other.
        unsafe {
            let cursor = chunk.begin(0).write(block(8), 100).unwrap();
            cursor.write(block(16), 100).unwrap();
        }
        chunk.link(5);
        chunk.close();
        pool.give_back(index, 2);
        assert_eq!(pool.take(), Some(index));
        assert_eq!((chunk.n_written(0), chunk.bytes(), chunk.next()), (0, 0, None));
        chunk.begin(0);
        assert!(!chunk.is_closed());
    }

    #[test]
    fn purging_spares_chunks_in_use() {
        let pool = Pool::new();
        let taken: Vec<u32> = (0..200).filter_map(|_| pool.take()).collect();
        for &index in &taken {
            pool.get(index).begin(index as usize);
        }
        // All of the second group, and all of the third but one.
        for index in 64..191 {
            pool.give_back(index, 0);
        }
        pool.purge();
        for index in (0..64).chain(191..200) {
            assert_eq!(pool.get(index).base(), index as usize);
        }
        for index in 64..128 {
            assert_eq!(pool.get(index).base(), 0, "its memory was returned");
        }
        assert_eq!((pool.take(), pool.n_used()), (Some(64), 74));
    }

    // Where the system says which pages there are.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_made_ready_is_returned_too() {
        let pool = Pool::new();
        pool.get(pool.take().unwrap()).begin(7);
        pool.make_ready(0, 300);
        assert_eq!(pool.get(0).base(), 7);
        // SAFETY: inside the mapping of the pool, to which nobody else has a pointer here.
        let in_core = |index: u32| unsafe {
            let mut page = 0;
            let chunk = ptr::from_ref(pool.get(index)).cast_mut();
            assert_eq!(libc::mincore(chunk.cast(), size_of::<super::Chunk>(), &mut page), 0);
            page & 1 == 1
        };
        // A system that cannot make memory ready has nothing to return.
        let could = in_core(299);
        pool.purge();
        assert!(!in_core(299) && !in_core(100), "{could}");
        assert_eq!(pool.get(0).base(), 7);
    }
}
