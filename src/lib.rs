//! [behaviour]: _behaviour
//! [choices]: _choices
//! [contributing]: _contributing
//! [figures]: _figures
//! [internals]: _internals
//! [migrating]: _migrating
//! [platforms]: _platforms
//!
#![cfg_attr(doc, doc = include_str!("../docs/figures/links.md"))]
#![doc = include_str!("../README.md")]
//!
//! # In this crate
//!
//! [How it is built][internals] says in which order to read the modules below, what the crate's own words mean, and where
//! each behaviour lives. Each module uses only those below it, with two exceptions that are named there.
//!
//! Nothing that `dealloc` reaches allocates through this allocator, panics or unwinds, and what may take a lock or wait is
//! [listed][internals].

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
mod sync;
mod sys;

/// Pages of the documentation. The links are first come, first served: in the repository they lead to files. Those to
/// pictures have the pictures in them, see `tests/pictures.rs`.
macro_rules! pages {
    ($($name:ident = $file:literal;)*) => {
        $(
            #[cfg(any(doc, doctest))]
            #[doc = "[behaviour]: _behaviour\n[compare]: _compare\n[internals]: _internals\n[platforms]: _platforms\n"]
            #[doc = include_str!("../docs/figures/links.md")]
            #[doc = include_str!($file)]
            pub mod $name {}
        )*
    };
}
pages! {
    _behaviour = "../docs/behaviour.md";
    _choices = "../docs/choices.md";
    _compare = "../docs/compare.md";
    _contributing = "../CONTRIBUTING.md";
    _figures = "../docs/figures.md";
    _internals = "../docs/internals.md";
    _migrating = "../docs/migrating.md";
    _platforms = "../docs/platforms.md";
}

pub use allocator::DeferFree;
pub use backing::{Backing, Mimalloc};
pub use config::Config;
pub use later::{Later, flush_values, flush_values_timeout, later};
pub use scope::{DeferScope, defer_scope};
pub use stats::{BurstStats, FreeLatency, SizeStats, Stats, Tally};
