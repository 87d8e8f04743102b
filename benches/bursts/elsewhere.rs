//! Where there is no `/proc`.

#![allow(dead_code, reason = "each program uses a part of it")]

#[path = "../support/floor.rs"]
pub(crate) mod floor;

use std::process::ExitCode;

pub(crate) fn main_with(_n_deferred: fn() -> u64) -> ExitCode {
    contender("bursts")
}

pub(crate) fn contender(target: &'static str) -> ExitCode {
    eprintln!("{target} reads /proc: Linux only");
    ExitCode::SUCCESS
}
