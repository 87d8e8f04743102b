//! A section of a bench, and how the parent and its children run them.

use std::process::ExitCode;

use super::allocator::Contender;
use super::children::{self, Case, Results};
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
    /// Peak RSS as a multiple of plain mimalloc's.
    pub(crate) peak_limit: f64,
}

/// What the peak RSS of every workload may be, unless its section says otherwise.
pub(crate) const PEAK_LIMIT: f64 = 1.10;

/// A bench program.
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    pub(crate) sections: &'static [&'static Section],
    pub(crate) contenders: &'static [Contender],
    /// Runs in the parent before the sections.
    pub(crate) first: fn(),
}

impl Bench {
    pub(crate) fn main(&self) -> ExitCode {
        self.main_with(Self::parent)
    }

    /// For a bench whose parent does more than print tables.
    pub(crate) fn main_with(&self, parent: impl Fn(&Self) -> Result<(), String>) -> ExitCode {
        let outcome = match children::assignment() {
            Some((section, case, scale)) => self.child(&section, &case, scale),
            None => parent(self),
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{}: {error}", self.name);
                ExitCode::FAILURE
            }
        }
    }

    fn child(&self, section: &str, case: &str, scale: Scale) -> Result<(), String> {
        let found = self.sections.iter().find(|known| known.name == section);
        let section = found.ok_or_else(|| format!("there is no section {section:?}"))?;
        let cases = (section.cases)(scale);
        let found = cases.iter().find(|known| known.name == case);
        children::run_here(found.ok_or_else(|| format!("there is no case {case:?}"))?);
        Ok(())
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

    fn parent(&self) -> Result<(), String> {
        (self.first)();
        if std::env::args().any(|argument| argument == "--list") {
            return Ok(());
        }
        let mut arguments = std::env::args().skip(1);
        let filter = arguments.find(|argument| !argument.starts_with('-')).unwrap_or_default();
        let scale = Scale::from_arguments();
        println!("\n{}", machine::describe());
        println!("cells: medians (min..max) of the repetitions; scale: {}", scale.name());
        if scale == Scale::Test {
            println!("a test run: its figures and verdicts mean nothing");
        }
        for (section, cases) in self.chosen(&filter, scale) {
            println!("\n== {}: {}", section.name, section.about);
            let repetitions = scale.pick(section.repetitions, 1, 1);
            let results = children::run(section.name, &cases, repetitions, scale, self.contenders)?;
            for (title, columns) in section.tables {
                table::print(title, columns, &results);
            }
            println!();
            (section.bars)(&results);
            table::bar_peak(&results, section.peak_limit);
        }
        Ok(())
    }
}
