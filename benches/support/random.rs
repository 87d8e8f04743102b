//! Random numbers that are the same in each run.

/// xorshift64*. The seed must not be 0.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to 1, without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Log-uniform: as often between 1 and 2 KiB as between 1 and 2 MiB.
    pub(crate) fn size(&mut self, smallest: usize, largest: usize) -> usize {
        let (smallest, largest) = (smallest as f64, largest as f64);
        (smallest * (largest / smallest).powf(self.unit())) as usize
    }

    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.next() % (i as u64 + 1)) as usize);
        }
    }
}
