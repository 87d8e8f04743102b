//! The figures that all sections have.

use std::thread;
use std::time::Duration;

use super::contenders::{ALL, program};
use super::support::Scale;
use super::support::children::Report;
use super::support::memory::rss_bytes;
pub(crate) use super::support::section::Section;
pub(crate) use super::support::table::{CPU, PEAK};
use super::support::table::{Column, MIB, MS, US, column, count};

pub(crate) const P50: Column = column("p50", "p50 us", US, 0);
pub(crate) const P99: Column = column("p99", "p99 us", US, 0);
pub(crate) const P999: Column = column("p999", "p99.9 us", US, 0);
pub(crate) const MAX: Column = column("max", "max us", US, 0);
pub(crate) const SAMPLES: Column = count("n", "samples");
pub(crate) const WALL: Column = column("wall", "wall ms", MS, 0);
pub(crate) const IDLE: Column = column("idle", "RSS idle 1 s MiB", MIB, 0);

/// For a section that has nothing to add.
pub(crate) const COMMON: [Column; 9] = [P50, P99, P999, MAX, SAMPLES, WALL, CPU, PEAK, IDLE];

/// What most sections have. The bars are held in one table at the end.
pub(crate) const BASE: Section = Section { contenders: &ALL, program, ..Section::BASE };

/// RSS after the process has done nothing for a second, in which what was put off is done too, so its
/// CPU time counts. Sections that hold a few blocks at a time go without. So do rough figures, but
/// where it is what the section is about: the second is longer than all the rest of them.
pub(crate) fn put_idle(report: &mut Report, scale: Scale) {
    if scale == Scale::Full {
        put_idle_always(report, scale);
    }
}

pub(crate) fn put_idle_always(report: &mut Report, scale: Scale) {
    thread::sleep(Duration::from_millis(scale.pick(1000, 1000, 1)));
    report.put("idle", rss_bytes() as f64);
}
