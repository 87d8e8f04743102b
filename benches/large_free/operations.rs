//! Criterion's groups: single operations, small enough to run before each commit.
//!
//! All run in one process, whose global allocator is the system's: the contenders are called
//! directly. They share one copy of mimalloc, so these figures are for comparing a commit with the
//! one before; the sections compare the contenders.

use std::alloc::{GlobalAlloc, Layout};
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion};
use deferfree::DeferFree;
use mimalloc::MiMalloc;

use super::support::block::PAGE_BYTES;
use super::support::{KIB, MIB, size_name};

static DEFERFREE: DeferFree = DeferFree::new();

/// A pointer to a block that an allocator under test owns.
struct Raw(*mut u8, Layout);

fn allocate_touched(allocator: &impl GlobalAlloc, size: usize) -> Raw {
    let layout = Layout::from_size_align(size, 1).expect("the size is small");
    // SAFETY: the size is above zero.
    let ptr = unsafe { allocator.alloc(layout) };
    assert!(!ptr.is_null(), "out of memory");
    for offset in (0..size).step_by(PAGE_BYTES) {
        // SAFETY: the offset is inside the block.
        unsafe { ptr.add(offset).write_volatile(1) };
    }
    Raw(ptr, layout)
}

fn free(allocator: &impl GlobalAlloc, Raw(ptr, layout): Raw) {
    // SAFETY: the block came from this allocator with this layout, and a `Raw` is used up by this.
    unsafe { allocator.dealloc(ptr, layout) };
}

fn bench_allocator(criterion: &mut Criterion, name: &str, allocator: &impl GlobalAlloc) {
    let mut group = criterion.benchmark_group("free");
    for size in [256 * KIB, 4 * MIB] {
        group.bench_function(BenchmarkId::new(name, size_name(size)), |bencher| {
            let block = || allocate_touched(allocator, size);
            bencher.iter_batched(block, |block| free(allocator, block), BatchSize::PerIteration);
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("recycle");
    for size in [256 * KIB, 4 * MIB, 64 * MIB] {
        group.bench_function(BenchmarkId::new(name, size_name(size)), |bencher| {
            bencher.iter(|| free(allocator, allocate_touched(allocator, size)));
        });
    }
    group.finish();
}

pub(crate) fn run() {
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args();
    bench_allocator(&mut criterion, "mimalloc", &MiMalloc);
    bench_allocator(&mut criterion, "deferfree", &DEFERFREE);
    criterion.final_summary();
}
