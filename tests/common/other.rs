//! A system of which little is asked: the tests that need more are left out there.

use std::process::{Child, Command};

pub(crate) fn set_apart(_: &mut Command) {}

pub(crate) fn kill_all_of(child: &mut Child) {
    let _ = child.kill();
}

pub(crate) fn describe_threads(_: &Child) -> String {
    "unknown".to_owned()
}
