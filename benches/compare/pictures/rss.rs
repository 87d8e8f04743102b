//! The resident set over time: a peak, the drop of all, and then nothing.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::Error;
use super::style::{self, Area, FAINT, FONT, INK, SMALL, TEXT, WIDTH};
use crate::bench::idle::{SHOWN_MS, STEP_MS, key_at};
use crate::bench::record::Record;
use crate::bench::support::contender::Contender;
use crate::bench::support::table::MIB;

const HEIGHT: u32 = 440;

pub(crate) fn draw(record: &Record, path: &Path) -> Result<(), Error> {
    let part = record.part("idle").ok_or("not measured")?;
    let results = &part.results;
    let case = results.cases.first().ok_or("no case was measured")?;
    // A curve of medians would be that of no run: this is each contender's first.
    let curve = |contender: Contender| -> Vec<(f64, f64)> {
        let at = |ms: i64| {
            let mut figures = results.of_each_run(case, contender);
            let (_, values) = figures.find(|(key, _)| *key == key_at(ms))?;
            Some((ms as f64 / 1e3, values.first()? / MIB))
        };
        SHOWN_MS.step_by(STEP_MS).filter_map(at).collect()
    };
    let curves: Vec<_> = results.contenders.iter().map(|it| (*it, curve(*it))).collect();
    // One that was sampled a moment less long would end before the others.
    let ends = curves.iter().filter_map(|(_, curve)| Some(curve.last()?.0));
    let last = ends.fold(f64::INFINITY, f64::min);
    // A short build starts later than the picture might.
    let starts = curves.iter().filter_map(|(_, curve)| Some(curve.first()?.0));
    let first = starts.fold(-0.1, f64::min);
    let points = || curves.iter().flat_map(|(_, curve)| curve);
    let highest = points().map(|point| point.1).fold(1.0, f64::max);

    let root: Area = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("A program drops what it held, and idles{}", style::rough(record));
    style::heading(&root, &title, "Resident set, MiB")?;
    let mut chart = ChartBuilder::on(&root)
        .margin_top(style::HEADING)
        .margin_left(6)
        .margin_right(190)
        .x_label_area_size(44)
        .y_label_area_size(52)
        .build_cartesian_2d(first..last, 0.0..highest * 1.06)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style((FONT, SMALL + 1).into_font().color(&INK))
        .axis_desc_style((FONT, TEXT).into_font().color(&INK))
        .x_desc("seconds since the drop began")
        .x_label_formatter(&|seconds| format!("{:.1}", (seconds * 10.0).round() / 10.0 + 0.0))
        .y_label_formatter(&|mib| format!("{mib:.0}"))
        .draw()?;
    let marker = [(0.0, 0.0), (0.0, highest * 1.06)];
    chart.draw_series([PathElement::new(marker, RGBColor(150, 150, 150))])?;
    let marker = chart.backend_coord(&(0.0, highest * 1.06));
    let mut lines = Vec::new();
    for (contender, curve) in &curves {
        lines.push((
            *contender,
            curve
                .iter()
                .filter(|point| point.0 <= last)
                .map(|point| chart.backend_coord(point))
                .collect::<Vec<_>>(),
        ));
    }
    drop(chart);
    style::text(
        &root,
        "all is dropped",
        (marker.0 + 5, marker.1 + 2),
        SMALL,
        (HPos::Left, VPos::Top),
    )?;
    for (contender, points) in &lines {
        style::line(&root, points, style::look(*contender))?;
    }
    let ends = lines.iter().filter_map(|(contender, points)| Some((*contender, *points.last()?)));
    style::names_at_ends(&root, &ends.collect::<Vec<_>>())?;
    root.present()?;
    Ok(())
}
