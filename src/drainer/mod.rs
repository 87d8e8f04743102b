//! The background thread: gives back blocks that nobody took, then the memory behind them.
//!
//! # When it runs
//!
//! While anything waits it looks around [`MARKS_PER_DELAY`] times per delay, and for [`LINGER_DELAYS`]
//! after the last large block was allocated or freed: to wake a sleeping thread costs whoever does it
//! tens of microseconds, and a program that has just allocated a large block is likely to free one.
//! Then it sleeps until it is woken, however long that is. A free wakes it only then, so a program that
//! frees all the time pays for one wake-up, not for one per free.
//!
//! That nothing waits and that the drainer sleeps are one word, `Backlog::bytes`: the drainer changes
//! it from 0 to ASLEEP, a free from ASLEEP to its size. Whoever does the latter wakes the drainer,
//! nobody else, and no wake-up can fall between looking and sleeping. One that comes before the
//! drainer has parked is kept by the `Parker`.
//!
//! The other reasons to be awake are rare, and flags of their own:
//!
//! ```text
//! somebody                                  the drainer
//! F1  dirty = true, or hurry, or stop       D1  bytes: 0 => ASLEEP
//! F2  bytes: ASLEEP => 0? then wakes it     D2  reads dirty, hurry, stop; any: stays awake
//! ```
//!
//! All four are sequentially consistent, so in their single order either F1 comes before D2, and the
//! drainer stays awake; or D2 before F1, hence D1 before F2, which finds ASLEEP and wakes it.
//!
//! A block in a log of `burst` is such a reason. Threads write to their logs without a look at anybody, so before D1 the
//! logs are closed: whoever writes next opens its log, which is F1, with a fence before F2. D2 is a look at whether all
//! are empty and closed, with a fence before it. (A write that is just under way when its log is closed may be missed:
//! one block of a thread, which is found when the thread next writes.) While anything is in a log, rounds are short
//! ([`BURST_ROUND`]), so that a thread that goes quiet is found soon without a wake-up.

mod purge;
pub(crate) mod work;

use std::ffi::CStr;
use std::mem;
use std::ops::ControlFlow;
use std::sync::PoisonError;
use std::time::Duration;

use self::purge::Schedule;
use crate::backing::Backing;
use crate::burst::BURSTS;
use crate::huge;
use crate::lifecycle::{self, Inside};
use crate::pending::{Block, CLASSES, Class, MARKS_PER_DELAY, Pending};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Condvar, Instant, Mutex, Parker, TINY, thread};
use crate::sys;

/// The drainer's name, as `ps -L` and debuggers show it.
pub(crate) const THREAD_NAME: &CStr = c"deferfree";
/// Room for a few frames of this file and the allocator's: nothing here recurses.
pub(crate) const STACK_BYTES: usize = 256 << 10;

/// How long it stays awake with nothing to do, in delays, but no longer than [`LINGER_MAX`].
const LINGER_DELAYS: u32 = 4;
const LINGER_MAX: Duration = Duration::from_millis(if TINY { 2 } else { 1000 });

/// A thread that writes nothing down and allocates nothing for that long has gone quiet. One that goes on to allocate
/// frees its own blocks: from here it would be in its way.
const BURST_ROUND: Duration = Duration::from_millis(1);

/// Nobody has asked for room since what was made last has had its time.
const ROOM_ENOUGH: u32 = 0;
const ROOM_WANTED: u32 = 1;
/// It has just been made, and who asks for more does not wake the drainer.
const ROOM_MADE: u32 = 2;
/// How long that is so. Two threads that allocate and free blocks of all sizes ask six times in a millisecond; with each
/// of them heard they took 1.2 to 1.4 times as long as with mimalloc alone, on two processors.
const ROOM_EVERY: Duration = Duration::from_millis(1);

/// How often a flush tries to get at the log of a thread that is just emptying it, and how soon at what a thread is in
/// the midst of.
const TRIES: u32 = 20;
const RETRY: Duration = Duration::from_micros(50);

/// Large blocks that are freed from one purge to the next where what they leave is not wanted: a fork waits for one
/// purge, which takes some 3 ms for so much. Smaller steps break more of the system's huge pages.
const PURGE_STEP_BYTES: usize = 64 << 20;

/// Longest round, however long the delay is.
const ROUND_MAX: Duration = Duration::from_millis(if TINY { 1 } else { 250 });

/// What threads say to the drainer, and it to them. All zero at the start.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Memory was given back by others than the drainer since it purged last.
    dirty: AtomicBool,
    /// Drain everything at the next opportunity, whatever its age.
    hurry: AtomicBool,
    /// The same for huge blocks alone.
    hurry_huge: AtomicBool,
    /// [`ROOM_ENOUGH`], [`ROOM_WANTED`] or [`ROOM_MADE`]. Room is made of what waits: the program's sizes have changed, and
    /// what it freed is to serve the next ones.
    room: AtomicU32,
    stop: AtomicBool,
    /// Whoever stops the drainer has looked at this for the last time.
    has_stopped: AtomicBool,
    /// Where the drainer waits between its rounds, and sleeps.
    parker: Parker,
    purges: AtomicU64,
    /// See `counted`. Not one of `sync`: what is in it depends on the machine, which no model could repeat.
    returned_bytes: std::sync::atomic::AtomicU64,
    flush_wanted: AtomicU64,
    flush_done: AtomicU64,
    flushed: (Mutex<()>, Condvar),
}

impl Control {
    /// F2
    pub(crate) fn wake_if_asleep(&self, pending: &Pending) {
        if pending.end_sleep() {
            self.wake();
        }
    }

    /// For the one thread that ended the drainer's sleep, or that has something urgent for it.
    #[cold]
    pub(crate) fn wake(&self) {
        self.parker.unpark();
    }

    /// The caller has given memory back to the allocator itself: it has to be purged some time.
    pub(crate) fn note_given_back(&self, pending: &Pending) {
        self.dirty.store(true, Ordering::SeqCst);
        self.wake_if_asleep(pending);
    }

    /// Has everything drained and purged without waiting for it to age, and does not wait for that.
    pub(crate) fn hurry(&self, pending: &Pending) {
        self.raise(&self.hurry, pending);
    }

    /// Has huge blocks drained without waiting for them to age, and does not wait for that.
    pub(crate) fn hurry_huge(&self, pending: &Pending) {
        self.raise(&self.hurry_huge, pending);
    }

    /// Has what waits freed, so that blocks of other sizes can be where it is, and does not wait for that.
    pub(crate) fn make_room(&self, pending: &Pending) {
        // F1 and F2, as in `raise`.
        let order = Ordering::SeqCst;
        if self.room.compare_exchange(ROOM_ENOUGH, ROOM_WANTED, order, order).is_ok() {
            pending.end_sleep();
            self.wake();
        }
    }

    #[cold]
    fn raise(&self, flag: &AtomicBool, pending: &Pending) {
        // F1 and F2. Who finds it raised leaves the rest to the one who did that.
        if !flag.swap(true, Ordering::SeqCst) {
            pending.end_sleep();
            self.wake();
        }
    }

    fn is_hurried(&self) -> bool {
        [&self.hurry, &self.hurry_huge].iter().any(|flag| flag.load(Ordering::SeqCst))
            || self.room.load(Ordering::SeqCst) == ROOM_WANTED
    }

    /// Waits until all that is pending now has been freed and purged; false if that will not happen
    /// because the process exits.
    pub(crate) fn flush(&self, pending: &Pending) -> bool {
        // On Windows a thread that the exit has ended may hold the lock.
        if lifecycle::exiting() {
            return false;
        }
        // SeqCst: what the caller put into pending before comes before this in the drainer's eyes.
        let ticket = self.flush_wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.hurry(pending);
        let (lock, flushed) = &self.flushed;
        let mut guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.flush_done.load(Ordering::Acquire) < ticket {
            if lifecycle::exiting() {
                return false;
            }
            // The time-out is for the exit, which notifies nobody.
            guard = flushed
                .wait_timeout(guard, Duration::from_millis(50))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }

    /// Has the drainer free everything and end. `self` may be gone at any time after this.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.parker.unpark();
        // Release pairs with the Acquire at the end of `run`.
        self.has_stopped.store(true, Ordering::Release);
    }

    pub(crate) fn purges(&self) -> u64 {
        self.purges.load(Ordering::Relaxed)
    }

    /// By how much the resident set has shrunk while the drainer gave memory back.
    pub(crate) fn returned_bytes(&self) -> u64 {
        self.returned_bytes.load(Ordering::Relaxed)
    }

    /// Sleeps until there is something to do. `owner` is what `burst` knows the runtime by.
    fn sleep<B: Backing>(&self, pending: &Pending, backing: B, owner: usize) {
        if BURSTS.is_owned_by(owner) && !BURSTS.close() {
            return;
        }
        // D1
        if !pending.fall_asleep() {
            return;
        }
        // D2
        let stopped = || self.stop.load(Ordering::SeqCst);
        if self.dirty.load(Ordering::SeqCst)
            || self.is_hurried()
            || BURSTS.is_owned_by(owner) && !BURSTS.is_closed()
            || stopped()
        {
            pending.end_sleep();
        }
        if pending.is_asleep() {
            tell_awake(backing, false);
            while pending.is_asleep() && !stopped() {
                self.parker.park();
            }
            tell_awake(backing, true);
        }
        pending.end_sleep();
    }
}

/// The drainer's work until it is told to stop, after which nothing is pending, or the process exits.
/// `owner` is what `burst` knows the runtime by.
pub(crate) fn run<B: Backing>(
    backing: B,
    pending: &Pending,
    control: &Control,
    delay: Duration,
    owner: usize,
) {
    let mut drainer =
        Drainer { backing, pending, control, unpurged: false, unpurged_bytes: 0, purges: false };
    // The marks keep their distance however long the rounds between them take.
    let mark_every = (delay / MARKS_PER_DELAY).max(Duration::from_millis(1));
    let round_every = mark_every.min(ROUND_MAX);
    let linger = delay.saturating_mul(LINGER_DELAYS).min(LINGER_MAX);
    let mut next_mark = Instant::now() + mark_every;
    let mut next_tick = Instant::now();
    let mut purges = Schedule::new(Instant::now(), delay.min(ROUND_MAX));
    let mut activity = Activity::default();
    let mut active_at = Instant::now();
    let mut next_burst_round = Instant::now();
    let mut is_burst_left = false;
    let mut room_made = None;
    loop {
        let is_done = !drainer.unpurged && !purges.has_worked() && !is_burst_left;
        let idle = pending.bytes() == 0 && is_done && room_made.is_none();
        if idle && active_at.elapsed() >= linger {
            control.sleep(pending, backing, owner);
            active_at = Instant::now();
            next_mark = active_at + mark_every;
        }
        let stop = control.stop.load(Ordering::SeqCst);
        if !stop && !control.is_hurried() {
            let round = if is_burst_left { round_every.min(BURST_ROUND) } else { round_every };
            let round = if room_made.is_some() { round.min(ROOM_EVERY) } else { round };
            control.parker.park_timeout(round);
        }
        // Outside: no fork has to wait for it.
        pending.make_ready();

        let Some(inside) = Inside::enter() else {
            park_until_exit();
        };
        // In this order: a flush asks first and hurries us then, so whoever's hurry is taken here has
        // been heard. Before draining: what is put in from now on is not part of this flush.
        let hurry = control.hurry.swap(false, Ordering::SeqCst);
        let hurry_huge = control.hurry_huge.swap(false, Ordering::SeqCst);
        let make_room = control.room.load(Ordering::SeqCst) == ROOM_WANTED;
        let flush = control.flush_wanted.load(Ordering::SeqCst);
        let flushing = flush != control.flush_done.load(Ordering::Relaxed);
        let now = Instant::now();
        if make_room {
            room_made = Some(now);
            control.room.store(ROOM_MADE, Ordering::SeqCst);
        } else if room_made.is_some_and(|at| now - at >= ROOM_EVERY) {
            room_made = None;
            control.room.store(ROOM_ENOUGH, Ordering::SeqCst);
        }
        let everything = hurry || flushing || stop || delay.is_zero();
        // First: with rounds that are far apart a program at work would seem to be near its rest in each of them. Room is
        // wanted by one at work.
        if now >= next_tick || make_room {
            next_tick = now + round_every;
            let Seen { is_active, needs_memory } = activity.others(pending);
            if is_active {
                active_at = now;
            }
            if needs_memory {
                purges.note_needed(now);
            }
        }
        // In steps, each of which is purged: what is freed is not going to be wanted soon.
        drainer.purges = everything || purges.is_near(now);
        // Huge ones beside the rest, which would not come to its turn where a thread asks for them all the time.
        let inside = if hurry_huge && !everything {
            drainer.drain(inside, pending.known_huge_classes(), |class| pending.len(class))
        } else {
            Some(inside)
        };
        let inside = match inside {
            Some(inside) if everything => drainer.drain_all(inside),
            Some(inside) if make_room => {
                drainer.drain(inside, pending.known_classes(), |class| pending.left_behind(class))
            }
            Some(inside) if pending.bytes() > pending.high_water_bytes() => {
                drainer.drain_to_half(inside)
            }
            Some(inside) if now >= next_mark => {
                next_mark = now + mark_every;
                drainer.drain_surplus(inside)
            }
            other => other,
        };
        let is_owner = BURSTS.is_owned_by(owner);
        let inside = match inside {
            Some(inside) if is_owner && (everything || make_room || now >= next_burst_round) => {
                next_burst_round = now + BURST_ROUND;
                if activity.bursts_changed() {
                    active_at = now;
                    purges.note_burst(now);
                }
                drainer.drain_bursts(inside, everything || make_room, &mut is_burst_left)
            }
            other => other,
        };
        let Some(inside) = inside else {
            park_until_exit();
        };

        drainer.unpurged |= control.dirty.swap(false, Ordering::SeqCst);
        if purges.is_due(now, drainer.unpurged, sys::resident_bytes)
            // What the program has freed itself the drainer has not seen.
            || flushing
            || everything && drainer.unpurged
        {
            let resident = drainer.counted(|drainer| {
                drainer.purge();
                if is_owner {
                    BURSTS.purge();
                }
            });
            purges.note(now, resident);
        }
        drop(inside);
        if flushing {
            // Release pairs with the Acquire in `flush`.
            control.flush_done.store(flush, Ordering::Release);
            let (lock, flushed) = &control.flushed;
            // Taking the lock makes sure that the waiter either sees the new value or waits already.
            drop(lock.lock().unwrap_or_else(PoisonError::into_inner));
            flushed.notify_all();
        }
        if stop && pending.bytes() == 0 && !is_burst_left && (!is_owner || BURSTS.are_all_freed()) {
            tell_awake(backing, false);
            // Until then `control` has to stay.
            while !control.has_stopped.load(Ordering::Acquire) {
                thread::sleep(Duration::from_micros(50));
            }
            return;
        }
    }
}

/// What the drainer can see of the program's doings: numbers that change with them.
#[derive(Default)]
struct Activity {
    bursts: u64,
    large: u64,
    missed: u64,
    notes: u64,
}

impl Activity {
    fn bursts_changed(&mut self) -> bool {
        let now = BURSTS.activity();
        mem::replace(&mut self.bursts, now) != now
    }

    fn others(&mut self, pending: &Pending) -> Seen {
        let (large, missed, notes) = (pending.activity(), pending.missed(), work::n_notes());
        let has_noted = mem::replace(&mut self.notes, notes) != notes;
        let has_missed = mem::replace(&mut self.missed, missed) != missed;
        let has_changed = mem::replace(&mut self.large, large) != large;
        let needs_memory = has_missed || has_noted;
        Seen { is_active: has_changed || needs_memory, needs_memory }
    }
}

/// Since it was looked at last.
struct Seen {
    is_active: bool,
    needs_memory: bool,
}

struct Drainer<'a, B> {
    backing: B,
    pending: &'a Pending,
    control: &'a Control,
    /// Something was freed that has not been purged yet.
    unpurged: bool,
    /// The large blocks among that.
    unpurged_bytes: usize,
    /// Purges as soon as that is a step, before all has been freed.
    purges: bool,
}

impl<B: Backing> Drainer<'_, B> {
    /// Has something give memory back to the system, and counts how much that was by the resident set before and after,
    /// which is returned. Only the system knows which of the pages had memory behind them. What other threads touch anew
    /// meanwhile is missing in the count, so that it is too low rather than too high. Takes two readings: microseconds,
    /// where giving back takes hundreds.
    fn counted(&mut self, give_back: impl FnOnce(&mut Self)) -> [Option<usize>; 2] {
        let before = sys::resident_bytes();
        give_back(self);
        let after = sys::resident_bytes();
        if let (Some(before), Some(after)) = (before, after) {
            let returned = before.saturating_sub(after) as u64;
            self.control.returned_bytes.fetch_add(returned, Ordering::Relaxed);
        }
        [before, after]
    }

    fn purge(&mut self) {
        self.backing.purge();
        self.unpurged = false;
        self.unpurged_bytes = 0;
        self.control.purges.fetch_add(1, Ordering::Relaxed);
    }

    /// Frees as many blocks of each of the classes as `n_blocks` says, oldest first; `None` when the process exits.
    fn drain(
        &mut self,
        mut inside: Inside,
        classes: impl Iterator<Item = Class>,
        n_blocks: impl Fn(Class) -> usize,
    ) -> Option<Inside> {
        for class in classes {
            for _ in 0..n_blocks(class) {
                let Some(block) = self.pending.drain(class) else {
                    break;
                };
                // SAFETY: the block came out of `class`.
                inside = unsafe { self.free(inside, class, block)? };
            }
        }
        Some(inside)
    }

    /// Down to half the bound, the largest blocks first: they are the fewest. `None` when the process exits.
    fn drain_to_half(&mut self, inside: Inside) -> Option<Inside> {
        let pending = self.pending;
        pending.give_up_reserved();
        let excess = |class: Class| {
            let excess = pending.bytes().saturating_sub(pending.max_bytes() / 2);
            pending.len(class).min(excess.div_ceil(class.bytes()))
        };
        self.drain(inside, pending.known_classes_below(CLASSES), excess)
    }

    /// Frees what has waited for the delay, and clears some of what goes on waiting. `None` when the process exits.
    fn drain_surplus(&mut self, inside: Inside) -> Option<Inside> {
        let pending = self.pending;
        pending.give_up_reserved();
        let inside = self.drain(inside, pending.known_classes(), |class| pending.surplus(class))?;
        // Outside: no fork has to wait for it.
        drop(inside);
        for class in pending.known_classes().take_while(|class| !class.is_huge()) {
            pending.clear_one(class, |block| {
                // SAFETY: a block of the class, which nobody else has.
                unsafe { block.as_ptr().write_bytes(0, class.bytes()) };
            });
        }
        Inside::enter()
    }

    /// Frees each block whose free returned before this began. `None` when the process exits.
    fn drain_all(&mut self, mut inside: Inside) -> Option<Inside> {
        for class in self.pending.known_classes() {
            let mut all = self.pending.all(class);
            while let Some(block) = self.pending.drain_of(&mut all, class) {
                // SAFETY: the block came out of `class`.
                inside = unsafe { self.free(inside, class, block)? };
            }
        }
        Some(inside)
    }

    /// # Safety
    /// `block` was put into `class` and has been taken out.
    unsafe fn free(&mut self, inside: Inside, class: Class, block: Block) -> Option<Inside> {
        if class.is_huge() {
            // Not the backing's: no fork has to wait for it.
            drop(inside);
            self.counted(|drainer| {
                // SAFETY: the caller's block.
                unsafe { free_for_good(drainer.backing, drainer.pending, class, block) };
            });
            return Inside::enter();
        }
        // SAFETY: the caller's block.
        unsafe { free_for_good(self.backing, self.pending, class, block) };
        self.unpurged = true;
        self.unpurged_bytes += class.bytes();
        if self.purges && self.unpurged_bytes >= PURGE_STEP_BYTES {
            self.counted(Self::purge);
        }
        inside.give_way()
    }

    /// Frees the small blocks of quiet threads, with `everything` those of all; says in `is_left` whether any wait
    /// still. `None` when the process exits.
    fn drain_bursts(
        &mut self,
        inside: Inside,
        everything: bool,
        is_left: &mut bool,
    ) -> Option<Inside> {
        let mut inside = Some(inside);
        let mut go_on = || {
            inside = inside.take().and_then(Inside::give_way);
            if inside.is_some() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        // SAFETY: blocks that a thread gave up, taken out of the one log that they were in.
        let mut free = |block| unsafe { self.backing.dealloc_any(block) };
        for tries_left in (0..=TRIES).rev() {
            let ControlFlow::Continue(drained) = BURSTS.drain(everything, &mut free, &mut go_on)
            else {
                return None;
            };
            self.unpurged |= drained.any;
            *is_left = drained.is_left;
            if !everything || !drained.is_left || tries_left == 0 {
                break;
            }
            // A thread is just taking its own back.
            thread::sleep(RETRY);
        }
        if *is_left {
            BURSTS.make_ready();
        }
        inside
    }
}

/// Gives a block back to the allocator, releasing its pages first if that would unmap it, or a huge block to the system.
///
/// # Safety
/// `block` was put into `class` and has been taken out.
pub(crate) unsafe fn free_for_good<B: Backing>(
    backing: B,
    pending: &Pending,
    class: Class,
    block: Block,
) {
    let ptr = block.as_ptr();
    let layout = class.layout_to_free();
    // SAFETY: the block is `class.bytes()` large, and nobody else has it.
    unsafe {
        if class.is_huge() {
            let unmapped = huge::unmap(ptr);
            pending.note_written(class, unmapped.coverage);
            pending.note_released(unmapped.released);
            return;
        }
        if backing.unmaps_on_free(layout) {
            pending.note_released(sys::release_in_pieces(ptr, class.bytes()));
        }
        backing.dealloc(ptr, layout);
    }
}

/// Tells the backing whether the drainer is awake. A child that was forked off in the midst of that would keep half of it.
fn tell_awake<B: Backing>(backing: B, awake: bool) {
    let Some(inside) = Inside::enter() else {
        park_until_exit();
    };
    backing.drainer_awake(awake);
    drop(inside);
}

/// The process exits with this thread in it. Whatever it may still do is of no use to anybody.
fn park_until_exit() -> ! {
    loop {
        thread::sleep(Duration::MAX);
    }
}
