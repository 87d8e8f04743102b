//! The sections, in the order in which they run: what all contenders' programs have in common.

mod contenders;
mod figures;
mod growth;
pub(crate) mod idle;
mod pipe;
pub(crate) mod price;
mod recycle;
pub(crate) mod request;
mod scaling;
#[path = "../../support/mod.rs"]
pub(crate) mod support;
mod values;

// Those of other benches, here with more contenders.
#[path = "../../large_free/cache.rs"]
mod cache;
#[path = "../../large_free/churn.rs"]
mod churn;
#[path = "../../commands/section.rs"]
mod commands;
#[path = "../../large_free/hand_over.rs"]
mod hand_over;
#[path = "../../large_free/preempted.rs"]
mod preempted;
#[path = "../../large_free/zeroed.rs"]
mod zeroed;

pub(crate) use contenders::ALL;
use contenders::{ALLOCATORS, PROGRAMS, program};
use support::section::{Bench, Section};

pub(crate) const BENCH: Bench = Bench { name: "compare", sections: &SECTIONS, first: || () };

pub(crate) const SECTIONS: [&Section; 18] = [
    &values::MAP,
    &values::SHAPES,
    &values::ROW,
    &values::VEC,
    &values::BLOCKS,
    &idle::SECTION,
    &price::SECTION,
    &request::SECTION,
    &Section { contenders: &PROGRAMS, repetitions: 1, ..commands::SECTION },
    &recycle::SECTION,
    &pipe::SECTION,
    &growth::SECTION,
    &of_allocators(zeroed::SECTION),
    &of_allocators(cache::SECTION),
    &of_allocators(hand_over::SECTION),
    &of_allocators(preempted::SECTION),
    &scaling::SECTION,
    &Section { contenders: &ALL, program, repetitions: 1, ..churn::SECTION },
];

/// A section of another bench.
const fn of_allocators(section: Section) -> Section {
    Section { contenders: &ALLOCATORS, program, repetitions: 1, ..section }
}
