//! The bench `bursts` on the `mimalloc` crate; see `bursts/main.rs`.

#[cfg_attr(target_os = "linux", path = "bursts/bench.rs")]
#[cfg_attr(not(target_os = "linux"), path = "support/elsewhere.rs")]
mod bench;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    bench::contender()
}
