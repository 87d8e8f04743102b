//! Chunks: arrays of block addresses, from a pool of fixed size that recycles the lowest ones first.

use std::ops::Range;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use crate::sys;

/// Bytes of a chunk.
const CHUNK_BYTES: usize = 8 << 10;
/// Addresses that a chunk holds.
pub(crate) const ADDRESSES: usize = (CHUNK_BYTES - HEAD_BYTES) / size_of::<u32>();
const HEAD_BYTES: usize = 32;

/// Chunks in all: room for eight million addresses.
pub(crate) const CHUNKS: usize = 4096;

/// Block addresses are multiples of 8 that lie within 32 GiB of each other: 32 bits each will do, and
/// the addresses of a million blocks take 4 MB rather than 8. A block for which that is not so is
/// freed at once.
const ALIGN_LOG2: u32 = 3;
const REACH: usize = 1 << (u32::BITS + ALIGN_LOG2);

/// How far `block` is above `base`, in units of its alignment; more than 32 bits if it is below, too
/// far above, or not a multiple of the unit.
#[inline(always)]
pub(super) fn distance(base: usize, block: *mut u8) -> usize {
    // Turned right, an odd distance has its low bits at the top.
    block.addr().wrapping_sub(base).rotate_right(ALIGN_LOG2)
}

/// Addresses of freed blocks.
///
/// Whoever owns a chunk owns the blocks in it. The fields are atomics only so that ownership may be
/// handed over by the rules of `lane`; all accesses but those are by the owner alone, hence Relaxed.
/// All zero bytes are an empty chunk. While a chunk is open in a lane its length and bytes are there.
#[repr(C)]
pub(crate) struct Chunk {
    base: AtomicUsize,
    bytes: AtomicUsize,
    /// What was reserved in the backlog for this chunk.
    reserved_bytes: AtomicUsize,
    len: AtomicU32,
    /// The chunk below in a stack of chunks, as its index + 1; 0 at the bottom.
    pub(super) below: AtomicU32,
    offsets: [AtomicU32; ADDRESSES],
}

const _: () = assert!(size_of::<Chunk>() == CHUNK_BYTES);

impl Chunk {
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed) as usize
    }

    /// What the blocks in it come to.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn base(&self) -> usize {
        self.base.load(Ordering::Relaxed)
    }

    pub(super) fn first_slot(&self) -> *mut AtomicU32 {
        self.offsets.as_ptr().cast_mut()
    }

    /// The base from which the blocks on both sides of `block` can be reached.
    pub(super) fn base_near(block: *mut u8) -> usize {
        block.addr().saturating_sub(REACH / 2) & !((1 << ALIGN_LOG2) - 1)
    }

    /// Says what `offsets` hold.
    pub(super) fn set(&self, base: usize, len: usize, bytes: usize) {
        debug_assert!(len <= ADDRESSES);
        self.base.store(base, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        // Release: a forked child that finds the length finds what belongs to it.
        self.len.store(len as u32, Ordering::Release);
    }

    pub(super) fn set_reserved(&self, bytes: usize) {
        self.reserved_bytes.store(bytes, Ordering::Relaxed);
    }

    /// What was reserved for it, which is the caller's to release now.
    pub(super) fn take_reserved(&self) -> usize {
        let reserved = self.reserved_bytes.load(Ordering::Relaxed);
        self.reserved_bytes.store(0, Ordering::Relaxed);
        reserved
    }

    #[inline]
    pub(super) fn address(base: usize, offset: u32) -> *mut u8 {
        // Exposed in `Lane::write`.
        ptr::with_exposed_provenance_mut(base + ((offset as usize) << ALIGN_LOG2))
    }

    /// How many of the blocks in `range` are at most `bytes` away from the one before.
    pub(super) fn n_near(&self, range: Range<usize>, bytes: usize) -> usize {
        let Some(offsets) = self.offsets.get(range) else {
            return 0;
        };
        let load = |offset: &AtomicU32| offset.load(Ordering::Relaxed);
        let near = |pair: &&[AtomicU32]| {
            load(&pair[0]).abs_diff(load(&pair[1])) as usize <= bytes >> ALIGN_LOG2
        };
        offsets.windows(2).filter(near).count()
    }

    /// Empties the chunk into `addresses`, from its start on; says how many there were.
    pub(super) fn empty_into(&self, addresses: &mut [usize]) -> usize {
        let (base, n) = (self.base(), self.len().min(ADDRESSES));
        for (address, offset) in addresses.iter_mut().zip(&self.offsets[..n]) {
            *address = base + ((offset.load(Ordering::Relaxed) as usize) << ALIGN_LOG2);
        }
        self.len.store(0, Ordering::Relaxed);
        self.bytes.store(0, Ordering::Relaxed);
        n
    }
}

/// All chunks there are.
pub(crate) struct Pool {
    /// Null until the first chunk is wanted; then a mapping of `CHUNKS` chunks, for ever.
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

    /// Gives back a chunk that has been emptied.
    pub(crate) fn give_back(&self, index: u32) {
        debug_assert_eq!(self.get(index).len(), 0);
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

    /// In a forked child: chunks that a thread of the parent had in hand are empty when taken next.
    pub(super) fn empty_unused(&self, was_used: &[u64; CHUNKS / 64]) {
        for (word, before) in was_used.iter().enumerate() {
            let mut lost = before & !self.used[word].load(Ordering::Relaxed);
            while lost != 0 {
                let chunk = self.get(word as u32 * 64 + lost.trailing_zeros());
                chunk.set(0, 0, 0);
                chunk.set_reserved(0);
                lost &= lost - 1;
            }
        }
    }

    pub(super) fn used(&self) -> [u64; CHUNKS / 64] {
        std::array::from_fn(|word| self.used[word].load(Ordering::Relaxed))
    }

    /// Returns the memory of unused chunks to the system, all but that of the first few.
    pub(crate) fn purge(&self) {
        let chunks = self.chunks.load(Ordering::Acquire);
        if chunks.is_null() {
            return;
        }
        for (word, bits) in self.used.iter().enumerate().skip(1) {
            // All 64 are claimed meanwhile, so that nobody writes to what is about to become zero.
            if bits.compare_exchange(0, u64::MAX, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                // SAFETY: 64 chunks inside the mapping, which are ours; zero is an empty chunk.
                unsafe { sys::release_in_pieces(chunks.add(word * 64).cast(), 64 * CHUNK_BYTES) };
                bits.store(0, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{ADDRESSES, CHUNKS, Pool};
    use std::sync::atomic::Ordering;

    fn empty(pool: &Pool, index: u32) -> Vec<usize> {
        let mut addresses = [0; ADDRESSES];
        let n = pool.get(index).empty_into(&mut addresses);
        addresses[..n].to_vec()
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
    fn purging_spares_chunks_in_use() {
        let pool = Pool::new();
        let taken: Vec<u32> = (0..200).filter_map(|_| pool.take()).collect();
        for &index in &taken {
            pool.get(index).offsets[0].store(index, Ordering::Relaxed);
            pool.get(index).set(0x10000, 1, 8);
        }
        // All of the third group but one go back.
        for index in 128..191 {
            assert_eq!(empty(&pool, index).len(), 1);
            pool.give_back(index);
        }
        pool.purge();
        for index in (0..128).chain(191..200) {
            assert_eq!(empty(&pool, index), [0x10000 + 8 * index as usize]);
        }
    }
}
