//! The bench `bursts` on mimalloc that frees nothing; see `bursts/main.rs`.

#[path = "support/floor.rs"]
mod floor;
#[cfg_attr(target_os = "linux", path = "bursts/bench.rs")]
#[cfg_attr(not(target_os = "linux"), path = "support/elsewhere.rs")]
mod bench;

#[global_allocator]
static GLOBAL: floor::Floor = floor::Floor;

fn main() -> std::process::ExitCode {
    bench::contender()
}
