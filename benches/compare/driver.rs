//! The command: what is asked of it, and where its output goes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::record::{Part, Record};
use super::sections::SECTIONS;
use super::support::Scale;
use super::support::children;
use super::support::section::Bench;
use super::{bars, pictures, record, report};

struct Options {
    filter: String,
    /// Where the output goes, if not below the target directory.
    save: Option<PathBuf>,
    render: bool,
    list: bool,
    scale: Scale,
}

impl Options {
    fn from_arguments() -> Result<Self, String> {
        let mut options = Self {
            filter: String::new(),
            save: None,
            render: false,
            list: false,
            scale: Scale::from_arguments(),
        };
        let mut arguments = env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--save" => options.save = Some(directory_after("--save", arguments.next())?),
                "--render" => options.render = true,
                "--list" => options.list = true,
                "--bench" | "--test" | "--quick" => {}
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option}"));
                }
                _ => options.filter = argument,
            }
        }
        Ok(options)
    }

    fn directory(&self) -> Result<PathBuf, String> {
        if let Some(save) = &self.save {
            return Ok(save.clone());
        }
        let program =
            env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        // target/release/deps/compare-0123456789abcdef
        let target = program.ancestors().nth(3).ok_or("this program is in no target directory")?;
        Ok(target.join("compare"))
    }
}

fn directory_after(option: &str, argument: Option<String>) -> Result<PathBuf, String> {
    let directory = argument.filter(|argument| !argument.starts_with('-'));
    let directory = directory.ok_or_else(|| format!("{option} takes a directory"))?;
    // Cargo starts a bench in its package's directory, and not in that in which the command was given.
    Ok(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(directory))
}

pub(crate) fn run(bench: &Bench) -> Result<(), String> {
    let options = Options::from_arguments()?;
    if options.list {
        for (section, cases) in bench.chosen(&options.filter, options.scale) {
            for case in cases {
                println!("{}/{}", section.name, case.name);
            }
        }
        return Ok(());
    }
    let directory = options.directory()?;
    let mut record = start(&options, &directory)?;
    if !options.render {
        measure(bench, &options, &directory, &mut record)?;
    }
    let bars = bars::rows(&record);
    println!("\n{}", report::bars(&bars, record.scale));
    write(&directory.join("compare.md"), &report::document(&record, &bars))?;
    pictures::draw(&record, &directory.join("figures"))?;
    println!("written: compare.md, compare.json and figures/ in {}", directory.display());
    Ok(())
}

/// What is there already, as far as this run keeps it.
fn start(options: &Options, directory: &Path) -> Result<Record, String> {
    let file = directory.join("compare.json");
    let there = match fs::read_to_string(&file) {
        Ok(text) => Some(record::parse(&text).map_err(|e| format!("{}: {e}", file.display()))?),
        Err(_) => None,
    };
    if options.render {
        return there.ok_or_else(|| format!("there is no {} to draw from", file.display()));
    }
    let is_rough = |scale: Scale| scale != Scale::Full;
    match there {
        Some(there)
            if options.save.is_some() && is_rough(options.scale) && !is_rough(there.scale) =>
        {
            Err(format!(
                "{} holds a full run, and this one is rough: remove it first",
                file.display()
            ))
        }
        Some(there) if !options.filter.is_empty() && there.scale == options.scale => Ok(there),
        _ => Ok(Record { scale: options.scale, parts: Vec::new() }),
    }
}

fn measure(
    bench: &Bench,
    options: &Options,
    directory: &Path,
    record: &mut Record,
) -> Result<(), String> {
    let conditions = record::conditions();
    let scale = options.scale;
    for (name, fact) in &conditions {
        println!("{name}: {fact}");
    }
    println!("scale: {}; cells: medians of the repetitions", scale.name());
    if scale == Scale::Test {
        println!("a test run: its figures and verdicts mean nothing");
    }
    let chosen: Vec<_> = bench.chosen(&options.filter, scale).collect();
    if chosen.iter().all(|(_, cases)| cases.is_empty()) {
        return Err(format!("nothing is named {:?}", options.filter));
    }
    let programs = bench.programs(chosen.iter().map(|(section, _)| *section))?;
    let begin = Instant::now();
    for (i, (section, cases)) in chosen.iter().enumerate() {
        if cases.is_empty() {
            continue;
        }
        let so_far = begin.elapsed().as_secs();
        eprintln!("-- section {} of {}, {so_far} s so far", i + 1, chosen.len());
        let results = children::run(section, cases, scale, &programs)?;
        let part = Part { section, conditions: conditions.clone(), results };
        println!("\n{}", report::part(&part));
        record.put(part, &SECTIONS);
        // After each section, so that a run that is broken off leaves what it has measured.
        write(&directory.join("compare.json"), &record.to_json())?;
    }
    println!("measured in {} s", begin.elapsed().as_secs());
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    let parent = file.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(file, text))
        .map_err(|error| format!("{}: {error}", file.display()))
}
