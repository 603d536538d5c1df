//! Devices that suites for CPUs and kernels test with; they do nothing for an operating system.
//!
//! - [`PcTestDev`]: ports and memory to be accessed in all sizes, and interrupt lines to be driven.
//! - [`PciTestDev`]: BARs that count writes.
//! - [`HyperVTestDev`]: synthetic interrupts, messages and events of Hyper-V.
//! - [`Edu`]: a function to learn driver writing with: DMA, MSI, a factorial.

mod edu;
mod hyperv;
mod pc;
mod pci;
#[cfg(test)]
mod tests;

pub use edu::{Edu, EduConfig};
pub use hyperv::HyperVTestDev;
pub use pc::PcTestDev;
pub use pci::PciTestDev;
