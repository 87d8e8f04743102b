//! Who is compared.

use super::support::contender::Contender;
use super::support::programs::Program;

pub(crate) const ALL: [Contender; 10] = [
    Contender::System,
    Contender::Mimalloc,
    Contender::MimallocPurge0,
    Contender::MimallocPprof,
    Contender::Snmalloc,
    Contender::Jemalloc,
    Contender::JemallocBackground,
    Contender::Spawn,
    Contender::DeferDrop,
    Contender::Deferfree,
];

/// Without those that only hand values to another thread: for work that frees more than whole values.
pub(crate) const ALLOCATORS: [Contender; 8] = {
    let [glibc, mimalloc, purge_0, pprof, snmalloc, jemalloc, background, _, _, ours] = ALL;
    [glibc, mimalloc, purge_0, pprof, snmalloc, jemalloc, background, ours]
};

/// Those that have programs of their own, for whole commands.
pub(crate) const PROGRAMS: [Contender; 3] =
    [Contender::System, Contender::Mimalloc, Contender::Deferfree];

pub(crate) fn program(contender: Contender) -> Option<Program> {
    match contender {
        Contender::MimallocPprof => Some(Program::Package("pprof")),
        _ => Some(Program::This),
    }
}
