//! Chunks: arrays of block addresses, from a pool of fixed size that recycles the lowest ones first.

use std::ptr;

use crate::sync::IN_MODEL;
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sys;

/// Bytes of a chunk, and its alignment: an address that is a multiple of it is no slot.
const CHUNK_BYTES: usize = if IN_MODEL { 32 } else { 2 << 10 };
const HEAD_BYTES: usize = 16;
/// Addresses that a chunk holds.
pub(crate) const ADDRESSES: usize = (CHUNK_BYTES - HEAD_BYTES) / size_of::<u32>();

/// Chunks in all: room for eight million addresses in 32 MiB.
pub(crate) const CHUNKS: usize = if IN_MODEL { 128 } else { 16 << 10 };

/// Addresses are sorted while they are written down: one bucket for each value of these bits.
///
/// The allocators' pages are of 64 KiB or multiples of it, so the blocks of a page come to one bucket, and
/// a bucket has those of few pages. A page whose blocks are freed one after the other costs a fraction of
/// one to which the allocator comes back for each.
pub(crate) const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = if IN_MODEL { 1 } else { 8 };
const PAGE_BITS: u32 = 16;

/// Addresses of blocks are multiples of 8. With the bucket's bits gone as well, 32 bits reach 8 TiB far, and
/// a million blocks take 4 MB rather than 8.
const ALIGN_BITS: u32 = 3;
const LOW_BITS: u32 = PAGE_BITS - ALIGN_BITS;
const REACH_BITS: u32 = u32::BITS + BUCKET_BITS;

/// An address as it is written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bucket: usize,
    pub(super) offset: u32,
}

impl Place {
    /// `None` if `block` is below the base, too far above, or not aligned as every block is.
    #[inline(always)]
    pub(super) fn of(base: usize, block: *mut u8) -> Option<Place> {
        // Turned right, an odd distance has its low bits at the top.
        let distance = block.addr().wrapping_sub(base).rotate_right(ALIGN_BITS);
        if distance >> REACH_BITS != 0 {
            return None;
        }
        let low = distance & ((1 << LOW_BITS) - 1);
        let high = distance >> (LOW_BITS + BUCKET_BITS) << LOW_BITS;
        Some(Place { bucket: (distance >> LOW_BITS) % BUCKETS, offset: (high | low) as u32 })
    }

    /// The address. Its provenance was exposed when it was written down.
    #[inline]
    pub(super) fn address(self, base: usize) -> usize {
        let low = self.offset as usize & ((1 << LOW_BITS) - 1);
        let high = (self.offset as usize >> LOW_BITS << BUCKET_BITS | self.bucket) << LOW_BITS;
        base + ((high | low) << ALIGN_BITS)
    }

    /// A number that the offsets of one page share, and few others of the bucket.
    #[inline]
    pub(super) fn page(offset: u32) -> usize {
        (offset >> LOW_BITS) as usize
    }

    /// Where in its page the offset is, in 256 steps.
    #[inline]
    pub(super) fn step(offset: u32) -> usize {
        (offset >> (LOW_BITS - 8)) as usize % 256
    }

    /// A base from which the blocks on both sides of `block` can be reached.
    pub(super) fn base_near(block: *mut u8) -> usize {
        let reach = 1usize << (REACH_BITS + ALIGN_BITS);
        // Its low bits are zero, so that a page has one bucket.
        block.addr().saturating_sub(reach / 2) >> (PAGE_BITS + BUCKET_BITS)
            << (PAGE_BITS + BUCKET_BITS)
    }
}

/// Addresses of freed blocks of one bucket.
///
/// Whoever owns a chunk owns the blocks in it. The fields are atomics only so that ownership may be
/// handed over by the rules of `lane`; all accesses are by the owner alone, hence Relaxed.
#[cfg_attr(not(all(test, loom)), repr(C, align(2048)))]
#[cfg_attr(all(test, loom), repr(C, align(32)))]
pub(crate) struct Chunk {
    base: AtomicUsize,
    /// The slots in use. While the chunk is open, a cursor says where they end.
    len: AtomicU32,
    /// The next chunk of a list, as its index + 1; 0 at the end.
    next: AtomicU32,
    offsets: [AtomicU32; ADDRESSES],
}

const _: () = assert!(size_of::<Chunk>() == CHUNK_BYTES && align_of::<Chunk>() == CHUNK_BYTES);

/// Whether `cursor`, past the last slot written, is past the end of its chunk. So is a null pointer.
#[inline(always)]
pub(super) fn is_at_end(cursor: *mut AtomicU32) -> bool {
    cursor.addr() % CHUNK_BYTES == 0
}

impl Chunk {
    pub(super) fn len(&self) -> usize {
        (self.len.load(Ordering::Relaxed) as usize).min(ADDRESSES)
    }

    pub(super) fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    pub(super) fn first_slot(&self) -> *mut AtomicU32 {
        self.offsets.as_ptr().cast_mut()
    }

    /// How many slots there are below `cursor`.
    pub(super) fn len_at(&self, cursor: *mut AtomicU32) -> usize {
        (cursor.addr() - self.first_slot().addr()) / size_of::<AtomicU32>()
    }

    /// Says what `offsets` hold.
    pub(super) fn set(&self, base: usize, len: usize) {
        debug_assert!(len <= ADDRESSES);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len as u32, Ordering::Relaxed);
    }

    pub(super) fn offsets(&self) -> impl Iterator<Item = u32> {
        self.offsets[..self.len()].iter().map(|offset| offset.load(Ordering::Relaxed))
    }
}

/// Chunks of one bucket. Written by one thread at a time.
pub(super) struct List(AtomicU32);

impl List {
    pub(super) const fn new() -> List {
        List(AtomicU32::new(0))
    }

    pub(super) fn push(&self, pool: &Pool, index: u32) {
        pool.get(index).next.store(self.0.load(Ordering::Relaxed), Ordering::Relaxed);
        // Release: a forked child that finds the chunk finds what belongs to it.
        self.0.store(index + 1, Ordering::Release);
    }

    pub(super) fn pop(&self, pool: &Pool) -> Option<u32> {
        let index = self.0.load(Ordering::Relaxed).checked_sub(1)?;
        self.0.store(pool.get(index).next.load(Ordering::Relaxed), Ordering::Release);
        Some(index)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    /// All that is in it; `other` must be empty.
    pub(super) fn move_to(&self, other: &List) {
        debug_assert!(other.is_empty());
        other.0.store(self.0.load(Ordering::Relaxed), Ordering::Release);
        self.0.store(0, Ordering::Relaxed);
    }

    pub(super) fn indices(&self, pool: &Pool) -> impl Iterator<Item = u32> {
        let mut link = self.0.load(Ordering::Relaxed);
        std::iter::from_fn(move || {
            let index = link.checked_sub(1)?;
            link = pool.get(index).next.load(Ordering::Relaxed);
            Some(index)
        })
    }
}

/// All chunks there are.
pub(crate) struct Pool {
    /// Null until the first chunk is wanted; then room for `CHUNKS` chunks, for ever.
    chunks: AtomicPtr<Chunk>,
    /// One bit for each chunk that is in use.
    used: [AtomicU64; CHUNKS / 64],
    n_used: AtomicUsize,
}

impl Pool {
    pub(crate) const fn new() -> Pool {
        Pool {
            chunks: AtomicPtr::new(ptr::null_mut()),
            used: [const { AtomicU64::new(0) }; CHUNKS / 64],
            n_used: AtomicUsize::new(0),
        }
    }

    /// Chunks that have been taken and not given back.
    pub(crate) fn n_used(&self) -> usize {
        // SeqCst: pairs with the drainer's falling asleep, see `drainer`.
        self.n_used.load(Ordering::SeqCst)
    }

    fn chunks(&self) -> Option<*mut Chunk> {
        // Acquire pairs with the Release below. The mapping is zero, which needs no ordering, but
        // its address must have been mapped before.
        let chunks = self.chunks.load(Ordering::Acquire);
        if !chunks.is_null() {
            return Some(chunks);
        }
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

    /// The chunk in which the slot before `cursor` is.
    pub(super) fn index_of(&self, cursor: *mut AtomicU32) -> u32 {
        let first = self.chunks.load(Ordering::Acquire);
        ((cursor.addr() - 1 - first.addr()) / CHUNK_BYTES) as u32
    }

    /// Takes an empty chunk, the one with the lowest index: it has been used most recently, or at
    /// least most often. `None` when all are in use.
    pub(crate) fn take(&self) -> Option<u32> {
        if self.n_used.load(Ordering::Relaxed) >= CHUNKS {
            return None;
        }
        self.chunks()?;
        for (word, bits) in self.used.iter().enumerate() {
            let mut used = bits.load(Ordering::Relaxed);
            while used != u64::MAX {
                let bit = used.trailing_ones();
                // Acquire pairs with the Release in `give_back`: the last owner is done with it.
                match bits.compare_exchange_weak(
                    used,
                    used | 1 << bit,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        self.n_used.fetch_add(1, Ordering::SeqCst);
                        return Some(word as u32 * 64 + bit);
                    }
                    Err(now) => used = now,
                }
            }
        }
        None
    }

    /// Gives back a chunk, whose contents are no longer wanted.
    pub(crate) fn give_back(&self, index: u32) {
        let (word, bit) = (index as usize / 64, index % 64);
        self.used[word].fetch_and(!(1 << bit), Ordering::Release);
        self.n_used.fetch_sub(1, Ordering::SeqCst);
    }

    /// In a forked child: all chunks count as unused, until `keep` says otherwise.
    pub(super) fn forget_all(&self) {
        for bits in &self.used {
            bits.store(0, Ordering::Relaxed);
        }
        self.n_used.store(0, Ordering::SeqCst);
    }

    /// In a forked child: this one is in use after all.
    pub(super) fn keep(&self, index: u32) {
        let bits = &self.used[index as usize / 64];
        bits.store(bits.load(Ordering::Relaxed) | 1 << (index % 64), Ordering::Relaxed);
        self.n_used.store(self.n_used() + 1, Ordering::SeqCst);
    }

    /// Returns the memory of unused chunks to the system, all but that of the first few.
    pub(crate) fn purge(&self) {
        let chunks = self.chunks.load(Ordering::Acquire);
        if chunks.is_null() {
            return;
        }
        for (word, bits) in self.used.iter().enumerate().skip(1) {
            // All 64 are claimed meanwhile, so that nobody writes to what is about to go.
            if bits.compare_exchange(0, u64::MAX, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                // SAFETY: 64 chunks inside the mapping, which are ours; what is in them is not wanted.
                unsafe { sys::release_in_pieces(chunks.add(word * 64).cast(), 64 * CHUNK_BYTES) };
                bits.store(0, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, CHUNKS, List, Place, Pool};
    use std::ptr;

    #[test]
    fn an_address_is_its_place() {
        let block = |address| ptr::without_provenance_mut(address);
        let base = Place::base_near(block(0x7f12_3456_7890));
        for address in
            [base, 0x7f12_3456_7890, 0x7f12_3457_7890, 0x7f12_0000_0008, 0x7c00_dead_bee8]
        {
            let place = Place::of(base, block(address)).unwrap();
            assert_eq!(place.bucket, address >> 16 & (BUCKETS - 1));
            assert_eq!(place.address(base), address);
        }
        for far in [base - 8, base + (8 << 40), 0x7f12_3456_7894, 0x5555_0000_1000] {
            assert_eq!(Place::of(base, block(far)), None);
        }
    }

    #[test]
    fn a_page_has_one_bucket_and_one_number() {
        let base = Place::base_near(ptr::without_provenance_mut(0x7f12_3456_0000));
        let place = |address| Place::of(base, ptr::without_provenance_mut(address)).unwrap();
        let (first, last, next) =
            (place(0x7f12_3456_0000), place(0x7f12_3456_fff8), place(0x7f12_3457_0000));
        assert_eq!(
            (first.bucket, Place::page(first.offset)),
            (last.bucket, Place::page(last.offset))
        );
        assert_ne!(first.bucket, next.bucket);
        let same_bucket = place(0x7f12_3456_0000 + (BUCKETS << 16));
        assert_eq!(first.bucket, same_bucket.bucket);
        assert_ne!(Place::page(first.offset), Place::page(same_bucket.offset));
    }

    #[test]
    fn the_pool_ends_and_recycles_the_lowest_first() {
        let pool = Pool::new();
        let taken: Vec<u32> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, (0..CHUNKS as u32).collect::<Vec<_>>());
        for index in [4000, 17, 3] {
            pool.give_back(index);
        }
        assert_eq!(pool.n_used(), CHUNKS - 3);
        assert_eq!(
            [pool.take(), pool.take(), pool.take(), pool.take()],
            [Some(3), Some(17), Some(4000), None]
        );
    }

    #[test]
    fn a_list_is_emptied_once() {
        let (pool, list) = (Pool::new(), List::new());
        for _ in 0..3 {
            list.push(&pool, pool.take().unwrap());
        }
        assert_eq!(list.indices(&pool).collect::<Vec<_>>(), [2, 1, 0]);
        let other = List::new();
        list.move_to(&other);
        assert!(list.is_empty() && list.pop(&pool).is_none());
        assert_eq!(std::iter::from_fn(|| other.pop(&pool)).collect::<Vec<_>>(), [2, 1, 0]);
    }

    #[test]
    fn purging_spares_chunks_in_use() {
        let pool = Pool::new();
        let taken: Vec<u32> = (0..200).filter_map(|_| pool.take()).collect();
        for &index in &taken {
            pool.get(index).set(index as usize, 0);
        }
        // All of the third group but one go back.
        for index in 128..191 {
            pool.give_back(index);
        }
        pool.purge();
        for index in (0..128).chain(191..200) {
            assert_eq!(pool.get(index).base(), index as usize);
        }
    }
}
