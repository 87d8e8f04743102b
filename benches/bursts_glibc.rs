//! The bench `bursts` on the system's allocator, which is glibc's on Linux; see `bursts/main.rs`.

#[cfg_attr(target_os = "linux", path = "bursts/program.rs")]
#[cfg_attr(not(target_os = "linux"), path = "bursts/elsewhere.rs")]
mod program;

#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

fn main() -> std::process::ExitCode {
    program::contender("bursts_glibc")
}
