//! Which part of a dimension belongs to which rank, without a layout.

use super::RankError;
use std::ops::Range;

/// The part of a dimension of `dim` elements that `rank` of `world` ranks gets: the rule of `numpy.array_split`. The parts
/// follow one another, and the first `dim % world` of them have one element more than the others. Parts are empty where there are more ranks
/// than elements.
///
/// # Errors
///
/// [`RankError::OutOfRange`]: `rank` is not below `world`.
///
/// ```
/// use safetensors_lazy::format::split_range;
///
/// let parts: Vec<_> = (0..4).map(|rank| split_range(10, rank, 4)).collect::<Result<_, _>>()?;
/// assert_eq!(parts, [0..3, 3..6, 6..8, 8..10]);
/// # Ok::<(), safetensors_lazy::format::RankError>(())
/// ```
pub fn split_range(dim: u64, rank: u32, world: u32) -> Result<Range<u64>, RankError> {
    let (rank, world) = (u64::from(rank), u64::from(world));
    if rank >= world {
        return Err(RankError::OutOfRange { rank, world });
    }
    // There is a rank, so `world` is not 0. No start is beyond `dim`: nothing can overflow.
    let (len, longer) = (dim / world, dim % world);
    let start = rank * len + rank.min(longer);
    Ok(start..start + len + u64::from(rank < longer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(dim: u64, world: u32) -> Vec<Range<u64>> {
        (0..world).map(|rank| split_range(dim, rank, world).unwrap()).collect()
    }

    #[test]
    fn split_range_gives_the_first_ranks_one_more() {
        assert_eq!(parts(8, 4), [0..2, 2..4, 4..6, 6..8]);
        assert_eq!(parts(10, 4), [0..3, 3..6, 6..8, 8..10]);
        assert_eq!(parts(7, 1), [0..7]);
    }

    #[test]
    fn split_range_of_less_than_the_ranks() {
        assert_eq!(parts(2, 4), [0..1, 1..2, 2..2, 2..2]);
        assert_eq!(parts(0, 3), [0..0, 0..0, 0..0]);
    }

    #[test]
    fn split_range_of_the_largest_numbers() {
        const MAX: u64 = u64::MAX;
        assert_eq!(split_range(MAX, 0, 1), Ok(0..MAX));
        assert_eq!(split_range(MAX, 1, 2), Ok(1 << 63..MAX));
        // 2^64 - 1 is 2^32 + 1 times 2^32 - 1.
        assert_eq!(split_range(MAX, u32::MAX - 1, u32::MAX), Ok(MAX - (1 << 32) - 1..MAX));
        assert_eq!(split_range(MAX - 1, u32::MAX - 1, u32::MAX), Ok(MAX - 1 - (1 << 32)..MAX - 1));
    }

    #[test]
    fn split_range_refuses_ranks_that_are_not_there() {
        for (rank, world) in [(0, 0), (1, 1), (4, 4), (u32::MAX, 4), (u32::MAX, u32::MAX), (1, 0)] {
            let refused = RankError::OutOfRange { rank: rank.into(), world: world.into() };
            assert_eq!(split_range(10, rank, world), Err(refused));
        }
    }
}
