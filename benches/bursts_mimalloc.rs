//! The bench `bursts` on the `mimalloc` crate; see `bursts/main.rs`.

#[cfg_attr(target_os = "linux", path = "bursts/program.rs")]
#[cfg_attr(not(target_os = "linux"), path = "bursts/elsewhere.rs")]
mod program;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    program::contender("bursts_mimalloc")
}
