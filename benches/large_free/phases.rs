//! A program whose block sizes change from phase to phase, and vary within each: what one phase freed must serve the
//! next.

use std::time::Instant;

use super::support::block::{Block, Ledger};
use super::support::children::{Case, Report, Results};
use super::support::contender::Contender;
use super::support::memory::page_faults;
use super::support::random::Random;
use super::support::section::Section;
use super::support::table::{Column, MS, ONE, bar_each, column};
use super::support::timing::nanos;
use super::support::{GIB, KIB, MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "phases",
    about: "1 GiB live each time, touched and freed, in sizes that change; each varies by up to 10 %; 3 \
            rounds after a first one, which finds the memory untouched",
    repetitions: 5,
    cases,
    tables: &[("phases", &COLUMNS)],
    bars,
    peak_limit: PEAK_LIMIT,
    ..Section::BASE
};

const COLUMNS: [Column; 3] = [
    column("wall", "wall ms", MS, 0),
    column("free", "freeing ms", MS, 2),
    column("faults", "page faults", ONE, 0),
];
const LIMIT: f64 = 1.05;
const PEAK_LIMIT: f64 = 1.08;
const ROUNDS: usize = 3;
const SIZES: [usize; 6] = [300 * KIB, 700 * KIB, 3 * MIB / 2, 5 * MIB, 20 * MIB, 90 * MIB];
/// On both sides of the threshold.
const STRADDLING: [usize; 8] =
    [240 * KIB, 300 * KIB, 200 * KIB, 270 * KIB, 100 * KIB, MIB, 16 * KIB, 400 * KIB];

fn cases(scale: Scale) -> Vec<Case> {
    let live = scale.pick(GIB, GIB, 100 * MIB);
    let mut random = Random(11);
    let many: Vec<usize> = (0..20).map(|_| random.size(100 * KIB, 60_000 * KIB)).collect();
    let case = |name: &str, sizes: Vec<usize>, phase: Phase| {
        Case::new(name, live / 2 * 3, move |report| phases(live, &sizes, phase, report))
    };
    vec![
        case("six sizes", SIZES.to_vec(), in_turn),
        case("around the threshold", STRADDLING.to_vec(), in_turn),
        case("twenty sizes", many.clone(), in_turn),
        case("twenty sizes, one by one", many, one_by_one),
    ]
}

type Phase = fn(&mut Ledger<Block>, &mut Ledger<Block>, usize, usize, &mut Random) -> u64;

fn phases(live: usize, sizes: &[usize], phase: Phase, report: &mut Report) {
    let most = live / (sizes.iter().min().expect("there are sizes") / 10 * 9) + 1;
    let mut blocks = Ledger::with_capacity(most);
    let mut old = Ledger::with_capacity(most);
    let mut random = Random(5);
    let mut round = || -> u64 {
        sizes.iter().map(|&size| phase(&mut blocks, &mut old, live, size, &mut random)).sum()
    };
    // What the first touch of memory costs varies tenfold on a virtual machine, and was most of the time.
    round();
    let faults = page_faults();
    let start = Instant::now();
    let free_ns: u64 = (0..ROUNDS).map(|_| round()).sum();
    report.put("wall", nanos(start.elapsed()) as f64);
    report.put("free", free_ns as f64);
    report.put("faults", (page_faults() - faults) as f64);
}

/// Up to a tenth larger or smaller.
fn about(size: usize, random: &mut Random) -> usize {
    size - size / 10 + (random.next() % (size as u64 / 5)) as usize
}

/// All blocks of the phase, then all of them freed.
fn in_turn(
    blocks: &mut Ledger<Block>,
    _: &mut Ledger<Block>,
    live: usize,
    size: usize,
    random: &mut Random,
) -> u64 {
    let mut bytes = 0;
    while bytes < live {
        blocks.push(Block::touched(about(size, random)));
        bytes += blocks[blocks.len() - 1].len();
    }
    let freeing = Instant::now();
    blocks.clear();
    nanos(freeing.elapsed())
}

/// The blocks of the phase before go one by one, as those of this one come.
fn one_by_one(
    blocks: &mut Ledger<Block>,
    old: &mut Ledger<Block>,
    live: usize,
    size: usize,
    random: &mut Random,
) -> u64 {
    std::mem::swap(blocks, old);
    let mut bytes: usize = old.iter().map(Block::len).sum();
    let (mut added, mut free_ns) = (0, 0);
    while added < live {
        let freeing = Instant::now();
        while bytes > live {
            let Some(block) = old.pop() else { break };
            bytes -= block.len();
        }
        free_ns += nanos(freeing.elapsed());
        let len = about(size, random);
        blocks.push(Block::touched(len));
        added += len;
        bytes += len;
    }
    let freeing = Instant::now();
    old.clear();
    free_ns + nanos(freeing.elapsed())
}

fn bars(results: &Results) {
    bar_each("total time", Contender::Deferfree, "wall", &results.cases, LIMIT, results);
}
