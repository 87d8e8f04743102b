//! The real ones.

pub(crate) use std::sync::{Condvar, Mutex, atomic};
pub(crate) use std::thread;
pub(crate) use std::time::Instant;

pub(crate) use crossbeam_queue::ArrayQueue;

pub(crate) use crate::sys::{futex_wait, futex_wake_one};
