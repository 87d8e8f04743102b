//! Tables of contenders side by side, and the bars that the figures are held against.

use super::children::{Results, Spread};
use super::contender::Contender;

/// A figure of a table: the children's key, the header, and how many of the child's units
/// (nanoseconds, bytes) make one of the header's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) key: &'static str,
    pub(crate) header: &'static str,
    pub(crate) divisor: f64,
    pub(crate) decimals: usize,
    pub(crate) has_ratio: bool,
}

pub(crate) const fn column(
    key: &'static str,
    header: &'static str,
    divisor: f64,
    decimals: usize,
) -> Column {
    Column { key, header, divisor, decimals, has_ratio: true }
}

/// A number of samples, or another figure that is not a contender's merit.
pub(crate) const fn count(key: &'static str, header: &'static str) -> Column {
    Column { key, header, divisor: ONE, decimals: 0, has_ratio: false }
}

/// The clock's own cost, for beside every latency.
pub(crate) const EMPTY: Column = count("empty", "empty timer pair ns");

pub(crate) const ONE: f64 = 1.0;
pub(crate) const US: f64 = 1e3;
pub(crate) const MS: f64 = 1e6;
pub(crate) const MIB: f64 = 1048576.0;

pub(crate) const CPU: Column = column("cpu", "CPU ms", MS, 0);
pub(crate) const PEAK: Column = column("peak", "peak RSS MiB", MIB, 0);

/// CPU and peak are shown in every table: at its end, unless it has them already.
pub(crate) fn with_costs(columns: &[Column]) -> impl Iterator<Item = &Column> {
    let costs = [const { &CPU }, const { &PEAK }];
    let missing = costs.into_iter().filter(|cost| !columns.iter().any(|it| it.key == cost.key));
    columns.iter().chain(missing)
}

/// For each case a line per contender, `median (min..max)` over the repetitions, and a line with
/// the ratios of the medians.
pub(crate) fn print(title: &str, columns: &[Column], results: &Results) {
    let columns: Vec<&Column> = with_costs(columns).collect();
    let mut lines = vec![vec![String::new(), String::new()]];
    lines[0].extend(columns.iter().map(|column| column.header.to_owned()));
    for case in &results.cases {
        let get = |contender: Contender, column: &Column| results.get(case, contender, column.key);
        let is_measured =
            |it: &&Contender| columns.iter().any(|column| get(**it, column).is_some());
        let measured: Vec<Contender> =
            results.contenders.iter().filter(is_measured).copied().collect();
        for (i, contender) in measured.iter().enumerate() {
            let mut line = vec![if i == 0 { case.clone() } else { String::new() }];
            line.push(contender.name().to_owned());
            line.extend(columns.iter().map(|column| {
                get(*contender, column).map_or("-".to_owned(), |spread| cell(column, spread))
            }));
            lines.push(line);
        }
        let pairs = measured.iter().flat_map(|peer| {
            let held = measured.iter().filter(|it| is_held_against(**it, *peer));
            held.map(|it| (*it, *peer))
        });
        for (contender, peer) in pairs {
            let mut line = vec![String::new(), format!("{} / {}", contender.name(), peer.name())];
            line.extend(columns.iter().map(|column| {
                let ratio = ratio_of(results, case, contender, peer, column.key);
                ratio
                    .filter(|_| column.has_ratio)
                    .map_or(String::new(), |ratio| format!("{ratio:.2} x"))
            }));
            lines.push(line);
        }
    }
    println!("\n{title}");
    print_aligned(&lines);
}

/// Whether a line of ratios is of interest.
fn is_held_against(contender: Contender, peer: Contender) -> bool {
    match contender {
        Contender::MimallocAgain => peer == Contender::Mimalloc,
        _ => contender.is_ours() && !peer.is_ours() && peer != Contender::MimallocAgain,
    }
}

fn cell(column: &Column, spread: Spread) -> String {
    let number = |value: f64| format!("{:.*}", column.decimals, value / column.divisor);
    if spread.n == 1 {
        return number(spread.median);
    }
    format!("{} ({}..{})", number(spread.median), number(spread.min), number(spread.max))
}

fn print_aligned(lines: &[Vec<String>]) {
    let n_columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| lines.iter().filter_map(|line| line.get(i)).map(String::len).max();
    let widths: Vec<usize> = (0..n_columns).map(|i| width(i).unwrap_or(0)).collect();
    for line in lines {
        let mut text = String::new();
        for (i, (cell, width)) in line.iter().zip(&widths).enumerate() {
            // Names to the left, figures to the right.
            text += &if i < 2 { format!("{cell:width$}  ") } else { format!("{cell:>width$}  ") };
        }
        println!("{}", text.trim_end());
    }
}

/// `deferfree / peer`, of the medians.
pub(crate) fn ratio(results: &Results, case: &str, peer: Contender, key: &str) -> Option<f64> {
    ratio_of(results, case, Contender::Deferfree, peer, key)
}

/// `contender / peer`, of the medians.
pub(crate) fn ratio_of(
    results: &Results,
    case: &str,
    contender: Contender,
    peer: Contender,
    key: &str,
) -> Option<f64> {
    let its = results.median(case, contender, key)?;
    let theirs = results.median(case, peer, key)?;
    (theirs > 0.0).then(|| its / theirs)
}

/// The largest of what `figure` gives for the cases, and where it was.
pub(crate) fn worst<'a>(
    cases: impl IntoIterator<Item = &'a String>,
    figure: impl Fn(&str) -> Option<f64>,
) -> Option<(f64, &'a str)> {
    let figures = cases.into_iter().filter_map(|case| Some((figure(case)?, case.as_str())));
    figures.max_by(|a, b| a.0.total_cmp(&b.0))
}

/// Prints whether a bar is met: `worst` is the worst figure with its case, `limit` what it may be.
pub(crate) fn bar(what: &str, unit: &str, worst: Option<(f64, &str)>, limit: f64) {
    match worst {
        Some((figure, case)) => {
            let verdict = if figure <= limit { "met" } else { "NOT MET" };
            println!(
                "bar: {what}: {figure:.2}{unit} at worst ({case}), limit {limit}{unit}: {verdict}"
            );
        }
        None => println!("bar: {what}: not measured in this run"),
    }
}

/// Holds `key` of one contender against plain mimalloc's, case by case, and names the cases that are
/// over. With each the ratio of the least figures, which noise can only raise; and, if it was
/// measured, what the same program makes of a second run.
pub(crate) fn bar_each<'a>(
    what: &str,
    contender: Contender,
    key: &str,
    cases: impl IntoIterator<Item = &'a String> + Clone,
    limit: f64,
    results: &Results,
) {
    let of = |case: &str| ratio_of(results, case, contender, Contender::Mimalloc, key);
    let Some((figure, case)) = worst(cases.clone(), of) else {
        println!("bar: {what}, {}: not measured in this run", contender.name());
        return;
    };
    let n_cases = cases.clone().into_iter().filter(|case| of(case).is_some()).count();
    let over: Vec<String> = (cases.clone().into_iter())
        .filter(|case| of(case) > Some(limit))
        .map(|case| {
            let of_least = |contender| Some(results.get(case, contender, key)?.min);
            let ratio = of(case).unwrap_or(f64::NAN);
            let least = [contender, Contender::Mimalloc].map(|it| of_least(it).unwrap_or(f64::NAN));
            format!("{case} {ratio:.3} x (least {:.3} x)", least[0] / least[1])
        })
        .collect();
    let verdict = match over.len() {
        0 => "met".to_owned(),
        n => format!("NOT MET in {n} of {n_cases}"),
    };
    println!(
        "bar: {what}, {}: {figure:.3} x plain mimalloc at worst ({case}), limit {limit} x: {verdict}",
        contender.name(),
    );
    for case in over {
        println!("     over: {case}");
    }
    let again: Vec<f64> = (cases.into_iter())
        .filter_map(|case| {
            ratio_of(results, case, Contender::MimallocAgain, Contender::Mimalloc, key)
        })
        .collect();
    if !again.is_empty() {
        let least = again.iter().copied().fold(f64::INFINITY, f64::min);
        let most = again.iter().copied().fold(0.0, f64::max);
        println!("     (mimalloc against itself, other processes: {least:.3} x to {most:.3} x)");
    }
}

/// How far apart two medians of the same thing lie on a noisy machine.
pub(crate) const NOISE: f64 = 1.05;

/// Holds `key` against plain mimalloc's: no more, save for noise. A case is over if its ratio is
/// above the noise, or if all repetitions (three or more) are above all of mimalloc's.
pub(crate) fn bar_no_slower<'a>(
    what: &str,
    key: &str,
    cases: impl IntoIterator<Item = &'a String> + Clone,
    results: &Results,
) {
    let is_over = |case: &str| -> Option<bool> {
        let ours = results.get(case, Contender::Deferfree, key)?;
        let theirs = results.get(case, Contender::Mimalloc, key)?;
        let is_apart = ours.n >= 3 && ours.min > theirs.max;
        Some(is_apart || ours.median > theirs.median * NOISE)
    };
    let n_cases = cases.clone().into_iter().count();
    let over: Vec<String> = (cases.clone().into_iter())
        .filter(|case| is_over(case) == Some(true))
        .map(|case| {
            let ratio = ratio(results, case, Contender::Mimalloc, key).unwrap_or(f64::NAN);
            format!("{case} {ratio:.2} x")
        })
        .collect();
    let Some((worst, case)) = worst(cases, |case| ratio(results, case, Contender::Mimalloc, key))
    else {
        println!("bar: {what}: not measured in this run");
        return;
    };
    print!(
        "bar: {what}: {worst:.2} x plain mimalloc at worst ({case}), limit 1 x save for noise: "
    );
    if over.is_empty() {
        println!("met");
    } else {
        println!("NOT MET in {} of {n_cases} cases: {}", over.len(), over.join(", "));
    }
}

/// Holds deferfree's longest wait while memory goes back against the longest of the same loop with
/// nothing going back. The limit is the worst of the control's repetitions: it says how long this
/// machine stalls a loop for reasons of its own.
pub(crate) fn bar_control(what: &str, key: &str, freed: &str, control: &str, results: &Results) {
    let get = |case| results.get(case, Contender::Deferfree, key);
    let (Some(freed), Some(control)) = (get(freed), get(control)) else {
        println!("bar: {what}: not measured in this run");
        return;
    };
    let verdict = if freed.median <= control.max { "met" } else { "NOT MET" };
    println!(
        "bar: {what}: {:.1} us (median; {:.1} at best) while memory goes back, {:.1} us otherwise, \
         {:.2} x, limit {:.1} us (the control's worst): {verdict}",
        freed.median / US,
        freed.min / US,
        control.median / US,
        freed.median / control.median,
        control.max / US,
    );
}

/// Every section's bar on memory.
pub(crate) fn bar_peak(results: &Results, limit: f64) {
    let ours = results.contenders.iter().filter(|contender| contender.is_ours());
    let peak = worst(&results.cases, |case| {
        let ratios =
            ours.clone().filter_map(|it| ratio_of(results, case, *it, Contender::Mimalloc, "peak"));
        ratios.max_by(f64::total_cmp)
    });
    bar("peak RSS against plain mimalloc's", " x", peak, limit);
}
