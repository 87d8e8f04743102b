//! Commands that run for a moment, on the `mimalloc` crate; see `commands/main.rs`.

#[path = "commands/work.rs"]
mod work;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    work::main();
}
