//! Small alloc/free pairs on the `mimalloc` crate; see `pairs/work.rs`.

#[path = "pairs/work.rs"]
mod work;

#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    work::main();
}
