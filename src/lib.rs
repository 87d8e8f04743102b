//! Front page: see README (placeholder until the README is written)
#![warn(missing_docs)]

mod allocator;
mod backing;
mod config;
mod drainer;
mod lifecycle;
mod pending;
mod runtime;
mod stats;
mod sys;

pub use allocator::DeferFree;
pub use backing::{Backing, Mimalloc};
pub use config::Config;
pub use stats::{Stats, Tally};
