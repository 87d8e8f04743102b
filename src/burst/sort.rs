//! The drainer's way through what it has taken: sorted by the allocator's pages, then freed page by page.
//!
//! Freed in the order in which the program freed them, each block would bring the allocator to another page, which it
//! claims and gives up again for that one block. So the addresses of a whole burst are sorted first: a radix sort
//! by the number of the page, eight bits at a time, from chunk to chunk. The memory of the chunks goes round: each
//! pass gives back a chunk when it has read it.
//!
//! All addresses are in lists that a forked child finds, but those of the one chunk that is just being read.

use std::ops::ControlFlow;

use super::log::Run;
use super::pool::{Chunk, Cursor, Place, Pool};
use crate::sync::IN_MODEL;
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sys;

const RADIX_BITS: u32 = if IN_MODEL { 1 } else { 8 };
const BUCKETS: usize = 1 << RADIX_BITS;

/// Chunks in a row. Written by the drainer alone.
struct List {
    /// As an index + 1; 0 if there is none.
    first: AtomicU32,
    last: AtomicU32,
}

impl List {
    const fn new() -> List {
        List { first: AtomicU32::new(0), last: AtomicU32::new(0) }
    }

    fn push(&self, pool: &Pool, index: u32) {
        match self.last.load(Ordering::Relaxed).checked_sub(1) {
            Some(last) => pool.get(last).link(index),
            None => self.first.store(index + 1, Ordering::Relaxed),
        }
        self.last.store(index + 1, Ordering::Relaxed);
    }

    fn pop(&self, pool: &Pool) -> Option<u32> {
        let index = self.first.load(Ordering::Relaxed).checked_sub(1)?;
        match pool.get(index).next() {
            Some(next) => self.first.store(next + 1, Ordering::Relaxed),
            None => {
                self.first.store(0, Ordering::Relaxed);
                self.last.store(0, Ordering::Relaxed);
            }
        }
        Some(index)
    }
}

type Lists = [List; BUCKETS];

/// What the drainer has taken and not freed yet.
pub(super) struct Sorter {
    /// A pass goes from the one to the other.
    lists: [Lists; 2],
}

/// One pass: addresses that share the bits of their page above `shift` come together.
struct Pass<'a> {
    pool: &'a Pool,
    lists: &'a Lists,
    cursors: [Cursor; BUCKETS],
    /// What the places count from.
    base: usize,
    shift: u32,
}

impl Pass<'_> {
    /// False if there is no chunk left.
    #[inline]
    fn put(&mut self, place: Place) -> bool {
        let bucket = place.page() >> self.shift & (BUCKETS - 1);
        let cursor = &mut self.cursors[bucket];
        if cursor.is_at_end() {
            let Some(index) = self.pool.take() else {
                return false;
            };
            *cursor = self.pool.get(index).begin(self.base);
            self.lists[bucket].push(self.pool, index);
        }
        // SAFETY: a slot in a chunk of this pass.
        *cursor = unsafe { cursor.put(place) };
        true
    }
}

/// Stops the drainer in between: the process exits.
pub(super) type GoOn<'a> = &'a mut dyn FnMut() -> ControlFlow<()>;

impl Sorter {
    pub(super) const fn new() -> Sorter {
        Sorter { lists: [const { [const { List::new() }; BUCKETS] }; 2] }
    }

    fn pass<'a>(&'a self, pool: &'a Pool, to: usize, base: usize, shift: u32) -> Pass<'a> {
        Pass { pool, lists: &self.lists[to], cursors: [Cursor::NOWHERE; BUCKETS], base, shift }
    }

    /// Takes what `runs` gives, sorts it and frees it. Between chunks, where a fork may come, it asks whether to `go_on`.
    pub(super) fn drain<'p>(
        &self,
        pool: &'p Pool,
        mut runs: impl FnMut() -> Option<Run<'p>>,
        free: &mut dyn FnMut(*mut u8),
        go_on: GoOn<'_>,
    ) -> ControlFlow<()> {
        let Some(first) = runs() else {
            return ControlFlow::Continue(());
        };
        let base = first.chunk.base();
        let mut pass = self.pass(pool, 0, base, 0);
        let mut some_page = None;
        let mut differing = 0;
        let mut next = Some(first);
        while let Some(run) = next {
            let its_base = run.chunk.base();
            for place in run.chunk.places(run.slots) {
                // Gigabytes away from the first ones, and rare: what cannot be sorted with them is freed now.
                let near = if its_base == base {
                    Some(place)
                } else {
                    Place::of(base, place.block(its_base))
                };
                let Some(place) = near.filter(|&place| pass.put(place)) else {
                    free(place.block(its_base));
                    continue;
                };
                differing |= place.page() ^ *some_page.get_or_insert(place.page());
            }
            go_on()?;
            next = runs();
        }
        let (mut from, mut shift) = (0, RADIX_BITS);
        while differing >> shift != 0 {
            let mut pass = self.pass(pool, 1 - from, base, shift);
            self.read(pool, from, go_on, |chunk, n| {
                for place in chunk.places((0, n)) {
                    if !pass.put(place) {
                        free(place.block(base));
                    }
                }
            })?;
            (from, shift) = (1 - from, shift + RADIX_BITS);
        }
        self.free_list(pool, from, free, go_on)
    }

    /// Frees what a fork has left here.
    pub(super) fn free_all(
        &self,
        pool: &Pool,
        free: &mut dyn FnMut(*mut u8),
        go_on: GoOn<'_>,
    ) -> ControlFlow<()> {
        self.free_list(pool, 0, free, go_on)?;
        self.free_list(pool, 1, free, go_on)
    }

    fn free_list(
        &self,
        pool: &Pool,
        from: usize,
        free: &mut dyn FnMut(*mut u8),
        go_on: GoOn<'_>,
    ) -> ControlFlow<()> {
        self.read(pool, from, go_on, |chunk, n| {
            chunk.each_block((0, n), |soon| sys::prefetch(soon), &mut *free);
        })
    }

    /// Reads the chunks of all lists in order, and gives them back.
    fn read(
        &self,
        pool: &Pool,
        from: usize,
        go_on: GoOn<'_>,
        mut f: impl FnMut(&Chunk, usize),
    ) -> ControlFlow<()> {
        for list in &self.lists[from] {
            while let Some(index) = list.pop(pool) {
                let chunk = pool.get(index);
                let n = chunk.n_written(0);
                f(chunk, n);
                pool.give_back(index, n);
                go_on()?;
            }
        }
        ControlFlow::Continue(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::log::Log;
    use super::super::pool::{CHUNKS, Cursor, Pool, SLOTS};
    use super::Sorter;
    use std::ops::ControlFlow;
    use std::ptr;

    const BASE: usize = 0x7f00_0000_0000;
    const PAGE: usize = 64 << 10;

    /// Writes them down in no order.
    fn log_of(pool: &Pool, addresses: &[usize]) -> Log {
        let log = Log::new();
        assert!(log.try_hold());
        let mut cursor = Cursor::NOWHERE;
        let n = addresses.len();
        for i in 0..n {
            let block = ptr::without_provenance_mut(addresses[i * 7919 % n]);
            cursor = log.write(pool, cursor, block, 1, |_| true).unwrap().cursor;
        }
        log.let_go();
        log
    }

    /// Has the drainer free it all; stops between the chunks after so many.
    fn drain(pool: &Pool, sorter: &Sorter, log: &Log, mut n_left: usize) -> Vec<usize> {
        let mut freed = Vec::new();
        let mut emptying = log.try_empty().unwrap();
        let mut free = |block: *mut u8| freed.push(block.addr());
        let mut go_on = || {
            n_left = n_left.saturating_sub(1);
            if n_left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let drained = sorter.drain(pool, || emptying.next(pool), &mut free, &mut go_on);
        assert_eq!(drained.is_continue(), n_left > 0);
        freed
    }

    fn page_changes(freed: &[usize]) -> usize {
        freed.windows(2).filter(|pair| pair[0] / PAGE != pair[1] / PAGE).count()
    }

    fn sorted(mut addresses: Vec<usize>) -> Vec<usize> {
        addresses.sort_unstable();
        addresses
    }

    /// Some blocks in each of a number of pages, which lie `step` pages apart.
    fn blocks(n_pages: usize, step: usize) -> Vec<usize> {
        let block = |i| BASE + (i % n_pages) * step * PAGE + i / n_pages * 64;
        (0..16 * n_pages).map(block).collect()
    }

    /// One pass, two, three, and pages that share their low bits.
    #[test]
    fn blocks_are_freed_page_by_page() {
        for (n_pages, step) in
            [(1, 1), (100, 1), (256, 1), (257, 1), (3000, 1), (3000, 17), (300, 512)]
        {
            let (pool, sorter) = (Pool::new(), Sorter::new());
            let blocks = blocks(n_pages, step);
            let freed = drain(&pool, &sorter, &log_of(&pool, &blocks), usize::MAX);
            assert_eq!(page_changes(&freed), n_pages - 1, "{n_pages} {step}");
            assert_eq!((sorted(freed), pool.n_used()), (sorted(blocks), 0), "{n_pages} {step}");
        }
    }

    /// From different bases: those from which both can be reached are sorted together, the others freed.
    #[test]
    fn blocks_far_apart() {
        for apart in [4 << 30, 13 << 30, 64 << 30, 1 << 40] {
            let (pool, sorter) = (Pool::new(), Sorter::new());
            // Many in a row, so that each place is worth a chunk.
            let mut all = Vec::new();
            let log = Log::new();
            assert!(log.try_hold());
            let mut cursor = Cursor::NOWHERE;
            for i in 0..4000 {
                let address = BASE + i / 1000 % 2 * apart + i * 64;
                let block = ptr::without_provenance_mut(address);
                cursor = log.write(&pool, cursor, block, 1, |_| true).unwrap().cursor;
                all.push(address);
            }
            log.let_go();
            let freed = drain(&pool, &sorter, &log, usize::MAX);
            assert_eq!((sorted(freed), pool.n_used()), (sorted(all), 0));
        }
    }

    /// What there is no chunk for is freed out of order.
    #[test]
    fn with_few_chunks_left() {
        for n_left in [0, 1, 2, 100, 300] {
            let (pool, sorter) = (Pool::new(), Sorter::new());
            let blocks = blocks(3000, 7);
            let log = log_of(&pool, &blocks);
            let others: Vec<u32> =
                (0..CHUNKS - pool.n_used() - n_left).map(|_| pool.take().unwrap()).collect();
            let freed = drain(&pool, &sorter, &log, usize::MAX);
            assert_eq!(sorted(freed), sorted(blocks), "{n_left}");
            assert_eq!(pool.n_used(), others.len());
        }
    }

    /// Wherever a fork comes between two chunks: the child frees what the parent had not.
    #[test]
    fn what_was_interrupted_is_found() {
        let blocks = blocks(400, 3);
        let n_chunks = blocks.len().div_ceil(SLOTS);
        for n_left in 1..4 * n_chunks {
            let (pool, sorter) = (Pool::new(), Sorter::new());
            let log = log_of(&pool, &blocks);
            let mut freed = drain(&pool, &sorter, &log, n_left);
            log.forget_threads(&pool);
            let mut free = |block: *mut u8| freed.push(block.addr());
            let go_on: &mut dyn FnMut() -> _ = &mut || ControlFlow::Continue(());
            assert!(sorter.free_all(&pool, &mut free, go_on).is_continue());
            freed.extend(drain(&pool, &sorter, &log, usize::MAX));
            assert_eq!((sorted(freed), pool.n_used()), (sorted(blocks.clone()), 0), "{n_left}");
        }
    }
}
