//! Small alloc/free pairs on `deferfree`; see `pairs/work.rs`.

#[path = "pairs/work.rs"]
mod work;

#[global_allocator]
static GLOBAL: deferfree::DeferFree = deferfree::DeferFree::new();

fn main() {
    work::main();
}
