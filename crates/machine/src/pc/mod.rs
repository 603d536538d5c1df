//! The `pc` machine: i440FX and PIIX3 on PCI.

pub mod boot;
pub mod firmware;
pub mod layout;
