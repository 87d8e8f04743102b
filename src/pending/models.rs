//! Models of what comes and goes, see `sync`.

use std::rc::Rc;

use super::{Block, Class, Kept, Pending, Refused, Taken};
use crate::sync::thread;
use crate::sync::{Plain, check};

/// The memory of some blocks. Whoever has a block writes to it.
#[derive(Clone)]
struct Blocks(Rc<Vec<Plain>>);

impl Blocks {
    fn new(n: usize) -> Blocks {
        Blocks(Rc::new((0..n).map(|_| Plain::new()).collect()))
    }

    fn at(&self, i: usize) -> Block {
        self.use_it(i);
        // SAFETY: as good as a block here: nobody frees it.
        unsafe { Block::new((&raw const self.0[i]).cast_mut().cast()) }
    }

    fn use_it(&self, i: usize) {
        self.0[i].write();
    }

    /// Which one it is.
    fn number(&self, block: Block) -> usize {
        let i = self.0.iter().position(|cell| (&raw const *cell).addr() == block.0.addr()).unwrap();
        self.use_it(i);
        i
    }
}

fn class() -> Class {
    Class::from_index(0)
}

/// Puts a block in; says which one the caller has to free, if any.
fn put(pending: &Pending, blocks: &Blocks, i: usize) -> Option<usize> {
    let freed = match pending.put(class(), blocks.at(i)) {
        Ok(Kept::Normal | Kept::WasAsleep | Kept::OverHighWater) => None,
        Err(
            Refused::Unknown(block)
            | Refused::Bound(block)
            | Refused::Queue(block)
            | Refused::WasAsleep(block),
        ) => Some(blocks.number(block)),
    };
    assert!(pending.bytes() <= pending.max_bytes());
    freed
}

fn take(pending: &Pending, blocks: &Blocks) -> Option<usize> {
    let taken = match pending.take(class(), 1) {
        Taken::Fitting(block) | Taken::Misaligned(block) => Some(blocks.number(block)),
        Taken::Nothing => None,
    };
    assert!(pending.bytes() <= pending.max_bytes());
    taken
}

fn drain(pending: &Pending, blocks: &Blocks) -> Option<usize> {
    let drained = pending.drain(class()).map(|block| blocks.number(block));
    assert!(pending.bytes() <= pending.max_bytes());
    drained
}

/// Threads that put blocks and take some, and a drainer: of three blocks each is in one hand in the end.
/// At most `max_blocks` wait.
fn each_block_once(preemptions: usize, max_blocks: usize) {
    let pending = Pending::zeroed();
    check(Some(preemptions), 64, move || {
        pending.set_up(max_blocks * class().bytes(), 0);
        pending.prepare(class());
        let blocks = Blocks::new(3);
        let [first, second] = [blocks.clone(), blocks.clone()];
        let putter = thread::spawn(move || [put(pending, &first, 0), put(pending, &first, 1)]);
        let taker = thread::spawn(move || [put(pending, &second, 2), take(pending, &second)]);
        let third = blocks.clone();
        let drainer = thread::spawn(move || drain(pending, &third));
        let mut out: Vec<usize> = putter
            .join()
            .into_iter()
            .chain(taker.join())
            .chain([drainer.join()])
            .flatten()
            .collect();
        assert_eq!(pending.waiting_bytes(), (3 - out.len()) * class().bytes());
        assert!(pending.bytes() >= pending.waiting_bytes());
        while let Some(block) = drain(pending, &blocks) {
            out.push(block);
        }
        out.sort_unstable();
        assert_eq!(out, [0, 1, 2]);
        pending.give_up_reserved();
        assert_eq!(pending.bytes(), 0);
        assert!(pending.peak_bytes() <= pending.max_bytes());
        // SAFETY: the other threads have ended, and no block is left.
        unsafe { pending.destroy() };
    });
}

/// Seen to fail where a slot's `replace` or `take`, or `reserve`, load and store instead of exchanging, with Relaxed in the
/// first two and in `clear`, where bytes are released before the block is out, and where `taken` releases what stays reserved.
#[test]
fn no_block_is_lost_or_there_twice() {
    each_block_once(1, 3);
}

/// Seen to fail as above but for the last, and where `reserve` does not look at the bound.
#[test]
fn nor_where_the_bound_is_reached() {
    each_block_once(2, 1);
}

/// A thread frees a block and takes it back, and a drainer that gives up what is reserved for it wants to sleep: it does
/// not while a block waits, unless it has been told.
///
/// Seen to fail where `give_up` stores instead of exchanging, where it does not look at what it gives up, and where `take`
/// keeps nothing reserved.
#[test]
fn nothing_waits_unheard() {
    let pending = Pending::zeroed();
    check(Some(3), 64, move || {
        pending.set_up(2 * class().bytes(), 0);
        pending.prepare(class());
        let blocks = Blocks::new(1);
        let own = blocks.clone();
        let thread = thread::spawn(move || {
            let mut woken = false;
            for _ in 0..2 {
                let kept = pending.put(class(), own.at(0)).unwrap();
                woken |= kept == Kept::WasAsleep;
                assert_eq!(take(pending, &own), Some(0));
            }
            woken |= pending.put(class(), own.at(0)).unwrap() == Kept::WasAsleep;
            woken
        });
        let drainer = thread::spawn(move || {
            pending.give_up_reserved();
            pending.fall_asleep()
        });
        let (woken, slept) = (thread.join(), drainer.join());
        assert_eq!(slept, woken);
        assert_eq!(pending.bytes(), class().bytes());
        assert_eq!(drain(pending, &blocks), Some(0));
        assert_eq!(pending.bytes(), 0);
        // SAFETY: the other threads have ended, and no block is left.
        unsafe { pending.destroy() };
    });
}
