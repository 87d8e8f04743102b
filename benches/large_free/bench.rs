//! The sections of this bench, in the order in which they run.

#[path = "../support/allocator.rs"]
mod allocator;
mod busy;
mod cache;
mod churn;
mod free;
mod growth;
mod hand_over;
mod idle;
mod mmap;
mod operations;
mod period;
mod parked;
mod phases;
mod preempted;
mod recycle;
mod stalls;
mod sweep;
mod zeroed;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use support::section::Bench;

#[global_allocator]
static GLOBAL: allocator::Switch = allocator::Switch;

const BENCH: Bench = Bench {
    name: "large_free",
    sections: &[
        &free::SECTION,
        &recycle::SECTION,
        &idle::SECTION,
        &stalls::SECTION,
        &phases::SECTION,
        &mmap::SECTION,
        &churn::SECTION,
        &cache::SECTION,
        &hand_over::SECTION,
        &growth::SECTION,
        &zeroed::SECTION,
        &period::SECTION,
        &busy::SECTION,
        &preempted::SECTION,
        &parked::SECTION,
        &sweep::SECTION,
    ],
    first: operations::run,
};

pub(crate) fn main() -> ExitCode {
    BENCH.main()
}
