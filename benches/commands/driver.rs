//! Starts the programs and takes the time.

#[path = "../support/mod.rs"]
mod support;

use std::mem::MaybeUninit;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, io};

use support::children::{self, Results};
use support::contender::Contender;
use support::memory::{cpu_time_of, reset_peak_rss, rss_bytes, warm_up};
use support::programs::{Program, Programs};
use support::table::{self, Column, MS, ONE, bar_each, column, count};
use support::timing::{Latencies, nanos};
use support::{MIB, Scale, machine};

const CONTENDERS: [Contender; 4] =
    [Contender::System, Contender::Mimalloc, Contender::MimallocAgain, Contender::Deferfree];

const COLUMNS: [Column; 8] = [
    column("p50", "p50 ms", MS, 3),
    column("p90", "p90 ms", MS, 3),
    column("p99", "p99 ms", MS, 3),
    column("max", "max ms", MS, 2),
    count("n", "starts"),
    column("cpu", "CPU p50 ms", MS, 3),
    column("faults", "page faults", ONE, 0),
    column("peak", "peak RSS MiB", table::MIB, 1),
];

struct Case {
    name: &'static str,
    /// What the program is asked for, see `work.rs`.
    argument: &'static str,
    /// Starts of each contender in a repetition, at full scale.
    n_starts: usize,
}

const CASES: [Case; 4] = [
    Case { name: "prints a line", argument: "print", n_starts: 100 },
    Case { name: "counts words, drops the table", argument: "words", n_starts: 60 },
    Case { name: "counts words, leaves by exit()", argument: "exit", n_starts: 60 },
    Case { name: "drops 400 000 lines at its end", argument: "lines", n_starts: 40 },
];

const REPETITIONS: usize = 5;
const LIMIT: f64 = 1.02;
/// More than any of the commands takes.
const WARM_UP_BYTES: usize = 128 * MIB;

pub(crate) fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("commands: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    if env::args().any(|argument| argument == "--list") {
        return Ok(());
    }
    let filter = env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let filter = filter.unwrap_or_default();
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(&filter)).collect();
    if cases.is_empty() {
        return Err(format!("nothing is named {filter:?}"));
    }
    let scale = Scale::from_arguments();
    let contenders = children::chosen(&CONTENDERS)?;
    let repetitions = children::chosen_repetitions(scale.pick(REPETITIONS, 1, 1))?;
    let programs = Programs::build(&contenders, program)?;
    println!("\n{}", machine::describe());
    println!("cells: medians (min..max) of the repetitions; scale: {}", scale.name());
    if scale == Scale::Test {
        println!("a test run: its figures and verdicts mean nothing");
    }
    warm_up(WARM_UP_BYTES);
    reset_peak_rss();
    let mut results = Results::new(contenders);
    for case in cases {
        results.cases.push(case.name.to_owned());
        for repetition in 1..=repetitions {
            eprintln!("[commands] {}: {repetition} of {repetitions}", case.name);
            measure(case, case.n_starts / scale.pick(1, 2, 20), &programs, &mut results)?;
        }
    }
    table::print_only("commands", &COLUMNS, &results);
    println!(
        "(a process inherits this one's peak RSS until it has more: {:.1} MiB)",
        rss_bytes() as f64 / table::MIB
    );
    println!();
    bar_each("start to end", Contender::Deferfree, "p50", &results.cases, LIMIT, &results);
    Ok(())
}

fn program(contender: Contender) -> Option<Program> {
    match contender {
        Contender::System => Some(Program::Target("commands_glibc")),
        Contender::Mimalloc | Contender::MimallocAgain | Contender::MimallocPurge0 => {
            Some(Program::Target("commands_mimalloc"))
        }
        Contender::Deferfree | Contender::DeferfreeOff | Contender::BurstsOff => {
            Some(Program::Target("commands_deferfree"))
        }
        Contender::Floor
        | Contender::Jemalloc
        | Contender::JemallocBackground
        | Contender::Spawn
        | Contender::DeferDrop => None,
    }
}

/// One contender's starts.
struct Starts {
    wall: Latencies,
    cpu: Latencies,
    faults: Latencies,
    peak_bytes: u64,
}

fn measure(
    case: &Case,
    n_starts: usize,
    programs: &Programs,
    results: &mut Results,
) -> Result<(), String> {
    let contenders = results.contenders.clone();
    let new = || Starts {
        wall: Latencies::precise(),
        cpu: Latencies::precise(),
        faults: Latencies::precise(),
        peak_bytes: 0,
    };
    let mut starts: Vec<Starts> = contenders.iter().map(|_| new()).collect();
    // One start more: the first finds the program in no cache.
    for start in 0..=n_starts {
        for place in 0..contenders.len() {
            let i = (start + place) % contenders.len();
            let contender = contenders[i];
            let (wall, usage) = start_to_end(programs.of(contender)?, case.argument, contender)
                .map_err(|error| format!("{}, {}: {error}", case.name, contender.name()))?;
            if start == 0 {
                continue;
            }
            let of = &mut starts[i];
            of.wall.record(nanos(wall));
            of.cpu.record(nanos(cpu_time_of(&usage)));
            of.faults.record(usage.ru_minflt.unsigned_abs());
            of.peak_bytes = of.peak_bytes.max(usage.ru_maxrss.unsigned_abs() * 1024);
        }
    }
    for (contender, of) in contenders.into_iter().zip(starts) {
        let mut put = |key: &str, value: Option<f64>| {
            if let Some(value) = value {
                results.push(case.name, contender, key.to_owned(), value);
            }
        };
        put("p50", Some(of.wall.median()));
        put("p90", of.wall.quantile(0.9));
        put("p99", of.wall.quantile(0.99));
        put("max", Some(of.wall.max()));
        put("n", Some(of.wall.count() as f64));
        put("cpu", Some(of.cpu.median()));
        put("faults", Some(of.faults.median()));
        put("peak", Some(of.peak_bytes as f64));
    }
    Ok(())
}

/// The wall time from before the start until the process has ended, and what it used.
fn start_to_end(
    program: &Path,
    argument: &str,
    contender: Contender,
) -> Result<(Duration, libc::rusage), String> {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null());
    // Cargo's, which would have the dynamic linker look for the C library in its directories.
    command.env_remove("LD_LIBRARY_PATH").envs(contender.environment());
    let start = Instant::now();
    let child = command.spawn().map_err(|error| format!("cannot start the process: {error}"))?;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let pid = child.id() as libc::pid_t;
    let mut status = 0;
    loop {
        // SAFETY: both places have room for what the call writes. The child is waited for here and
        // nowhere else.
        let waited = unsafe { libc::wait4(pid, &mut status, 0, usage.as_mut_ptr()) };
        let error = io::Error::last_os_error();
        match waited {
            -1 if error.kind() == io::ErrorKind::Interrupted => {}
            -1 => return Err(format!("cannot wait for the process: {error}")),
            _ => break,
        }
    }
    let wall = start.elapsed();
    if status != 0 {
        return Err(format!("the process failed, status {status:#x}"));
    }
    // SAFETY: all zeros is a valid `rusage`, and the call has filled it.
    Ok((wall, unsafe { usage.assume_init() }))
}
