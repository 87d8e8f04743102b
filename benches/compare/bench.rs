#[path = "../support/allocator.rs"]
mod allocator;
mod bars;
mod driver;
mod pictures;
mod record;
mod report;
mod sections;

use sections::{idle, price, request, support};

#[global_allocator]
static GLOBAL: allocator::Switch = allocator::Switch;

pub(crate) fn main() -> std::process::ExitCode {
    sections::BENCH.main_with(driver::run)
}
