//! Commands that run for a moment, on `deferfree`; see `commands/main.rs`.

#[path = "commands/work.rs"]
mod work;

#[global_allocator]
static GLOBAL: deferfree::DeferFree = deferfree::DeferFree::new();

fn main() {
    work::main();
}
