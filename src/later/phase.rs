//! Whether there is a dropper, and how it comes to be.

use std::ptr::NonNull;

use super::dropper::{self, Dropper, StartError};
use crate::config::say;
use crate::lifecycle::{self, Failure, Phase, PhaseCell};

/// In STARTING and FAILED values are dropped inline.
static PHASE: PhaseCell<Dropper> = PhaseCell::new();

/// The dropper, started if need be; `None` when values are to be dropped at once.
#[inline]
pub(super) fn running() -> Option<&'static Dropper> {
    Dropper::prefetch(PHASE.addr());
    if dropper::is_dropper() {
        return None;
    }
    match PHASE.get() {
        Phase::Running(dropper) => Some(dropper),
        Phase::Off => start(),
        Phase::Failed if PHASE.is_due() => start(),
        Phase::Starting | Phase::Failed => None,
    }
}

/// The dropper as far as somebody may wait for it; `None` when no value waits.
pub(super) fn if_started() -> Option<&'static Dropper> {
    match PHASE.get() {
        Phase::Running(dropper) => Some(dropper),
        Phase::Off | Phase::Starting | Phase::Failed => None,
    }
}

#[cold]
fn start() -> Option<&'static Dropper> {
    // Its values would go with the process, and the thread-locals that starting a thread takes may be gone.
    if lifecycle::exiting() {
        return None;
    }
    // Before STARTING, see `PhaseCell::start`.
    let registered = lifecycle::stay();
    let Some(start) = PHASE.start() else {
        // Another thread has been faster, and may be done by now.
        return if_started();
    };
    let started = if registered { Dropper::start() } else { Err(StartError::Register) };
    let started = started.map_err(|error| {
        let failure = Failure::from(&error);
        if start.is_first {
            say(format_args!("{error}; values are dropped at once{}", failure.outlook()));
        }
        failure
    });
    start.finish(started.map(NonNull::from));
    started.ok()
}
