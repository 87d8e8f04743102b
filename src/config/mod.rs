//! Settings: defaults set in code, overridden by the environment, read once at first use.

mod parse;

use std::fmt::{self, Write};

use crate::sys;

/// What is in force, see [`DeferFree::config`](crate::DeferFree::config).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Whether frees are deferred at all (`DEFERFREE`).
    pub enabled: bool,
    /// Blocks of at least this many bytes are deferred, each on its own (`DEFERFREE_THRESHOLD`). `usize::MAX` where
    /// nothing is deferred.
    pub threshold_bytes: usize,
    /// Frees of less than 16 KiB may be deferred after about this many in a row on one thread, 0: all of them are;
    /// `None`: none is (`DEFERFREE_BURST`).
    pub burst: Option<u32>,
    /// How long a block waits for reuse before it goes back, in milliseconds (`DEFERFREE_DELAY`).
    pub delay_ms: u64,
    /// Bytes that wait at most; over it frees are inline (`DEFERFREE_MAX_PENDING`).
    pub max_pending_bytes: usize,
}

/// Settings as the code or the environment gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) enabled: bool,
    pub(crate) threshold_bytes: usize,
    pub(crate) burst: Burst,
    pub(crate) delay_ms: u64,
    /// `None`: a quarter of the memory that the process may use.
    pub(crate) max_pending_bytes: Option<usize>,
    pub(crate) reporting: Reporting,
}

/// What is reported at exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reporting {
    pub(crate) to: ReportTo,
    /// Whether each large free is timed.
    pub(crate) latency: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReportTo {
    Nowhere,
    StandardError,
    /// See [`report_path`].
    File,
}

/// When small blocks are deferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Burst {
    /// After about [`DEFAULT_BURST`] frees in a row; never where there is one CPU only.
    Default,
    After(u32),
    Never,
}

/// Frees in a row, about: two looks, of which one in 64 frees makes one, see `burst::local`.
pub(crate) const DEFAULT_BURST: u32 = 128;

impl Settings {
    pub(crate) const DEFAULT: Settings = Settings {
        enabled: true,
        // Chosen by a sweep: docs/choices.md.
        threshold_bytes: 256 << 10,
        burst: Burst::Default,
        delay_ms: 250,
        max_pending_bytes: None,
        reporting: Reporting { to: ReportTo::Nowhere, latency: false },
    };

    /// These defaults, overridden by what the environment says. Neither allocates nor locks.
    ///
    /// With `report`, each variable that cannot be used gets one line on standard error.
    pub(crate) fn with_environment(self, report: bool) -> Settings {
        let mut settings = self;
        // As with `getenv`, the first of several variables of one name counts.
        let mut seen = [false; Variable::ALL.len()];
        sys::for_each_variable(|name, value| {
            if !name.starts_with(b"DEFERFREE") {
                return;
            }
            let Some(variable) = Variable::named(name) else {
                if report && name.starts_with(b"DEFERFREE_") {
                    say(format_args!("{} is not a known variable; ignored", Quoted(name)));
                }
                return;
            };
            if std::mem::replace(&mut seen[variable as usize], true) {
                return;
            }
            if !settings.apply(variable, value) && report {
                say(format_args!(
                    "{}=\"{}\" is not {}; using {}",
                    variable.name(),
                    Quoted(value),
                    variable.expects(),
                    DefaultOf(variable, &self),
                ));
            }
        });
        settings
    }

    /// Sets what `variable` stands for; false leaves it as it was because `value` does not parse.
    fn apply(&mut self, variable: Variable, value: &[u8]) -> bool {
        match variable {
            Variable::Enabled => parse::switch(value).map(|on| self.enabled = on),
            Variable::Threshold => parse::size(value).map(|n| self.threshold_bytes = n),
            Variable::Burst => parse::count_or_off(value).map(|count| {
                self.burst = count.map_or(Burst::Never, Burst::After);
            }),
            Variable::Delay => parse::duration_ms(value).map(|ms| self.delay_ms = ms),
            Variable::MaxPending => parse::size(value).map(|n| self.max_pending_bytes = Some(n)),
            Variable::Stats => parse::reporting(value).map(|reporting| {
                let to = match reporting.to {
                    // A program with more rights than its user must not write files where that user says.
                    ReportTo::File if sys::is_privileged() => ReportTo::Nowhere,
                    to => to,
                };
                self.reporting = Reporting { to, ..reporting };
            }),
        }
        .is_some()
    }
}

/// Copies the path that `DEFERFREE_STATS` names to `path`, as far as there is room.
pub(crate) fn report_path(path: &mut [u8]) {
    let mut seen = false;
    sys::for_each_variable(|name, value| {
        if name == Variable::Stats.name().as_bytes() && !std::mem::replace(&mut seen, true) {
            let value = parse::report_path(value).unwrap_or_default();
            let n = value.len().min(path.len());
            path[..n].copy_from_slice(&value[..n]);
        }
    });
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Enabled,
    Threshold,
    Burst,
    Delay,
    MaxPending,
    Stats,
}

impl Variable {
    const ALL: [Variable; 6] = [
        Variable::Enabled,
        Variable::Threshold,
        Variable::Burst,
        Variable::Delay,
        Variable::MaxPending,
        Variable::Stats,
    ];

    fn named(name: &[u8]) -> Option<Variable> {
        Self::ALL.into_iter().find(|variable| variable.name().as_bytes() == name)
    }

    fn name(self) -> &'static str {
        match self {
            Variable::Enabled => "DEFERFREE",
            Variable::Threshold => "DEFERFREE_THRESHOLD",
            Variable::Burst => "DEFERFREE_BURST",
            Variable::Delay => "DEFERFREE_DELAY",
            Variable::MaxPending => "DEFERFREE_MAX_PENDING",
            Variable::Stats => "DEFERFREE_STATS",
        }
    }

    fn expects(self) -> &'static str {
        match self {
            Variable::Enabled => "on or off",
            Variable::Threshold | Variable::MaxPending => "a size such as 65536, 256K or 1GiB",
            Variable::Burst => "a number of frees or off",
            Variable::Delay => "a duration such as 250ms or 2s",
            Variable::Stats => "1, latency, off, or a file's path with a slash or .json at its end",
        }
    }
}

/// A variable's default as one would write it.
struct DefaultOf<'a>(Variable, &'a Settings);

impl fmt::Display for DefaultOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DefaultOf(variable, defaults) = self;
        match variable {
            Variable::Enabled => f.write_str(if defaults.enabled { "on" } else { "off" }),
            Variable::Threshold => write!(f, "{}", defaults.threshold_bytes),
            Variable::Burst => match defaults.burst {
                Burst::Default => write!(f, "{DEFAULT_BURST}, or off on one CPU"),
                Burst::After(n_frees) => write!(f, "{n_frees}"),
                Burst::Never => f.write_str("off"),
            },
            Variable::Delay => write!(f, "{}ms", defaults.delay_ms),
            Variable::MaxPending => match defaults.max_pending_bytes {
                Some(bytes) => write!(f, "{bytes}"),
                None => f.write_str("1/4 of the memory limit"),
            },
            Variable::Stats => f.write_str("off"),
        }
    }
}

/// Bytes of any kind as printable ASCII, cut after 64.
pub(crate) struct Quoted<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(64)];
        write!(f, "{}", shown.escape_ascii())?;
        if shown.len() < self.0.len() {
            f.write_str("...")?;
        }
        Ok(())
    }
}

/// Writes one line to standard error from a buffer on the stack.
pub(crate) fn say(message: fmt::Arguments<'_>) {
    let mut line = Line { bytes: [0; 512], len: 0 };
    // Both writes fail only when the line is full; what fitted is printed.
    let _ = write!(line, "deferfree: {message}");
    let _ = line.write_str("\n");
    sys::write_stderr(&line.bytes[..line.len]);
}

/// A line that is cut where its buffer ends.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl fmt::Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = &mut self.bytes[self.len..];
        let n = s.len().min(room.len());
        room[..n].copy_from_slice(&s.as_bytes()[..n]);
        self.len += n;
        if n == s.len() { Ok(()) } else { Err(fmt::Error) }
    }
}
