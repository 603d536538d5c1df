//! Devices: one folder a family.

pub mod pci;
