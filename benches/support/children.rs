//! Each contender is measured in processes of its own, and they take turns.
//!
//! What a process runs is the bench itself once more, or the contender's own program.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::{env, fmt, io};

use super::contender::{self, Contender};
use super::machine;
use super::memory::{Usage, warm_up};
use super::programs::Programs;
use super::section::Section;
use super::starts::Starts;
use super::timing::{Latencies, empty_timer_pairs};
use super::{MIB, Scale};

const SECTION_VARIABLE: &str = "BENCH_SECTION";
const CASE_VARIABLE: &str = "BENCH_CASE";
const SCALE_VARIABLE: &str = "BENCH_SCALE";
/// Overrides which contenders are compared, for example `glibc,mimalloc,deferfree`.
const CONTENDERS_VARIABLE: &str = "BENCH_ALLOCATORS";
/// Overrides how often each child runs.
const REPETITIONS_VARIABLE: &str = "BENCH_REPETITIONS";

/// What is measured for each contender.
pub(crate) struct Case {
    pub(crate) name: String,
    /// Memory that it touches: warmed beforehand, and the case is skipped where it is not
    /// available.
    pub(crate) needs_bytes: usize,
    /// A variable that a contender's processes find in their environment.
    pub(crate) variable: Box<dyn Fn(Contender) -> Option<(&'static str, String)>>,
    pub(crate) work: Work,
}

pub(crate) enum Work {
    /// In a process of its own, which reports the figures.
    Child(Box<dyn Fn(&mut Report)>),
    /// Programs are started, and what is measured is each from its start to its end.
    Starts(Starts),
}

impl Case {
    pub(crate) fn new(
        name: impl Into<String>,
        needs_bytes: usize,
        run: impl Fn(&mut Report) + 'static,
    ) -> Self {
        let work = Work::Child(Box::new(run));
        Self { name: name.into(), needs_bytes, variable: Box::new(|_| None), work }
    }

    pub(crate) fn starts(name: &str, needs_bytes: usize, starts: Starts) -> Self {
        let work = Work::Starts(starts);
        Self { name: name.into(), needs_bytes, variable: Box::new(|_| None), work }
    }

    pub(crate) fn with_variable(self, name: &'static str, value: &str) -> Self {
        let value = value.to_owned();
        self.with_variable_of(move |_| Some((name, value.clone())))
    }

    /// One that is another for each contender.
    pub(crate) fn with_variable_of(
        mut self,
        variable: impl Fn(Contender) -> Option<(&'static str, String)> + 'static,
    ) -> Self {
        self.variable = Box::new(variable);
        self
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The child's way to its parent: a line `key value` on stdout for each figure. Reporting
/// allocates, so it comes after the measuring.
#[derive(Debug)]
pub(crate) struct Report(());

impl Report {
    pub(crate) fn put(&mut self, key: &str, value: f64) {
        debug_assert!(!key.contains(' '), "{key}: the parent splits the line there");
        println!("{key} {value}");
    }

    /// A figure that there were not enough samples for is left out.
    pub(crate) fn put_some(&mut self, key: &str, value: Option<f64>) {
        if let Some(value) = value {
            self.put(key, value);
        }
    }

    pub(crate) fn put_waits(&mut self, waits: &Latencies) {
        self.put("n", waits.count() as f64);
        // Of two the median would be the smaller one.
        self.put_some("p50", (waits.count() > 2).then(|| waits.median()));
        self.put_some("p90", waits.quantile(0.9));
        self.put_some("p99", waits.quantile(0.99));
        self.put_some("p999", waits.quantile(0.999));
        self.put("max", waits.max());
    }
}

/// What the parent asked of this process, if it is a child: section, case and scale.
pub(crate) fn assignment() -> Option<(String, String, Scale)> {
    let scale = Scale::from_name(&env::var(SCALE_VARIABLE).ok()?)?;
    Some((env::var(SECTION_VARIABLE).ok()?, env::var(CASE_VARIABLE).ok()?, scale))
}

/// Runs a case in this process, and reports what all cases report.
pub(crate) fn run_here(case: &Case) -> Result<(), String> {
    let Work::Child(run) = &case.work else {
        return Err(format!("{} is not measured in a process of this bench", case.name));
    };
    let empty = empty_timer_pairs();
    let usage = Usage::start();
    let mut report = Report(());
    run(&mut report);
    report.put("cpu", usage.cpu().as_nanos() as f64);
    report.put("peak", usage.peak_rss_bytes() as f64);
    report.put("empty", empty.median());
    Ok(())
}

/// The figures of a section, by case, contender and key, one for each repetition.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) cases: Vec<String>,
    pub(crate) contenders: Vec<Contender>,
    values: HashMap<(String, Contender, String), Vec<f64>>,
}

/// A figure over the repetitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) n: usize,
}

impl Results {
    pub(crate) fn new(contenders: Vec<Contender>) -> Self {
        Self { cases: Vec::new(), contenders, values: HashMap::new() }
    }

    pub(crate) fn push(&mut self, case: &str, contender: Contender, key: String, value: f64) {
        self.values.entry((case.to_owned(), contender, key)).or_default().push(value);
    }

    /// The figures of each repetition, by key.
    pub(crate) fn of_each_run<'a>(
        &'a self,
        case: &'a str,
        contender: Contender,
    ) -> impl Iterator<Item = (&'a str, &'a [f64])> {
        let of = move |((c, who, key), values): (&'a (String, Contender, String), &'a Vec<f64>)| {
            (c == case && *who == contender).then_some((key.as_str(), values.as_slice()))
        };
        self.values.iter().filter_map(of)
    }

    /// Takes over the cases of an earlier run that are not in this one.
    pub(crate) fn absorb(&mut self, earlier: Self) {
        let is_new = |case: &String| !self.cases.contains(case);
        let kept: Vec<String> = earlier.cases.into_iter().filter(is_new).collect();
        let values = earlier.values.into_iter().filter(|((case, ..), _)| kept.contains(case));
        self.values.extend(values);
        self.cases.extend(kept);
    }

    pub(crate) fn get(&self, case: &str, contender: Contender, key: &str) -> Option<Spread> {
        let mut values = self.values.get(&(case.to_owned(), contender, key.to_owned()))?.clone();
        values.sort_unstable_by(f64::total_cmp);
        let n = values.len();
        let median = (values[(n - 1) / 2] + values[n / 2]) / 2.0;
        Some(Spread { median, min: values[0], max: values[n - 1], n })
    }

    pub(crate) fn median(&self, case: &str, contender: Contender, key: &str) -> Option<f64> {
        Some(self.get(case, contender, key)?.median)
    }
}

/// Measures each case for each contender. An error names what failed: no row is left out in
/// silence.
pub(crate) fn run(
    section: &Section,
    cases: &[Case],
    scale: Scale,
    programs: &Programs,
) -> Result<Results, String> {
    let repetitions = chosen_repetitions(scale.pick(section.repetitions, 1, 1))?;
    let mut results = Results::new(chosen(section.contenders)?);
    for case in cases {
        let available = machine::available_bytes();
        if case.needs_bytes as u64 > available / 4 * 3 {
            let (needs, has) = (case.needs_bytes / MIB, available / MIB as u64);
            println!(
                "skipped: {}, {}: needs {needs} MiB of {has} MiB available",
                section.name, case.name
            );
            continue;
        }
        results.cases.push(case.name.clone());
        for repetition in 1..=repetitions {
            let says = |what| {
                let (section, case) = (section.name, &case.name);
                eprintln!("[{section}] {case}: {what}{repetition} of {repetitions}");
            };
            match &case.work {
                Work::Child(_) => {
                    for contender in results.contenders.clone() {
                        says(format!("{}, ", contender.name()));
                        // An eighth on top: allocators round up.
                        warm_up(case.needs_bytes / 8 * 9);
                        let program = programs.path(section.program(contender)?)?;
                        let figures = run_child(program, section.name, case, contender, scale)
                            .map_err(|error| in_case(section, case, contender, error))?;
                        for (key, value) in figures {
                            results.push(&case.name, contender, key, value);
                        }
                    }
                }
                Work::Starts(starts) => {
                    says(String::new());
                    warm_up(case.needs_bytes / 8 * 9);
                    starts.measure(section, case, programs, &mut results)?;
                }
            }
        }
    }
    Ok(results)
}

pub(crate) fn in_case(
    section: &Section,
    case: &Case,
    contender: Contender,
    error: String,
) -> String {
    format!("{}, {}, {}: {error}", section.name, case.name, contender.name())
}

/// The contenders that were asked for.
pub(crate) fn chosen(default: &[Contender]) -> Result<Vec<Contender>, String> {
    let Ok(names) = env::var(CONTENDERS_VARIABLE) else {
        return Ok(default.iter().copied().filter(|it| it.is_built()).collect());
    };
    let named = |name: &str| {
        Contender::from_name(name.trim().as_bytes())
            .filter(|it| it.is_built())
            .ok_or_else(|| format!("{CONTENDERS_VARIABLE}: there is no contender {name:?}"))
    };
    names.split(',').map(named).collect()
}

pub(crate) fn chosen_repetitions(default: usize) -> Result<usize, String> {
    match env::var(REPETITIONS_VARIABLE) {
        Ok(n) => n.parse().ok().filter(|n| *n > 0).ok_or(format!("{REPETITIONS_VARIABLE}={n}?")),
        Err(_) => Ok(default),
    }
}

fn run_child(
    program: &Path,
    section: &str,
    case: &Case,
    contender: Contender,
    scale: Scale,
) -> Result<Vec<(String, f64)>, String> {
    let output = Command::new(program)
        .env(contender::VARIABLE, contender.name())
        .env(SECTION_VARIABLE, section)
        .env(CASE_VARIABLE, &case.name)
        .envs(contender.environment())
        .envs((case.variable)(contender))
        .env(SCALE_VARIABLE, scale.name())
        .output()
        .map_err(|error| format!("cannot start the process: {error}"))?;
    io::stderr().write_all(&output.stderr).ok();
    if !output.status.success() {
        return Err(format!("the process failed: {}", output.status));
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    let figure = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.parse().ok()?))
    };
    let parse = |line| figure(line).ok_or_else(|| format!("the process printed {line:?}"));
    let figures: Vec<_> = stdout.lines().map(parse).collect::<Result<_, _>>()?;
    if figures.is_empty() {
        return Err(format!("{} measured nothing", program.display()));
    }
    Ok(figures)
}
