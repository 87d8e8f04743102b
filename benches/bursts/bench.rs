//! What the programs of this bench have in common, which is all but the global allocator.

#![allow(dead_code, unused_imports, reason = "each program uses a part of it")]

mod free_path;
mod rest;
mod row;
mod threads;
mod sweep;
mod by_size;
mod requests;
mod rounds;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::sync::OnceLock;

use support::contender::Contender;
use support::programs::Program;
use support::section::{Bench, Section};

const BENCH: Bench = Bench {
    name: "bursts",
    sections: &[
        &free_path::SECTION,
        &rest::SECTION,
        &by_size::SMALL,
        &row::SECTION,
        &threads::SECTION,
        &sweep::SECTION,
        &by_size::SIZES,
    ],
    first: || (),
};

/// What the sections have in common.
const SECTION: Section = Section { program, ..Section::BASE };

fn program(contender: Contender) -> Option<Program> {
    match contender {
        Contender::Mimalloc | Contender::MimallocAgain | Contender::MimallocPurge0 => {
            Some(Program::Target("bursts_mimalloc"))
        }
        Contender::System => Some(Program::Target("bursts_glibc")),
        Contender::Floor => Some(Program::Target("bursts_floor")),
        contender if contender.is_ours() => Some(Program::This),
        _ => None,
    }
}

static N_DEFERRED: OnceLock<fn() -> u64> = OnceLock::new();

/// Small blocks that this process has deferred, where its allocator does that.
fn n_deferred() -> Option<u64> {
    N_DEFERRED.get().map(|n_deferred| n_deferred())
}

/// The program with `deferfree`, and the one that starts the others.
pub(crate) fn main_with(n_deferred: fn() -> u64) -> ExitCode {
    N_DEFERRED.get_or_init(|| n_deferred);
    BENCH.main()
}

/// Another program of this bench.
pub(crate) fn contender() -> ExitCode {
    BENCH.contender_main(Program::Target(env!("CARGO_CRATE_NAME")))
}
