//! Many threads to a core pass buffers to each other while one draws frames: does it ever wait for one that was
//! preempted?

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::support::block::Block;
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{Column, MS, ONE, US, bar, column, count};
use super::support::timing::{Latencies, nanos};
use super::support::{KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "preempted",
    about: "48 threads pass buffers of 512 KiB on all cores, one more draws a frame each 16 ms with some of them",
    repetitions: 5,
    cases,
    tables: &[("preempted", &COLUMNS)],
    bars,
    // Which blocks are held by threads that do not run is chance.
    peak_limit: f64::INFINITY,
    ..Section::BASE
};

const COLUMNS: [Column; 6] = [
    column("draw_p50", "frame p50 us", US, 0),
    column("draw_max", "longest ms", MS, 2),
    column("draw_1ms", "frames over 1 ms", ONE, 0),
    column("late_1ms", "done over 1 ms late", ONE, 0),
    count("frames", "frames"),
    count("passed", "buffers passed"),
];

const CASE: &str = "48 threads";
const THREADS: usize = 48;
const BUFFER_BYTES: usize = 512 * KIB;
/// Places in which a thread leaves a buffer and takes the one that was there.
const PLACES: usize = 64;
/// As low as there is.
const NICE: libc::c_int = 19;
const BUFFERS_PER_FRAME: usize = 16;
const FRAME: Duration = Duration::from_millis(16);

fn cases(scale: Scale) -> Vec<Case> {
    let duration = scale.pick(Duration::from_secs(10), Duration::from_secs(2), FRAME * 4);
    vec![Case::new(CASE, 256 * MIB, move |report| preempted(duration, report))]
}

/// A buffer that lies in a place, or null.
struct Place(AtomicPtr<u8>);

impl Place {
    /// No lock: a thread that is preempted while it holds one would be what is measured.
    fn exchange(&self, buffer: Option<Block>) -> Option<Block> {
        let left = buffer.map_or(ptr::null_mut(), Block::into_raw);
        let taken = self.0.swap(left, Ordering::AcqRel);
        // SAFETY: from `into_raw` of a block of this size, and taken out by us alone.
        (!taken.is_null()).then(|| unsafe { Block::from_raw(taken, BUFFER_BYTES) })
    }
}

fn preempted(duration: Duration, report: &mut Report) {
    let places: [Place; PLACES] = std::array::from_fn(|_| Place(AtomicPtr::default()));
    let stop = AtomicBool::new(false);
    let (mut draws, mut late) = (Latencies::new(), Latencies::new());
    let mut n_passed = 0;
    thread::scope(|scope| {
        let (places, stop) = (&places, &stop);
        let run = |i: usize| move || pass(places, stop, Random(i as u64 + 1));
        let threads: [_; THREADS] = std::array::from_fn(|i| scope.spawn(run(i)));
        let end = Instant::now() + duration;
        let mut due = Instant::now();
        while due < end {
            due += FRAME;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            draws.time(draw);
            late.record(nanos(due.elapsed()));
        }
        stop.store(true, Ordering::Relaxed);
        n_passed = threads.map(|thread| thread.join().expect("it does not panic")).iter().sum();
    });
    places.iter().for_each(|place| drop(place.exchange(None)));
    report.put("frames", draws.count() as f64);
    report.put("passed", n_passed as f64);
    report.put("draw_p50", draws.median());
    report.put("draw_max", draws.max());
    report.put("draw_1ms", draws.count_above(1_000_000));
    report.put("late_1ms", late.count_above(1_000_000));
}

/// Leaves buffers for others and frees theirs; how many those were.
fn pass(places: &[Place; PLACES], stop: &AtomicBool, mut random: Random) -> u64 {
    // They are preempted for the one that draws, which is hardly ever.
    // SAFETY: a system call on numbers; on Linux it is about the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
    let mut n_freed = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut buffer = Block::new(BUFFER_BYTES);
        buffer.touch_first_page();
        let place = &places[random.next() as usize % PLACES];
        n_freed += u64::from(place.exchange(Some(buffer)).is_some());
    }
    n_freed
}

fn draw() {
    let mut buffers: [_; BUFFERS_PER_FRAME] = std::array::from_fn(|_| Block::new(BUFFER_BYTES));
    buffers.iter_mut().for_each(Block::touch_first_page);
}

fn bars(results: &Results) {
    let more = results.median(CASE, Contender::Deferfree, "draw_1ms").and_then(|ours| {
        Some((ours - results.median(CASE, Contender::Mimalloc, "draw_1ms")?, CASE))
    });
    bar("frames over 1 ms, more than with plain mimalloc", "", more, 1.0);
}
