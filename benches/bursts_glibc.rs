//! The bench `bursts` on the system's allocator, which is glibc's on Linux; see `bursts/main.rs`.

#[cfg_attr(target_os = "linux", path = "bursts/bench.rs")]
#[cfg_attr(not(target_os = "linux"), path = "support/elsewhere.rs")]
mod bench;

#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

fn main() -> std::process::ExitCode {
    bench::contender()
}
