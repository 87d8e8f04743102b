//! What is common to the tests of reports: a program whose numbers are known, and reports taken apart.

// Each test file uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use deferfree::DeferFree;
use serde_json::Value;

use super::common::{KIB, MIB, Output, command, finish, nearly_start, touched};

pub(crate) const SECS: u64 = 30;

/// Sixteen blocks of 1 MiB freed and six of them allocated again, then one of 3 MiB, which finds nothing.
pub(crate) fn work(global: &DeferFree) {
    nearly_start(global);
    drop((0..16).map(|_| touched(MIB)).collect::<Vec<_>>());
    let six: Vec<_> = (0..6).map(|_| touched(MIB)).collect();
    let other = touched(3 * MIB);
    drop(six);
    drop(other);
    global.flush();
}

/// Rounds of `churn`.
pub(crate) static ROUNDS: AtomicU64 = AtomicU64::new(0);

/// A round of large blocks, for threads that are to be busy.
pub(crate) fn churn() {
    for size in [256 * KIB, 300 * KIB, MIB] {
        let blocks: Vec<_> = (0..8).map(|_| Vec::<u8>::with_capacity(size)).collect();
        drop(black_box(blocks));
    }
    ROUNDS.fetch_add(1, Ordering::Relaxed);
}

/// What `work` makes of them: blocks handed over, and all that happened to them.
pub(crate) fn check_work(numbers: [u64; 7]) {
    let [freed, reused, drained, paid_back, over_bound, queue_full, pending] = numbers;
    assert_eq!(freed, 23, "{numbers:?}");
    assert_eq!(reused, 6, "{numbers:?}");
    // Two times 3 MiB.
    assert_eq!(paid_back, 6, "{numbers:?}");
    assert_eq!(drained, 23 - 6 - 6, "{numbers:?}");
    assert_eq!([over_bound, queue_full, pending], [0; 3], "{numbers:?}");
}

/// The one line that begins with `name`, without it.
#[track_caller]
pub(crate) fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let lines: Vec<&str> =
        text.lines().filter_map(|line| line.trim_start().strip_prefix(name)).collect();
    assert_eq!(lines.len(), 1, "{name}: {text}");
    lines[0].trim()
}

/// A new directory for the files of one test.
pub(crate) fn directory(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("report").join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

pub(crate) fn files(directory: &Path) -> Vec<String> {
    let files = fs::read_dir(directory).unwrap();
    files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

/// Runs a case with its report in a file, which is all that there is in its directory.
#[track_caller]
pub(crate) fn to_json(case: &str, name: &str, env: &[(&str, &str)]) -> (Output, Value) {
    let directory = directory(name);
    let path = directory.join("report.json");
    let mut command = command(case);
    command.env("DEFERFREE_STATS", &path).envs(env.iter().copied());
    let output = finish(command, SECS);
    output.expect_code(0);
    assert_eq!(output.stderr, "", "{output:?}");
    assert_eq!(files(&directory), ["report.json"]);
    let report = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    check_sums(&report);
    (output, report)
}

/// What may become of a large block, and that it waits.
pub(crate) const FATES: [&str; 6] =
    ["reused", "drained", "paid_back", "over_bound", "queue_full", "pending"];

/// The report's totals are those of its sizes, whatever threads did meanwhile.
pub(crate) fn check_sums(report: &Value) {
    for name in FATES.iter().chain(&["handed_over", "missed"]) {
        let (mut blocks, mut bytes) = (0, 0);
        for size in report["sizes"].as_array().unwrap() {
            let n = size[name].as_u64().unwrap();
            blocks += n;
            bytes += n * size["block_bytes"].as_u64().unwrap();
        }
        assert_eq!(report[name]["blocks"], blocks, "{name}: {report}");
        assert_eq!(report[name]["bytes"], bytes, "{name}: {report}");
    }
}

pub(crate) fn blocks(report: &Value, name: &str) -> u64 {
    report[name]["blocks"].as_u64().unwrap()
}
