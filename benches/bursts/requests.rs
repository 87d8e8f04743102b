//! Requests: each allocates its working set, answers, and frees it in a row, and the next one does the
//! same at once. The blocks are in the cache, and what is deferred comes back cold and by a detour.

use std::hint::black_box;

use super::support::random::Random;

/// How many blocks each of the requests has.
pub(crate) struct Set {
    pub(crate) key: &'static str,
    pub(crate) n_blocks: usize,
}

pub(crate) const SETS: [Set; 5] = [
    Set { key: "set100", n_blocks: 100 },
    Set { key: "set200", n_blocks: 200 },
    Set { key: "set500", n_blocks: 500 },
    Set { key: "set2000", n_blocks: 2000 },
    Set { key: "set8000", n_blocks: 8000 },
];

/// Sizes of a request's blocks: 16 to 512 bytes, small ones more often.
const SMALLEST: usize = 16;
const LARGEST: usize = 512;

pub(crate) fn requests(n_requests: usize, n_set: usize) {
    let mut random = Random(1);
    let mut set: Vec<Vec<u8>> = Vec::with_capacity(n_set);
    for _ in 0..n_requests {
        for i in 0..n_set {
            let size = random.size(SMALLEST, LARGEST);
            let mut block = Vec::with_capacity(size);
            block.resize(size.min(64), i as u8);
            set.push(block);
        }
        // Not in the order in which they were made.
        random.shuffle(&mut set);
        black_box(&set);
        set.clear();
    }
}
