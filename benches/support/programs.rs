//! The executables of the contenders.
//!
//! A bench may have a program for each of its contenders, with the global allocator that a user would
//! write there: a bench target of a few lines around the same module. The one that is started by hand
//! has cargo build the others. That it is asked in so many words, and not guessed from file names, is
//! because only cargo knows which of the files in its directory is up to date.

use std::collections::{HashMap, HashSet};
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What a contender's processes run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Program {
    /// The bench itself.
    This,
    /// Another bench target of this package.
    Target(&'static str),
    /// That of a package with a workspace of its own, in the folder of this name.
    Package(&'static str),
}

/// Where each program is.
#[derive(Debug)]
pub(crate) struct Programs(HashMap<Program, PathBuf>);

impl Programs {
    /// Builds what is not there yet.
    pub(crate) fn build(wanted: HashSet<Program>) -> Result<Self, String> {
        let this =
            env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let target = |program: &Program| match program {
            Program::Target(target) => Some(*target),
            _ => None,
        };
        let targets = build_targets(&wanted.iter().filter_map(target).collect::<Vec<_>>())?;
        let path = |program| match program {
            Program::This => Ok(this.clone()),
            Program::Target(name) => built(&targets, name),
            Program::Package(name) => built(&build_package(name, &this)?, name),
        };
        let located = wanted.into_iter().map(|program| Ok((program, path(program)?)));
        Ok(Self(located.collect::<Result<_, String>>()?))
    }

    pub(crate) fn path(&self, program: Program) -> Result<&Path, String> {
        let path = self.0.get(&program);
        path.map(PathBuf::as_path).ok_or_else(|| format!("{program:?} was not built"))
    }
}

fn built(executables: &HashMap<String, PathBuf>, name: &str) -> Result<PathBuf, String> {
    executables.get(name).cloned().ok_or_else(|| format!("cargo built no {name}"))
}

/// The executables of bench targets, by name. Built as this program was: for `cargo bench`, or in a
/// debug build for `cargo test`. A target directory or a profile that was named on the command line
/// is not known here; in the environment it is. The whole repository's manifest: for one package
/// alone cargo may choose other features of what both depend on, and compile that once more.
fn build_targets(targets: &[&str]) -> Result<HashMap<String, PathBuf>, String> {
    if targets.is_empty() {
        return Ok(HashMap::new());
    }
    let mut command = cargo(if cfg!(debug_assertions) { "test" } else { "bench" }, "..");
    command.arg("--no-run").args(targets.iter().flat_map(|target| ["--bench", target]));
    executables(command)
}

fn build_package(name: &str, this: &Path) -> Result<HashMap<String, PathBuf>, String> {
    let mut command = cargo("build", name);
    // target/release/deps/compare-0123456789abcdef
    let target = this.ancestors().nth(3).ok_or("this program is in no target directory")?;
    command.arg("--release").arg("--target-dir").arg(target.join(name));
    executables(command)
}

fn cargo(command: &str, package: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join(package).join("Cargo.toml");
    cargo.args([command, "--quiet", "--message-format=json", "--manifest-path"]).arg(manifest);
    cargo
}

fn executables(mut cargo: Command) -> Result<HashMap<String, PathBuf>, String> {
    let output = cargo.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cannot start cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("{cargo:?} failed: {}", output.status));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let name = message["target"]["name"].as_str()?;
        Some((name.to_owned(), message["executable"].as_str()?.into()))
    };
    Ok(messages.lines().filter_map(executable).collect())
}
