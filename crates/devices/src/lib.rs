//! Devices: one folder a family.

pub mod pci;
pub mod virtio;
