//! Bytes as numbers.

/// What is left of the input. Numbers are small more often than not, and 0 when there is no more.
pub struct Input<'i>(pub &'i [u8]);

impl Input<'_> {
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    pub fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=239 => u64::from(small),
            254 => u64::from_le_bytes(std::array::from_fn(|_| self.byte())),
            255 => u64::MAX,
            shift => 1 << (4 * (shift - 239)),
        }
    }
}
