//! When unused memory goes back to the system: by what the program has needed lately.
//!
//! A purge takes all that is free at that moment, and what the program uses again has to be faulted in anew. Nothing says
//! beforehand what that will be, but afterwards the resident set does: where it soon grows again by half of what the
//! purge took, the purge came too early, and the next one waits twice as long; where it does not, half as long.
//!
//! There are two kinds. One comes when the program has rested for a while, and gives back all that is left of its peak.
//! It rests as well where it frees blocks and takes them back, over and over: those are not the allocator's to purge.
//! The other comes while it is at work: what it has not needed from one purge to the next it probably needs no more.

use std::time::Duration;

use crate::sync::Instant;

/// Rest after which memory goes back, at most.
const REST_MAX: Duration = Duration::from_secs(1);

/// What a structure of small blocks leaves is mostly used by the next one, and between the two there is nothing to be
/// seen of the program: it may be building.
const REST_AFTER_BURST: Duration = Duration::from_millis(400);

/// From one purge to the next while the program is at work: at first, at least and at most. Every second from the
/// first on, as mimalloc alone does it, made steady churn over a hundred sizes take twice as long.
const EVERY: Duration = Duration::from_secs(5);
const EVERY_MIN: Duration = Duration::from_secs(1);
const EVERY_MAX: Duration = Duration::from_secs(10);

/// A purge that took less is not judged: the resident set moves as much for other reasons.
const JUDGED_BYTES: usize = 4 << 20;

pub(super) struct Schedule {
    /// The program rests once it has needed nothing for so long; at least, and now.
    rest_min: Duration,
    rest: Duration,
    every: Duration,
    /// Since then it has been at work, or nothing has been purged.
    since: Instant,
    /// When the program was seen last to use memory of the allocator's, and not only blocks that waited.
    needed_at: Instant,
    last_burst: Option<Instant>,
    /// Whether it has used any since memory last went back.
    has_worked: bool,
    last: Option<Purge>,
}

/// One that has not been judged yet.
struct Purge {
    at: Instant,
    at_rest: bool,
    resident_before: usize,
    resident_after: usize,
}

impl Schedule {
    pub(super) fn new(now: Instant, rest_min: Duration) -> Self {
        Schedule {
            rest_min,
            rest: rest_min,
            every: EVERY,
            since: now,
            needed_at: now,
            last_burst: None,
            has_worked: false,
            last: None,
        }
    }

    /// The program was seen to need memory.
    pub(super) fn note_needed(&mut self, now: Instant) {
        self.needed_at = now;
        self.has_worked = true;
    }

    /// It was seen to free a burst.
    pub(super) fn note_burst(&mut self, now: Instant) {
        self.last_burst = Some(now);
        self.note_needed(now);
    }

    pub(super) fn has_worked(&self) -> bool {
        self.has_worked
    }

    /// Whether a purge is due, where something has been freed that has not been purged if `unpurged`. `resident` asks for
    /// the resident set.
    pub(super) fn is_due(
        &mut self,
        now: Instant,
        unpurged: bool,
        resident: impl Fn() -> Option<usize>,
    ) -> bool {
        let dirty = unpurged || self.has_worked;
        let at_rest = self.is_at_rest(now, self.rest);
        let due = if at_rest { dirty } else { now - self.since >= self.every };
        let is_over = |last: &Purge| if last.at_rest { now - last.at >= REST_MAX } else { due };
        if self.last.as_ref().is_some_and(is_over) {
            self.judge(resident());
        }
        if at_rest && !dirty {
            self.since = now;
        }
        due
    }

    /// Whether the program is about to be at rest: what is freed now had better go back at once, in small portions.
    pub(super) fn is_near(&self, now: Instant) -> bool {
        self.is_at_rest(now, self.rest / 2)
    }

    fn is_at_rest(&self, now: Instant, rest: Duration) -> bool {
        let after_burst = self.last_burst.is_some_and(|burst| now - burst < REST_AFTER_BURST);
        !after_burst && now - self.needed_at >= rest
    }

    fn judge(&mut self, resident: Option<usize>) {
        let (Some(last), Some(resident)) = (self.last.take(), resident) else {
            return;
        };
        let taken = last.resident_before.saturating_sub(last.resident_after);
        if taken < JUDGED_BYTES {
            return;
        }
        let too_early = resident.saturating_sub(last.resident_after) >= taken / 2;
        let (value, min, max) = if last.at_rest {
            (&mut self.rest, self.rest_min, REST_MAX.max(self.rest_min))
        } else {
            (&mut self.every, EVERY_MIN, EVERY_MAX)
        };
        *value = if too_early { *value * 2 } else { *value / 2 }.clamp(min, max);
    }

    /// Notes a purge, and the resident set before and after it.
    pub(super) fn note(&mut self, now: Instant, resident: [Option<usize>; 2]) {
        self.since = now;
        self.has_worked = false;
        self.last = match resident {
            [Some(resident_before), Some(resident_after)] => Some(Purge {
                at: now,
                at_rest: self.is_at_rest(now, self.rest),
                resident_before,
                resident_after,
            }),
            _ => None,
        };
    }
}
