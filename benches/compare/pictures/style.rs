//! What the pictures have in common: colours, dashes, and names beside the lines they belong to.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::Error;
use crate::bench::record::Record;
use crate::bench::support::Scale;
use crate::bench::support::contender::Contender;

pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// What a README shows without scaling it down.
pub(crate) const WIDTH: u32 = 900;
pub(crate) const INK: RGBColor = RGBColor(40, 40, 40);
pub(crate) const FAINT: RGBColor = RGBColor(222, 222, 222);
pub(crate) const FONT: &str = "sans-serif";
pub(crate) const TEXT: u32 = 14;
pub(crate) const SMALL: u32 = 12;

/// How a contender is drawn. The colours are those of Okabe and Ito, which colour-blind readers can
/// tell apart, with grey in place of a yellow that is too pale for a line; two of a family differ in
/// their dashes as well.
#[derive(Clone, Copy)]
pub(crate) struct Look {
    pub(crate) color: RGBColor,
    /// Length of a dash and of a gap.
    pub(crate) dash: Option<(i32, i32)>,
    pub(crate) width: u32,
}

pub(crate) fn look(contender: Contender) -> Look {
    let (color, dash) = match contender {
        Contender::System | Contender::Floor => (RGBColor(0, 0, 0), None),
        Contender::Mimalloc | Contender::MimallocAgain => (RGBColor(0, 114, 178), None),
        Contender::MimallocPprof => (RGBColor(0, 114, 178), Some((3, 3))),
        Contender::Snmalloc => (RGBColor(0, 158, 115), Some((3, 3))),
        Contender::MimallocPurge0 => (RGBColor(86, 180, 233), Some((8, 4))),
        Contender::Jemalloc => (RGBColor(0, 158, 115), None),
        Contender::JemallocBackground => (RGBColor(230, 159, 0), Some((8, 4))),
        Contender::Spawn => (RGBColor(204, 121, 167), Some((3, 3))),
        Contender::DeferDrop => (RGBColor(130, 130, 130), Some((3, 3))),
        Contender::Deferfree | Contender::DeferfreeOff | Contender::BurstsOff => {
            (RGBColor(213, 94, 0), None)
        }
    };
    Look { color, dash, width: if contender == Contender::Deferfree { 4 } else { 2 } }
}

pub(crate) fn text(
    area: &Area,
    text: impl Display,
    at: (i32, i32),
    size: u32,
    (h, v): (HPos, VPos),
) -> Result<(), Error> {
    let style = (FONT, size).into_font().color(&INK).pos(Pos::new(h, v));
    area.draw(&Text::new(text.to_string(), at, style)).map_err(|error| error.to_string().into())
}

pub(crate) fn line(area: &Area, points: &[(i32, i32)], look: Look) -> Result<(), Error> {
    let style = look.color.stroke_width(look.width);
    let drawn = match look.dash {
        None => area.draw(&PathElement::new(points.to_vec(), style)),
        Some((dash, gap)) => {
            let points = points.iter().copied();
            area.draw(&DashedPathElement::new(points, dash, gap, style))
        }
    };
    drawn.map_err(|error| error.to_string().into())
}

/// Writes the names of lines to the right of where they end, moved apart where they would cover each
/// other, each with a piece of its line that leads there.
pub(crate) fn names_at_ends(area: &Area, ends: &[(Contender, (i32, i32))]) -> Result<(), Error> {
    const APART: i32 = 19;
    const LEAD: i32 = 26;
    let mut ends = ends.to_vec();
    ends.sort_by_key(|(_, (_, y))| *y);
    let bottom = area.dim_in_pixel().1 as i32 - APART;
    // Names that would meet form a group, which lies around the middle of its lines' ends. A group is
    // the sum of where its first name would have to be for each, and their number.
    let mut groups: Vec<(i32, i32)> = Vec::new();
    for (i, (_, (_, y))) in ends.iter().enumerate() {
        groups.push((y - i as i32 * APART, 1));
        while let [.., above, below] = groups[..] {
            if above.0 * below.1 < below.0 * above.1 {
                break;
            }
            groups.truncate(groups.len() - 2);
            groups.push((above.0 + below.0, above.1 + below.1));
        }
    }
    let firsts = groups.iter().flat_map(|(sum, n)| (0..*n).map(move |_| sum / n));
    let mut rows: Vec<i32> =
        firsts.enumerate().map(|(i, first)| first + i as i32 * APART).collect();
    let mut limit = bottom;
    for row in rows.iter_mut().rev() {
        *row = (*row).min(limit);
        limit = *row - APART;
    }
    for ((contender, (x, y)), row) in ends.iter().zip(rows) {
        // A dash is longer than the lead.
        let look = Look { dash: None, ..look(*contender) };
        line(area, &[(*x, *y), (x + 8, *y), (x + LEAD - 8, row), (x + LEAD, row)], look)?;
        let at = (x + LEAD + 5, row);
        text(area, contender.name(), at, TEXT, (HPos::Left, VPos::Center))?;
    }
    Ok(())
}

/// Title and what is below it, in two lines at the top.
pub(crate) fn heading(area: &Area, title: &str, below: &str) -> Result<(), Error> {
    text(area, title, (14, 12), 19, (HPos::Left, VPos::Top))?;
    text(area, below, (14, 38), SMALL + 1, (HPos::Left, VPos::Top))
}

/// The height of [`heading`].
pub(crate) const HEADING: u32 = 62;

/// Said in the picture too: it may be looked at alone.
pub(crate) fn rough(record: &Record) -> &'static str {
    if record.scale == Scale::Full { "" } else { " (rough run)" }
}

pub(crate) fn time(ns: f64) -> String {
    let digits = |value: f64| match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}").trim_end_matches(".0").to_owned(),
        _ => format!("{value:.2}").trim_end_matches('0').trim_end_matches('.').to_owned(),
    };
    match ns {
        ..1e3 => format!("{ns:.0} ns"),
        ..1e6 => format!("{} µs", digits(ns / 1e3)),
        ..1e9 => format!("{} ms", digits(ns / 1e6)),
        _ => format!("{} s", digits(ns / 1e9)),
    }
}

/// Where a value lies between `low` and `high` on a logarithmic scale, from 0 to 1.
pub(crate) fn logarithmic(value: f64, low: f64, high: f64) -> f64 {
    (value.max(low) / low).ln() / (high / low).ln()
}

/// The powers of ten within the bounds.
pub(crate) fn decades(low: f64, high: f64) -> impl Iterator<Item = f64> {
    (0..12).map(|power| 10_f64.powi(power)).filter(move |it| (low..=high).contains(it))
}
