//! See `cases/exit.rs`.

mod common;

#[cfg(any(target_os = "linux", windows))]
#[path = "cases/exit.rs"]
mod cases;

fn main() -> std::process::ExitCode {
    #[cfg(any(target_os = "linux", windows))]
    return cases::main();
    #[cfg(not(any(target_os = "linux", windows)))]
    common::left_out()
}
