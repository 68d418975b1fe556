//! Numbers for tests, at random and the same in every run.

/// xorshift (Marsaglia 2003).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// Those of tests that need no others.
    pub(crate) const fn new() -> Self {
        Self(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// The place of something among so many.
    pub(crate) fn place(&mut self, count: usize) -> usize {
        usize::try_from(self.next()).unwrap_or(0) % count
    }
}
