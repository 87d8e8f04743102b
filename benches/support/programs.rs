//! The executables of the contenders.
//!
//! A bench may have a program for each of its contenders, with the global allocator that a user would
//! write there: a bench target of a few lines around the same module. The one that is started by hand
//! has cargo build the others. That it is asked in so many words, and not guessed from file names, is
//! because only cargo knows which of the files in its directory is up to date.

use std::collections::HashMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::contender::Contender;

/// What a contender's processes run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Program {
    /// The bench itself.
    This,
    /// Another bench target of this package.
    Target(&'static str),
}

/// Where each contender's program is.
#[derive(Debug)]
pub(crate) struct Programs(HashMap<Contender, PathBuf>);

impl Programs {
    /// Builds what is not there yet. `program` says who runs what, `None` if it knows no program.
    pub(crate) fn build(
        contenders: &[Contender],
        program: impl Fn(Contender) -> Option<Program>,
    ) -> Result<Self, String> {
        let this =
            env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let mut programs = Vec::new();
        let mut targets = Vec::new();
        for contender in contenders {
            let program = program(*contender)
                .ok_or_else(|| format!("there is no program for {}", contender.name()))?;
            programs.push((*contender, program));
            if let Program::Target(target) = program {
                if !targets.contains(&target) {
                    targets.push(target);
                }
            }
        }
        let built = build(&targets)?;
        let path = |program| match program {
            Program::This => Ok(this.clone()),
            Program::Target(target) => {
                built.get(target).cloned().ok_or_else(|| format!("cargo built no {target}"))
            }
        };
        let located = programs.into_iter().map(|(who, program)| Ok((who, path(program)?)));
        Ok(Self(located.collect::<Result<_, String>>()?))
    }

    pub(crate) fn of(&self, contender: Contender) -> Result<&Path, String> {
        let path = self.0.get(&contender);
        path.map(PathBuf::as_path)
            .ok_or_else(|| format!("no program was built for {}", contender.name()))
    }
}

/// The executables of bench targets, by name. Built as this program was: for `cargo bench`, or in a
/// debug build for `cargo test`. A target directory or a profile that was named on the command line
/// is not known here; in the environment it is. The whole repository's manifest: for one package alone cargo may
/// choose other features of what both depend on, and compile that once more.
fn build(targets: &[&str]) -> Result<HashMap<String, PathBuf>, String> {
    if targets.is_empty() {
        return Ok(HashMap::new());
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .arg(if cfg!(debug_assertions) { "test" } else { "bench" })
        .args(["--quiet", "--no-run", "--message-format=json"])
        .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .args(targets.iter().flat_map(|target| ["--bench", target]))
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo could not build {}: {}", targets.join(", "), output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?;
        Some((name.to_owned(), message["executable"].as_str()?.into()))
    };
    Ok(messages.lines().filter_map(executable).collect())
}
