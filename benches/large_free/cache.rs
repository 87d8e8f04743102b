//! A cache that is always full: what comes in makes others go, of all sizes and ages.

use std::collections::{BTreeMap, HashMap};
use std::hint::black_box;
use std::time::Instant;

use super::support::block::PAGE_BYTES;
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender::Deferfree;
use super::support::memory::page_faults;
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{Column, MS, ONE, bar_each, column, count};
use super::support::timing::nanos;
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "cache",
    about: "512 MiB of the entries that were used last, of 200 B to 4 MiB (log-uniform); those not there are made, every \
            byte written",
    repetitions: 3,
    cases,
    tables: &[("cache", &COLUMNS)],
    bars,
    ..Section::BASE
};

const COLUMNS: [Column; 3] = [
    column("wall", "wall ms", MS, 0),
    column("faults", "page faults", ONE, 0),
    count("hits", "of them there, %"),
];
/// Of wall and CPU time.
const LIMIT: f64 = 1.05;
const KEYS: f64 = 8000.0;

fn cases(scale: Scale) -> Vec<Case> {
    let bytes = scale.pick(512 * MIB, 512 * MIB, 32 * MIB);
    let n_requests = scale.pick(30_000, 5_000, 500);
    let run = move |report: &mut Report| requests(bytes, n_requests, report);
    vec![Case::new("512 MiB", bytes / 4 * 5, run)]
}

#[derive(Default)]
struct Cache {
    /// Each with when it was used last.
    entries: HashMap<u64, (Vec<u8>, u64)>,
    by_use: BTreeMap<u64, u64>,
    bytes: usize,
}

fn requests(most_bytes: usize, n_requests: u64, report: &mut Report) {
    let mut random = Random(3);
    let mut cache = Cache::default();
    let (mut n_hits, mut sum) = (0, 0);
    let faults_before = page_faults();
    let start = Instant::now();
    for now in 0..n_requests {
        // Some are asked for far more often than others.
        let key = (KEYS * random.unit().powi(3)) as u64;
        if let Some((bytes, used)) = cache.entries.get_mut(&key) {
            sum += bytes.iter().step_by(PAGE_BYTES).map(|byte| usize::from(*byte)).sum::<usize>();
            cache.by_use.remove(used);
            *used = now;
            n_hits += 1;
        } else {
            let bytes = vec![now as u8 | 1; random.size(200, 4 * MIB)];
            cache.bytes += bytes.len();
            cache.entries.insert(key, (bytes, now));
        }
        cache.by_use.insert(now, key);
        while cache.bytes > most_bytes {
            let Some((_, oldest)) = cache.by_use.pop_first() else { break };
            let Some((bytes, _)) = cache.entries.remove(&oldest) else { break };
            cache.bytes -= bytes.len();
        }
    }
    report.put("wall", nanos(start.elapsed()) as f64);
    report.put("faults", (page_faults() - faults_before) as f64);
    report.put("hits", 100.0 * n_hits as f64 / n_requests as f64);
    black_box(sum);
}

fn bars(results: &Results) {
    bar_each("wall", Deferfree, "wall", &results.cases, LIMIT, results);
    bar_each("CPU", Deferfree, "cpu", &results.cases, LIMIT, results);
}
