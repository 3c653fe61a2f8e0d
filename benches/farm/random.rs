//! Random numbers that are the same in every run.

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct Random(u64);

impl Random {
    /// The generator of one branch or user: the `number`th of this `kind`.
    pub fn new(seed: u64, kind: u64, number: u64) -> Self {
        let mut random = Random(seed);
        for part in [kind, number] {
            random = Random(random.next() ^ part);
        }
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Above 0, at most 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() <= probability
    }

    /// The time to the next event of a Poisson process, with this mean. In whole microseconds, because the last digits
    /// of a logarithm are not the same on all machines.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        (-self.unit().ln() * mean * 1e6).round() / 1e6
    }

    /// A rank below `count`, by Zipf's law: rank n (from 0) has the weight 1/(n + 1).
    pub fn rank(&mut self, count: usize) -> usize {
        let weight = |rank: usize| 1.0 / (rank + 1) as f64;
        let total: f64 = (0..count).map(weight).sum();
        let mut left = self.unit() * total;
        for rank in 0..count {
            left -= weight(rank);
            if left <= 0.0 {
                return rank;
            }
        }
        count - 1
    }
}
