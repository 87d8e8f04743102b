//! The bench `compare` on `mimalloc-pprof`; see `compare/main.rs`.

#[path = "../compare/sections/mod.rs"]
mod sections;

use sections::support::programs::Program;

#[global_allocator]
static GLOBAL: mimalloc_pprof::MiMalloc = mimalloc_pprof::MiMalloc;

fn main() -> std::process::ExitCode {
    sections::BENCH.contender_main(Program::Package(env!("CARGO_CRATE_NAME")))
}
