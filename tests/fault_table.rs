//! The table of faults in `tests/README.md` names tests that there are, and each test there is.
//!
//! Seen to fail: with a name in the table changed, with that of a model changed, with a row taken out, with a test of
//! either kind added, and with a name in `NOT_TINY` changed.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// In the table's third column: "stats*: `table`, `json`; models: `burst`".
const TABLE: &str = include_str!("README.md");

/// Tests by program.
type Tests = BTreeMap<String, BTreeSet<String>>;

#[test]
fn each_test_is_in_the_table() {
    let tests = tests();
    let mut named = Tests::new();
    for entry in entries() {
        let (head, names) = entry.split_once(':').unwrap_or((entry, ""));
        if is_about_units(head) {
            continue;
        }
        for program in head.split(',') {
            let program = program.split_whitespace().next().unwrap().trim_end_matches('*');
            let all = tests.get(program).unwrap_or_else(|| panic!("no program {program}: {entry}"));
            let named = named.entry(program.to_owned()).or_default();
            if names.trim() == "all" {
                named.extend(all.iter().cloned());
            }
            for name in quoted(names) {
                assert!(all.contains(name), "no test {name} in {program}: {entry}");
                named.insert(name.to_owned());
            }
        }
    }
    for (program, cases) in &tests {
        let named = named.get(program).unwrap_or_else(|| panic!("not in the table: {program}"));
        let missing: Vec<_> = cases.difference(named).collect();
        assert!(missing.is_empty(), "not in the table: {program}: {missing:?}");
    }
}

/// Models and unit tests go by their names, or by that of their module.
#[test]
fn each_model_and_unit_test_is_there() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let tests: BTreeSet<String> =
        files(&source).iter().flat_map(|file| functions_of(&read(file))).collect();
    let mut n_names = 0;
    for entry in entries().filter(|entry| is_about_units(entry)) {
        for name in quoted(entry) {
            let is_module =
                source.join(name).is_dir() || source.join(format!("{name}.rs")).is_file();
            assert!(is_module || tests.contains(name), "no {name}: {entry}");
            n_names += 1;
        }
    }
    assert!(n_names > 10);
}

#[test]
fn what_a_tiny_run_leaves_out_is_there() {
    let tests = tests();
    for (program, test, _) in common::NOT_TINY {
        assert!(tests[*program].contains(*test), "{program}: {test}");
    }
}

fn is_about_units(entry: &str) -> bool {
    entry.contains("models") || entry.contains("unit test")
}

fn entries() -> impl Iterator<Item = &'static str> {
    let cells = TABLE.lines().map(|line| line.split('|').collect::<Vec<_>>());
    // Four columns, and what is outside of the bars.
    let tests =
        cells.filter(|cells| cells.len() == 6 && cells[3].trim() != "test").map(|cells| cells[3]);
    let entries = tests.filter(|test| *test != "---").flat_map(|test| test.split(';'));
    entries.map(str::trim)
}

/// What is between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Those of a program with the usual harness are in its file, those of another one in the list that it gives to `run`,
/// or to the macro of `huge`.
fn tests() -> Tests {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut tests = Tests::new();
    for file in files(&folder) {
        let (text, name) = (read(&file), file.file_stem().unwrap().to_str().unwrap().to_owned());
        let mut names = BTreeSet::new();
        if file.parent().unwrap() == folder {
            names.extend(functions_of(&text));
            // Without tests it is a program in `cases`, or one that is a test as a whole.
            if names.is_empty() && folder.join("cases").join(format!("{name}.rs")).exists() {
                continue;
            }
        } else if text.contains("    cases! {\n") {
            let list = between(&text, "    cases! {\n", "}");
            names.extend(list.split_whitespace().map(str::to_owned));
        } else if file.parent().unwrap().ends_with("cases") {
            let begin = if text.contains("const TESTS") { "const TESTS" } else { "common::run(&[" };
            let list = between(&text, begin, "]);\n").split("\n];\n").next().unwrap();
            let mut before = "[";
            for rest in list.trim_start().trim_start_matches("(\"").split("(\"") {
                // Not what is handed to a function, nor a variable of the environment.
                if before.ends_with([' ', '[']) && rest.starts_with(char::is_lowercase) {
                    names.extend(rest.split_once("\",").map(|(name, _)| name.to_owned()));
                }
                before = rest;
            }
        } else {
            continue;
        }
        tests.insert(name, names);
    }
    tests
}

/// Those that are marked as tests.
fn functions_of(text: &str) -> BTreeSet<String> {
    let marked = text.split("#[test]\n").skip(1);
    marked.map(|test| between(test, "fn ", "(").to_owned()).collect()
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(begin).unwrap();
    rest.split_once(end).map_or(rest, |(between, _)| between)
}

/// The Rust files in a folder and below it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|it| it == "rs"))
        .collect()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap()
}
