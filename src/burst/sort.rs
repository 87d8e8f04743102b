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
