mod section;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use support::section::Bench;

pub(crate) fn main() -> ExitCode {
    Bench { name: "commands", sections: &[&section::SECTION], first: || () }.main()
}
