//! Graphics adapters.

use super::Driver;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[];
