//! PLACEHOLDER
#[derive(Clone, Debug)]
/// PLACEHOLDER
pub enum ChardevSpec {}
