//! Commands that run for a moment, on the system's allocator, which is glibc's on Linux; see `commands/main.rs`.

#[path = "commands/work.rs"]
mod work;

#[global_allocator]
static GLOBAL: std::alloc::System = std::alloc::System;

fn main() {
    work::main();
}
