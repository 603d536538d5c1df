//! Model-specific registers.

/// Registers that the CPU keeps itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Msrs {}
