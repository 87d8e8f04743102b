//! The crate's limits, as far as tests depend on them: the usual ones, and those of a tiny run, see `../README.md`.

use deferfree::BurstStats;

use super::{GIB, MIB};

/// Whether the crate is compiled with limits that are reached all the time.
pub(crate) const TINY: bool = cfg!(deferfree_tiny);

/// Large blocks of so many bytes start the drainer.
pub(crate) const START_BYTES: usize = if TINY { 0 } else { 16 * MIB };

/// A chunk has room for so many addresses of blocks that are deferred.
pub(crate) const CHUNK: usize = 1018;
/// All chunks.
pub(crate) const ALL_CHUNKS: usize = CHUNK * if TINY { 8 } else { 8192 };

/// A bound on what waits, for where more does than the 4 MiB that may by themselves in a tiny run.
pub(crate) const ROOM: usize = 8 * GIB;

/// Blocks that were to be deferred. In a tiny run there may have been nowhere to write them down.
pub(crate) fn to_be_deferred(bursts: &BurstStats) -> u64 {
    bursts.deferred.blocks + if TINY { bursts.no_chunk_blocks } else { 0 }
}

const LINGERS: &str = "the drainer is awake for 2 ms, not for a second";
const STARTS: &str = "the drainer starts at the first large block";
const TAKES_LOGS: &str = "the drainer takes a log of 64 addresses while its thread goes on";
const FEW_CHUNKS: &str = "8144 addresses, and no more, can be written down";

/// What a tiny run leaves out, because it is about one of the limits itself.
pub(crate) const NOT_TINY: &[(&str, &str, &str)] = &[
    ("drainer", "goes_idle_after_a_burst", FEW_CHUNKS),
    ("drainer", "purges_rarely_at_work", LINGERS),
    ("drainer", "small_blocks_alone", STARTS),
    ("idle", "disorder", FEW_CHUNKS),
    ("judged", "threads_that_end", FEW_CHUNKS),
    ("judged", "wanted_while_drained", TAKES_LOGS),
    ("mimalloc_options", "while_the_drainer_runs", LINGERS),
    ("mimalloc_options", "while_it_sleeps", LINGERS),
    ("mimalloc_options", "what_the_user_set_stands", LINGERS),
    ("mimalloc_options", "in_a_forked_child", LINGERS),
    ("null", "limit_is_known", "the bound does not depend on the machine's memory"),
    ("start", "few_large_blocks", STARTS),
    ("thread_end", "settles", TAKES_LOGS),
    ("thread_end", "not_at_exit", TAKES_LOGS),
];
