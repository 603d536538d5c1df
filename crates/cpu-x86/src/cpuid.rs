//! CPUID.

/// Family 15, model 107, stepping 1.
pub(crate) const SIGNATURE: u32 = 0x0006_0fb1;
