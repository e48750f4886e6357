//! What there is to say about one piece, or about all.

/// Counts and sizes of one piece, or their sums over all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    /// Acquired and not yet released.
    pub(crate) pins: u64,
    /// Bytes of pieces that are pinned or kept.
    pub(crate) in_use_bytes: u64,
    /// Bytes of pieces that are held in copies.
    pub(crate) copied_bytes: u64,
    /// Bytes of pieces that are resident or are being read: what counts against the budget.
    pub(crate) charged_bytes: u64,
    /// Acquired when resident.
    pub(crate) hits: u64,
    /// Made resident. A piece is resident if this exceeds `evictions`.
    pub(crate) misses: u64,
    /// Evicted, for whatever reason.
    pub(crate) evictions: u64,
}

impl Stats {
    pub(super) fn plus(self, other: Stats) -> Stats {
        Stats {
            pins: self.pins.saturating_add(other.pins),
            in_use_bytes: self.in_use_bytes.saturating_add(other.in_use_bytes),
            copied_bytes: self.copied_bytes.saturating_add(other.copied_bytes),
            charged_bytes: self.charged_bytes.saturating_add(other.charged_bytes),
            hits: self.hits.saturating_add(other.hits),
            misses: self.misses.saturating_add(other.misses),
            evictions: self.evictions.saturating_add(other.evictions),
        }
    }
}
