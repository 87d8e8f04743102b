//! The figures that all sections have.

use std::thread;
use std::time::Duration;

pub(crate) use crate::contenders::ALL as CONTENDERS;
use crate::support::Scale;
use crate::support::children::{Report, Results};
use crate::support::memory::rss_bytes;
pub(crate) use crate::support::section::{PEAK_LIMIT, Section};
use crate::support::table::{Column, MIB, MS, US, column, count};
use crate::support::timing::Latencies;

pub(crate) const P50: Column = column("p50", "p50 us", US, 0);
pub(crate) const P99: Column = column("p99", "p99 us", US, 0);
pub(crate) const P999: Column = column("p999", "p99.9 us", US, 0);
pub(crate) const MAX: Column = column("max", "max us", US, 0);
pub(crate) const SAMPLES: Column = count("n", "samples");
pub(crate) const WALL: Column = column("wall", "wall ms", MS, 0);
pub(crate) const CPU: Column = column("cpu", "CPU ms", MS, 0);
pub(crate) const PEAK: Column = column("peak", "peak RSS MiB", MIB, 0);
pub(crate) const IDLE: Column = column("idle", "RSS idle 1 s MiB", MIB, 0);

/// For a section that has nothing to add.
pub(crate) const COMMON: [Column; 9] = [P50, P99, P999, MAX, SAMPLES, WALL, CPU, PEAK, IDLE];

/// The bars are held in one table at the end.
pub(crate) fn no_bars(_: &Results) {}

pub(crate) fn put_waits(report: &mut Report, waits: &Latencies) {
    report.put("n", waits.count() as f64);
    report.put("p50", waits.median());
    report.put_some("p99", waits.quantile(0.99));
    report.put_some("p999", waits.quantile(0.999));
    report.put("max", waits.max());
}

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
