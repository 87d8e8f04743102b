//! What is answered against what is held: a line for each contender, a point for each delay.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Error;
use super::style::{self, Area, FAINT, INK, Look, SMALL, TEXT, WIDTH};
use crate::bench::price::{MEAN, PER_CPU, RATE};
use crate::bench::record::Record;
use crate::bench::support::contender::Contender;
use crate::bench::support::table::MIB;

const HEIGHT: u32 = 440;
const TOP: i32 = style::HEADING as i32 + 28;
const BOTTOM: i32 = HEIGHT as i32 - 58;
const PANEL: i32 = 300;
/// Each with where it begins.
const PANELS: [(&str, &str, i32); 2] = [
    (RATE, "requests a second, while at work", 52),
    (PER_CPU, "requests per second of CPU", 52 + PANEL + 66),
];

pub(crate) fn draw(record: &Record, path: &Path) -> Result<(), Error> {
    let part = record.part("price").ok_or("not measured")?;
    let results = &part.results;
    let curve = |contender: Contender, key| -> Vec<(&str, f64, f64)> {
        let point = |case: &'_ String| {
            let of = |key| results.median(case, contender, key);
            Some((of(MEAN)? / MIB, of(key)?))
        };
        let points = results.cases.iter().map(|case| (case.as_str(), point(case)));
        points.filter_map(|(case, point)| point.map(|(x, y)| (case, x, y))).collect()
    };

    let root: Area = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let title =
        format!("What a server answers, and what it holds for that{}", style::rough(record));
    let below = format!(
        "By how long freed memory is kept: {}; further up and to the left is better",
        results.cases.join(", ")
    );
    style::heading(&root, &title, &below)?;
    let faint = Look { color: FAINT, dash: None, width: 1 };
    let ink = Look { color: INK, ..faint };
    for (key, what, left) in PANELS {
        let curves: Vec<_> = results.contenders.iter().map(|it| (*it, curve(*it, key))).collect();
        let points = || curves.iter().flat_map(|(_, curve)| curve);
        let most_x = 1.08 * points().map(|point| point.1).fold(1.0, f64::max);
        let most_y = 1.08 * points().map(|point| point.2).fold(1.0, f64::max);
        let at = |x: f64, y: f64| {
            let right = (f64::from(PANEL) * x / most_x).round() as i32;
            (left + right, BOTTOM - (f64::from(BOTTOM - TOP) * y / most_y).round() as i32)
        };
        let at_top = (left, TOP - 8);
        style::text(&root, what, at_top, SMALL + 1, (HPos::Left, VPos::Bottom))?;
        for y in ticks(most_y) {
            style::line(&root, &[at(0.0, y), at(most_x, y)], faint)?;
            let beside = (left - 6, at(0.0, y).1);
            style::text(&root, y, beside, SMALL, (HPos::Right, VPos::Center))?;
        }
        for x in ticks(most_x) {
            style::line(&root, &[at(x, 0.0), at(x, most_y)], faint)?;
            let under = (at(x, 0.0).0, BOTTOM + 6);
            style::text(&root, x, under, SMALL, (HPos::Center, VPos::Top))?;
        }
        style::line(&root, &[(left, TOP), (left, BOTTOM), (left + PANEL, BOTTOM)], ink)?;
        let middle = (left + PANEL / 2, HEIGHT as i32 - 12);
        style::text(&root, "mean resident set, MiB", middle, TEXT, (HPos::Center, VPos::Bottom))?;
        for (contender, curve) in &curves {
            let look = style::look(*contender);
            let places: Vec<_> = curve.iter().map(|(_, x, y)| at(*x, *y)).collect();
            style::line(&root, &places, look)?;
            for ((case, ..), place) in curve.iter().zip(&places) {
                root.draw(&Circle::new(*place, look.width as i32 + 1, look.color.filled()))?;
                // Of the others only the ends: the names of all would cover each other.
                let is_end = [curve[0].0, curve[curve.len() - 1].0].contains(case);
                if is_end || *contender == Contender::Deferfree {
                    let under = (place.0 + 4, place.1 + 6);
                    style::text(&root, case, under, SMALL - 1, (HPos::Left, VPos::Top))?;
                }
            }
        }
    }
    // The lines end where they may, so their names stand by themselves.
    let (_, _, left) = PANELS[1];
    for (i, contender) in results.contenders.iter().enumerate() {
        let (x, y) = (left + PANEL + 20, TOP + 10 + 22 * i as i32);
        style::line(&root, &[(x, y), (x + 26, y)], style::look(*contender))?;
        style::text(&root, contender.name(), (x + 32, y), TEXT, (HPos::Left, VPos::Center))?;
    }
    root.present()?;
    Ok(())
}

/// Round numbers, some four of them.
fn ticks(most: f64) -> impl Iterator<Item = f64> {
    let about = most / 4.0;
    let decade = 10_f64.powf(about.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|it| it * decade).into_iter().find(|it| *it >= about);
    let step = step.unwrap_or(about);
    (0..8).map(move |i| f64::from(i) * step).filter(move |it| *it <= most)
}
