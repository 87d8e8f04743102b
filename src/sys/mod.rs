//! What is asked of the operating system, one file per kind of system, the same names in each.
//!
//! A platform without its own file uses `inline`: there the drainer never starts and every free is
//! done at once, so that the crate is correct everywhere and deferring where it has been proved.

#[cfg(all(target_os = "linux", not(deferfree_inline)))]
mod linux;
#[cfg(all(target_os = "linux", not(deferfree_inline)))]
pub(crate) use linux::*;

#[cfg(any(not(target_os = "linux"), deferfree_inline))]
mod inline;
#[cfg(any(not(target_os = "linux"), deferfree_inline))]
pub(crate) use inline::*;
