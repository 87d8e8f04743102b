//! [migrating]: _migrating
//! [platforms]: _platforms
//!
#![doc = include_str!("../README.md")]
//!
//! # In this crate
//!
//! In reading order; each module uses only those below it.
//!
//! - `allocator`: [`DeferFree`], the size test of each call, when the drainer starts, and the way of a small block
//! - `later`: [`later()`], whole values, with a thread of its own; needs nothing of the above
//! - `scope`: [`defer_scope`]
//! - `runtime`: what a large block goes through once the drainer runs
//! - `drainer`: the background thread, when it sleeps and who wakes it
//! - `pending`: the blocks that wait, by size class
//! - `burst`: the small blocks that are freed in bursts: each thread's state, its log, what the drainer does with it
//! - `huge`: blocks that are mappings of their own, and what the system can do with those
//! - `lifecycle`: fork and exit
//! - `report`: the numbers written at exit; `latency`: a histogram
//! - `stats`, `config`: what happened, what is set
//! - `backing`: the allocator underneath
//! - `ring`: a bounded queue in which nobody waits
//! - `sync`: atomics and threads, or a model of them; `sys`: the operating system
//!
//! # Words
//!
//! - *drainer*: the background thread. *Owner*: the allocator whose drainer frees what is in the logs.
//! - *large*: from the threshold on. *Small*: below it.
//! - *pending*: what large freed blocks do while they wait. *Huge*: what a large block is that is no block of the allocator
//!   underneath but a mapping of its own.
//! - *burst*: frees in a row on one thread, with no allocation between them. *Look*: one free in 64 finds out about
//!   that. *Log*: where a thread writes down the addresses of a burst. *Chunk*: a piece of a log.
//! - *hot*: in the processor's cache. *Judge*: to find out whether the blocks of a burst are.
//! - *take back*: a thread frees what is in its log itself. *Wasted*: what a burst was that came to that.
//! - *blind*: a thread that does not look until it allocates.
//!
//! Nothing that `dealloc` reaches allocates through this allocator, takes a lock, waits or panics. The clock is read twice where a burst is judged, once in 4096 frees where one is
//! skipped, and for each large free under `DEFERFREE_STATS=latency`. It makes a system call to wake a drainer that has
//! gone to sleep, and where a thread has its first burst. The first burst of all starts the drainer, which locks.

// Addresses, sums of sizes and the drainer's sleep share a word, and blocks are told apart by sizes of up to 128 TiB.
#[cfg(not(target_pointer_width = "64"))]
compile_error!("deferfree needs a target with 64-bit pointers");

mod allocator;
mod later;
mod scope;
mod runtime;
mod drainer;
mod pending;
mod burst;
mod huge;
mod lifecycle;
mod report;
mod latency;
mod stats;
mod config;
mod backing;
mod ring;
mod sync;
mod sys;

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/migrating.md")]
pub mod _migrating {}

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/platforms.md")]
pub mod _platforms {}

pub use allocator::DeferFree;
pub use backing::{Backing, Mimalloc};
pub use config::Config;
pub use later::{Later, flush_values, flush_values_timeout, later};
pub use scope::{DeferScope, defer_scope};
pub use stats::{BurstStats, FreeLatency, SizeStats, Stats, Tally};
