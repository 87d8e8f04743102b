//! A pipeline whose sink was down: a gigabyte of small messages has queued up, is worked off one by one, and traffic goes
//! on at its usual rate. The program is never idle, and never frees many blocks in a row: when does the memory go back?

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::support::block::Block;
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::memory::rss_bytes;
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{self, Column, US, bar, column, ratio, worst};
use super::support::timing::Latencies;
use super::support::{GIB, KIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "busy",
    about: "1 GiB of small messages is worked off while traffic goes on, 2000 messages a second",
    cases,
    tables: &[("busy", &COLUMNS)],
    bars,
    contenders: &[Contender::Mimalloc, Contender::JemallocBackground, Contender::Deferfree],
    peak_limit: f64::INFINITY,
    ..Section::BASE
};

const COLUMNS: [Column; 6] = [
    column("p50", "a message p50 us", US, 2),
    column("p999", "p99.9 us", US, 1),
    column("rss2", "RSS at 2 s MiB", table::MIB, 0),
    column("rss4", "at 4 s", table::MIB, 0),
    column("rss8", "at 8 s", table::MIB, 0),
    column("rss12", "at 12 s", table::MIB, 0),
];
const LIMIT: f64 = 1.2;

struct Message {
    host: String,
    fields: Vec<(String, Vec<u8>)>,
}

impl Message {
    fn new(random: &mut Random) -> Message {
        let mut between = |low: u64, high: u64| (low + random.next() % (high - low)) as usize;
        let mut field = || ("k".repeat(between(6, 24)), vec![0xa5; between(100, 700)]);
        let fields = (0..6).map(|_| field()).collect();
        Message { host: "h".repeat(20), fields }
    }
}

fn cases(scale: Scale) -> Vec<Case> {
    let n_messages = scale.pick(400_000, 400_000, 4_000);
    let unit = Duration::from_millis(scale.pick(1000, 1000, 10));
    vec![Case::new("1 GiB", 2 * GIB, move |report| work_off(n_messages, unit, report))]
}

fn work_off(n_queued: usize, unit: Duration, report: &mut Report) {
    static SINK_IS_UP: AtomicBool = AtomicBool::new(false);
    let marks = [("rss2", unit * 2), ("rss4", unit * 4), ("rss8", unit * 8), ("rss12", unit * 12)];
    let (to_sink, messages) = channel();
    let source = thread::spawn(move || {
        let mut random = Random(7);
        (0..n_queued).for_each(|_| to_sink.send(Message::new(&mut random)).unwrap());
        SINK_IS_UP.store(true, Ordering::Release);
        // Until the sink has seen enough.
        while (0..20).all(|_| to_sink.send(Message::new(&mut random)).is_ok()) {
            thread::sleep(unit / 100);
        }
    });
    while !SINK_IS_UP.load(Ordering::Acquire) {
        thread::sleep(Duration::from_millis(1));
    }
    let mut each = Latencies::precise();
    let (mut drained, mut n_marks, mut n) = (None, 0, 0_u64);
    while n_marks < marks.len() {
        let message: Message = match messages.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Empty) => {
                drained.get_or_insert_with(Instant::now);
                messages.recv().unwrap()
            }
            Err(TryRecvError::Disconnected) => break,
        };
        each.time(|| {
            for (key, value) in message.fields {
                black_box(format!("{} {key}={}", message.host, value.len()));
            }
            n += 1;
            if n % 50 == 0 {
                // A batch goes out.
                black_box(Block::touched(300 * KIB));
            }
        });
        let (key, after) = marks[n_marks];
        if drained.is_some_and(|drained| drained.elapsed() >= after) {
            report.put(key, rss_bytes() as f64);
            n_marks += 1;
        }
    }
    drop(messages);
    source.join().unwrap();
    report.put("p50", each.median());
    report.put_some("p999", each.quantile(0.999));
}

fn bars(results: &Results) {
    for (key, what) in [("rss8", "RSS after 8 s"), ("rss12", "RSS after 12 s"), ("p999", "p99.9")] {
        let peer = Contender::JemallocBackground;
        let limit = if key == "p999" { 1.0 } else { LIMIT };
        let worst = worst(&results.cases, |case| ratio(results, case, peer, key));
        bar(&format!("{what} against jemalloc's with its thread"), " x", worst, limit);
    }
}
