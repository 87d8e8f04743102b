//! The bench `bursts` on mimalloc that frees nothing; see `bursts/main.rs`.

#[cfg_attr(target_os = "linux", path = "bursts/program.rs")]
#[cfg_attr(not(target_os = "linux"), path = "bursts/elsewhere.rs")]
mod program;

#[global_allocator]
static GLOBAL: program::floor::Floor = program::floor::Floor;

fn main() -> std::process::ExitCode {
    program::contender("bursts_floor")
}
