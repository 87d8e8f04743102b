//! See `cases/judged.rs`.

mod common;

#[cfg(any(target_os = "linux", windows))]
#[path = "cases/judged.rs"]
mod cases;

fn main() -> std::process::ExitCode {
    #[cfg(any(target_os = "linux", windows))]
    return cases::main();
    #[cfg(not(any(target_os = "linux", windows)))]
    common::left_out()
}
