//! USB host controllers and devices.

use super::Driver;

/// The kinds of this topic.
pub(super) const DRIVERS: &[Driver] = &[];
