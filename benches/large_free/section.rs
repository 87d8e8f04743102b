//! The sections of this bench.

use crate::support::contender::Contender;
use crate::support::programs::Program;
use crate::support::section::Bench;
pub(crate) use crate::support::section::{PEAK_LIMIT, Section};
use crate::{
    busy, churn, free, growth, idle, mmap, operations, parked, period, phases, preempted, recycle,
    stalls, sweep, zeroed,
};

pub(crate) const CONTENDERS: [Contender; 2] = [Contender::Mimalloc, Contender::Deferfree];

pub(crate) const BENCH: Bench = Bench {
    name: "large_free",
    sections: &SECTIONS,
    program: |_| Some(Program::This),
    first: operations::run,
};

const SECTIONS: [&Section; 14] = [
    &free::SECTION,
    &recycle::SECTION,
    &idle::SECTION,
    &stalls::SECTION,
    &phases::SECTION,
    &mmap::SECTION,
    &churn::SECTION,
    &growth::SECTION,
    &zeroed::SECTION,
    &period::SECTION,
    &busy::SECTION,
    &preempted::SECTION,
    &parked::SECTION,
    &sweep::SECTION,
];
