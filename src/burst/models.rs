//! Models of lanes and of the pool, see `sync`.

use std::ptr::{self, NonNull};
use std::rc::Rc;

use super::chunk::{ADDRESSES, BUCKETS, List, Place, Pool};
use super::lane::{Inside, Lane, Written};
use super::payer::Payer;
use crate::sync::{Plain, check, heavy_fence, thread};

static POOL: Pool = Pool::new();
static LANE: Lane = Lane::new();

/// A thread that comes and goes and the drainer, at something that only one may be at.
///
/// Seen to fail without `wanted` in `enter`, without the look at `inside` in `steal`, with either fence taken
/// out, where the end of the drainer's stay clears `inside`, and with Relaxed in T2, T3, D3 and D4.
#[test]
fn one_at_a_time_is_at_a_lane() {
    check(None, 8, || {
        let lane = Rc::new(Plain::new());
        assert!(LANE.try_hold());
        let drainer = thread::spawn({
            let lane = lane.clone();
            move || {
                for _ in 0..2 {
                    LANE.steal(heavy_fence, |_| lane.write());
                }
            }
        });
        for _ in 0..2 {
            if let Some(_inside) = LANE.enter() {
                lane.write();
            }
        }
        drainer.join();
    });
}

/// The same where the thread ends, its lane gets another holder, and the drainer holds it in between.
///
/// Seen to fail where `try_hold` loads and stores instead of exchanging, and with Relaxed in it and in `let_go`.
#[test]
fn one_at_a_time_holds_a_lane() {
    check(Some(3), 8, || {
        let lane = Rc::new(Plain::new());
        let hold = |lane: Rc<Plain>| {
            if LANE.try_hold() {
                if let Some(_inside) = LANE.enter() {
                    lane.write();
                }
                LANE.let_go();
            }
        };
        let drainer = thread::spawn({
            let lane = lane.clone();
            move || {
                for _ in 0..2 {
                    LANE.steal(heavy_fence, |_| lane.write());
                }
            }
        });
        let next = thread::spawn({
            let lane = lane.clone();
            move || hold(lane)
        });
        hold(lane);
        next.join();
        drainer.join();
    });
}

const BASE: usize = 0x7f00_0000_0000;

fn block(i: usize) -> *mut u8 {
    ptr::without_provenance_mut(BASE + 8 * i)
}

fn number(address: usize) -> usize {
    (address - BASE) / 8
}

/// As `Batches::try_defer`, with everything granted.
fn write(inside: &Inside<'_>, block: *mut u8) {
    let mut written = inside.write(block, 8);
    if written == Written::OutOfReach {
        assert!(inside.rebase(&POOL, block));
        written = inside.write(block, 8);
    }
    if let Written::Full(_) = written {
        assert!(inside.ask(|_| true));
        written = inside.write(block, 8);
    }
    if let Written::Full(bucket) = written {
        inside.open(&POOL, bucket, POOL.take().unwrap());
        written = inside.write(block, 8);
    }
    assert_eq!(written, Written::Yes);
}

/// Everything in the lane, as numbers.
fn take_all(inside: &Inside<'_>) -> Vec<usize> {
    let lists = [const { List::new() }; BUCKETS];
    let mut load = vec![0; 8 * ADDRESSES];
    let taken = inside.take_all(&POOL, &lists, &mut load);
    load.truncate(taken.run_blocks);
    for (bucket, list) in lists.iter().enumerate() {
        while let Some(index) = list.pop(&POOL) {
            let chunk = POOL.get(index);
            let place = |offset| Place { bucket, offset };
            load.extend(chunk.offsets().map(|offset| place(offset).address(chunk.base())));
            POOL.give_back(index);
        }
    }
    assert_eq!(load.len(), taken.blocks + taken.run_blocks);
    load.into_iter().map(number).collect()
}

/// A thread writes blocks down, more than a chunk holds, and takes some back; the drainer takes what there is.
///
/// Seen to fail without `wanted`, without the look at `inside`, and where `take_all` leaves the run where it is.
#[test]
fn each_block_is_taken_once() {
    const BLOCKS: usize = ADDRESSES + 2;
    check(Some(2), 96, || {
        assert!(LANE.try_hold());
        let drainer = thread::spawn(|| {
            let mut theirs = Vec::new();
            if LANE.may_hold_blocks(&POOL) {
                theirs.extend(LANE.steal(heavy_fence, take_all).unwrap_or_default());
            }
            theirs
        });
        let mut own = Vec::new();
        for i in 0..BLOCKS {
            let Some(inside) = LANE.enter() else {
                own.push(i);
                continue;
            };
            write(&inside, block(i));
            if i + 2 == BLOCKS {
                let mut back = [ptr::null_mut(); 2];
                let n = inside.pay_back(&POOL, &mut back, |_| ());
                own.extend(back[..n].iter().map(|block| number(block.addr())));
            }
        }
        LANE.let_go();
        let mut all = drainer.join();
        all.extend(own);
        all.extend(LANE.steal(heavy_fence, take_all).unwrap());
        all.sort_unstable();
        assert_eq!(all, (0..BLOCKS).collect::<Vec<_>>());
        assert_eq!(POOL.n_used(), 0);
    });
}

/// Seen to fail where `take` stores the bit instead of exchanging the word, and with Relaxed in `give_back`.
#[test]
fn a_chunk_has_one_owner() {
    check(Some(3), 32, || {
        let chunks = Rc::new([(); 4].map(|()| Plain::new()));
        let own = |chunks: Rc<[Plain; 4]>| {
            for _ in 0..2 {
                let index = POOL.take().unwrap();
                chunks[index as usize].write();
                POOL.give_back(index);
            }
            POOL.take().unwrap()
        };
        let other = thread::spawn({
            let chunks = chunks.clone();
            move || own(chunks)
        });
        let mine = own(chunks);
        assert_ne!(mine, other.join());
        assert_eq!(POOL.n_used(), 2);
    });
}

/// The pool returns memory while chunks of it are taken and given back.
///
/// Seen to fail where `purge` looks whether all chunks are unused but does not claim them.
#[test]
fn no_chunk_is_purged_while_it_is_owned() {
    check(Some(3), 32, || {
        // The first 64 are never purged.
        (0..64).for_each(|index| POOL.keep(index));
        let purge = thread::spawn(|| POOL.purge());
        let other = thread::spawn(|| POOL.take());
        let mine = POOL.take();
        purge.join();
        let taken = [mine, other.join()];
        let mut found: Vec<u32> = taken.into_iter().flatten().collect();
        found.extend(std::iter::from_fn(|| POOL.take()).take(1));
        let n = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), n);
        assert_eq!(POOL.n_used(), 64 + n);
    });
}

static PAYER: Payer = Payer::new();

/// An owner that gives up, and the next one, while threads end.
///
/// Seen to fail without W2, where P2 comes before P1, without a fence between either two, and with Relaxed in P3, in
/// W2 and in `announce`.
#[test]
fn an_owner_stays_while_threads_pay() {
    unsafe fn pay(owner: NonNull<()>) {
        // SAFETY: as announced.
        unsafe { owner.cast::<Plain>().as_ref() }.read();
    }
    check(Some(3), 8, || {
        let owners = Rc::new([(); 2].map(|()| Plain::new()));
        let announce = |owner: &Plain| {
            owner.write();
            // SAFETY: it is there until the model ends.
            unsafe { PAYER.announce(NonNull::from(owner).cast(), pay) };
        };
        announce(&owners[0]);
        let threads = [(); 2].map(|()| thread::spawn(|| PAYER.call()));
        PAYER.withdraw();
        owners[0].write();
        announce(&owners[1]);
        threads.into_iter().for_each(|thread| thread.join());
        PAYER.withdraw();
        owners[1].write();
    });
}
