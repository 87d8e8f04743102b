//! In place of a bench that reads `/proc`, where there is none.

#![allow(dead_code, reason = "each program uses a part of it")]

use std::process::ExitCode;

pub(crate) fn main() -> ExitCode {
    eprintln!("{} reads /proc: Linux only", env!("CARGO_CRATE_NAME"));
    ExitCode::SUCCESS
}

pub(crate) fn main_with(_n_deferred: fn() -> u64) -> ExitCode {
    main()
}

/// The program of a contender.
pub(crate) fn contender() -> ExitCode {
    main()
}
