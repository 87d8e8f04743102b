//! What the caller waits for the drop of each structure: a panel for each, a bar for each contender.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Error;
use super::style::{self, Area, FAINT, INK, Look, SMALL, TEXT, WIDTH};
use crate::bench::record::Record;

const COLUMNS: usize = 2;
const NAMES: i32 = 128;
const VALUES: i32 = 66;
const BAR: i32 = 11;
const STEP: i32 = 15;
const TITLE: i32 = 22;
const GAP: i32 = 14;
const AXIS: i32 = 48;

pub(crate) fn draw(record: &Record, path: &Path) -> Result<(), Error> {
    let part = record.part("shapes").ok_or("not measured")?;
    let results = &part.results;
    let figure = |case: &String, contender| results.median(case, contender, "p50");
    let all = || {
        let of = |case: &String| -> Vec<f64> {
            results.contenders.iter().filter_map(|it| figure(case, *it)).collect()
        };
        results.cases.iter().flat_map(of)
    };
    // A bar on a logarithmic scale has no natural start: a power of ten below the shortest.
    let low = 10_f64.powf((all().fold(f64::INFINITY, f64::min) / 1.5).log10().floor());
    let high = all().fold(low * 10.0, f64::max) * 1.1;

    let panel = TITLE + STEP * results.contenders.len() as i32 + GAP;
    let n_rows = results.cases.len().div_ceil(COLUMNS) as i32;
    let bottom = style::HEADING as i32 + panel * n_rows;
    let root: Area = SVGBackend::new(path, (WIDTH, (bottom + AXIS) as u32)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("Dropping a structure of many blocks{}", style::rough(record));
    let below = "What the thread that drops it waits, logarithmic scale; shorter is better";
    style::heading(&root, &title, below)?;

    let width = WIDTH as i32 / COLUMNS as i32;
    let left = |column: i32| column * width + NAMES;
    let length = |ns: f64| {
        let longest = f64::from(width - NAMES - VALUES);
        (style::logarithmic(ns, low, high) * longest).round() as i32
    };
    let faint = Look { color: FAINT, dash: None, width: 1 };
    for column in 0..COLUMNS as i32 {
        for ns in style::decades(low, high) {
            let x = left(column) + length(ns);
            style::line(&root, &[(x, style::HEADING as i32), (x, bottom)], faint)?;
            let at = (x, bottom + 4);
            style::text(&root, style::time(ns), at, SMALL, (HPos::Center, VPos::Top))?;
        }
    }
    for (i, case) in results.cases.iter().enumerate() {
        let column = (i % COLUMNS) as i32;
        let top = style::HEADING as i32 + panel * (i / COLUMNS) as i32;
        let at = (left(column) + 5, top + TITLE - 5);
        style::text(&root, case, at, TEXT, (HPos::Left, VPos::Bottom))?;
        for (row, contender) in results.contenders.iter().enumerate() {
            let middle = top + TITLE + STEP * row as i32 + STEP / 2;
            let at = (left(column) - 6, middle);
            style::text(&root, contender.name(), at, SMALL, (HPos::Right, VPos::Center))?;
            let Some(ns) = figure(case, *contender) else { continue };
            let end = left(column) + length(ns);
            let bar = [(left(column), middle - BAR / 2), (end, middle + BAR / 2 + 1)];
            root.draw(&Rectangle::new(bar, style::look(*contender).color.filled()))?;
            let at = (end + 5, middle);
            style::text(&root, style::time(ns), at, SMALL, (HPos::Left, VPos::Center))?;
        }
    }
    for column in 0..COLUMNS as i32 {
        let axis = [(left(column), style::HEADING as i32), (left(column), bottom)];
        style::line(&root, &axis, Look { color: INK, ..faint })?;
        let middle = (left(column) + (width - NAMES - VALUES) / 2, bottom + AXIS - 8);
        style::text(&root, "time to drop", middle, TEXT, (HPos::Center, VPos::Bottom))?;
    }
    root.present()?;
    Ok(())
}
