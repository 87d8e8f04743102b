//! One sentence on what would be worth changing, from what was counted and nothing else.

use std::fmt;

use super::out::{Setting, Size};
use crate::config::Config;
use crate::stats::Stats;

/// See the module.
pub(super) struct Advice<'a> {
    pub(super) config: &'a Config,
    pub(super) stats: &'a Stats,
}

/// From this share on, one in so many, something is worth a sentence.
const ONE_IN: u64 = 20;

/// Memory went back to the system and was fetched again this many times over.
const ROUND_TRIPS: u64 = 4;

#[derive(Debug, PartialEq, Eq)]
enum Finding {
    SwitchedOff,
    StartFailed,
    Nothing,
    FirstOnes,
    OverBound { inline: u64, of: u64 },
    BurstsOverBound { inline: u64, of: u64 },
    QueueFull { inline: u64, of: u64 },
    NoChunk { inline: u64, of: u64 },
    RoundTrips { bytes: u64 },
    Fine { off_thread: u64, of: u64 },
    HotBursts { bursts: u64 },
    WastedBursts { wasted: u64, of: u64 },
    FewLarge,
}

impl Advice<'_> {
    fn finding(&self) -> Finding {
        let Stats { handed_over, over_bound, queue_full, bursts, .. } = self.stats;
        let freed = handed_over.blocks;
        let in_bursts = bursts.deferred.blocks
            + bursts.no_chunk_blocks
            + bursts.over_bound_blocks
            + bursts.out_of_reach_blocks;
        let many = |part: u64, of: u64| part > 0 && part >= of / ONE_IN;
        if !self.config.enabled {
            Finding::SwitchedOff
        } else if self.stats.start_failed {
            Finding::StartFailed
        } else if freed + in_bursts + bursts.skipped_bursts == 0 {
            match (self.stats.not_running.blocks, bursts.hot_bursts) {
                (_, bursts @ 1..) => Finding::HotBursts { bursts },
                (1.., 0) => Finding::FirstOnes,
                (0, 0) => Finding::Nothing,
            }
        } else if many(over_bound.blocks, freed) {
            Finding::OverBound { inline: over_bound.blocks, of: freed }
        } else if many(bursts.over_bound_blocks, in_bursts) {
            Finding::BurstsOverBound { inline: bursts.over_bound_blocks, of: in_bursts }
        } else if many(queue_full.blocks, freed) {
            Finding::QueueFull { inline: queue_full.blocks, of: freed }
        } else if many(bursts.no_chunk_blocks, in_bursts) {
            Finding::NoChunk { inline: bursts.no_chunk_blocks, of: in_bursts }
        } else if let Some(bytes) = self.round_trips() {
            Finding::RoundTrips { bytes }
        } else if freed == 0 && bursts.hot_bursts > bursts.deferred_bursts {
            Finding::HotBursts { bursts: bursts.hot_bursts }
        } else if freed == 0 && bursts.wasted_bursts * 2 > bursts.deferred_bursts {
            Finding::WastedBursts { wasted: bursts.wasted_bursts, of: bursts.deferred_bursts }
        } else if freed == 0 {
            Finding::FewLarge
        } else {
            let inline = over_bound.blocks + queue_full.blocks;
            Finding::Fine { off_thread: freed.saturating_sub(inline), of: freed }
        }
    }

    /// Bytes that were drained though the program went on to allocate as much: no more than that can
    /// have been fetched anew for want of patience.
    fn round_trips(&self) -> Option<u64> {
        let Stats { drained, missed, peak_pending_bytes, .. } = self.stats;
        let bytes = drained.bytes.min(missed.bytes.saturating_sub(*peak_pending_bytes));
        let often = bytes > 0 && bytes / ROUND_TRIPS >= *peak_pending_bytes;
        (often && self.config.delay_ms > 0).then_some(bytes)
    }
}

/// A share in whole per cent, rounded down.
fn percent(part: u64, of: u64) -> u64 {
    (u128::from(part) * 100 / u128::from(of.max(1))) as u64
}

/// What bursts may be told to wait with where nothing may so far: their blocks that were refused are counted, not their bytes.
const BURSTS_BYTES: u64 = 64 << 20;

/// The bound doubled, or as much as was refused where that is none, but for what was refused over and over.
fn higher_bound(config: &Config, refused_bytes: u64) -> u64 {
    const FIRST_BYTES: u64 = 1 << 30;
    let bound = config.max_pending_bytes as u64;
    match bound {
        0 => refused_bytes.next_power_of_two().min(FIRST_BYTES),
        _ => bound.saturating_mul(2),
    }
}

impl fmt::Display for Advice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = self.config;
        let bound = Setting(config.max_pending_bytes as u64);
        match self.finding() {
            Finding::SwitchedOff => {
                f.write_str("Nothing was deferred, because DEFERFREE=off: unset it to compare.")
            }
            Finding::StartFailed => f.write_str(
                "Nothing was deferred, because the drainer could not be started: see the line above.",
            ),
            Finding::Nothing => write!(
                f,
                "Nothing was there to defer: no block of {} or more was freed, and no burst of \
                 small ones seen; this program does as well without deferfree.",
                Size(config.threshold_bytes as u64)
            ),
            Finding::FirstOnes => f.write_str(
                "Nothing was there to defer: the large blocks that were freed are among the program's \
                 first, which are freed at once; this program does as well without deferfree.",
            ),
            Finding::OverBound { inline, of } => write!(
                f,
                "{} % of the large blocks ({inline} of {of}) were freed at once because no more than \
                 {bound} may wait: if there is memory for it, try DEFERFREE_MAX_PENDING={}.",
                percent(inline, of),
                Setting(higher_bound(config, self.stats.over_bound.bytes))
            ),
            Finding::BurstsOverBound { inline, of } => write!(
                f,
                "{} % of the small blocks in bursts ({inline} of {of}) were freed at once because no \
                 more than {bound} may wait: if there is memory for it, try DEFERFREE_MAX_PENDING={}.",
                percent(inline, of),
                Setting(higher_bound(config, BURSTS_BYTES))
            ),
            Finding::QueueFull { inline, of } => write!(
                f,
                "{} % of the large blocks ({inline} of {of}) were freed at once because too many \
                 of their size waited: try a higher DEFERFREE_THRESHOLD than {}, or a shorter \
                 DEFERFREE_DELAY than {} ms.",
                percent(inline, of),
                Setting(config.threshold_bytes as u64),
                config.delay_ms
            ),
            Finding::NoChunk { inline, of } => write!(
                f,
                "{} % of the small blocks in bursts ({inline} of {of}) were freed at once because \
                 the drainer was behind: no setting changes that, a pause between large drops does.",
                percent(inline, of)
            ),
            Finding::RoundTrips { bytes } => write!(
                f,
                "{} went back for good while as much was allocated anew: a DEFERFREE_DELAY longer \
                 than {} ms would keep more of it to be taken back.",
                Size(bytes),
                config.delay_ms
            ),
            Finding::HotBursts { bursts } => write!(
                f,
                "Nothing to gain from deferring small frees: {bursts} burst{} of them, of blocks that were in the \
                 cache, {} freed at once.",
                if bursts == 1 { "" } else { "s" },
                if bursts == 1 { "was" } else { "were" }
            ),
            Finding::WastedBursts { wasted, of } => write!(
                f,
                "After {wasted} of {of} deferred bursts of small frees their thread allocated again, or ended, before \
                 the drainer was done: DEFERFREE_BURST=off saves the attempt."
            ),
            Finding::FewLarge => f.write_str(
                "Nothing to change: what was deferred were small blocks in bursts.",
            ),
            Finding::Fine { off_thread, of } => write!(
                f,
                "Nothing to change: {} % of the large blocks ({off_thread} of {of}) were deferred.",
                percent(off_thread, of)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Advice, Finding};
    use crate::config::Config;
    use crate::stats::{Stats, Tally};

    fn config() -> Config {
        Config {
            enabled: true,
            threshold_bytes: 256 << 10,
            burst: Some(128),
            delay_ms: 250,
            max_pending_bytes: 1 << 30,
        }
    }

    fn tally(blocks: u64) -> Tally {
        Tally { blocks, bytes: blocks << 20 }
    }

    fn freed(blocks: u64) -> Stats {
        Stats { handed_over: tally(blocks), ..Stats::default() }
    }

    #[test]
    fn each_finding_has_its_numbers_and_its_sentence() {
        let off = Config { enabled: false, ..config() };
        let mut bursts = freed(0);
        bursts.bursts.deferred = tally(50);
        let mut bound_bursts = bursts;
        bound_bursts.bursts.over_bound_blocks = 50;
        let mut wasted_bursts = bursts;
        wasted_bursts.bursts.deferred_bursts = 4;
        wasted_bursts.bursts.wasted_bursts = 3;
        let mut hot_bursts = freed(0);
        hot_bursts.bursts.hot_bursts = 2;
        let mut no_chunk = bursts;
        no_chunk.bursts.no_chunk_blocks = 150;
        let rounds = Stats {
            drained: tally(90),
            missed: tally(100),
            peak_pending_bytes: 10 << 20,
            ..freed(100)
        };
        // Built once and freed once: nothing could have been taken back.
        let once = Stats { peak_pending_bytes: 100 << 20, ..rounds };
        for (config, stats, finding, words) in [
            (off, freed(100), Finding::SwitchedOff, "DEFERFREE=off"),
            (
                config(),
                Stats { start_failed: true, ..freed(0) },
                Finding::StartFailed,
                "could not be started",
            ),
            (config(), freed(0), Finding::Nothing, "no block of 256.0 KiB or more"),
            (
                config(),
                Stats { not_running: tally(1), ..freed(0) },
                Finding::FirstOnes,
                "among the program's first",
            ),
            (
                config(),
                Stats { over_bound: tally(60), ..freed(100) },
                Finding::OverBound { inline: 60, of: 100 },
                "60 % of the large blocks (60 of 100) were freed at once because no more \
                 than 1G may wait: if there is memory for it, try DEFERFREE_MAX_PENDING=2G",
            ),
            (
                Config { max_pending_bytes: 0, ..config() },
                Stats { over_bound: tally(60), ..freed(60) },
                Finding::OverBound { inline: 60, of: 60 },
                "try DEFERFREE_MAX_PENDING=64M",
            ),
            (
                config(),
                bound_bursts,
                Finding::BurstsOverBound { inline: 50, of: 100 },
                "50 % of the small blocks in bursts",
            ),
            (
                config(),
                Stats { queue_full: tally(5), ..freed(100) },
                Finding::QueueFull { inline: 5, of: 100 },
                "higher DEFERFREE_THRESHOLD than 256K",
            ),
            (config(), no_chunk, Finding::NoChunk { inline: 150, of: 200 }, "75 %"),
            (
                config(),
                rounds,
                Finding::RoundTrips { bytes: 90 << 20 },
                "90.0 MiB went back for good while as much was allocated anew: a DEFERFREE_DELAY \
                 longer than 250 ms",
            ),
            (config(), once, Finding::Fine { off_thread: 100, of: 100 }, "100 %"),
            (config(), bursts, Finding::FewLarge, "small blocks in bursts"),
            (config(), hot_bursts, Finding::HotBursts { bursts: 2 }, "2 bursts of them"),
            (
                config(),
                wasted_bursts,
                Finding::WastedBursts { wasted: 3, of: 4 },
                "After 3 of 4 deferred bursts",
            ),
            (
                config(),
                Stats { over_bound: tally(4), ..freed(100) },
                Finding::Fine { off_thread: 96, of: 100 },
                "96 % of the large blocks (96 of 100) were deferred",
            ),
        ] {
            let advice = Advice { config: &config, stats: &stats };
            assert_eq!(advice.finding(), finding);
            let sentence = advice.to_string();
            assert!(sentence.contains(words), "{sentence}");
            // It is put into JSON as it is.
            assert!(sentence.ends_with('.') && !sentence.contains(['"', '\\', '\n']), "{sentence}");
        }
    }
}
