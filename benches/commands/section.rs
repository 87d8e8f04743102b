//! Commands that are over in a moment.

use super::support::children::{Case, Results};
use super::support::contender::Contender;
use super::support::programs::Program;
use super::support::section::Section;
use super::support::starts::Starts;
use super::support::table::{Column, MS, ONE, bar_each, column, count};
use super::support::{MIB, Scale};

pub(crate) const SECTION: Section = Section {
    name: "commands",
    about: "whole commands, from start to end, programs of their own; CPU: the median of a command",
    repetitions: 5,
    cases,
    tables: &[("commands", &COLUMNS)],
    bars,
    contenders: &[
        Contender::System,
        Contender::Mimalloc,
        Contender::MimallocAgain,
        Contender::Deferfree,
    ],
    program,
    peak_limit: f64::INFINITY,
};

const COLUMNS: [Column; 6] = [
    column("p50", "p50 ms", MS, 3),
    column("p90", "p90 ms", MS, 3),
    column("p99", "p99 ms", MS, 3),
    column("max", "max ms", MS, 2),
    count("n", "starts"),
    column("faults", "page faults", ONE, 0),
];

/// Each with what the program is asked for, see `work.rs`, and how often at full scale.
const CASES: [(&str, &str, usize); 4] = [
    ("prints a line", "print", 100),
    ("counts words, drops the table", "words", 60),
    ("counts words, leaves by exit()", "exit", 60),
    ("drops 400 000 lines at its end", "lines", 40),
];

const LIMIT: f64 = 1.02;
/// More than any of the commands takes.
const NEEDS_BYTES: usize = 128 * MIB;

fn cases(scale: Scale) -> Vec<Case> {
    CASES
        .map(|(name, argument, n)| {
            let starts = Starts { argument, n: n / scale.pick(1, 4, 20) };
            Case::starts(name, NEEDS_BYTES, starts)
        })
        .into()
}

fn program(contender: Contender) -> Option<Program> {
    match contender {
        Contender::System => Some(Program::Target("commands_glibc")),
        Contender::Mimalloc | Contender::MimallocAgain | Contender::MimallocPurge0 => {
            Some(Program::Target("commands_mimalloc"))
        }
        contender if contender.is_ours() => Some(Program::Target("commands_deferfree")),
        _ => None,
    }
}

fn bars(results: &Results) {
    bar_each("start to end", Contender::Deferfree, "p50", &results.cases, LIMIT, results);
}
