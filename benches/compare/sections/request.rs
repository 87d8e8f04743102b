//! A server's worker: requests come in at fixed times, each allocates a mixed working set, is
//! answered, and lets the set go before the worker takes the next.

use std::collections::HashMap;
use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::figures::{
    BASE, CPU, IDLE, MAX, P50, P99, P999, PEAK, SAMPLES, Section, WALL, put_idle,
};
use super::support::block::Block;
use super::support::children::{Case, Report};
use super::support::discard::discard;
use super::support::random::Random;
use super::support::table::{Column, count};
use super::support::timing::{Latencies, nanos};
use super::support::{KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "request",
    about: "a request every millisecond: a body of 4 KiB to 1 MiB, the document in it, an index of \
            that; every fiftieth also a picture of 8 MiB and 20 000 strings; waits: from when a \
            request is due, or the worker awake where it slept until then, until its answer is ready and its working set \
            let go",
    repetitions: 2,
    cases,
    tables: &[("", &COLUMNS)],
    ..BASE
};

const COLUMNS: [Column; 10] =
    [P50, P99, P999, MAX, SAMPLES, count("busy", "busy %"), WALL, CPU, PEAK, IDLE];

/// What the picture of this section is drawn from: the key of each, and the share of the requests
/// that were answered sooner.
pub(crate) const QUANTILES: [(&str, f64); 12] = [
    ("q10", 0.1),
    ("q25", 0.25),
    ("q50", 0.5),
    ("q75", 0.75),
    ("q90", 0.9),
    ("q95", 0.95),
    ("q98", 0.98),
    ("q99", 0.99),
    ("q995", 0.995),
    ("q998", 0.998),
    ("q999", 0.999),
    ("q9995", 0.9995),
];

const EVERY: Duration = Duration::from_millis(1);
const LARGE_EVERY: usize = 50;
const WARM_UP: usize = 100;

fn cases(scale: Scale) -> Vec<Case> {
    let n_requests = scale.pick(4_000, 600, 20);
    vec![Case::new("one worker", 256 * MIB, move |report| {
        serve(n_requests, report);
        put_idle(report, scale);
    })]
}

fn serve(n_requests: usize, report: &mut Report) {
    let mut random = Random(7);
    let mut answers = Latencies::new();
    let mut worker = Worker { recent: Vec::with_capacity(RECENT), n_answers: 0 };
    for i in 0..WARM_UP {
        black_box(worker.answer(i, &mut random));
    }
    let start = Instant::now();
    let mut due = start;
    let mut busy = Duration::ZERO;
    for i in 0..n_requests {
        due += EVERY;
        let wait = due.saturating_duration_since(Instant::now());
        thread::sleep(wait);
        let begin = Instant::now();
        black_box(worker.answer(i, &mut random));
        let end = Instant::now();
        busy += end - begin;
        // A worker that was busy answers late, and that counts; that a timer is late is no allocator's fault.
        answers.record(nanos(end - if wait.is_zero() { due } else { begin }));
    }
    let wall = start.elapsed();
    report.put("wall", nanos(wall) as f64);
    report.put("busy", 100.0 * busy.as_secs_f64() / wall.as_secs_f64());
    report.put_waits(&answers);
    for (key, quantile) in QUANTILES {
        report.put_some(key, answers.quantile(quantile));
    }
}

/// All that one request needs, let go at once.
struct WorkingSet {
    body: Vec<u8>,
    document: Value,
    index: HashMap<String, Vec<usize>>,
    picture: Option<Block>,
    names: Vec<String>,
    /// The answer that has to make room in the cache.
    _evicted: Option<Vec<u8>>,
}

/// How many answers the worker keeps.
const RECENT: usize = 64;

struct Worker {
    recent: Vec<Vec<u8>>,
    n_answers: usize,
}

impl Worker {
    fn answer(&mut self, i: usize, random: &mut Random) -> usize {
        let body_bytes = random.size(4 * KIB, MIB);
        let body = vec![i as u8 | 1; body_bytes];
        let document = document(i, body_bytes / (4 * KIB) + 4);
        let index = index(&document);
        let is_large = i % LARGE_EVERY == LARGE_EVERY - 1;
        let picture = is_large.then(|| Block::touched(8 * MIB));
        let n_names = if is_large { 20_000 } else { 20 };
        let names = (0..n_names).map(|n| format!("name {n} of request {i}")).collect();

        let mut set = WorkingSet { body, document, index, picture, names, _evicted: None };
        let answer = set.sum();
        let kept = vec![answer as u8; set.body.len() / 4];
        if self.recent.len() < RECENT {
            self.recent.push(kept);
        } else {
            let oldest = &mut self.recent[self.n_answers % RECENT];
            set._evicted = Some(std::mem::replace(oldest, kept));
        }
        self.n_answers += 1;
        discard(set);
        answer
    }
}

impl WorkingSet {
    fn sum(&self) -> usize {
        let bytes: usize = self.body.iter().step_by(64).map(|byte| usize::from(*byte)).sum();
        let objects = self.document.as_array().map_or(0, Vec::len);
        let places: usize = self.index.values().map(Vec::len).sum();
        let names: usize = self.names.iter().map(String::len).sum();
        bytes + objects + places + names + self.picture.as_ref().map_or(0, Block::sum)
    }
}

fn document(i: usize, n_objects: usize) -> Value {
    let object = |n: usize| {
        let mut fields = Map::new();
        fields.insert("id".into(), Value::from(i + n));
        fields.insert("name".into(), Value::from(format!("the name of user {n}")));
        let tags = (0..3).map(|k| Value::from(format!("tag {}", (n + k) % 16)));
        fields.insert("tags".into(), Value::Array(tags.collect()));
        Value::Object(fields)
    };
    Value::Array((0..n_objects).map(object).collect())
}

/// Which objects have a tag.
fn index(document: &Value) -> HashMap<String, Vec<usize>> {
    let mut index: HashMap<String, Vec<usize>> = HashMap::new();
    for (place, object) in document.as_array().into_iter().flatten().enumerate() {
        for tag in object["tags"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            index.entry(tag.to_owned()).or_default().push(place);
        }
    }
    index
}
