//! How long the slowest share of the requests waited.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Error;
use super::style::{self, Area, FAINT, INK, Look, SMALL, TEXT, WIDTH};
use crate::bench::record::Record;
use crate::bench::request::QUANTILES;
use crate::bench::support::contender::Contender;

const HEIGHT: u32 = 470;
const LEFT: i32 = 76;
const RIGHT: i32 = WIDTH as i32 - 190;
const TOP: i32 = style::HEADING as i32 + 6;
const BOTTOM: i32 = HEIGHT as i32 - 58;

/// Percentiles that have a name on the axis.
const TICKS: [(&str, f64); 6] = [
    ("50 %", 0.5),
    ("75 %", 0.75),
    ("90 %", 0.9),
    ("99 %", 0.99),
    ("99.9 %", 0.999),
    ("99.95 %", 0.9995),
];
/// Where the maximum stands, as a share of the requests: one in so many.
const MAX_AT: f64 = 1.0 - 1.0 / 5000.0;

/// Each ninth of what is left has the same width: 90 %, 99 %, 99.9 %.
fn x(quantile: f64) -> i32 {
    let nines = |quantile: f64| -(1.0 - quantile).log10();
    let share = nines(quantile) / nines(MAX_AT);
    LEFT + ((RIGHT - LEFT) as f64 * share).round() as i32
}

pub(crate) fn draw(record: &Record, path: &Path) -> Result<(), Error> {
    let part = record.part("request").ok_or("not measured")?;
    let results = &part.results;
    let case = results.cases.first().ok_or("no case was measured")?;
    let curve = |contender: Contender| -> Vec<(i32, f64)> {
        let quantiles = QUANTILES.iter().filter_map(|(key, quantile)| {
            Some((x(*quantile), results.median(case, contender, key)?))
        });
        let max = results.median(case, contender, "max").map(|max| (x(MAX_AT), max));
        quantiles.chain(max).collect()
    };
    let curves: Vec<_> = results.contenders.iter().map(|it| (*it, curve(*it))).collect();
    let figures = || curves.iter().flat_map(|(_, curve)| curve.iter().map(|point| point.1));
    let low = figures().fold(f64::INFINITY, f64::min) / 1.2;
    let high = figures().fold(low * 2.0, f64::max) * 1.2;
    let y = |ns: f64| {
        BOTTOM - (style::logarithmic(ns, low, high) * f64::from(BOTTOM - TOP)).round() as i32
    };

    let root: Area = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("Answer times in a request loop{}", style::rough(record));
    style::heading(
        &root,
        &title,
        "From when a request is due, or the worker awake for it, until its working set is let go, logarithmic scale",
    )?;
    let faint = Look { color: FAINT, dash: None, width: 1 };
    let ink = Look { color: INK, ..faint };
    let steps = style::decades(1.0, high).flat_map(|it| [it, it * 2.0, it * 5.0]);
    for ns in steps.filter(|ns| (low..=high).contains(ns)) {
        style::line(&root, &[(LEFT, y(ns)), (RIGHT, y(ns))], faint)?;
        let at = (LEFT - 8, y(ns));
        style::text(&root, style::time(ns), at, SMALL + 1, (HPos::Right, VPos::Center))?;
    }
    for (name, quantile) in TICKS.into_iter().chain([("max", MAX_AT)]) {
        // The line there is, but no room for its name between its neighbours.
        let is_named = name != "99.95 %";
        style::line(&root, &[(x(quantile), TOP), (x(quantile), BOTTOM)], faint)?;
        if is_named {
            let at = (x(quantile), BOTTOM + 8);
            style::text(&root, name, at, SMALL + 1, (HPos::Center, VPos::Top))?;
        }
    }
    style::line(&root, &[(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], ink)?;
    let middle = ((LEFT + RIGHT) / 2, HEIGHT as i32 - 12);
    let about = "share of the requests that were answered sooner";
    style::text(&root, about, middle, TEXT, (HPos::Center, VPos::Bottom))?;
    let mut ends = Vec::new();
    for (contender, curve) in &curves {
        let points: Vec<_> = curve.iter().map(|(x, ns)| (*x, y(*ns))).collect();
        style::line(&root, &points, style::look(*contender))?;
        ends.extend(points.last().map(|end| (*contender, *end)));
    }
    style::names_at_ends(&root, &ends)?;
    root.present()?;
    Ok(())
}
