//! [migrating]: _migrating
//!
#![doc = include_str!("../README.md")]
//!
//! # In this crate
//!
//! In reading order; each module uses only those below it.
//!
//! - `allocator`: [`DeferFree`], the size test of each call, and when the drainer starts
//! - `later`: [`later()`], whole values, with a thread of its own; needs nothing of the above
//! - `scope`: [`defer_scope`]
//! - `runtime`: what a large block goes through once the drainer runs
//! - `drainer`: the background thread, when it sleeps and who wakes it
//! - `pending`: the blocks that wait, by size class
//! - `burst`: the small blocks that are freed in bursts: a log for each thread
//! - `lifecycle`: fork and exit
//! - `report`: the numbers written at exit; `latency`: a histogram
//! - `stats`, `config`: what happened, what is set
//! - `backing`: the allocator underneath; `sync`: atomics and threads, or a model of them; `sys`: the operating
//!   system
//!
//! Nothing that `dealloc` reaches allocates, takes a lock, panics or reads the clock, and but for the
//! first free after an idle time nothing makes a system call. Nothing waits, with the one exception
//! that `pending` names. The first burst of all starts the drainer, which allocates and locks; a thread's
//! first one makes system calls; and where `DEFERFREE_STATS=latency` asks for it, the clock is read.

mod allocator;
mod later;
mod scope;
mod runtime;
mod drainer;
mod pending;
mod burst;
mod lifecycle;
mod report;
mod latency;
mod stats;
mod config;
mod backing;
mod sync;
mod sys;

#[cfg(any(doc, doctest))]
#[doc = include_str!("../docs/migrating.md")]
pub mod _migrating {}

pub use allocator::DeferFree;
pub use backing::{Backing, Mimalloc};
pub use config::Config;
pub use later::{Later, flush_values, flush_values_timeout, later};
pub use scope::{DeferScope, defer_scope};
pub use stats::{BurstStats, FreeLatency, SizeStats, Stats, Tally};
