//! What became of a thread's bursts, and what follows for its next ones.
//!
//! A burst was *wasted* when the thread wanted the memory before the drainer was done, and *hot* when its blocks were
//! in the cache anyway. Either says that the next bursts are better freed at once: 8 of them, then 64, then 512. One
//! that was followed by rest makes all good again. While bursts are skipped nobody can tell whether they would have been
//! worth it, but for the thread's rest, which shows on the clock.

use std::cell::Cell;

/// Bursts to be skipped after the first wasted or hot one, the second, and so on.
const SKIPS: [u16; 3] = [8, 64, 512];

/// A thread that has not allocated for this long after a burst, and so long for each block, has rested.
const REST_NS: u64 = 1_000_000;
const REST_NS_PER_BLOCK: u64 = 16;

/// All zero bytes are a valid value.
pub(crate) struct Record {
    /// Bursts still to be skipped.
    skip: Cell<u16>,
    /// Which of `SKIPS` comes next.
    level: Cell<u8>,
    /// They are skipped because one was wasted.
    wasted: Cell<bool>,
    /// When the drop that is being skipped was last looked at, and how many blocks it had freed by then; 0 if
    /// that does not matter.
    looked_at_ns: Cell<u64>,
    n_blocks: Cell<u32>,
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
        }
    }

    /// Whether the burst that begins is to be freed at once.
    pub(crate) fn skips(&self) -> bool {
        let skip = self.skip.get();
        self.skip.set(skip.saturating_sub(1));
        skip > 0
    }

    /// Whether the bursts that are skipped may turn out to have been worth it.
    pub(crate) fn may_be_forgiven(&self) -> bool {
        self.wasted.get()
    }

    /// A skipped burst has come to `n_blocks` by now.
    pub(crate) fn note_skipped(&self, now_ns: u64, n_blocks: u32) {
        self.looked_at_ns.set(now_ns);
        self.n_blocks.set(n_blocks);
    }

    /// The thread allocates after a skipped burst.
    pub(super) fn note_rest(&self, now_ns: impl FnOnce() -> u64) {
        let looked_at_ns = self.looked_at_ns.replace(0);
        if looked_at_ns == 0 {
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
    }

    pub(crate) fn note_wasted(&self) {
        self.skip_more();
        self.wasted.set(true);
    }

    pub(crate) fn note_hot(&self) {
        self.skip_more();
        self.wasted.set(false);
    }

    fn skip_more(&self) {
        let level = usize::from(self.level.get());
        self.skip.set(SKIPS[level.min(SKIPS.len() - 1)]);
        self.level.set((level + 1).min(SKIPS.len() - 1) as u8);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::{REST_NS, REST_NS_PER_BLOCK, Record, SKIPS};

    /// How many bursts are freed at once now.
    fn n_skipped(record: &Record) -> usize {
        (0..).take_while(|_| record.skips()).count()
    }

    #[test]
    fn each_time_more_are_skipped() {
        let record = Record::new();
        assert_eq!(n_skipped(&record), 0);
        for skip in SKIPS.into_iter().chain([*SKIPS.last().unwrap(); 2]) {
            record.note_wasted();
            assert_eq!(n_skipped(&record), usize::from(skip));
            assert_eq!(n_skipped(&record), 0);
        }
        record.note_worth_it();
        record.note_hot();
        assert_eq!(n_skipped(&record), usize::from(SKIPS[0]));
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
            assert_eq!(record.may_be_forgiven(), wasted);
            record.note_rest(unasked);
            if record.may_be_forgiven() {
                record.note_skipped(5, 0);
                record.note_skipped(7, n_blocks);
                record.note_rest(|| 7 + rest_ns);
                record.note_rest(unasked);
            }
            assert_eq!(n_skipped(&record), if forgiven { 0 } else { usize::from(SKIPS[0]) - 1 });
        }
    }
}
