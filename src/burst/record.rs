//! What became of a thread's bursts, and what follows for its next ones.
//!
//! A burst was *wasted* when the thread wanted the memory before the drainer was done, and *hot* when its blocks were
//! in the cache anyway. Either says that the next bursts are better freed at once: 8 of them, then 64, then 512; after a
//! wasted one, which cost something, 64 at once. One that was followed by rest makes all good again. While bursts are
//! skipped nobody can tell whether they would have been worth it, but for the thread's rest, which shows on the clock.
//!
//! A thread that was started for one task has no next ones. Where it has built what it drops, and frees that itself as
//! it ends, the burst was wasted, too, and says so of the first burst of other threads that build: see `Ends`.

use std::cell::Cell;

use crate::sync::atomic::{AtomicU32, Ordering};

/// Bursts to be skipped after the first hot one, the second, and so on.
const SKIPS: [u16; 3] = [8, 64, 512];
/// Where those after wasted ones begin. With 8 the first time, strings that were built and dropped twenty times in a row
/// took 1.03 to 1.10 times as long as under `DEFERFREE_BURST=off`, and with 64 0.97 to 1.00.
const WASTED: u8 = 1;

/// A thread that has not allocated for this long after a burst, and so long for each block, has rested.
const REST_NS: u64 = 1_000_000;
const REST_NS_PER_BLOCK: u64 = 16;
/// No thread takes longer to drop a block, but for one that does other things besides.
const MOST_NS_PER_BLOCK: u64 = 1000;

/// All zero bytes are a valid value.
pub(crate) struct Record {
    /// Bursts still to be skipped.
    skip: Cell<u16>,
    /// Which of `SKIPS` comes next.
    level: Cell<u8>,
    /// They are skipped because one was wasted.
    wasted: Cell<bool>,
    /// When the drop that is being skipped was last looked at; 0 if that does not matter.
    looked_at_ns: Cell<u64>,
    /// How many blocks it had freed since the look before; 0 if there has been none.
    n_blocks: Cell<u32>,
    /// There has been a burst.
    is_old: Cell<bool>,
    /// What becomes of the last burst, which was deferred, is not known yet.
    is_open: Cell<bool>,
}

impl Record {
    #[cfg(all(test, not(loom)))]
    fn new() -> Record {
        Record {
            skip: Cell::new(0),
            level: Cell::new(0),
            wasted: Cell::new(false),
            looked_at_ns: Cell::new(0),
            n_blocks: Cell::new(0),
            is_old: Cell::new(false),
            is_open: Cell::new(false),
        }
    }

    /// A burst begins: whether it is the first one.
    pub(crate) fn begin(&self) -> bool {
        !self.is_old.replace(true)
    }

    pub(crate) fn note_deferred(&self) {
        self.is_open.set(true);
    }

    /// The thread ends, or is short of memory: whether it is not known yet what becomes of its last burst.
    pub(super) fn end(&self) -> bool {
        self.is_open.replace(false)
    }

    /// Whether the burst that begins is to be freed at once.
    pub(crate) fn skips(&self) -> bool {
        self.looked_at_ns.set(0);
        let skip = self.skip.get();
        self.skip.set(skip.saturating_sub(1));
        skip > 0
    }

    /// A burst is skipped. It may turn out to have been worth it if a wasted one is the reason: without further looks only where
    /// all frees are counted.
    pub(crate) fn begin_skipping(&self, now_ns: impl FnOnce() -> u64, counts_all: bool) {
        if self.wasted.get() {
            self.note_skipped(now_ns(), u32::from(counts_all));
        }
    }

    /// A skipped burst has come to `n_blocks` since it was last looked at; 0 if that is not known.
    fn note_skipped(&self, now_ns: u64, n_blocks: u32) {
        self.looked_at_ns.set(now_ns);
        self.n_blocks.set(n_blocks);
    }

    /// As `note_skipped`, if the burst is one that is skipped because one was wasted.
    pub(super) fn note_goes_on(&self, now_ns: impl FnOnce() -> u64, n_blocks: u32) {
        if self.looked_at_ns.get() != 0 {
            self.note_skipped(now_ns(), n_blocks);
        }
    }

    /// Whether the burst is one that is skipped because one was wasted, and the thread has not rested since the last look.
    /// That can be told where it is known to how many blocks the burst has come since, `n_blocks`; where it is not, the
    /// thread is one that is going to allocate, see `note_rest`.
    pub(crate) fn goes_on_skipping(
        &self,
        now_ns: impl FnOnce() -> u64,
        n_blocks: Option<u32>,
    ) -> bool {
        let looked_at_ns = self.looked_at_ns.get();
        if looked_at_ns == 0 {
            return false;
        }
        let Some(n_blocks) = n_blocks else {
            self.looked_at_ns.set(now_ns());
            return true;
        };
        let now_ns = now_ns();
        let enough = REST_NS + u64::from(n_blocks) * MOST_NS_PER_BLOCK;
        let has_rested = now_ns.saturating_sub(looked_at_ns) >= enough;
        if has_rested {
            self.looked_at_ns.set(0);
            self.note_worth_it();
        } else {
            self.note_skipped(now_ns, n_blocks);
        }
        !has_rested
    }

    /// The thread allocates after a skipped burst. Of one that has not been looked at since it began it is not known when it
    /// ended.
    pub(super) fn note_rest(&self, now_ns: impl FnOnce() -> u64) {
        let looked_at_ns = self.looked_at_ns.replace(0);
        if looked_at_ns == 0 || self.n_blocks.get() == 0 {
            return;
        }
        let enough = REST_NS + u64::from(self.n_blocks.get()) * REST_NS_PER_BLOCK;
        if now_ns().saturating_sub(looked_at_ns) >= enough {
            self.note_worth_it();
        }
    }

    pub(crate) fn note_worth_it(&self) {
        self.skip.set(0);
        self.level.set(0);
        self.wasted.set(false);
        self.is_open.set(false);
    }

    pub(crate) fn note_wasted(&self) {
        self.level.set(self.level.get().max(WASTED));
        self.skip_more();
        self.wasted.set(true);
    }

    pub(crate) fn note_hot(&self) {
        self.skip_more();
        self.wasted.set(false);
    }

    fn skip_more(&self) {
        self.is_open.set(false);
        self.looked_at_ns.set(0);
        let (skip, next) = skips_at(self.level.get());
        self.skip.set(skip);
        self.level.set(next);
    }
}

/// Bursts to be skipped at that level, and the next one.
fn skips_at(level: u8) -> (u16, u8) {
    let last = SKIPS.len() as u8 - 1;
    (SKIPS[usize::from(level)], (level + 1).min(last))
}

/// What became of the bursts with which threads ended that build: two at a time, which build a map or strings, drop them and
/// end, took 1.2 times as long where each of them wrote down what it then freed itself.
///
/// Threads that drop what others have built are not counted: what they leave takes half of the time.
pub(super) struct Ends {
    /// Threads whose first burst is still to be taken for wasted.
    skip: AtomicU32,
    /// Which of `SKIPS` comes next.
    level: AtomicU32,
}

impl Ends {
    pub(super) const fn new() -> Ends {
        Ends { skip: AtomicU32::new(0), level: AtomicU32::new(0) }
    }

    /// Whether the first burst of a thread is to be taken for one that comes after a wasted one.
    pub(super) fn skips(&self) -> bool {
        // Of two threads at once one may not count.
        let skip = self.skip.load(Ordering::Relaxed);
        self.skip.store(skip.saturating_sub(1), Ordering::Relaxed);
        skip > 0
    }

    pub(super) fn note_wasted(&self) {
        let (skip, next) = skips_at(WASTED.max(self.level.load(Ordering::Relaxed) as u8));
        self.skip.store(skip.into(), Ordering::Relaxed);
        self.level.store(next.into(), Ordering::Relaxed);
    }

    pub(super) fn note_worth_it(&self) {
        self.level.store(0, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{Ends, REST_NS, REST_NS_PER_BLOCK, Record};

    /// How many bursts are freed at once now.
    fn n_skipped(record: &Record) -> usize {
        (0..).take_while(|_| record.skips()).count()
    }

    #[test]
    fn each_time_more_are_skipped() {
        let record = Record::new();
        assert_eq!(n_skipped(&record), 0);
        let check = |note: fn(&Record), skips: [usize; 4]| {
            for skip in skips {
                note(&record);
                assert_eq!([n_skipped(&record), n_skipped(&record)], [skip, 0]);
            }
            record.note_worth_it();
        };
        check(Record::note_hot, [8, 64, 512, 512]);
        check(Record::note_wasted, [64, 512, 512, 512]);
        record.note_hot();
        record.note_wasted();
        assert_eq!(n_skipped(&record), 64);
    }

    #[test]
    fn threads_that_come_after_ends_that_were_wasted() {
        let ends = Ends::new();
        let n_skipped = || (0..).take_while(|_| ends.skips()).count();
        assert_eq!(n_skipped(), 0);
        for skip in [64, 512, 512, 512] {
            ends.note_wasted();
            assert_eq!([n_skipped(), n_skipped()], [skip, 0]);
        }
        ends.note_worth_it();
        ends.note_wasted();
        assert_eq!(n_skipped(), 64);
    }

    #[test]
    fn a_burst_is_open_until_something_is_known() {
        let record = Record::new();
        assert_eq!([record.begin(), record.begin()], [true, false]);
        assert!(!record.end());
        for known in [Record::note_hot, Record::note_wasted, Record::note_worth_it] {
            record.note_deferred();
            assert_eq!([record.end(), record.end()], [true, false]);
            record.note_deferred();
            known(&record);
            assert!(!record.end());
        }
    }

    #[test]
    fn rest_is_forgiven_where_a_burst_was_wasted() {
        let n_blocks = 1000;
        let enough = REST_NS + u64::from(n_blocks) * REST_NS_PER_BLOCK;
        let unasked = || panic!("the clock is not to be read");
        for (wasted, rest_ns, forgiven) in
            [(true, enough - 1, false), (true, enough, true), (false, enough, false)]
        {
            let record = Record::new();
            if wasted {
                record.note_wasted()
            } else {
                record.note_hot()
            }
            assert!(record.skips());
            record.note_goes_on(unasked, n_blocks);
            record.note_rest(unasked);
            if wasted {
                record.begin_skipping(|| 5, false);
                record.note_goes_on(|| 7, n_blocks);
                record.note_rest(|| 7 + rest_ns);
            } else {
                record.begin_skipping(unasked, false);
            }
            record.note_rest(unasked);
            let all = if wasted { 64 } else { 8 };
            assert_eq!(n_skipped(&record), if forgiven { 0 } else { all - 1 });
        }
    }

    /// Where it is not known when the skipped burst ended.
    #[test]
    fn rest_is_not_seen_after_a_burst_that_was_not_looked_at() {
        let record = Record::new();
        record.note_wasted();
        for looked_at in [false, true] {
            assert!(record.skips());
            record.begin_skipping(|| 1, false);
            assert!(record.goes_on_skipping(|| u64::MAX, None));
            if looked_at {
                record.note_goes_on(|| 2, 1000);
            }
            record.note_rest(|| u64::MAX);
            assert_eq!(record.skips(), !looked_at);
        }
    }
}
