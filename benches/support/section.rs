//! A section of a bench, and how the parent and its children run them.

use std::collections::HashSet;
use std::process::ExitCode;

use super::children::{self, Case, Results};
use super::contender::Contender;
use super::programs::{Program, Programs};
use super::table::{self, Column};
use super::{Scale, machine};

pub(crate) struct Section {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    /// How often each child runs at full scale.
    pub(crate) repetitions: usize,
    pub(crate) cases: fn(Scale) -> Vec<Case>,
    pub(crate) tables: &'static [(&'static str, &'static [Column])],
    pub(crate) bars: fn(&Results),
    pub(crate) contenders: &'static [Contender],
    /// What a contender's processes run; `None` for one that there is no program for.
    pub(crate) program: fn(Contender) -> Option<Program>,
    /// Peak RSS as a multiple of plain mimalloc's. Infinite where `bars` has its own word on it.
    pub(crate) peak_limit: f64,
}

/// What the peak RSS of every workload may be, unless its section says otherwise.
pub(crate) const PEAK_LIMIT: f64 = 1.10;

impl Section {
    /// What most sections have.
    pub(crate) const BASE: Self = Self {
        name: "",
        about: "",
        repetitions: 1,
        cases: |_| Vec::new(),
        tables: &[],
        bars: |_| (),
        contenders: &[Contender::Mimalloc, Contender::Deferfree],
        program: |_| Some(Program::This),
        peak_limit: PEAK_LIMIT,
    };

    pub(crate) fn program(&self, contender: Contender) -> Result<Program, String> {
        let program = (self.program)(contender);
        program
            .ok_or_else(|| format!("{}: there is no program for {}", self.name, contender.name()))
    }
}

/// A bench program.
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    pub(crate) sections: &'static [&'static Section],
    /// Runs in the parent before the sections.
    pub(crate) first: fn(),
}

impl Bench {
    pub(crate) fn main(&self) -> ExitCode {
        self.main_with(Self::parent)
    }

    /// For a bench whose parent does more than print tables.
    pub(crate) fn main_with(&self, parent: impl Fn(&Self) -> Result<(), String>) -> ExitCode {
        self.exit_code(match children::assignment() {
            Some((section, case, scale)) => self.child(Program::This, &section, &case, scale),
            None => parent(self),
        })
    }

    /// For the program of a contender, which only ever is a child.
    pub(crate) fn contender_main(&self, this: Program) -> ExitCode {
        self.exit_code(match children::assignment() {
            Some((section, case, scale)) => self.child(this, &section, &case, scale),
            // `cargo bench` and `cargo test` come here.
            None => {
                println!("{this:?} is a contender of the bench {}, which starts it", self.name);
                Ok(())
            }
        })
    }

    fn exit_code(&self, outcome: Result<(), String>) -> ExitCode {
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}: {error}", self.name);
                ExitCode::FAILURE
            }
        }
    }

    fn child(&self, this: Program, section: &str, case: &str, scale: Scale) -> Result<(), String> {
        let contender = Contender::of_this_process();
        let found = self.sections.iter().find(|known| known.name == section);
        let section = found.ok_or_else(|| format!("there is no section {section:?}"))?;
        if (section.program)(contender) != Some(this) {
            return Err(format!("this program ({this:?}) is not that of {}", contender.name()));
        }
        let cases = (section.cases)(scale);
        let found = cases.iter().find(|known| known.name == case);
        children::run_here(found.ok_or_else(|| format!("there is no case {case:?}"))?)
    }

    /// The sections and cases that `section/case` names parts of.
    pub(crate) fn chosen(
        &self,
        filter: &str,
        scale: Scale,
    ) -> impl Iterator<Item = (&'static Section, Vec<Case>)> {
        let (section_filter, case_filter) = filter.split_once('/').unwrap_or((filter, ""));
        let sections = self.sections.iter().filter(move |it| it.name.contains(section_filter));
        sections.map(move |section| {
            let mut cases = (section.cases)(scale);
            cases.retain(|case| case.name.contains(case_filter));
            (*section, cases)
        })
    }

    /// The programs of the sections' contenders.
    pub(crate) fn programs<'a>(
        &self,
        sections: impl Iterator<Item = &'a Section>,
    ) -> Result<Programs, String> {
        let mut wanted = HashSet::new();
        for section in sections {
            for contender in children::chosen(section.contenders)? {
                wanted.insert(section.program(contender)?);
            }
        }
        Programs::build(wanted)
    }

    fn parent(&self) -> Result<(), String> {
        let (mut filter, mut lists) = (String::new(), false);
        for argument in std::env::args().skip(1) {
            match argument.as_str() {
                "--list" => lists = true,
                "--bench" | "--test" | "--quick" => {}
                option if option.starts_with('-') => {
                    return Err(format!("there is no option {option}"));
                }
                _ => filter = argument,
            }
        }
        (self.first)();
        if lists {
            return Ok(());
        }
        let scale = Scale::from_arguments();
        println!("\n{}", machine::describe());
        println!("cells: medians (min..max) of the repetitions; scale: {}", scale.name());
        if scale == Scale::Test {
            println!("a test run: its figures and verdicts mean nothing");
        }
        let chosen: Vec<_> =
            self.chosen(&filter, scale).filter(|(_, cases)| !cases.is_empty()).collect();
        if chosen.is_empty() {
            return Err(format!("nothing is named {filter:?}"));
        }
        let programs = self.programs(chosen.iter().map(|(section, _)| *section))?;
        for (section, cases) in chosen {
            println!("\n== {}: {}", section.name, section.about);
            let results = children::run(section, &cases, scale, &programs)?;
            for (title, columns) in section.tables {
                table::print(title, columns, &results);
            }
            println!();
            (section.bars)(&results);
            if section.peak_limit.is_finite() {
                table::bar_peak(&results, section.peak_limit);
            }
        }
        Ok(())
    }
}
