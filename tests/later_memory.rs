//! See `cases/later_memory.rs`.

mod common;

#[cfg(target_os = "linux")]
#[path = "cases/later_memory.rs"]
mod cases;

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    return cases::main();
    #[cfg(not(target_os = "linux"))]
    common::left_out()
}
