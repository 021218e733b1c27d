//! Bytes that look random and are the same in every run, on every machine.

use blake3::{Hasher, OutputReader};

/// A stream of such bytes, named by what it is for.
#[derive(Debug)]
pub struct Random(OutputReader);

impl Random {
    /// The stream of that name.
    pub fn new(name: &str) -> Self {
        Self(
            Hasher::new_derive_key("palisade-bench 2024-01-25")
                .update(name.as_bytes())
                .finalize_xof(),
        )
    }

    /// The next bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    /// The next `count` bytes as hexadecimal digits.
    pub fn hex(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes);
        hex::encode(bytes)
    }

    /// A number from `from` up to but not including `to`; `from` for an empty range.
    pub fn within(&mut self, from: u64, to: u64) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        // The bias of a remainder does not matter for ranges this small.
        from + u64::from_le_bytes(bytes) % to.saturating_sub(from).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_same_each_time_and_differs_by_name() {
        let of = |name| Random::new(name).hex(16);
        assert_eq!(of("a"), of("a"));
        assert_ne!(of("a"), of("b"));
    }

    #[test]
    fn numbers_stay_within_their_range() {
        let mut random = Random::new("numbers");
        assert!((0..1000).all(|_| (3..7).contains(&random.within(3, 7))));
        assert_eq!(random.within(5, 5), 5);
    }
}
