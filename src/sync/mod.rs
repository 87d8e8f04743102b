//! What threads do to each other goes through here: the standard library's atomics, locks and threads.
//!
//! In the models, which are tests compiled with `--cfg loom`, the same names are those of `model`, under which
//! one thread runs at a time and every order is tried. The code that they look at is the crate's own.

#[cfg(not(all(test, loom)))]
mod system;
#[cfg(not(all(test, loom)))]
pub(crate) use system::*;

#[cfg(all(test, loom))]
mod model;
#[cfg(all(test, loom))]
pub(crate) use model::*;

// The models of others make do with `model`'s parker: one step instead of several.
mod parker;
#[cfg(not(all(test, loom)))]
pub(crate) use parker::Parker;

/// Whether this is compiled for the models. Where a size does not matter to the code, theirs is small enough to
/// try everything that may happen at its end.
pub(crate) const IN_MODEL: bool = cfg!(all(test, loom));

/// Whether this is compiled for a run of the tests in which limits are reached and rounds follow each other all the time,
/// so that what happens once in a million times otherwise happens often: `--cfg deferfree_tiny`, see `tests/README.md`.
pub(crate) const TINY: bool = cfg!(deferfree_tiny);
