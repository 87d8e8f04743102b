//! One thread frees a 3 GiB block while another calls `mmap`: unmapping locks the address space.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use super::support::block::{Block, PAGE_BYTES};
use super::support::children::{Case, Report, Results};
use super::support::memory::{map, unmap};
use super::support::section::Section;
use super::support::table::{Column, EMPTY, MS, ONE, US, bar_control, column, count};
use super::support::timing::Latencies;
use super::support::{GIB, KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "mmap",
    about: "another thread maps and unmaps 64 KiB while 3 GiB go back; control: nothing freed",
    repetitions: 5,
    cases,
    tables: &[("wait of each mmap and munmap", &COLUMNS)],
    bars,
    ..Section::BASE
};

const COLUMNS: [Column; 9] = [
    count("n", "mmaps"),
    column("p50", "mmap p50 ns", ONE, 0),
    EMPTY,
    column("p999", "mmap p99.9 us", US, 1),
    column("mmap_max", "mmap max us", US, 0),
    column("munmap_max", "munmap max us", US, 0),
    column("100us", "either over 100 us", ONE, 0),
    column("1ms", "either over 1 ms", ONE, 0),
    column("free", "the free itself ms", MS, 3),
];

/// Huge pages are released in large steps, which hides the problem: both are measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    Huge,
    Small,
}

const PAGES: [(Pages, &str); 2] = [(Pages::Huge, "huge pages"), (Pages::Small, "4 KiB pages")];
const MAPPED_BYTES: usize = 64 * KIB;

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(3 * GIB, 3 * GIB, 64 * MIB);
    let mut cases = Vec::new();
    for (pages, name) in PAGES {
        for (freed, what) in [(false, "nothing freed"), (true, "freed")] {
            let run = move |report: &mut Report| waits(bytes, pages, freed, scale, report);
            cases.push(Case::new(format!("{name}, {what}"), bytes, run));
        }
    }
    cases
}

fn waits(bytes: usize, pages: Pages, freed: bool, scale: Scale, report: &mut Report) {
    let (before, after) = scale.pick((100, 1400), (100, 900), (5, 20));
    if pages == Pages::Small {
        // SAFETY: it changes only which pages later faults of this process get.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
    }
    let mut block = Block::new(bytes);
    if pages == Pages::Huge {
        advise_huge_pages(&block);
    }
    block.touch();

    let mut waits = Waits { mmap: Latencies::new(), munmap: Latencies::new() };
    let mut free = Latencies::new();
    let stop = AtomicBool::new(false);
    let mut kept = None;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                map_touch_unmap(&mut waits);
            }
        });
        thread::sleep(Duration::from_millis(before));
        if freed {
            free.time(|| drop(block));
        } else {
            kept = Some(block);
        }
        thread::sleep(Duration::from_millis(after));
        stop.store(true, Relaxed);
    });
    drop(kept);

    report.put("n", waits.mmap.count() as f64);
    report.put("p50", waits.mmap.median());
    report.put_some("p999", waits.mmap.quantile(0.999));
    report.put("mmap_max", waits.mmap.max());
    report.put("munmap_max", waits.munmap.max());
    report.put("worst", waits.mmap.max().max(waits.munmap.max()));
    let over = |ns| waits.mmap.count_above(ns) + waits.munmap.count_above(ns);
    report.put("100us", over(100_000));
    report.put("1ms", over(1_000_000));
    if freed {
        report.put("free", free.max());
    }
}

fn advise_huge_pages(block: &Block) {
    let start = (block.as_ptr() as usize).next_multiple_of(PAGE_BYTES);
    let end = (block.as_ptr() as usize + block.len()) / PAGE_BYTES * PAGE_BYTES;
    // SAFETY: the range is inside the block, and the advice does not change its contents.
    let refused = unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_HUGEPAGE) } != 0;
    if refused {
        eprintln!("mmap: this kernel gives no huge pages; the case runs with small ones");
    }
}

/// Both calls need the address space's lock. While another thread holds it for long, the loop waits
/// just once, in whichever of the two it comes to first.
struct Waits {
    mmap: Latencies,
    munmap: Latencies,
}

fn map_touch_unmap(waits: &mut Waits) {
    let Some(region) = waits.mmap.time(|| map(MAPPED_BYTES)) else {
        return;
    };
    for offset in (0..MAPPED_BYTES).step_by(PAGE_BYTES) {
        // SAFETY: the offset is inside the mapping.
        unsafe { region.add(offset).write_volatile(1) };
    }
    // SAFETY: the mapping is ours and is not used after this.
    waits.munmap.time(|| unsafe { unmap(region, MAPPED_BYTES) });
}

fn bars(results: &Results) {
    for (_, pages) in PAGES {
        let what = format!("worst mmap or munmap, {pages}");
        let (freed, control) = (format!("{pages}, freed"), format!("{pages}, nothing freed"));
        bar_control(&what, "worst", &freed, &control, results);
    }
}
