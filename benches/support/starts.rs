//! Programs that run for a moment, as a shell sees them: each from its start to its end.

use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::children::{Case, Results, in_case};
use super::contender::Contender;
use super::memory::{cpu_time_of, reset_peak_rss};
use super::programs::Programs;
use super::section::Section;
use super::timing::{Latencies, nanos};

#[derive(Debug)]
pub(crate) struct Starts {
    /// What the programs are asked for.
    pub(crate) argument: &'static str,
    /// Of each contender.
    pub(crate) n: usize,
}

struct Measured {
    contender: Contender,
    wall: Latencies,
    cpu: Latencies,
    faults: Latencies,
    peak_bytes: u64,
}

impl Measured {
    fn new(contender: Contender) -> Self {
        let [wall, cpu, faults] = std::array::from_fn(|_| Latencies::precise());
        Self { contender, wall, cpu, faults, peak_bytes: 0 }
    }
}

impl Starts {
    /// The contenders take turns, start by start, each being first as often as last.
    pub(crate) fn measure(
        &self,
        section: &Section,
        case: &Case,
        programs: &Programs,
        results: &mut Results,
    ) -> Result<(), String> {
        // A process inherits its parent's peak until it has more.
        reset_peak_rss();
        let mut all: Vec<Measured> =
            results.contenders.iter().copied().map(Measured::new).collect();
        // One start more: the first finds the program in no cache.
        for start in 0..=self.n {
            for place in 0..all.len() {
                let of = (start + place) % all.len();
                let of = &mut all[of];
                let program = programs.path(section.program(of.contender)?)?;
                let (wall, usage) = start_to_end(program, self.argument, of.contender)
                    .map_err(|error| in_case(section, case, of.contender, error))?;
                if start == 0 {
                    continue;
                }
                of.wall.record(nanos(wall));
                of.cpu.record(nanos(cpu_time_of(&usage)));
                of.faults.record(usage.ru_minflt.unsigned_abs());
                of.peak_bytes = of.peak_bytes.max(usage.ru_maxrss.unsigned_abs() * 1024);
            }
        }
        for of in all {
            let mut put = |key: &str, value: Option<f64>| {
                if let Some(value) = value {
                    results.push(&case.name, of.contender, key.to_owned(), value);
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
