//! Tables in Markdown, for the terminal too.

use std::fmt::Write;

use super::bars::Bar;
use super::record::{Part, Record};
use super::support::Scale;
use super::support::children::Results;
use super::support::contender::Contender;
use super::support::table::{Column, MIB, US, ratio, with_costs};

/// A peer's figure that is lower than this share of deferfree's is one that the peer wins.
const WIN: f64 = 0.9;
/// Differences that nobody notices, in each figure's own unit.
const NEGLIGIBLE_NS: f64 = US;
const NEGLIGIBLE_BYTES: f64 = 8.0 * MIB;

pub(crate) fn document(record: &Record, bars: &[Bar]) -> String {
    let mut text = "# Side by side\n\n\
        Made by `cargo bench --bench compare`, whose head says how. Medians of the repetitions; in \
        brackets the peer's figure as a multiple of deferfree's, so above 1 deferfree is ahead. The \
        clock's own cost, some tens of nanoseconds, is in every wait. CPU is user and system time of \
        all threads; where there is an RSS idle, that of the idle second is in it.\n"
        .to_owned();
    if record.scale != Scale::Full {
        text +=
            "\n**Rough figures: a run with less work, and fewer times, than the sections say.**\n";
    }
    let mut conditions = None;
    for part in &record.parts {
        // Parts that were measured again may have been so elsewhere, or later.
        if conditions != Some(&part.conditions) {
            conditions = Some(&part.conditions);
            text += "\n| | measured on, with |\n|---|---|\n";
            for (name, fact) in &part.conditions {
                _ = writeln!(text, "| {name} | {fact} |");
            }
        }
        text += &self::part(part).replacen("## ", "\n## ", 1);
    }
    text = text + "\n" + &self::bars(bars, record.scale) + &lost(record);
    // Markdown takes `Vec<u64>` for a tag of HTML.
    text.replace('<', "\\<")
}

pub(crate) fn part(part: &Part) -> String {
    let mut text = format!("## {}\n\n{}.\n", part.section.name, sentence(part.section.about));
    for case in &part.results.cases {
        let columns = part.section.tables.iter().flat_map(|(_, columns)| with_costs(columns));
        let has = |column: &&&Column| {
            let mut contenders = part.results.contenders.iter();
            contenders.any(|it| part.results.get(case, *it, column.key).is_some())
        };
        let columns: Vec<&Column> = columns.filter(|column| has(&column)).collect();
        let mut lines = vec![vec![case.clone()]];
        lines[0].extend(columns.iter().map(|column| column.header.to_owned()));
        for contender in &part.results.contenders {
            let mut line = vec![contender.name().to_owned()];
            line.extend(columns.iter().map(|it| cell(&part.results, case, *contender, it)));
            lines.push(line);
        }
        text += "\n";
        text += &table(&lines);
    }
    text
}

fn sentence(about: &str) -> String {
    let mut letters = about.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

fn cell(results: &Results, case: &str, contender: Contender, column: &Column) -> String {
    let Some(figure) = results.median(case, contender, column.key) else {
        return "-".to_owned();
    };
    let figure = figure / column.divisor;
    let figure = match column.has_ratio {
        true => significant(figure),
        false => format!("{figure:.*}", column.decimals),
    };
    let is_peer = column.has_ratio && contender != Contender::Deferfree;
    match ratio(results, case, contender, column.key).filter(|ratio| is_peer && *ratio > 0.0) {
        Some(ratio) => format!("{figure} ({})", multiple(1.0 / ratio)),
        None => figure,
    }
}

/// Three digits, or all of those before the point.
pub(crate) fn significant(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 | 100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

fn multiple(ratio: f64) -> String {
    let decimals = match ratio {
        10.0.. => 0,
        2.0.. => 1,
        0.1.. => 2,
        _ => 4,
    };
    format!("{ratio:.decimals$}x")
}

pub(crate) fn bars(bars: &[Bar], scale: Scale) -> String {
    let mut lines = vec![["bar", "figure", "verdict", "shown by"].map(str::to_owned).to_vec()];
    for bar in bars {
        let verdict = match bar.is_met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not in this run",
        };
        lines.push(vec![
            bar.what.to_owned(),
            bar.figure.clone(),
            if bar.is_elsewhere() { "see there" } else { verdict }.to_owned(),
            format!("`{}`", bar.shown_by),
        ]);
    }
    let note = match scale {
        Scale::Full => "",
        _ => "This run did too little work for its verdicts to count.\n\n",
    };
    format!("## The bars\n\n{note}{}", table(&lines))
}

/// Every cost of which a peer has less.
fn lost(record: &Record) -> String {
    let header = ["work", "figure", "least", "deferfree", "with"];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    for part in &record.parts {
        let columns = part.section.tables.iter().flat_map(|(_, columns)| *columns);
        let columns: Vec<&Column> = columns.filter(|column| column.has_ratio).collect();
        for case in &part.results.cases {
            let lost = columns.iter().filter_map(|column| lost_in(&part.results, case, column));
            lines.extend(lost.map(|mut line| {
                line.insert(0, format!("{}: {case}", part.section.name));
                line
            }));
        }
    }
    if lines.len() == 1 {
        return String::new();
    }
    format!("\n## Where a peer is ahead\n\nBy a tenth or more.\n\n{}", table(&lines))
}

fn lost_in(results: &Results, case: &str, column: &Column) -> Option<Vec<String>> {
    let median = |contender| results.median(case, contender, column.key);
    let ours = median(Contender::Deferfree)?;
    let peers = results.contenders.iter().filter_map(|peer| Some((*peer, median(*peer)?)));
    let (peer, least) = peers.min_by(|a, b| a.1.total_cmp(&b.1))?;
    let negligible = if column.divisor == MIB { NEGLIGIBLE_BYTES } else { NEGLIGIBLE_NS };
    // Per block a difference of some nanoseconds counts, for there are many.
    let negligible = if column.key.ends_with("per_block") { 0.0 } else { negligible };
    if least >= ours * WIN || ours - least < negligible {
        return None;
    }
    Some(vec![
        column.header.to_owned(),
        significant(least / column.divisor),
        significant(ours / column.divisor),
        peer.name().to_owned(),
    ])
}

/// A Markdown table that is aligned for a terminal. The first line is its header.
fn table(lines: &[Vec<String>]) -> String {
    let n_columns = lines.first().map_or(0, Vec::len);
    let width = |i: usize| lines.iter().map(|line| line[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns).map(|i| width(i).max(3)).collect();
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Names to the left, figures to the right.
            _ = match i {
                0 => write!(text, "| {cell:<width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
        if n == 0 {
            for (i, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                text += &if i == 0 { format!("|{dashes}-|") } else { format!("{dashes}:|") };
            }
            text.push('\n');
        }
    }
    text
}
