//! The block sizes that disks can be told to have (`logical_block_size=`, `physical_block_size=`).

/// Sizes in bytes.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=2 << 20;

/// Why a disk can't have these block sizes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockSizeError {
    /// Out of range.
    #[error("Property .{name} doesn't take value {size} (minimum: 512, maximum: 2097152)")]
    Range {
        /// The property.
        name: &'static str,
        /// The value.
        size: u32,
    },
    /// No power of two.
    #[error("Property .{name} doesn't take value '{size}', it's not a power of 2")]
    Power {
        /// The property.
        name: &'static str,
        /// The value.
        size: u32,
    },
    /// Physical blocks smaller than logical ones.
    #[error("logical_block_size > physical_block_size not supported")]
    Order,
}

/// Whether a disk can have blocks of these sizes, in bytes.
///
/// # Errors
/// Says what is wrong with the first size that is wrong.
pub(crate) fn check(logical: u32, physical: u32) -> Result<(), BlockSizeError> {
    for (name, size) in [("logical_block_size", logical), ("physical_block_size", physical)] {
        if !BLOCK_SIZES.contains(&size) {
            return Err(BlockSizeError::Range { name, size });
        }
        if !size.is_power_of_two() {
            return Err(BlockSizeError::Power { name, size });
        }
    }
    if physical < logical { Err(BlockSizeError::Order) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_two_in_order() {
        assert_eq!(check(512, 4096), Ok(()));
        assert_eq!(check(2 << 20, 2 << 20), Ok(()));
        assert_eq!(check(4096, 512), Err(BlockSizeError::Order));
        let range = |name, size| Err(BlockSizeError::Range { name, size });
        assert_eq!(check(0, 512), range("logical_block_size", 0));
        assert_eq!(check(512, 4 << 20), range("physical_block_size", 4 << 20));
        let power = BlockSizeError::Power { name: "physical_block_size", size: 1000 };
        assert_eq!(check(512, 1000), Err(power));
    }
}
