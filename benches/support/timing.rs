//! Latencies: a histogram, and what an empty pair of clock readings costs.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// A histogram of nanoseconds. `record` never allocates: the range is fixed when it is made.
///
/// Two significant digits and 32-bit counts keep its array below every threshold at which a
/// contender defers, so that making one does not start what is to be measured.
#[derive(Debug)]
pub(crate) struct Latencies {
    histogram: Histogram<u32>,
    sum_ns: u64,
}

const LONGEST_NS: u64 = 60_000_000_000;

impl Latencies {
    pub(crate) fn new() -> Self {
        Self::with_digits(2)
    }

    /// Three digits, for a process that is not measured itself.
    pub(crate) fn precise() -> Self {
        Self::with_digits(3)
    }

    fn with_digits(n: u8) -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST_NS, n).expect("the bounds are valid");
        Self { histogram, sum_ns: 0 }
    }

    #[inline]
    pub(crate) fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
        self.sum_ns += ns;
    }

    /// Runs `operation` and records how long it took, the clock readings included.
    #[inline]
    pub(crate) fn time<T>(&mut self, operation: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = operation();
        self.record(nanos(start.elapsed()));
        result
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("all histograms have the same bounds");
        self.sum_ns += other.sum_ns;
    }

    pub(crate) fn count(&self) -> u64 {
        self.histogram.len()
    }

    pub(crate) fn median(&self) -> f64 {
        self.histogram.value_at_quantile(0.5) as f64
    }

    pub(crate) fn mean(&self) -> f64 {
        self.sum_ns as f64 / self.count().max(1) as f64
    }

    pub(crate) fn min(&self) -> f64 {
        self.histogram.min() as f64
    }

    pub(crate) fn max(&self) -> f64 {
        self.histogram.max() as f64
    }

    /// `None` unless at least two samples lie above the quantile: it would be the maximum under
    /// another name.
    pub(crate) fn quantile(&self, quantile: f64) -> Option<f64> {
        let n_above = self.count() as f64 * (1.0 - quantile);
        (n_above >= 2.0).then(|| self.histogram.value_at_quantile(quantile) as f64)
    }

    pub(crate) fn count_above(&self, ns: u64) -> f64 {
        self.histogram.count_between(ns, u64::MAX) as f64
    }
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The latencies of nothing: shown beside latencies, and subtracted only where a bar is of what lies above the clock.
pub(crate) fn empty_timer_pairs() -> Latencies {
    let mut empty = Latencies::new();
    for _ in 0..20_000 {
        empty.time(|| ());
    }
    empty
}
